package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"weave/driver/host"
)

// maxForwards bounds the exports and imports of one address.
const maxForwards = 256

// Exposure is an address of this host itself on a segment, and what it is for.
type Exposure struct {
	Addr netip.Prefix `json:"addr"` // with the length of its subnet
	// Masquerade lets the containers of the subnet out through this host.
	Masquerade bool           `json:"masquerade,omitempty"`
	Exports    []host.Forward `json:"exports,omitempty"` // from this host's addresses to containers
	Imports    []host.Forward `json:"imports,omitempty"` // from Addr to what this host reaches
}

// exposureRecord is an exposure on disk.
type exposureRecord struct {
	Network string `json:"network"`
	Exposure
}

type exposure struct {
	rec       exposureRecord
	announced bool
	hidden    bool // it is on its way out
}

// ExposedStatus is an exposed address as others may see it.
type ExposedStatus struct {
	Exposure
	Network   string // ID
	Segment   string
	Bridge    string
	MAC       net.HardwareAddr
	Announced bool // told to the other hosts
}

// Exposed returns all exposed addresses, in order.
func (d *Driver) Exposed() []ExposedStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]ExposedStatus, 0, len(d.exposures))
	for _, x := range d.exposures {
		n := d.networks[x.rec.Network].rec
		all = append(all, ExposedStatus{
			Exposure: x.rec.clone(), Network: n.ID, Segment: n.Segment, Bridge: n.Bridge,
			MAC: hostMAC(d.self, n.Segment), Announced: x.announced,
		})
	}
	slices.SortFunc(all, func(a, b ExposedStatus) int { return a.Addr.Addr().Compare(b.Addr.Addr()) })
	return all
}

func (e Exposure) clone() Exposure {
	e.Exports, e.Imports = slices.Clone(e.Exports), slices.Clone(e.Imports)
	return e
}

// check refuses what makes no sense on a network with these subnets.
func (e Exposure) check(subnets []netip.Prefix) error {
	if !slices.Contains(subnets, e.Addr.Masked()) {
		return fmt.Errorf("address %s is not of the network's subnets %s", e.Addr, subnets)
	}
	if len(e.Exports) > maxForwards || len(e.Imports) > maxForwards {
		return fmt.Errorf("more than %d exports or imports", maxForwards)
	}
	for _, x := range e.Exports {
		if err := checkForward(x, e.Exports); err != nil {
			return fmt.Errorf("export %w", err)
		}
		if !e.Addr.Masked().Contains(x.To.Addr()) || x.To.Addr() == e.Addr.Addr() {
			return fmt.Errorf("export to %s: want the address of a container in %s", x.To, e.Addr.Masked())
		}
	}
	for _, x := range e.Imports {
		if err := checkForward(x, e.Imports); err != nil {
			return fmt.Errorf("import %w", err)
		}
		if to := x.To.Addr(); to.Is4() != e.Addr.Addr().Is4() || to.IsLoopback() || to.IsUnspecified() || to.IsMulticast() || to.Zone() != "" ||
			e.Addr.Masked().Contains(to) {
			return fmt.Errorf("import from %s: want an address outside %s that this host reaches, and none of loopback", x.To, e.Addr.Masked())
		}
	}
	return nil
}

// checkForward refuses what is not complete, or is one of two for a port.
func checkForward(x host.Forward, among []host.Forward) error {
	if x.Protocol != "tcp" && x.Protocol != "udp" || x.Port == 0 || !x.To.IsValid() || x.To.Port() == 0 || x.To.Addr().Is4In6() {
		return fmt.Errorf("of port %d/%.8s to %s: want a port of tcp or udp, and where it goes", x.Port, x.Protocol, x.To)
	}
	for _, other := range among {
		if other != x && samePort(other, x) {
			return fmt.Errorf("of port %d/%s: it goes to %s already", x.Port, x.Protocol, other.To)
		}
	}
	return nil
}

func samePort(a, b host.Forward) bool { return a.Port == b.Port && a.Protocol == b.Protocol }

// Expose gives this host an address on a network's segment, or changes what one
// is for. The caller sees to it that nobody else gets the address. After an error
// all is as before.
func (d *Driver) Expose(ctx context.Context, networkID string, e Exposure) error {
	if err := d.expose(ctx, networkID, exposureRecord{networkID, e.clone()}); err != nil {
		return fmt.Errorf("expose %s: %w", e.Addr, err)
	}
	return nil
}

