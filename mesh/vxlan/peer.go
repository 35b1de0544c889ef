package vxlan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"weave/mesh/beat"
	"weave/mesh/fdb"
	"weave/mesh/id"
)

// peer is another host that has a segment of ours. Switch.mu guards it.
type peer struct {
	id   id.PeerID
	mac  fdb.MAC // of heart-beats
	refs int     // segments in common

	addr   netip.Addr // where VXLAN goes; stays when the session ends
	linked bool       // there is a session now
	why    string     // VXLAN cannot go where the session goes; empty if it can
	path   *beat.Path // to addr
	heard  beat.Report

	heardAt time.Time
	told    beat.Report // the last report to it
}

// hold notes that a peer has one more segment of ours. mu is held.
func (s *Switch) hold(p id.PeerID) {
	x := s.peers[p]
	if x == nil {
		x = &peer{id: p, mac: beat.MAC(p)}
		s.peers[p] = x
		s.byMAC[x.mac] = x
		s.look(x, s.cfg.Clock())
		s.markHost(x)
	}
	x.refs++
}

// release is the reverse of hold.
func (s *Switch) release(p id.PeerID) {
	x := s.peers[p]
	if x.refs--; x.refs > 0 {
		return
	}
	s.markHost(x)
	delete(s.peers, p)
	if s.byMAC[x.mac] == x {
		delete(s.byMAC, x.mac)
	}
}

// look asks where a peer is. mu is held.
func (s *Switch) look(x *peer, now time.Time) {
	at, ok := s.cfg.Mesh.Path(x.id)
	if !ok {
		x.linked = false
		return
	}
	addr := at.Addr().Unmap()
	why := s.unfit(netip.AddrPortFrom(addr, at.Port()))
	s.moved = s.moved || !x.linked || why != x.why
	x.linked, x.why = true, why
	if x.why != "" {
		addr = netip.Addr{}
	}
	if addr == x.addr && (x.path != nil || !addr.IsValid()) {
		return
	}
	s.moved = true
	s.markPeer(x) // what was where it was
	x.addr, x.path = addr, nil
	if addr.IsValid() {
		x.path = beat.New(rand.Uint64(), s.inherit(addr), now)
		x.heard, x.told, x.heardAt = beat.Report{}, beat.Report{}, now // that nothing was heard yet says nothing
	}
	s.markPeer(x)
}

// unfit says why VXLAN cannot go where a session goes.
func (s *Switch) unfit(at netip.AddrPort) string {
	switch {
	case !at.IsValid():
		return "it is reached through other hosts"
	case at.Addr().Is4() != s.cfg.Local.Is4():
		return fmt.Sprintf("it is reached at %s, but VXLAN runs between addresses like %s here", at.Addr(), s.cfg.Local)
	case at.Addr().Zone() != "":
		return "it is reached at an address of one link only"
	case at.Port() != s.cfg.MeshPort:
		return fmt.Sprintf("it is reached on port %d: VXLAN needs the same port on all hosts", at.Port())
	}
	return ""
}

// markPeer marks all that depends on a peer. mu is held.
func (s *Switch) markPeer(x *peer) {
	s.markHost(x)
	for _, g := range s.segments {
		if _, member := g.members[x.id]; member {
			g.markPeer(x)
		}
	}
}

// fast reports whether a segment's frames to a peer take the fast path. mu is
// held.
func (s *Switch) fast(g *segment, p id.PeerID) bool {
	x := s.peers[p]
	return x != nil && x.path != nil && x.path.Up() && s.agreed(g, p) == ""
}

// agreed says what is missing on a segment for a fast path to a member, apart
// from the way there.
func (s *Switch) agreed(g *segment, p id.PeerID) string {
	m, member := g.members[p]
	switch {
	case !member:
		return "it does not have the segment"
	case !g.ready:
		return g.why
	case !m.Ready:
		return "that host has no VXLAN device for the segment"
	case m.VNI != g.VNI:
		return "the hosts are still agreeing on a VNI"
	}
	return ""
}

// Peer tells whether frames to a peer take the fast path, and if not, or not all
// of them, why.
func (s *Switch) Peer(p id.PeerID) (fast bool, why string) {
	if s.cfg.Off != "" {
		return false, s.cfg.Off
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.peers[p]
	switch {
	case x == nil:
		return false, "no segment in common"
	case s.trouble != "":
		return false, "this host has no VXLAN: " + s.trouble
	case x.why != "":
		return false, x.why
	case x.path == nil:
		return false, "no session yet"
	}
	agreed, moved := 0, 0
	for _, g := range s.segments {
		if _, member := g.members[p]; !member {
			continue
		}
		if missing := s.agreed(g, p); missing != "" {
			why = fmt.Sprintf("segment %s: %s", g.Key, missing)
			continue
		}
		agreed++
		if g.fastAt[p] == x.addr {
			moved++
		}
	}
	switch {
	case agreed == 0:
		return false, why
	case !x.path.Up():
		return false, s.describe(x.path.State())
	case moved == 0:
		return false, "its frames are being moved to VXLAN"
	}
	return true, why
}

func (s *Switch) describe(state beat.State) string {
	switch state {
	case beat.Silent:
		return fmt.Sprintf("VXLAN does not get there: UDP port %d must be open", s.cfg.Port)
	case beat.Cut:
		return "only short frames get there by VXLAN: the network between has a smaller MTU than this host's"
	case beat.Back:
		return "VXLAN gets there again, and is taken when it has done so for a while"
	}
	return "VXLAN is being tried"
}
