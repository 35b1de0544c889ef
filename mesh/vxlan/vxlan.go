// Package vxlan is the fast path: frames between hosts that share no password
// go by the kernel's VXLAN, and no program of ours touches them.
//
// Each segment's bridge has two ports towards the mesh:
//
//	container ─ veth ─┐            ┌─ TAP wvt… ──── tunnel ─── sealed datagrams
//	container ─ veth ─┤ bridge wv… ┤
//	                               └─ VXLAN wvx… ────────────── UDP, port + 1
//
// The two are isolated from each other: what came from the mesh never goes back
// to it. A frame takes one of them:
//
//   - to an endpoint that a host announced: a static entry in the bridge's table
//     names the port. To move a host from one path to the other is to move
//     these entries, each in one step and without a gap
//   - multicast: both ports. The VXLAN device sends it to the hosts on the fast
//     path, the tunnel to the others
//   - broadcast: the TAP only, for all hosts. ARP requests for known addresses
//     do not get that far: the bridge answers them from static neighbours
//   - to an address that nobody announced: where the kernel saw it last, on
//     either port; else the TAP, since the tunnel may know. Nothing is flooded
//     into VXLAN
//
// The VXLAN device knows for each announced address which host it lives at, and
// drops frames from it that come from any other; the containers' of this host
// are in its table too, so that nobody takes their addresses from afar. What
// nobody announced it learns, with ageing and a bound.
//
// Heart-beats (package beat) run over a VXLAN device of their own, between the
// same addresses and ports. A peer that they do not reach goes by the tunnel.
//
// All tables are kept by difference: a change in the mesh marks the entries
// that it concerns, and only these are compared and written. What an earlier run
// left in the kernel is taken over, and stays until the mesh has told otherwise,
// so that frames flow while the plugin restarts.
//
// VXLAN proves nothing about who sent a frame. A guard in the packet filter lets
// in only the addresses of peers, and nothing that a container sends. Who flushes
// all tables takes it away until the next beat, less than a second.
//
// Locks: op is held by the one who speaks to the kernel, mu guards the state and
// is never held over a call of the kernel, the tunnel or the mesh, but for
// Mesh.Path.
//
// The package makes no bridges and no TAPs, and chooses no VNI (package vni).
package vxlan

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"weave/mesh/beat"
	"weave/mesh/fdb"
	"weave/mesh/id"
)

// Mesh is what the fast path needs of the sealed one. It must not block, but for
// Away.
type Mesh interface {
	// Path returns the underlay address that a peer's session uses, which is not
	// valid if that goes through other hosts; false if there is no session now.
	Path(p id.PeerID) (netip.AddrPort, bool)
	// Away returns the underlay addresses of the hosts of the cluster that there
	// is no session with now.
	Away() []netip.Addr
	// Watch has the way that a peer's session takes watched closely for a while.
	Watch(p id.PeerID)
	// SendReport seals a report and sends it, once.
	SendReport(p id.PeerID, body []byte)
}

// Tunnel is the other way from bridge to bridge; see tunnel.Tunnel.
type Tunnel interface {
	SetCarried(key string, peers []id.PeerID)
	Learn(key string, mac fdb.MAC, at id.PeerID)
}

// Config is what a Switch is made of.
type Config struct {
	Self  id.PeerID
	Local netip.Addr // our underlay address
	Port  uint16     // UDP, for VXLAN
	Mesh  Mesh
	// MeshPort is that of the sealed path. Who uses another one there has
	// another one for VXLAN too.
	MeshPort uint16
	Off      string // why there is no fast path; empty if there is one
	Tunnel   Tunnel
	Kernel   Kernel
	Guard    Guard
	Probes   Probes
	Changed  func() // Ready has another answer for some segment; must not block
	Clock    func() time.Time
	Log      *logrus.Entry
}

// Segment is a segment that this host is on.
type Segment struct {
	Key  string
	VNI  uint32
	MTU  int
	Link string // to be the VXLAN device
	TAP  string
}

// Member is another host on a segment, as it says itself.
type Member struct {
	Peer  id.PeerID
	VNI   uint32
	Ready bool // it takes VXLAN frames with that VNI
}

