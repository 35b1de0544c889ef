// Package tunnel carries the frames of segments between their TAP devices and
// the peers of the mesh. The life of a frame:
//
//	container A                           container B
//	    | veth                                | veth
//	  bridge                                bridge
//	    | TAP                                 | TAP
//	 ===|=== outbound.go ==================   |=== inbound.go ============
//	    |                                     |
//	 1. | read what is queued:             9. | write: a whole run in one call,
//	    | runs of up to 64 KiB;               | when its last piece is here, or
//	    | does the queue stand?               | something else, or the batch ends
//	 2. | admit: may this address             |
//	    | send from here?                     |
//	 3. | question: ARP and neighbour      8. | admit: may this address send
//	    | requests for known hosts            | from that peer?
//	    | end here                            |
//	 4. | forward: to the peer that        7. | join: the next piece of the run,
//	    | has it, or to all members           | or datagram of the flow, that is
//	 5. | emit: cut a run, lay out the        | held needs no more look
//	    | pieces where they are sealed        | Receive: one frame, authenticated
//	 ===|=== train.go =====================   |============================
//	 6. | seal each datagram, send            |
//	    | as many as go in one call           |
//	    |                                     |
//	    +--> Link: session, UDP_SEGMENT --> UDP_GRO, session
//
// Each queue of a segment's TAP has a goroutine that does steps 1 to 6 for a
// whole batch and then reads again: nothing is handed over, nothing waits for
// more, nothing is allocated. A flow keeps to one queue, and so its order. Steps
// 7 to 9 run in the goroutine that receives for the transport.
//
// A queue that stands loses a piece of a TCP run now and then: see backlog.
//
// What comes from the mesh goes to a TAP and never back to the mesh, so there
// are no loops; and only to the TAP of the segment it names.
//
// Locks: a segment's FDB is guarded by its mu, held for single lookups and
// changes and never over IO; segments and members are found without a lock.
//
// The package knows neither keys nor sockets (transport), makes no devices
// (tap), and does not know who is on a segment until it is told (Node).
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"weave/mesh/fdb"
	"weave/mesh/id"
	"weave/mesh/wire"
)

// Link is the way to one peer. It is safe for concurrent use and allocates
// nothing.
type Link interface {
	// Seal encrypts the datagrams in buf in place, each size bytes long but the
	// last, which may be shorter: wire.HeaderLen bytes of room, the plaintext,
	// wire.TagLen bytes of room. Their counters are consecutive, whoever else
	// seals meanwhile. After an error none is sealed.
	Seal(buf []byte, size int) error
	// Send sends what Seal has sealed. buf is the caller's again when it returns.
	Send(buf []byte, size int) error
}

// Links knows the way to every peer.
type Links interface {
	// Link returns nil if there is no way. It is safe for concurrent use.
	Link(p id.PeerID) Link
}

// Device is a TAP device with virtio-net headers.
type Device interface {
	// Queues tells how many queues there are to read from; all frames of a flow
	// come by the same.
	Queues() int
	// ReadBatch waits for a frame in a queue and takes what else is in it, up to
	// some amount: a header and a frame for each buffer, and their length. more
	// tells that it may have left something. It has one caller for each queue at
	// a time. It returns an error once the device is closed.
	ReadBatch(queue int, bufs [][]byte, sizes []int) (n int, more bool, err error)
	// Write writes a header and a frame. It is safe for concurrent use, with
	// Close too, and does not keep the buffer.
	Write(vnetFrame []byte) error
	// USO tells whether Write takes runs of UDP datagrams.
	USO() bool
	Close() error
}

// Config is what a Tunnel is made of.
type Config struct {
	Self  id.PeerID
	Links Links
	Log   *logrus.Entry
	Clock func() time.Time
}

// Segment is what this host needs to be on a segment.
type Segment struct {
	ID     wire.SegmentID
	Key    string
	MTU    int // in bytes, of the IP packets in its frames
	Device Device
}

// Endpoint is a container's attachment to a segment, as its host announced it.
type Endpoint struct {
	ID   string // unique at its peer
	MAC  fdb.MAC
	IPs  []netip.Addr
	Peer id.PeerID // the host it runs on; Self for a local one
}

// Errors of AddSegment.
var (
	ErrClosed = errors.New("tunnel: closed")
	ErrExists = errors.New("tunnel: segment exists")
	ErrMTU    = errors.New("tunnel: MTU out of range")
)

