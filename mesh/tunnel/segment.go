package tunnel

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/cpu"
	"golang.org/x/time/rate"

	"weave/mesh/fdb"
	"weave/mesh/id"
	"weave/mesh/neigh"
	"weave/mesh/run"
	"weave/mesh/wire"
)

// questionRate and questionBurst limit the requests per second for addresses
// that nobody announced, since each goes to all members.
const (
	questionRate  = 200
	questionBurst = 200
)

// segment is one segment that this host is on: what both directions share.
type segment struct {
	// Set once and never changed.
	id        wire.SegmentID
	noUDPRuns bool
	device    Device
	log       *logrus.Entry
	clock     func() time.Time
	limiter   *rate.Limiter // of questions
	outs      []*outbound   // for each queue of the device; owned by its goroutine

	members  atomic.Pointer[members]
	stopping atomic.Bool
	failure  atomic.Pointer[error] // why reading from the device ended
	running  sync.WaitGroup        // the queues' goroutines

	mu    sync.RWMutex // also held by who replaces members
	table *fdb.Table   // guarded by mu

	_ cpu.CacheLinePad

	in        counters // by the way from the mesh
	strangers atomic.Uint64
}

// members are the other peers that have a segment; never changed.
type members struct {
	list []id.PeerID
	set  map[id.PeerID]struct{}
	self id.PeerID

	carried map[id.PeerID]struct{} // who get multicast by another way, members or not
	rest    []id.PeerID            // of list, the others
}

func newSegment(cfg Config, seg Segment) *segment {
	s := &segment{
		id:        seg.ID,
		noUDPRuns: !seg.Device.USO(),
		device:    seg.Device,
		log:       cfg.Log.WithField("segment", seg.Key),
		clock:     cfg.Clock,
		limiter:   rate.NewLimiter(questionRate, questionBurst),
		table:     fdb.New(),
	}
	s.members.Store(&members{self: cfg.Self})
	s.outs = make([]*outbound, seg.Device.Queues())
	for i := range s.outs {
		s.outs[i] = newOutbound(s, i, cfg, seg.MTU)
	}
	return s
}

// start begins to carry frames from the device to the mesh, until it is closed.
func (s *segment) start() {
	for _, o := range s.outs {
		s.running.Go(func() { s.run(o) })
	}
}

func (s *segment) run(o *outbound) {
	for {
		err := o.turn()
		if err == nil {
			continue
		}
		if !s.stopping.Load() && s.failure.CompareAndSwap(nil, &err) {
			s.log.WithError(err).Error("reading from the TAP failed: the segment sends nothing any more")
		}
		return
	}
}

// stop closes the device, which ends what start began, and waits for that.
func (s *segment) stop() error {
	s.stopping.Store(true)
	err := s.device.Close()
	s.running.Wait()
	return err
}

func (s *segment) setMembers(peers []id.PeerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.members.Load()
	m := &members{self: old.self, set: make(map[id.PeerID]struct{}, len(peers)), carried: old.carried}
	for _, p := range peers {
		if _, twice := m.set[p]; p != m.self && !twice {
			m.set[p] = struct{}{}
			m.list = append(m.list, p)
		}
	}
	m.part()
	s.members.Store(m)
}

func (s *segment) setCarried(peers []id.PeerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := *s.members.Load()
	m.carried = make(map[id.PeerID]struct{}, len(peers))
	for _, p := range peers {
		m.carried[p] = struct{}{}
	}
	m.part()
	s.members.Store(&m)
}

// part fills in rest.
func (m *members) part() {
	m.rest = nil
	for _, p := range m.list {
		if _, carried := m.carried[p]; !carried {
			m.rest = append(m.rest, p)
		}
	}
}

// target returns who gets a multicast frame from here. Broadcasts are always
// ours: what asks for an address is among them.
func (m *members) target(to fdb.MAC) []id.PeerID {
	if to.Broadcast() {
		return m.list
	}
	return m.rest
}

func (m *members) has(p id.PeerID) bool {
	_, ok := m.set[p]
	return ok
}

func (s *segment) setEndpoint(e fdb.Endpoint) {
	s.mu.Lock()
	changed := s.table.Set(e)
	s.mu.Unlock()
	s.heal(changed)
}

func (s *segment) removeEndpoint(at fdb.Place, endpointID string) {
	s.mu.Lock()
	changed := s.table.Remove(at, endpointID)
	s.mu.Unlock()
	s.heal(changed)
}

// heal tells the containers here about addresses that moved to another MAC.
func (s *segment) heal(changed []fdb.Binding) {
	for _, b := range changed {
		s.inject(neigh.AppendAnnouncement(make([]byte, run.VnetHdrLen), b.MAC, b.Addr))
	}
}

// inject writes a frame of our own making to the device. The virtio-net header
// in front of it is all zero: nothing is left to the kernel.
func (s *segment) inject(vnetFrame []byte) {
	if err := s.device.Write(vnetFrame); err != nil {
		s.in.drop(dropWrite, 1)
	}
}

// admit reports whether a frame with this source may come from a place, and
// remembers the address if no endpoint announced it.
func (s *segment) admit(source fdb.MAC, from fdb.Place, now time.Time) bool {
	s.mu.RLock()
	verdict := s.table.Check(source, from, now)
	s.mu.RUnlock()
	if verdict == fdb.Unseen {
		s.mu.Lock()
		verdict = s.table.Learn(source, from, now)
		s.mu.Unlock()
	}
	return verdict == fdb.Accept
}

func (s *segment) lookup(to fdb.MAC, now time.Time) (fdb.Place, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.table.Lookup(to, now)
}