// beatLink is the VXLAN device of the heart-beats.
const beatLink = "wvx-beat"

const (
	// grace is how long the entries of an earlier run stay after they were taken
	// over, if nothing speaks against them. Those that lead to a host of the
	// cluster that is away stay until it is back for as long: its kernel may be
	// at work while its plugin is not.
	grace     = 20 * time.Second
	graceAway = time.Hour
	// moveHold is how long a segment has no device after its VNI changed: the
	// others hear of that first, so that no frame of theirs ends in the segment
	// that has the old number next.
	moveHold = 10 * time.Second
	// patience is how long devices stay if it cannot be told whether the guard
	// is up.
	patience = 30 * time.Second
	// tendEvery is how often devices are looked at, and what failed is tried
	// again.
	tendEvery = 5 * time.Second
)

// Switch decides which frames take the fast path, and has the kernel do it. Its
// methods are safe for concurrent use.
type Switch struct {
	cfg     Config        // set once
	wake    chan struct{} // buffered: there is something to flush
	reports chan report   // for Run
	deaf    atomic.Bool   // heart-beats are to be bound anew

	op       sync.Mutex // held over calls of the kernel
	swept    bool       // what an earlier run left is gone; guarded by op
	lastTend time.Time  // guarded by op

	mu       sync.Mutex
	graceEnd time.Time                // zero when it is over, or has not begun
	awayEnd  time.Time                // the same of graceAway
	away     map[netip.Addr]time.Time // hosts, and when they were last without a session
	moved    bool                     // away may be wrong
	bound    bool                     // heart-beats have their link; changed under op too
	segments map[string]*segment
	peers    map[id.PeerID]*peer // the members of segments
	byMAC    map[fdb.MAC]*peer   // by the MAC of their heart-beats
	host     table               // of the heart-beats' device, and the guard
	trouble  string              // why this host has no fast path for now; changed under op too
	since    time.Time           // when what is shared began to fail; zero if it does not
	exposed  bool                // nobody guards the devices; changed under op too
}

type report struct {
	from id.PeerID
	beat.Report
}

// maxReports bounds those that wait for Run; more are dropped, and others come.
const maxReports = 256

// New returns a Switch without segments.
func New(cfg Config) *Switch {
	return &Switch{
		cfg:      cfg,
		wake:     make(chan struct{}, 1),
		reports:  make(chan report, maxReports),
		segments: map[string]*segment{},
		peers:    map[id.PeerID]*peer{},
		byMAC:    map[fdb.MAC]*peer{},
		away:     map[netip.Addr]time.Time{},
		host:     newTable(),
	}
}

// Found returns the VNI that the device of a segment has from an earlier run, 0
// if there is none.
func (s *Switch) Found(link string) uint32 {
	if s.cfg.Off != "" {
		return 0
	}
	s.op.Lock()
	defer s.op.Unlock()
	n, err := s.cfg.Kernel.Find(link)
	if err != nil {
		s.cfg.Log.WithError(err).Warn("VXLAN device not looked at")
	}
	return n
}

// AddSegment begins to serve a segment, and reports whether it takes VXLAN
// frames already, as it does if an earlier run left its device. Where there is
// no fast path it takes away what such a run left. Trouble is no error: the
// tunnel works without us.
func (s *Switch) AddSegment(x Segment) (ready bool) {
	s.op.Lock()
	defer s.op.Unlock()
	if s.cfg.Off != "" {
		s.sweep(x)
		return false
	}
	seg := newSegment(x, s.cfg.Log)
	s.mu.Lock()
	s.segments[x.Key] = seg
	s.mu.Unlock()
	s.raiseHost()
	s.tend(seg, s.cfg.Clock())
	s.poke()
	return seg.ready
}

// sweep removes what an earlier run that had a fast path left of a segment. op is
// held.
func (s *Switch) sweep(x Segment) {
	if err := errors.Join(s.cfg.Kernel.Remove(x.Link), s.cfg.Kernel.Clear(x.TAP)); err != nil {
		s.cfg.Log.WithField("segment", x.Key).WithError(err).Warn("traces of the fast path stay")
	}
	s.sweepHost()
}

