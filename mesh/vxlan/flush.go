package vxlan

import (
	"net/netip"
	"slices"
	"time"

	"weave/mesh/fdb"
	"weave/mesh/id"
)

func inTables(k Kind) bool { return k == Remote || k == Neighbour || k == Allow }
func onPorts(k Kind) bool  { return k == Flood || k == Port }

// flush writes what is marked. First the VXLAN devices learn where hosts are,
// then frames are sent there, and what nobody needs goes last. op is held.
func (s *Switch) flush() {
	s.mu.Lock()
	segments := make([]*segment, 0, len(s.segments))
	for _, g := range s.segments {
		if len(g.table.marked) > 0 || g.stale {
			segments = append(segments, g)
		}
	}
	bound := s.bound
	s.mu.Unlock()
	if bound {
		s.write(&s.host, beatLink, "", false, inTables, s.wantHost)
	}
	for _, g := range segments {
		s.flushSegment(g)
	}
	if bound {
		s.write(&s.host, beatLink, "", true, inTables, s.wantHost)
	}
}

func (s *Switch) flushSegment(g *segment) {
	want := func(x slot) opinion { return s.want(g, x) }
	s.write(&g.table, g.Link, g.TAP, false, inTables, want)
	// Nobody gets a multicast frame twice: who joins the fast path leaves the
	// tunnel's list before, and who leaves it joins that list after.
	_ = s.tellTunnel(g, true)
	s.write(&g.table, g.Link, g.TAP, true, onPorts, want)
	s.write(&g.table, g.Link, g.TAP, false, onPorts, want)
	gone := s.tellTunnel(g, false)
	s.write(&g.table, g.Link, g.TAP, true, inTables, want)
	s.seeOff(g, gone)
}

// write does one part of a flush.
func (s *Switch) write(t *table, link, tap string, removing bool, pick func(Kind) bool, want func(slot) opinion) {
	s.mu.Lock()
	ops := t.plan(removing, pick, want)
	s.mu.Unlock()
	if len(ops) == 0 {
		return
	}
	errs := make([]error, len(ops))
	for i, o := range ops {
		errs[i] = s.apply(link, tap, o)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, o := range ops {
		t.done(o, errs[i])
	}
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		s.cfg.Log.WithField("link", link).WithError(errs[i]).Warn("an entry of the fast path could not be changed: frames may go by the tunnel")
	}
}

func (s *Switch) apply(link, tap string, o op) error {
	switch {
	case o.entry.Kind == Allow && o.remove:
		return s.cfg.Guard.Deny(o.entry.Addr)
	case o.entry.Kind == Allow:
		return s.cfg.Guard.Allow(o.entry.Addr)
	case o.remove:
		return s.cfg.Kernel.Delete(link, tap, o.entry)
	}
	return s.cfg.Kernel.Set(link, tap, o.entry)
}

// tellTunnel tells the tunnel to whom it need not send multicast: to those that
// are on the fast path now, and if early is true also to those that will be. Else
// it returns who has left it.
func (s *Switch) tellTunnel(g *segment, early bool) (gone []departure) {
	s.mu.Lock()
	if !g.stale {
		s.mu.Unlock()
		return nil
	}
	g.stale = early
	var carried []id.PeerID
	for p := range g.members {
		if !s.fast(g, p) {
			continue
		}
		if _, flooded := g.table.set[slot{Kind: Flood, Addr: s.peers[p].addr}]; flooded || early {
			carried = append(carried, p)
		}
	}
	if !early {
		gone = s.departures(g)
	} else {
		for _, p := range g.carried {
			if !slices.Contains(carried, p) {
				carried = append(carried, p)
			}
		}
	}
	slices.SortFunc(carried, id.PeerID.Compare)
	same := slices.Equal(carried, g.carried)
	g.carried = carried
	s.mu.Unlock()
	if !same {
		s.cfg.Tunnel.SetCarried(g.Key, carried)
	}
	return gone
}

