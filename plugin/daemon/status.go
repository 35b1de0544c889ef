package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weave/driver"
	"weave/ipam"
	"weave/ipam/ring"
	"weave/mesh"
	"weave/mesh/transport"
	"weave/mesh/wire"
	"weave/plugin/config"
	"weave/plugin/control"
)

// Status implements control.Daemon.
func (d *daemon) Status(context.Context) (control.Status, error) {
	f := d.look()
	s := *f.status
	s.Problems = f.problems()
	return s, nil
}

// look finds out all that there is to tell.
func (d *daemon) look() findings {
	s := control.Status{
		Version: d.version, Protocol: wire.Version, Nickname: d.cfg.Nickname,
		Password: len(d.cfg.Password) > 0, Port: d.cfg.Port, Started: d.started, Service: !d.cfg.Managed,
		Discover: string(d.cfg.Discover), Range: d.cfg.IPAllocRange, DefaultSubnet: ipam.DefaultSubnet(d.cfg.IPAllocRange),
	}
	if !s.Password {
		s.VXLANPort = d.cfg.VXLANPort()
	}
	f := findings{settings: d.problems, status: &s, up: time.Since(d.started)}
	d.mu.Lock()
	f.trouble = maps.Clone(d.trouble)
	d.mu.Unlock()
	if p := d.parts.Load(); p != nil {
		d.describe(&s, p)
		f.failures = p.failures()
		f.waiting = p.waiting()
		f.deaf, f.nameless = p.naming.keeper.Failures(), p.naming.names.Lost()
		f.tcpPort = p.node.TCPTrouble()
		f.lost = p.exposing.lost()
		if lan, ok := p.node.LAN(); ok {
			s.LAN = &control.LAN{Port: mesh.LANPort, Links: lan.Links, Foreign: lan.Foreign}
			f.lan = lan.Trouble
		}
		if blocked := p.blocked.Load(); blocked != nil {
			f.blocked = *blocked
		}
		if unlike := p.unlike.Load(); unlike != nil {
			f.unlike = *unlike
		}
	}
	return f
}

// failures returns why segments carry nothing, by key.
func (p *parts) failures() map[string]string {
	out := map[string]string{}
	for _, x := range p.node.Segments() {
		if x.Stats.Failure != "" {
			out[x.Key] = x.Stats.Failure
		}
	}
	return out
}

// describe fills in what the parts know.
func (d *daemon) describe(s *control.Status, p *parts) {
	s.Peer, s.Address, s.NAT = p.identity.ID.String(), p.addresses[0], string(p.node.NAT())
	endpoints := p.driver.Endpoints()
	now, settled := time.Now(), map[netip.Addr]time.Time{}
	removed := p.allocator.Removed()
	for _, x := range p.node.Peers() {
		if _, gone := removed[ring.Peer(x.ID.String())]; gone && !x.Alive {
			continue
		}
		peer := peerStatus(x)
		if peer.State == control.Up && x.Path.Relayed {
			peer.Via = p.node.Nickname(x.Route.Next)
		}
		s.Peers = append(s.Peers, peer)
		settle(settled, x, now)
	}
	slices.SortFunc(s.Peers, func(a, b control.Peer) int {
		return cmp.Or(cmp.Compare(a.Nickname, b.Nickname), cmp.Compare(a.ID, b.ID))
	})
	for _, x := range p.node.Seeds() {
		s.Seeds = append(s.Seeds, control.Seed{Address: x.Addr, Met: x.Met(), Self: x.Self, Error: x.Error, Tried: x.Tried})
	}
	s.Refusals = refusalStatus(p.node.Refusals(), settled, now, s.Service)
	s.Dropped = p.node.Dropped()
	s.Relayed = p.node.Relayed().Bytes
	s.DNS = p.naming.status()
	s.Segments = p.segmentStatus(d.cfg.Nickname, endpoints)
	s.Exposed = p.exposing.status()
	s.Endpoints = p.endpointStatus(endpoints, s.Exposed)
	containers := map[netip.Prefix]string{} // by address and length of the subnet
	for _, e := range endpoints {
		for _, a := range e.Addrs {
			containers[a] = e.Container
		}
	}
	for _, e := range s.Exposed {
		containers[e.Address] = thisHost
	}
	for _, x := range p.allocator.Status() {
		pool := poolStatus(x, p.identity.ID.String(), containers)
		for _, free := range p.node.Free(x.Pool.String()) {
			pool.FreeElsewhere += min(free, ^uint64(0)-pool.FreeElsewhere)
		}
		s.IPAM = append(s.IPAM, pool)
	}
}