// sweepHost removes what such a run left beside segments. op is held.
func (s *Switch) sweepHost() {
	if s.swept {
		return
	}
	err := errors.Join(s.cfg.Kernel.Remove(beatLink), s.cfg.Guard.Remove())
	if s.swept = err == nil; !s.swept {
		s.cfg.Log.WithError(err).Warn("traces of the fast path stay")
	}
}

// RemoveSegment ends that, and deletes the device, also one that only an earlier
// run had.
func (s *Switch) RemoveSegment(key, link string) error {
	s.op.Lock()
	defer s.op.Unlock()
	s.mu.Lock()
	if seg := s.segments[key]; seg != nil {
		delete(s.segments, key)
		for _, m := range seg.members {
			s.release(m.Peer)
		}
	}
	last := len(s.segments) == 0
	s.mu.Unlock()
	if err := s.cfg.Kernel.Remove(link); err != nil {
		return fmt.Errorf("remove VXLAN device of segment %s: %w", key, err)
	}
	if !last || s.cfg.Off != "" {
		return nil
	}
	return s.removeHost()
}

// SetVNI gives a segment another number. The device goes at once and comes back
// after a while; Ready tells.
func (s *Switch) SetVNI(key string, n uint32) {
	s.op.Lock()
	defer s.op.Unlock()
	s.mu.Lock()
	seg := s.segments[key]
	if seg == nil || seg.VNI == n {
		s.mu.Unlock()
		return
	}
	seg.VNI, seg.hold = n, s.cfg.Clock().Add(moveHold)
	seg.down(whyHeld)
	seg.waiting = true
	s.mu.Unlock()
	if err := s.cfg.Kernel.Remove(seg.Link); err != nil {
		seg.log.WithError(err).Error("VXLAN device with an old VNI stays")
	}
	s.poke()
}

// Ready reports whether a segment takes VXLAN frames.
func (s *Switch) Ready(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	seg := s.segments[key]
	return seg != nil && seg.ready
}

// SetMembers replaces the set of other hosts that have a segment. It does
// nothing for a segment that is not here: set them again after AddSegment.
func (s *Switch) SetMembers(key string, members []Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seg := s.segments[key]
	if seg == nil {
		return
	}
	now := make(map[id.PeerID]Member, len(members))
	for _, m := range members {
		if m.Peer == s.cfg.Self {
			continue
		}
		now[m.Peer] = m
		old, known := seg.members[m.Peer]
		if !known {
			s.hold(m.Peer)
		}
		if old != m {
			seg.markPeer(s.peers[m.Peer])
		}
	}
	for p := range seg.members {
		if _, still := now[p]; !still {
			seg.markPeer(s.peers[p])
			s.release(p)
		}
	}
	seg.members = now
	s.poke()
}

// SetEndpoint adds an endpoint to a segment, or replaces the one of the same
// place and ID. Like SetMembers it does nothing for a segment that is not here.
func (s *Switch) SetEndpoint(key string, e fdb.Endpoint) {
	s.change(key, e.At, e.ID, func(t *fdb.Table) { t.Set(e) })
}

// RemoveEndpoint takes out what SetEndpoint put in.
func (s *Switch) RemoveEndpoint(key string, at fdb.Place, endpointID string) {
	s.change(key, at, endpointID, func(t *fdb.Table) { t.Remove(at, endpointID) })
}

// change marks what an endpoint was and what it becomes.
func (s *Switch) change(key string, at fdb.Place, endpointID string, do func(*fdb.Table)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seg := s.segments[key]
	if seg == nil {
		return
	}
	if e, ok := seg.endpoints.Endpoint(at, endpointID); ok {
		seg.markEndpoint(e)
	}
	do(seg.endpoints)
	if e, ok := seg.endpoints.Endpoint(at, endpointID); ok {
		seg.markEndpoint(e)
	}
	s.poke()
}

// poke has Run flush what is marked.
func (s *Switch) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
