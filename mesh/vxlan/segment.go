package vxlan

import (
	"net/netip"
	"time"

	"github.com/sirupsen/logrus"

	"weave/mesh/fdb"
	"weave/mesh/id"
)

// segment is one segment that this host is on. Switch.mu guards it; what the
// kernel has of it changes under Switch.op.
type segment struct {
	Segment // all but VNI never changes
	log     *logrus.Entry

	ready   bool
	why     string    // not ready, or what went wrong last
	hold    time.Time // no device before
	waiting bool      // for that, or for the TAP to be in a bridge
	loaded  bool      // the tables were taken over in this run

	endpoints *fdb.Table
	members   map[id.PeerID]Member
	table     table
	stale     bool                     // carried may be wrong
	carried   []id.PeerID              // what the tunnel was told
	fastAt    map[id.PeerID]netip.Addr // who was on the fast path when last looked at
}

func newSegment(x Segment, log *logrus.Entry) *segment {
	return &segment{
		Segment: x, log: log.WithField("segment", x.Key), why: "its device is not made yet",
		endpoints: fdb.New(), members: map[id.PeerID]Member{}, table: newTable(),
	}
}

// markEndpoint marks the entries that an endpoint is in.
func (g *segment) markEndpoint(e fdb.Endpoint) {
	g.table.mark(slot{Kind: Remote, MAC: e.MAC})
	g.table.mark(slot{Kind: Port, MAC: e.MAC})
	for _, ip := range e.IPs {
		if ip.Is4() {
			g.table.mark(slot{Kind: Neighbour, Addr: ip})
		}
	}
}

// markPeer marks the entries that depend on where a peer is, and how it is
// reached.
func (g *segment) markPeer(p *peer) {
	g.stale = true
	if p.addr.IsValid() {
		g.table.mark(slot{Kind: Flood, Addr: p.addr})
	}
	for e := range g.endpoints.At(fdb.At(p.id)) {
		g.table.mark(slot{Kind: Remote, MAC: e.MAC})
		g.table.mark(slot{Kind: Port, MAC: e.MAC})
	}
}

// markAll marks everything.
func (g *segment) markAll(peers map[id.PeerID]*peer) {
	for x := range g.table.set {
		g.table.mark(x)
	}
	for p := range g.members {
		g.markPeer(peers[p])
	}
	for e := range g.endpoints.All() {
		g.markEndpoint(e)
	}
}

// down notes that the segment takes no VXLAN frames, and why. All that is in the
// kernel's tables for it is to go.
func (g *segment) down(why string) {
	g.ready, g.why, g.stale = false, why, true
	clear(g.table.inherited)
	for x := range g.table.set {
		g.table.mark(x)
	}
}

// device is what a segment's device is to be like.
func (s *Switch) device(g *segment) Device {
	return Device{Name: g.Link, VNI: g.VNI, MTU: g.MTU, Local: s.cfg.Local, Port: s.cfg.Port}
}

// What a segment waits for.
const (
	whyHeld  = "its VNI has changed"
	whyLoose = "its TAP is in no bridge yet"
)

// tend sees to it that a segment has its device, and that the device is in the
// bridge. op is held.
func (s *Switch) tend(g *segment, now time.Time) {
	if now.Before(g.hold) {
		return
	}
	entries, fresh, why := s.raise(g)
	s.mu.Lock()
	was := g.ready
	g.waiting = why == whyLoose
	switch {
	case why != "" && (was || g.why != why):
		g.down(why)
	case why == "" && (!was || fresh):
		if !g.loaded && len(entries) > 0 {
			s.beginGrace()
		}
		g.table.load(entries, !g.loaded)
		s.adopt()
		g.ready, g.why, g.loaded = true, "", true
		g.markAll(s.peers)
	}
	changed := was != g.ready
	s.mu.Unlock()
	if changed {
		g.log.WithFields(logrus.Fields{"vni": g.VNI, "ready": !was, "reason": why}).Info("fast path of segment")
		s.cfg.Changed()
	}
}

// raise does the kernel's part of tend. If the tables are to be looked at, it
// returns what is in them. A device that nobody guards is taken away; one that
// may have a guard is left to the kernel.
func (s *Switch) raise(g *segment) (entries []Entry, fresh bool, why string) {
	if s.trouble != "" {
		if !s.exposed {
			return nil, false, s.trouble
		}
		if err := s.cfg.Kernel.Remove(g.Link); err != nil {
			g.log.WithError(err).Error("VXLAN device stays without a guard")
		}
		return nil, false, s.trouble
	}
	made, err := s.cfg.Kernel.Make(s.device(g))
	if err != nil {
		return nil, false, err.Error()
	}
	plugged, joined, err := s.cfg.Kernel.Plug(g.Link, g.TAP)
	switch {
	case err != nil:
		return nil, false, err.Error()
	case !plugged:
		return nil, false, whyLoose
	}
	if g.ready && !made && !joined {
		return nil, false, ""
	}
	if entries, err = s.cfg.Kernel.Entries(g.Link, g.TAP); err != nil {
		return nil, false, err.Error()
	}
	return entries, true, ""
}