func peerStatus(x mesh.Peer) control.Peer {
	out := control.Peer{
		ID: x.ID.String(), Nickname: x.Nickname, State: control.Down,
		Address: x.Path.Addr, Addresses: x.Path.Candidates, RTT: x.Path.RTT,
		Since: x.Since, Heard: x.Path.LastHeard, NAT: string(x.NAT),
		Sent: x.Path.TxBytes, Received: x.Path.RxBytes, Error: x.Path.LastError,
	}
	switch {
	case x.Path.State == transport.StateUp && x.Alive:
		out.State, out.Path, out.Hops, out.Error = control.Up, "direct UDP", 1, ""
		out.PathSince, out.KeysSince = x.Path.PathSince, x.Path.Established
		if out.Pings = x.Path.Pings; out.Pings > 0 {
			out.Loss, out.Lossy = float64(x.Path.LostPings)/float64(out.Pings), x.Path.Lossy
		}
		out.Frames, out.FramesWhy, out.PathMTU = control.Sealed, x.FastWhy, x.Path.MTU
		switch {
		case x.Fast:
			out.Frames = control.VXLAN
		case x.Path.TCP:
			out.Path, out.Frames = "direct TCP", control.TCP
		case x.Path.Relayed:
			out.Path, out.Hops, out.Frames = "relay", x.Route.Hops, control.Relay
		}
	case x.Path.State == transport.StateUp, x.Path.State == transport.StateConnecting, x.Alive:
		out.State = control.Connecting // down is who may be removed, and no member may
	}
	return out
}

// refusalAge is how long a refusal is shown: hosts that are still refused try
// again and again, the others have found their way.
const refusalAge = 5 * time.Minute

// settle notes until when refusals at a peer's addresses say nothing any more: at
// the one that it is reached at, none do. At its others, such as that of the other
// family, those do not that were before it joined; another host may have the same
// address elsewhere.
func settle(settled map[netip.Addr]time.Time, x mesh.Peer, now time.Time) {
	if !x.Alive {
		return
	}
	for _, c := range x.Path.Candidates {
		if x.Since.After(settled[c.Addr()]) {
			settled[c.Addr()] = x.Since
		}
	}
	settled[x.Path.Addr.Addr()] = now
}

// refusalStatus lists who is still kept out, the latest first. Where both sides
// refuse for one reason, that is one thing to say.
func refusalStatus(all []transport.Refusal, settled map[netip.Addr]time.Time, now time.Time, service bool) []control.Refusal {
	var out []control.Refusal
	for _, x := range all {
		if !x.At.After(settled[x.Addr]) || now.Sub(x.At) >= refusalAge {
			continue
		}
		same := func(r control.Refusal) bool { return r.Address == x.Addr && r.Why == x.Reason }
		if i := slices.IndexFunc(out, same); i >= 0 {
			out[i].Count += uint64(x.Count)
			continue
		}
		out = append(out, control.Refusal{
			Address: x.Addr, Why: x.Reason, Do: wayIn(x.Reason, seeLog(x.ByThem), service) + "; what is no host of yours can be ignored",
			Count: uint64(x.Count), Last: x.At,
		})
	}
	return out
}

func seeLog(ofOther bool) string {
	if ofOther {
		return "see the log of that host's plugin"
	}
	return "see the log of this plugin"
}