// want is what ought to be in a slot of a segment's tables. mu is held.
func (s *Switch) want(g *segment, x slot) opinion {
	if !g.ready {
		return opinion{}
	}
	switch x.Kind {
	case Remote:
		return s.wantRemote(g, x.MAC)
	case Neighbour:
		mac, at, ok := g.endpoints.LookupIP(x.Addr)
		if !ok || at.Local {
			return opinion{unsure: !ok && s.keeps(g, g.table.set[x].MAC)}
		}
		return wanted(Entry{Kind: Neighbour, MAC: mac, Addr: x.Addr})
	case Flood:
		return s.wantFlood(g, x.Addr)
	}
	return s.wantPort(g, x.MAC)
}

// early reports whether the mesh may not have told all yet that concerns a host
// at an address.
func (s *Switch) early(a netip.Addr) bool {
	_, away := s.away[a]
	return away || !s.graceEnd.IsZero()
}

// keeps is early for the host that has a MAC address according to the VXLAN
// device.
func (s *Switch) keeps(g *segment, mac fdb.MAC) bool {
	return s.early(g.table.set[slot{Kind: Remote, MAC: mac}].Addr)
}

func (s *Switch) wantRemote(g *segment, mac fdb.MAC) opinion {
	at, ok := g.endpoints.Lookup(mac, time.Time{})
	switch {
	case !ok:
		return opinion{unsure: s.keeps(g, mac)}
	case at.Local:
		return wanted(Entry{Kind: Remote, MAC: mac, Addr: s.cfg.Local})
	}
	x := s.peers[at.Peer]
	switch {
	case x == nil: // it announces endpoints on a segment that it does not have, yet
		return opinion{unsure: s.keeps(g, mac)}
	case !x.addr.IsValid():
		return opinion{unsure: x.why == "" && s.keeps(g, mac)}
	}
	return wanted(Entry{Kind: Remote, MAC: mac, Addr: x.addr})
}

func (s *Switch) wantFlood(g *segment, a netip.Addr) opinion {
	o := opinion{unsure: s.early(a)}
	for p := range g.members {
		if s.peers[p].addr != a {
			continue
		}
		if s.fast(g, p) {
			return wanted(Entry{Kind: Flood, Addr: a})
		}
		o.unsure = false
	}
	return o
}

// wantPort is asked after the VXLAN device has learned where the host is: frames
// go there only if it did.
func (s *Switch) wantPort(g *segment, mac fdb.MAC) opinion {
	at, ok := g.endpoints.Lookup(mac, time.Time{})
	switch {
	case !ok:
		return opinion{unsure: s.keeps(g, mac)}
	case at.Local:
		return opinion{}
	}
	o := wanted(Entry{Kind: Port, MAC: mac})
	x := s.peers[at.Peer]
	if x == nil || !x.addr.IsValid() {
		o.unsure = (x == nil || x.why == "") && s.keeps(g, mac)
		return o
	}
	if _, member := g.members[at.Peer]; !member {
		o.unsure = s.keeps(g, mac)
		return o
	}
	remote, there := g.table.set[slot{Kind: Remote, MAC: mac}]
	o.entry.Fast = there && remote.Addr == x.addr && s.fast(g, at.Peer)
	return o
}

// departure is a peer that has left the fast path of a segment, and where it was.
type departure struct {
	peer id.PeerID
	at   netip.Addr
}

// departures compares who is on the fast path of a segment with who was. mu is
// held.
func (s *Switch) departures(g *segment) (gone []departure) {
	now := make(map[id.PeerID]netip.Addr, len(g.carried))
	for p := range g.members {
		if s.fast(g, p) {
			now[p] = s.peers[p].addr
		}
	}
	for p, at := range g.fastAt {
		if now[p] != at && g.ready { // without a device, nothing is learned there
			gone = append(gone, departure{p, at})
		}
	}
	g.fastAt = now
	return gone
}

// seeOff hands what the kernel learned about hosts that left the fast path over
// to the tunnel. op is held.
func (s *Switch) seeOff(g *segment, gone []departure) {
	for _, x := range gone {
		macs, err := s.cfg.Kernel.TakeLearned(g.Link, x.at)
		if err != nil {
			g.log.WithField("peer", x.peer.Short()).WithError(err).Warn("addresses that were learned stay on the fast path")
		}
		for _, mac := range macs {
			s.cfg.Tunnel.Learn(g.Key, mac, x.peer)
		}
	}
}
