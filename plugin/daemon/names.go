package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"weave/driver"
	"weave/plugin/config"
	"weave/plugin/control"
	"weave/plugin/dns"
	"weave/plugin/names"
	"weave/plugin/sandbox"
)

// naming is all that lets containers find each other by name. All of it is set by
// newNaming and never changed, but for scopes, others and listening.
type naming struct {
	names  *names.Names
	server *dns.Server
	keeper *sandbox.Keeper
	driver sandboxes
	cfg    config.Config
	joined chan struct{} // see bell: endpoints or networks of this host have changed

	scopes    atomic.Pointer[map[string][]dns.Scope] // what each sandbox may see, by path
	others    atomic.Pointer[[]dns.Scope]            // what those may see who ask on an address of the host
	listening atomic.Bool                            // others are answered, too
}

// sandboxes is what naming needs of the driver.
type sandboxes interface {
	Networks() []driver.NetworkStatus
	Endpoints() []driver.EndpointStatus
}

// bell is rung when something may have changed: who waits for it looks once, however
// often it was rung.
type bell chan struct{}

func newBell() bell { return make(bell, 1) }

func (b bell) ring() {
	select {
	case b <- struct{}{}:
	default: // it rings already
	}
}

// newNaming loads the names of the run before, so that they are told before the first
// peer hears of this run.
func (d *daemon) newNaming(p *parts) (*naming, error) {
	n := &naming{driver: p.driver, cfg: d.cfg, joined: p.joined}
	table := &dns.Table{}
	var err error
	n.names, err = names.New(names.Config{
		Self: p.identity.ID, Mesh: p.node, Driver: p.driver, Engine: p.engine, Store: p.store,
		Table: table, Domain: d.cfg.DNSDomain, Changed: p.told,
		Trouble: func(err error) { d.note("learn the names of containers", err) }, Log: d.log,
	})
	if err != nil {
		return nil, err
	}
	n.server = dns.New(dns.Config{Table: table, Domain: d.cfg.DNSDomain, TTL: d.cfg.DNSTTL})
	n.keeper = sandbox.NewKeeper(n.serve, d.log)
	n.look()
	return n, nil
}

// serve answers what the containers of a sandbox ask.
func (n *naming) serve(ctx context.Context, path string, s *sandbox.Sandbox) error {
	return n.server.Serve(ctx, dns.Door{
		UDP: s.UDP(), TCP: s.TCP(), Upstream: s.Dial,
		Scopes: func() []dns.Scope { return (*n.scopes.Load())[path] },
	})
}

// watch has the sandboxes open that are wanted, until ctx ends.
func (n *naming) watch(ctx context.Context) error {
	for {
		n.look()
		select {
		case <-ctx.Done():
			return nil
		case <-n.joined:
		}
	}
}

// look finds out which sandboxes there are and what each may see, and others. One on
// networks without names only is left alone. Who answers looks at what was found, and
// so does not wait for the driver.
func (n *naming) look() {
	all, networks := n.driver.Networks(), map[string]driver.NetworkStatus{}
	others := n.toOthers(all)
	n.others.Store(&others)
	for _, x := range all {
		if x.DNS != driver.DNSOff {
			networks[x.ID] = x
		}
	}
	scopes := map[string][]dns.Scope{}
	for _, e := range n.driver.Endpoints() {
		x, on := networks[e.Network]
		if !e.Joined || !on {
			continue
		}
		path := sandboxPath(n.cfg.Run, e.Sandbox)
		if scopes[path] == nil {
			scopes[path] = []dns.Scope{{}} // names that were made by hand for all segments
		}
		scopes[path] = append(scopes[path], dns.Scope{Segment: x.Segment, LocalFirst: x.DNS == driver.DNSLocalFirst})
	}
	n.scopes.Store(&scopes)
	n.keeper.Want(slices.Collect(maps.Keys(scopes)))
}

// sandboxPath is where we find a sandbox that dockerd finds at key: the host's /run
// may be elsewhere to us.
func sandboxPath(run, key string) string {
	key = filepath.Clean(key)
	for _, dir := range []string{"/var/run/", "/run/"} {
		if rel, ok := strings.CutPrefix(key, dir); ok {
			return filepath.Join(run, rel)
		}
	}
	return key
}

