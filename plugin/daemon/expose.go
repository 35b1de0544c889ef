package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"weave/driver"
	"weave/driver/host"
	"weave/ipam"
	"weave/plugin/control"
)

// nameLimit is how long the names of networks may take that an answer is to have.
const nameLimit = 2 * time.Second

// exposing gives this host addresses on segments: it leases them, and has the
// driver use them. All fields but those below mu are set once.
type exposing struct {
	allocator leaser
	driver    exposeKeeper
	holder    func(segment string, addr netip.Addr) (driver.Holder, bool) // on another host
	names     *networkNames
	engine    networkSource // for names that were not heard yet
	log       *logrus.Entry

	mu sync.Mutex // held over one change of what is exposed

	gone     sync.Mutex
	lostWith map[netip.Prefix]string // addresses that went with a network, which is named; guarded by gone
}

// exposeKeeper is what exposing needs of the driver.
type exposeKeeper interface {
	addressBook
	Expose(ctx context.Context, networkID string, e driver.Exposure) error
	Hide(addr netip.Prefix) (driver.Exposure, error)
}

// Expose implements control.Daemon.
func (d *daemon) Expose(ctx context.Context, r control.ExposeRequest) ([]control.Exposed, error) {
	p := d.parts.Load()
	if p == nil {
		return nil, d.notReady()
	}
	return p.exposing.expose(ctx, r)
}

// Hide implements control.Daemon.
func (d *daemon) Hide(ctx context.Context, targets []control.Target) ([]control.Exposed, error) {
	p := d.parts.Load()
	if p == nil {
		return nil, d.notReady()
	}
	return p.exposing.hide(ctx, targets)
}

// place is where an address is to be exposed.
type place struct {
	control.Target
	network driver.NetworkStatus
	poolID  string
}