// segmentStatus lists the segments of this host with its networks on them.
func (p *parts) segmentStatus(self string, endpoints []driver.EndpointStatus) []control.Segment {
	networks := map[string][]control.Network{}
	subnets := map[string]netip.Prefix{}
	for _, n := range p.driver.Networks() {
		networks[n.Segment] = append(networks[n.Segment], control.Network{ID: n.ID, Name: n.Name})
		if len(n.Subnets) > 0 {
			subnets[n.Segment] = n.Subnets[0]
		}
	}
	joined := map[string]int{}
	for _, e := range endpoints {
		joined[e.Segment]++
	}
	var out []control.Segment
	for _, s := range p.node.Segments() {
		members := []string{self}
		for _, m := range s.Members {
			members = append(members, p.node.Nickname(m))
		}
		slices.Sort(members[1:])
		out = append(out, control.Segment{
			Key: s.Key, Subnet: subnets[s.Key], ID: s.ID, MTU: s.MTU, VNI: s.VNI,
			Networks: networks[s.Key], Members: members, Endpoints: joined[s.Key],
		})
	}
	return out
}

// endpointStatus lists the endpoints of all hosts, this one's first.
func (p *parts) endpointStatus(own []driver.EndpointStatus, exposed []control.Exposed) []control.Endpoint {
	networks := map[string]string{}
	for _, e := range own {
		networks[e.ID] = e.Network
		if name := p.names.network(e.Network); name != "" {
			networks[e.ID] = name
		}
	}
	exposedOn := map[netip.Addr]string{}
	for _, e := range exposed {
		exposedOn[e.Address.Addr()] = e.Network
	}
	var out []control.Endpoint
	for _, e := range p.node.Endpoints() {
		kind, local, network := "", e.Owner == p.identity.ID, networks[e.ID]
		if e.OfHost {
			kind = control.KindHost
		}
		if e.OfHost && local && len(e.Addrs) > 0 {
			network = exposedOn[e.Addrs[0]]
		}
		out = append(out, control.Endpoint{
			Kind: kind, ID: e.ID, Container: e.Container, MAC: e.MAC.String(), Addresses: e.Addrs,
			Segment: e.Segment, Host: p.node.Nickname(e.Owner), Peer: e.Owner.String(),
			Local: local, Network: network,
		})
	}
	slices.SortFunc(out, compareEndpoints)
	return out
}

// compareEndpoints puts this host's first, then goes by host, segment and
// address.
func compareEndpoints(a, b control.Endpoint) int {
	if a.Local != b.Local {
		if a.Local {
			return -1
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(a.Host, b.Host), cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Segment, b.Segment),
		slices.CompareFunc(a.Addresses, b.Addresses, netip.Addr.Compare), cmp.Compare(a.ID, b.ID),
	)
}

// thisHost stands in for the name of a container where the host itself has an
// address; Docker has no such name.
const thisHost = "this host"

// clashText says that an address is in use twice, since two clusters that had
// each given out its pool met. The container may have no name yet.
func clashText(c ipam.Clash, container string) string {
	if c.Kind != ipam.KindLease {
		return fmt.Sprintf("address %s is kept free for networks here, but a container on host %s has it", c.Addr, c.Host)
	}
	switch container {
	case thisHost:
		return fmt.Sprintf("address %s of this host itself is, or was, in use on host %s, too, since two clusters met: other hosts do not see it here until it is hidden and exposed anew", c.Addr, c.Host)
	case "":
		container = "the container here"
	}
	if c.Over {
		return fmt.Sprintf("address %s of %s was that of a container on host %s, too, since two clusters met: other hosts do not see it until it restarts", c.Addr, container, c.Host)
	}
	return fmt.Sprintf("address %s of %s is that of a container on host %s, since two clusters met: other hosts do not see it until it restarts", c.Addr, container, c.Host)
}