// answerOthers answers names on an address of the host, if one is set.
func (d *daemon) answerOthers(ctx context.Context, n *naming) error {
	listen := d.cfg.DNSListen
	if !listen.IsValid() {
		return nil
	}
	for ctx.Err() == nil {
		var door dns.Door
		if d.persist(ctx, "answer names on "+listen.String(), func() (err error) {
			door, err = openDoor(ctx, listen)
			return err
		}) != nil {
			return nil // ctx ended
		}
		door.Scopes = func() []dns.Scope { return *n.others.Load() }
		n.listening.Store(true)
		err := n.server.Serve(ctx, door)
		n.listening.Store(false)
		if err != nil && ctx.Err() == nil {
			d.log.WithError(err).Warn("names are not answered to others for a moment")
			select {
			case <-ctx.Done():
			case <-time.After(retryEvery):
			}
		}
	}
	return nil
}

func openDoor(ctx context.Context, listen netip.AddrPort) (dns.Door, error) {
	var l net.ListenConfig
	udp, err := l.ListenPacket(ctx, "udp", listen.String())
	if err != nil {
		return dns.Door{}, doorError{err}
	}
	tcp, err := l.Listen(ctx, "tcp", listen.String())
	if err != nil {
		return dns.Door{}, doorError{errors.Join(err, udp.Close())}
	}
	return dns.Door{UDP: udp, TCP: tcp}, nil
}

// doorError is why names are not answered on an address of the host.
type doorError struct{ error }

func (e doorError) Unwrap() error { return e.error }

// toOthers is what those see who ask on an address of a host with these networks.
func (n *naming) toOthers(networks []driver.NetworkStatus) []dns.Scope {
	scopes := []dns.Scope{{}}
	for _, s := range n.cfg.DNSSegments {
		scopes = append(scopes, dns.Scope{Segment: segmentKey(s)})
	}
	if len(n.cfg.DNSSegments) == 0 {
		for _, x := range networks {
			scopes = append(scopes, dns.Scope{Segment: x.Segment})
		}
	}
	return scopes
}

// segmentKey is the key of the segment that a person names by its subnet, or by what
// weave.segment was set to.
func segmentKey(s string) string {
	if subnet, err := netip.ParsePrefix(s); err == nil {
		return subnet.String()
	}
	return "name:" + s
}

// status tells of names.
func (n *naming) status() *control.DNS {
	out := &control.DNS{Domain: n.cfg.DNSDomain, TTL: int(n.cfg.DNSTTL / time.Second), Sandboxes: len(*n.scopes.Load())}
	if n.listening.Load() {
		out.Listen = n.cfg.DNSListen
	}
	out.Questions = control.Questions(n.server.Counts())
	for _, x := range n.names.List() {
		out.Names = append(out.Names, control.Name{
			Name: x.Name, Address: x.Addr, Segment: x.Segment, Container: x.Container,
			Host: x.Host, Peer: x.Peer.String(), Local: x.Local, Made: x.Made,
		})
	}
	return out
}

// AddName implements control.Daemon.
func (d *daemon) AddName(_ context.Context, r control.NameRequest) error {
	return d.changeName(r, (*names.Names).Add)
}

// RemoveName implements control.Daemon.
func (d *daemon) RemoveName(_ context.Context, r control.NameRequest) error {
	return d.changeName(r, (*names.Names).Remove)
}

func (d *daemon) changeName(r control.NameRequest, change func(*names.Names, names.Made) error) error {
	p := d.parts.Load()
	if p == nil {
		return d.notReady()
	}
	n := p.naming
	m := names.Made{Name: r.Name, Addrs: r.Addresses}
	if r.Network != "" {
		var err error
		if m.Segment, err = p.segmentOf(r.Network); err != nil {
			return err
		}
	}
	err := change(n.names, m)
	if errors.Is(err, names.ErrNotHere) {
		name, _ := names.Canonical(r.Name, d.cfg.DNSDomain)
		for _, x := range n.names.List() {
			if x.Made && x.Name == name && x.Peer != p.identity.ID {
				return fmt.Errorf("%w; host %s has it: remove it there", err, x.Host)
			}
		}
	}
	return err
}

// segmentOf returns the segment of a network, by name, ID or the start of one, or by
// subnet.
func (p *parts) segmentOf(network string) (string, error) {
	for _, x := range p.driver.Networks() {
		if x.Name == network || x.ID == network || len(network) >= 12 && strings.HasPrefix(x.ID, network) || x.Segment == segmentKey(network) {
			return x.Segment, nil
		}
	}
	return "", fmt.Errorf("no weave network %.80q on this host", network)
}