func (d *Driver) expose(ctx context.Context, networkID string, rec exposureRecord) error {
	n, err := d.seize(networkID)
	if err != nil {
		return err
	}
	defer n.op.Unlock()
	old, err := d.checkExposure(n, rec)
	if err != nil {
		return err
	}
	if !n.up {
		if err := d.revive(ctx, n); err != nil {
			return err
		}
	}
	if err := save(d.store, exposureBucket, rec.Addr.String(), rec); err != nil {
		return err
	}
	next := &exposure{rec: rec}
	if old != nil {
		next.announced = old.announced
	}
	d.setExposure(rec.Addr, next)
	if err = d.openHost(n); err == nil {
		err = d.announceExposed(n)
	}
	if err != nil {
		err = errors.Join(err, d.takeBack(n, next, old))
	}
	return err
}

// checkExposure refuses what cannot be, and returns what the address is for so
// far, if it is exposed.
func (d *Driver) checkExposure(n *network, rec exposureRecord) (old *exposure, err error) {
	if err := rec.check(n.rec.Subnets); err != nil {
		return nil, err
	}
	d.mu.Lock()
	old = d.exposures[rec.Addr]
	err = d.rivals(rec)
	d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if rec.Masquerade || len(rec.Exports)+len(rec.Imports) > 0 {
		if err := d.checkForwarding(rec.Addr.Addr()); err != nil {
			return nil, err
		}
	}
	if old != nil {
		return old, nil
	}
	if holder, taken := d.fabric.Holder(n.rec.Segment, rec.Addr.Addr()); taken {
		return nil, fmt.Errorf("the address is in use on host %q by %s", holder.Host, holder.describe())
	}
	return nil, d.checkRoutes(&n.rec)
}

// rivals looks for what has the address, or a port, already. d.mu is held.
func (d *Driver) rivals(rec exposureRecord) error {
	for _, e := range d.endpoints {
		if e.rec.Network == rec.Network && e.rec.has(rec.Addr.Addr()) {
			return fmt.Errorf("the address is in use on this host by %s", Holder{Container: e.rec.Container, Endpoint: e.rec.ID}.describe())
		}
	}
	for addr, other := range d.exposures {
		switch {
		case other.rec.Network != rec.Network && other.rec.Addr.Overlaps(rec.Addr):
			return fmt.Errorf("this host has %s on network %s, of another segment", addr, d.describe(other.rec.Network))
		case addr == rec.Addr, addr.Addr().Is4() != rec.Addr.Addr().Is4(): // the families have their ports apart
			continue
		}
		for _, x := range rec.Exports {
			if slices.ContainsFunc(other.rec.Exports, func(y host.Forward) bool { return samePort(x, y) }) {
				return fmt.Errorf("port %d/%s of this host is exported by %s already", x.Port, x.Protocol, addr)
			}
		}
	}
	return nil
}

func (d *Driver) checkForwarding(addr netip.Addr) error {
	on, err := d.kernel.Forwards(addr)
	if err == nil && !on {
		family, setting := "IPv4", "net.ipv4.ip_forward"
		if addr.Is6() {
			family, setting = "IPv6", "net.ipv6.conf.all.forwarding"
		}
		err = fmt.Errorf("this host forwards no %s packets: set %s to 1, with sysctl", family, setting)
	}
	return err
}

// openHost brings firewall and bridge into the state that the network's exposures
// need, in this order: what the bridge lets in meets the rules that bound it.
// n.op is held.
func (d *Driver) openHost(n *network) error {
	if _, err := d.EnsureFirewall(); err != nil {
		return err
	}
	return d.kernel.EnsureBridge(d.bridge(n, n.rec.MTU))
}

// takeBack undoes what expose did: the exposure is as it was, or not there.
// n.op is held.
func (d *Driver) takeBack(n *network, next, old *exposure) error {
	addr := next.rec.Addr
	if old == nil {
		return d.hide(n, next)
	}
	d.setExposure(addr, old)
	return errors.Join(save(d.store, exposureBucket, addr.String(), old.rec), d.openHost(n))
}

// Hide takes an exposed address back, and returns what it was for. That it is not
// exposed is success. When it fails, it can be repeated.
func (d *Driver) Hide(addr netip.Prefix) (Exposure, error) {
	d.mu.Lock()
	x := d.exposures[addr]
	d.mu.Unlock()
	if x == nil {
		return Exposure{}, nil
	}
	n, err := d.seize(x.rec.Network)
	if err != nil {
		return Exposure{}, nil //nolint:nilerr // the address went with its network
	}
	defer n.op.Unlock()
	d.mu.Lock()
	x = d.exposures[addr]
	d.mu.Unlock()
	if x == nil {
		return Exposure{}, nil
	}
	if err := d.hide(n, x); err != nil {
		return Exposure{}, fmt.Errorf("hide %s: %w", addr, err)
	}
	return x.rec.Exposure, nil
}