// poolStatus describes a pool to the peer self.
func poolStatus(s ipam.PoolStatus, self string, containers map[netip.Prefix]string) control.Pool {
	out := control.Pool{Subnet: s.Pool, Size: size(s.Pool), Leased: uint64(s.Leases), Free: s.Free}
	for _, o := range s.Owners {
		out.Owners = append(out.Owners, control.Owner{Peer: string(o.Peer), Nickname: o.Host, Owned: o.Addresses})
		if string(o.Peer) == self {
			out.Owned = o.Addresses
		}
	}
	slices.SortFunc(out.Owners, func(a, b control.Owner) int {
		return cmp.Or(cmp.Compare(a.Nickname, b.Nickname), cmp.Compare(a.Peer, b.Peer))
	})
	for _, c := range s.Conflicts {
		out.Conflicts = append(out.Conflicts, clashText(c, containers[netip.PrefixFrom(c.Addr, s.Pool.Bits())]))
	}
	for _, trouble := range []string{s.LeasesOff, s.Pieces} {
		if trouble != "" {
			out.Trouble = append(out.Trouble, trouble)
		}
	}
	return out
}

// size returns the number of addresses of a prefix, or the largest uint64.
func size(p netip.Prefix) uint64 {
	bits := p.Addr().BitLen() - p.Bits()
	if bits >= 64 {
		return ^uint64(0)
	}
	return 1 << bits
}

// Connect implements control.Daemon.
func (d *daemon) Connect(ctx context.Context, addrs []string) ([]control.ConnectResult, error) {
	p, full, err := d.forPeers(addrs)
	if err != nil {
		return nil, err
	}
	out := make([]control.ConnectResult, len(full))
	var all sync.WaitGroup
	for i, a := range full {
		all.Go(func() {
			out[i] = p.connect(ctx, a)
			if out[i].Error != "" {
				out[i].Do = wayIn(out[i].Error, openWay, !d.cfg.Managed)
			}
		})
	}
	all.Wait()
	return out, nil
}

func (p *parts) connect(ctx context.Context, addr string) control.ConnectResult {
	peer, err := p.node.Connect(ctx, addr)
	switch {
	case err != nil:
		return control.ConnectResult{Address: addr, Error: strings.TrimPrefix(err.Error(), "connect to "+addr+": ")}
	case peer == p.identity.ID:
		if err := p.node.Forget(addr); err != nil && !errors.Is(err, mesh.ErrConfigured) {
			return control.ConnectResult{Address: addr, Error: err.Error()}
		}
		return control.ConnectResult{Address: addr, Self: true}
	}
	return control.ConnectResult{Address: addr, Peer: peer.String(), Nickname: p.node.Nickname(peer)}
}

// Forget implements control.Daemon.
func (d *daemon) Forget(_ context.Context, addrs []string) error {
	p, full, err := d.forPeers(addrs)
	if err != nil {
		return err
	}
	var failed []string
	for _, a := range full {
		err := p.node.Forget(a)
		if errors.Is(err, mesh.ErrConfigured) {
			err = fmt.Errorf("%w: take it out of %s", err, config.Peers)
		}
		if err != nil {
			failed = append(failed, err.Error())
		}
	}
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, "; "))
	}
	return nil
}

// notReady says why there are no parts.
func (d *daemon) notReady() error {
	if _, _, _, err := d.gate.state(); err != nil {
		return fmt.Errorf("the plugin does no work: %w", err)
	}
	return errors.New("the plugin is still starting; try again")
}

// forPeers returns the parts, and the addresses as host:port.
func (d *daemon) forPeers(addrs []string) (*parts, []string, error) {
	p := d.parts.Load()
	if p == nil {
		return nil, nil, d.notReady()
	}
	full := make([]string, len(addrs))
	for i, a := range addrs {
		var err error
		if full[i], err = config.ParsePeer(a, d.cfg.Port); err != nil {
			return nil, nil, fmt.Errorf("peer address %.300q: %w", a, err)
		}
	}
	return p, full, nil
}