// Limits of a segment's MTU in bytes: the least that IPv4 allows, and what fits
// in one datagram.
const (
	MinMTU = 68
	MaxMTU = trainBytes - wire.Overhead - ethernetLen - vlanLen
)

// Tunnel carries the frames of all segments that this host is on. Its methods
// are safe for concurrent use, but for Receive and Flush, which see.
type Tunnel struct {
	cfg Config // set once

	// segments is replaced under mu and read without it. The map is never
	// changed once it is in place.
	segments atomic.Pointer[map[wire.SegmentID]*segment]

	mu     sync.Mutex
	byKey  map[string]*segment // guarded by mu
	closed bool                // guarded by mu

	in       inbound // owned by the caller of Receive and Flush
	homeless atomic.Uint64
}

// New returns a Tunnel without segments.
func New(cfg Config) *Tunnel {
	t := &Tunnel{cfg: cfg, byKey: make(map[string]*segment)}
	t.segments.Store(&map[wire.SegmentID]*segment{})
	return t
}

// Run waits for the end of ctx, and then for the end of all segments, whose
// devices it closes. It always returns nil. Segments may be added before it.
func (t *Tunnel) Run(ctx context.Context) error {
	<-ctx.Done()
	t.mu.Lock()
	t.closed = true
	left := t.byKey
	t.byKey = make(map[string]*segment)
	t.segments.Store(&map[wire.SegmentID]*segment{})
	t.mu.Unlock()
	for _, s := range left {
		if err := s.stop(); err != nil {
			s.log.WithError(err).Warn("closing the TAP failed")
		}
	}
	return nil
}

// AddSegment starts to carry the frames of a segment. From then on the tunnel
// owns the device and closes it; after an error it is still the caller's. The
// segment has no members and endpoints until they are set.
func (t *Tunnel) AddSegment(seg Segment) error {
	if seg.MTU < MinMTU || seg.MTU > MaxMTU {
		return fmt.Errorf("segment %s: %w: %d, want %d to %d", seg.Key, ErrMTU, seg.MTU, MinMTU, MaxMTU)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	segments := maps.Clone(*t.segments.Load())
	if t.byKey[seg.Key] != nil || segments[seg.ID] != nil {
		return fmt.Errorf("segment %s: %w", seg.Key, ErrExists)
	}
	s := newSegment(t.cfg, seg)
	t.byKey[seg.Key] = s
	segments[seg.ID] = s
	t.segments.Store(&segments)
	s.start()
	return nil
}

// RemoveSegment closes the segment's device and waits for the end of its
// goroutines. It does nothing if there is no such segment.
func (t *Tunnel) RemoveSegment(key string) error {
	t.mu.Lock()
	s := t.byKey[key]
	if s != nil {
		delete(t.byKey, key)
		segments := maps.Clone(*t.segments.Load())
		delete(segments, s.id)
		t.segments.Store(&segments)
	}
	t.mu.Unlock()
	if s == nil {
		return nil
	}
	if err := s.stop(); err != nil {
		return fmt.Errorf("remove segment %s: %w", key, err)
	}
	return nil
}

// SetMembers replaces the set of peers that have the segment and so get its
// multicast frames. Self may be among them. It does nothing for a segment that
// is not here: set it again after AddSegment.
func (t *Tunnel) SetMembers(key string, peers []id.PeerID) {
	if s := t.segment(key); s != nil {
		s.setMembers(peers)
	}
}

// SetEndpoint adds an endpoint, or replaces the one of the same peer and ID.
// If an address of it was known with another MAC before, the containers here
// are told. Like SetMembers it does nothing for a segment that is not here.
func (t *Tunnel) SetEndpoint(key string, e Endpoint) {
	if s := t.segment(key); s != nil {
		s.setEndpoint(fdb.Endpoint{At: t.place(e.Peer), ID: e.ID, MAC: e.MAC, IPs: e.IPs})
	}
}

// RemoveEndpoint takes out what SetEndpoint put in.
func (t *Tunnel) RemoveEndpoint(key string, peer id.PeerID, endpointID string) {
	if s := t.segment(key); s != nil {
		s.removeEndpoint(t.place(peer), endpointID)
	}
}

func (t *Tunnel) place(p id.PeerID) fdb.Place {
	if p == t.cfg.Self {
		return fdb.Here()
	}
	return fdb.At(p)
}

func (t *Tunnel) segment(key string) *segment {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byKey[key]
}