// expose looks at all before it changes anything, and undoes what it did when a
// later part fails.
func (x *exposing) expose(ctx context.Context, r control.ExposeRequest) ([]control.Exposed, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var places []place
	for _, t := range r.Targets {
		p, err := x.find(t)
		if err != nil {
			return nil, fmt.Errorf("expose %s: %w", t, err)
		}
		places = append(places, p)
	}
	var addrs []netip.Prefix
	var undo []func() error
	for _, p := range places {
		addr, back, err := x.exposeAt(ctx, p, r)
		if err != nil {
			for _, u := range slices.Backward(undo) {
				err = errors.Join(err, u())
			}
			return nil, err
		}
		addrs, undo = append(addrs, addr), append(undo, back)
		x.forget(addr)
	}
	x.learnNames(ctx, places)
	all := x.status()
	out := make([]control.Exposed, 0, len(addrs))
	for _, addr := range addrs {
		i := slices.IndexFunc(all, func(e control.Exposed) bool { return e.Address == addr })
		if i < 0 {
			return nil, fmt.Errorf("expose %s: its network was removed meanwhile", addr)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// learnNames asks for the names of networks that have just been made. Docker waits
// for no answer of ours here; without its own, the reconciler asks again.
func (x *exposing) learnNames(ctx context.Context, places []place) {
	ctx, cancel := context.WithTimeout(ctx, nameLimit)
	defer cancel()
	for _, p := range places {
		if x.names.network(p.network.ID) != "" {
			continue
		}
		if known, err := x.engine.NetworkByID(ctx, p.network.ID); err == nil {
			x.names.set(known.ID, known.Name)
		}
	}
}

// find returns the network of a subnet, and the pool that its addresses are
// leased from.
func (x *exposing) find(t control.Target) (place, error) {
	p := place{Target: t}
	var names []string
	for _, n := range x.driver.Networks() {
		if slices.Contains(n.Subnets, t.Subnet) {
			p.network, names = n, append(names, networkName(n))
		}
	}
	switch {
	case len(names) == 0:
		family := ""
		if t.Subnet.Addr().Is6() {
			family = "--ipv6 "
		}
		return p, fmt.Errorf("no weave network of this host has subnet %s: make one with docker network create -d weave --ipam-driver weave %s--subnet %[1]s NAME", t.Subnet, family)
	case len(names) > 1:
		return p, fmt.Errorf("networks %s all have subnet %s: this host can have an address on one of several segments with the same subnet only if the others are not here", strings.Join(names, ", "), t.Subnet)
	}
	for _, s := range x.allocator.Status() {
		for _, h := range s.Handles {
			if s.Pool == t.Subnet && (p.poolID == "" || h.ID == t.Subnet.String()) {
				p.poolID = h.ID
			}
		}
	}
	if p.poolID == "" {
		return p, fmt.Errorf("network %s has its addresses from elsewhere, so one for this host cannot be kept free: make it with --ipam-driver weave", names[0])
	}
	return p, nil
}

func networkName(n driver.NetworkStatus) string {
	if n.Name != "" {
		return n.Name
	}
	return n.ID[:min(len(n.ID), 12)]
}

// exposeAt exposes one address, or adds to what one that is exposed is for. It
// also returns how to undo that.
func (x *exposing) exposeAt(ctx context.Context, p place, r control.ExposeRequest) (netip.Prefix, func() error, error) {
	for _, e := range x.driver.Exposed() {
		if e.Network != p.network.ID || e.Addr.Masked() != p.Subnet || p.Address.IsValid() && e.Addr.Addr() != p.Address {
			continue
		}
		before := e.Exposure
		back := func() error { return x.driver.Expose(context.WithoutCancel(ctx), p.network.ID, before) }
		return e.Addr, back, x.driver.Expose(ctx, p.network.ID, added(before, r))
	}
	addr, err := x.allocator.RequestAddress(ctx, ipam.AddressRequest{PoolID: p.poolID, Address: p.Address, Kind: ipam.KindLease})
	if err != nil {
		return addr, nil, fmt.Errorf("expose %s: %w", p.Target, x.nameHolder(err, p))
	}
	back := func() error {
		_, err := x.driver.Hide(addr)
		return errors.Join(err, x.release(context.WithoutCancel(ctx), addr))
	}
	if err := x.driver.Expose(ctx, p.network.ID, added(driver.Exposure{Addr: addr}, r)); err != nil {
		return addr, nil, errors.Join(err, x.release(context.WithoutCancel(ctx), addr))
	}
	x.log.WithFields(logrus.Fields{"addr": addr, "network": p.network.ID}).Info("address of this host exposed")
	return addr, back, nil
}

// added is an exposure with what a request adds to it.
func added(e driver.Exposure, r control.ExposeRequest) driver.Exposure {
	add := func(to []host.Forward, all []control.Forward) []host.Forward {
		to = slices.Clone(to)
		for _, f := range all {
			if f := host.Forward(f); !slices.Contains(to, f) {
				to = append(to, f)
			}
		}
		return to
	}
	e.Masquerade = e.Masquerade || r.Masquerade
	e.Exports, e.Imports = add(e.Exports, r.Exports), add(e.Imports, r.Imports)
	return e
}

// nameHolder makes a refusal say who has the address, as far as that is known.
func (x *exposing) nameHolder(refusal error, p place) error {
	if !errors.Is(refusal, ipam.ErrInUse) {
		return refusal
	}
	for _, e := range x.driver.Endpoints() {
		if e.Network == p.network.ID && e.Container != "" &&
			slices.ContainsFunc(e.Addrs, func(a netip.Prefix) bool { return a.Addr() == p.Address }) {
			return fmt.Errorf("it is in use by container %q on this host; choose another", e.Container)
		}
	}
	switch holder, ok := x.holder(p.network.Segment, p.Address); {
	case ok && holder.OfHost:
		return fmt.Errorf("it is in use by host %q itself; choose another", holder.Host)
	case ok && holder.Container != "":
		return fmt.Errorf("it is in use by container %q on host %q; choose another", holder.Container, holder.Host)
	}
	return refusal
}

// release gives a lease back, unless the driver goes on using the address, or a
// container has it.
func (x *exposing) release(ctx context.Context, addr netip.Prefix) error {
	for _, l := range x.allocator.Leases() {
		if l.Addr != addr.Addr() || l.Pool != addr.Masked() || l.Kind != ipam.KindLease || isExposed(x.driver.Exposed(), l) ||
			slices.ContainsFunc(x.driver.Endpoints(), func(e driver.EndpointStatus) bool { return holds(e, l) }) {
			continue
		}
		if err := x.allocator.ReleaseAddress(ctx, l.PoolID, l.Addr); err != nil {
			return fmt.Errorf("give back address %s: %w", l.Addr, err)
		}
	}
	return nil
}

// hide takes addresses back, all if there are no targets.
func (x *exposing) hide(ctx context.Context, targets []control.Target) ([]control.Exposed, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := x.status()
	var out []control.Exposed
	for _, t := range targets {
		found := x.settleLost(t)
		for _, e := range all {
			if e.Address.Masked() == t.Subnet && (!t.Address.IsValid() || t.Address == e.Address.Addr()) {
				out, found = append(out, e), true
			}
		}
		if !found {
			return nil, fmt.Errorf("hide %s: this host does not have it%s", t, listOf(all))
		}
	}
	if len(targets) == 0 {
		out = all
		x.forgetAll()
	}
	var errs []error
	for _, e := range out {
		if _, err := x.driver.Hide(e.Address); err != nil {
			errs = append(errs, err)
			continue
		}
		x.log.WithField("addr", e.Address).Info("exposed address hidden")
		errs = append(errs, x.release(ctx, e.Address))
	}
	return out, errors.Join(errs...)
}

func listOf(all []control.Exposed) string {
	if len(all) == 0 {
		return ": nothing is exposed"
	}
	addrs := make([]string, len(all))
	for i, e := range all {
		addrs[i] = e.Address.String()
	}
	return "; exposed are " + strings.Join(addrs, ", ")
}

// status lists what is exposed.
func (x *exposing) status() (all []control.Exposed) {
	networks := x.driver.Networks()
	forwards := func(list []host.Forward) (out []control.Forward) {
		for _, f := range list {
			out = append(out, control.Forward(f))
		}
		return out
	}
	for _, e := range x.driver.Exposed() {
		name := e.Network
		if i := slices.IndexFunc(networks, func(n driver.NetworkStatus) bool { return n.ID == e.Network }); i >= 0 {
			name = networkName(networks[i])
		}
		all = append(all, control.Exposed{
			Address: e.Addr, Segment: e.Segment, Network: name, Bridge: e.Bridge, MAC: e.MAC.String(), Announced: e.Announced,
			Masquerade: e.Masquerade, Exports: forwards(e.Exports), Imports: forwards(e.Imports),
		})
	}
	return all
}

// lose is told by the driver that an address went with its network, which Docker
// removed.
func (x *exposing) lose(network string, e driver.Exposure) {
	name := x.names.network(network)
	if name == "" {
		name = network[:min(len(network), 12)]
	}
	log := x.log.WithFields(logrus.Fields{"addr": e.Addr, "network": network})
	log.Warn("address of this host is no longer exposed: its network was removed")
	x.gone.Lock()
	if x.lostWith == nil {
		x.lostWith = map[netip.Prefix]string{}
	}
	x.lostWith[e.Addr] = name
	x.gone.Unlock()
	if err := x.release(context.Background(), e.Addr); err != nil {
		log.WithError(err).Warn("address that nobody has is still leased")
	}
}

// lost returns the addresses that went with their networks, whose names are
// told, until they are exposed or hidden.
func (x *exposing) lost() map[netip.Prefix]string {
	x.gone.Lock()
	defer x.gone.Unlock()
	out := map[netip.Prefix]string{}
	for addr, network := range x.lostWith {
		out[addr] = network
	}
	return out
}

func (x *exposing) forget(addr netip.Prefix) {
	x.gone.Lock()
	defer x.gone.Unlock()
	delete(x.lostWith, addr)
}

func (x *exposing) forgetAll() {
	x.gone.Lock()
	defer x.gone.Unlock()
	clear(x.lostWith)
}

// settleLost forgets what a target names and went with its network, and tells
// whether there was any.
func (x *exposing) settleLost(t control.Target) (found bool) {
	for addr := range x.lost() {
		if addr.Masked() == t.Subnet && (!t.Address.IsValid() || t.Address == addr.Addr()) {
			x.forget(addr)
			found = true
		}
	}
	return found
}