// hide is the reverse of expose. n.op is held.
func (d *Driver) hide(n *network, x *exposure) error {
	if err := d.withdrawExposure(x); err != nil {
		return err
	}
	if n.up {
		if err := d.openHost(n); err != nil {
			return err
		}
	}
	return d.forgetExposure(x)
}

// withdrawExposure has the others forget an exposed address, and this host on its
// next look. Its network's op is held.
func (d *Driver) withdrawExposure(x *exposure) error {
	if err := d.fabric.Withdraw(x.endpointID()); err != nil {
		return fmt.Errorf("withdraw: %w", err)
	}
	d.mu.Lock()
	x.announced, x.hidden = false, true
	d.mu.Unlock()
	return nil
}

func (d *Driver) forgetExposure(x *exposure) error {
	if err := erase(d.store, exposureBucket, x.rec.Addr.String()); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.exposures, x.rec.Addr)
	d.mu.Unlock()
	return nil
}

// dropExposures forgets what is exposed on a network that goes, and returns it.
// The address goes with the bridge. n.op is held.
func (d *Driver) dropExposures(n *network) (lost []Exposure, err error) {
	for _, x := range d.exposuresOf(n) {
		if err := d.withdrawExposure(x); err != nil {
			return lost, err
		}
		if err := d.forgetExposure(x); err != nil {
			return lost, err
		}
		lost = append(lost, x.rec.Exposure)
	}
	return lost, nil
}

// announceExposed tells the other hosts about the network's exposed addresses.
// n.op is held.
func (d *Driver) announceExposed(n *network) error {
	for _, x := range d.exposuresOf(n) {
		if x.announced || x.hidden {
			continue
		}
		err := d.fabric.Announce(Endpoint{
			ID: x.endpointID(), Segment: n.rec.Segment, MAC: hostMAC(d.self, n.rec.Segment), Addrs: []netip.Prefix{x.rec.Addr}, OfHost: true,
		})
		if err != nil {
			return fmt.Errorf("announce %s on segment %s: %w", x.rec.Addr, n.rec.Segment, err)
		}
		d.mu.Lock()
		x.announced = true
		d.mu.Unlock()
	}
	return nil
}

// endpointID is under which the others know an exposed address; no endpoint of
// Docker's is called so.
func (x *exposure) endpointID() string { return "host-" + x.rec.Addr.Addr().String() }

func (d *Driver) setExposure(addr netip.Prefix, x *exposure) {
	d.mu.Lock()
	d.exposures[addr] = x
	d.mu.Unlock()
}

func (d *Driver) exposuresOf(n *network) []*exposure {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Collect(maps.Values(d.exposures)), func(x *exposure) bool { return x.rec.Network != n.rec.ID })
}

// bridge is what a network's bridge is to be like.
func (d *Driver) bridge(n *network, mtu int) host.Bridge {
	b := host.Bridge{Name: n.rec.Bridge, MTU: mtu, MAC: hostMAC(d.self, n.rec.Segment)}
	for _, x := range d.exposuresOf(n) {
		if !x.hidden {
			b.Addrs = append(b.Addrs, x.rec.Addr)
		}
	}
	slices.SortFunc(b.Addrs, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return b
}

// hostExposed lists the exposed addresses for the firewall. d.mu is held.
func (d *Driver) hostExposed() (all []host.Exposed) {
	for _, x := range d.exposures {
		if n := d.networks[x.rec.Network]; n != nil && !x.hidden {
			all = append(all, host.Exposed{
				Bridge: n.rec.Bridge, MAC: hostMAC(d.self, n.rec.Segment), Addr: x.rec.Addr,
				Masquerade: x.rec.Masquerade, Exports: slices.Clone(x.rec.Exports), Imports: slices.Clone(x.rec.Imports),
			})
		}
	}
	return all
}

// seize finds a network and keeps all others from it until the caller unlocks op.
func (d *Driver) seize(id string) (*network, error) {
	n, err := d.hold(id)
	if err != nil {
		return nil, err
	}
	n.op.RUnlock()
	n.op.Lock()
	if n.gone {
		n.op.Unlock()
		return d.seize(id)
	}
	return n, nil
}
