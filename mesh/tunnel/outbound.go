package tunnel

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/cpu"

	"weave/mesh/fdb"
	"weave/mesh/id"
	"weave/mesh/neigh"
	"weave/mesh/run"
	"weave/mesh/wire"
)

const (
	// batchFrames is how many frames are taken from the TAP at once: as many
	// acknowledgements as share a datagram.
	batchFrames = 16
	// maxTrains is to how many peers trains are kept at once. With more, as
	// in a broadcast, the oldest one leaves early.
	maxTrains = 8
)

// outbound is the way from a queue of a segment's TAP to the mesh. All of it is
// owned by the queue's goroutine, but for the counters.
type outbound struct {
	seg      *segment
	queue    int // number of it
	links    Links
	maxFrame int // bytes of a piece of a run

	bufs  [batchFrames][]byte
	sizes [batchFrames]int

	source fdb.MAC // admitted last in this batch; zero: none
	to     fdb.MAC // looked up last in this batch, and who has it; zero: none
	peer   id.PeerID

	backlog backlog
	brake   bool // the next TCP run of this batch is to lose a piece

	splitter run.Splitter
	trains   [maxTrains]*train // made when first needed
	active   int               // how many of them are in use in this batch
	oldest   int               // which of them leaves next
	packed   int               // bytes of a datagram that small frames fill

	reply    [run.VnetHdrLen + neigh.MaxFrame]byte
	counters counters
	answered atomic.Uint64
	_        cpu.CacheLinePad // what lies behind is another goroutine's
}

func newOutbound(s *segment, queue int, cfg Config, mtu int) *outbound {
	o := &outbound{
		seg: s, queue: queue, links: cfg.Links,
		maxFrame: mtu + ethernetLen + vlanLen,
		packed:   wire.Overhead + mtu + ethernetLen,
	}
	const size = run.VnetHdrLen + run.MaxFrame
	backing := make([]byte, batchFrames*size)
	for i := range o.bufs {
		o.bufs[i] = backing[i*size : (i+1)*size : (i+1)*size]
	}
	return o
}

// turn does step 1, and the others for each frame that was read.
func (o *outbound) turn() error {
	n, more, err := o.seg.device.ReadBatch(o.queue, o.bufs[:], o.sizes[:])
	if err != nil {
		return err
	}
	now := o.seg.clock()
	o.brake = o.backlog.stands(now, more)
	o.source, o.to = fdb.MAC{}, fdb.MAC{}
	for i := range n {
		o.frame(o.bufs[i][:o.sizes[i]], now)
	}
	o.sendAll()
	return nil
}

// frame takes one frame as far as it goes. It may be a run.
func (o *outbound) frame(vnetFrame []byte, now time.Time) {
	meta, err := run.DecodeVnet(vnetFrame)
	if err != nil {
		o.counters.drop(dropMalformed, 1)
		return
	}
	frame := vnetFrame[run.VnetHdrLen:]
	to, source, ok := parseEthernet(frame)
	if !ok {
		o.counters.drop(dropMalformed, 1)
		return
	}
	if source != o.source { // 2.
		if !o.seg.admit(source, fdb.Here(), now) {
			o.counters.drop(dropSpoofed, 1)
			return
		}
		o.source = source
	}
	if o.question(frame, to, now) { // 3.
		return
	}
	o.forward(frame, meta, to, now) // 4.
}

// question is step 3. It reports whether the frame's way ends here: as a
// question that is answered at once or by a container here, or as rubbish.
func (o *outbound) question(frame []byte, to fdb.MAC, now time.Time) (done bool) {
	q, err := neigh.Parse(frame)
	if err != nil {
		o.counters.drop(dropMalformed, 1)
		return true
	}
	if q.Op == neigh.None {
		return false
	}
	o.seg.mu.RLock()
	owner, at, known := o.seg.table.LookupIP(q.Target)
	o.seg.mu.RUnlock()
	switch {
	case !known && to.Multicast() && !o.seg.limiter.AllowN(now, 1):
		o.counters.drop(dropRate, 1)
		return true
	case !known:
		return false
	case q.Op == neigh.Probe && (at.Local || q.Target.Is4()):
		return false // whoever has the address is to hear of it
	case at.Local:
		return true
	}
	o.seg.inject(q.AppendReply(o.reply[:run.VnetHdrLen], owner))
	o.answered.Add(1)
	return true
}

// forward is step 4. Frames for containers here have been delivered by the
// bridge. Nothing is flooded: who is not known is not there.
func (o *outbound) forward(frame []byte, meta run.Meta, to fdb.MAC, now time.Time) {
	if to.Multicast() {
		for _, p := range o.seg.members.Load().target(to) {
			o.emit(p, frame, meta)
		}
		return
	}
	if to != o.to || to == (fdb.MAC{}) {
		at, known := o.seg.lookup(to, now)
		if !known {
			o.counters.drop(dropUnknown, 1)
		}
		if !known || at.Local {
			return
		}
		o.to, o.peer = to, at.Peer
	}
	o.emit(o.peer, frame, meta)
}

// emit is step 5. A piece of a run has a datagram for itself, which makes them
// equal in size, and consecutive; other frames share one while there is room.
func (o *outbound) emit(p id.PeerID, frame []byte, meta run.Meta) {
	t := o.train(p)
	if t == nil {
		o.counters.drop(dropNoPath, 1)
		return
	}
	pieces, err := o.splitter.Reset(frame, meta, o.maxFrame)
	if err != nil {
		o.counters.drop(dropMalformed, 1)
		return
	}
	if o.brake && meta.IsTCP() && pieces > 1 {
		o.brake = false
		o.splitter.Skip() // the first: those behind it tell of the gap at once
		o.counters.drop(dropQueue, 1)
	}
	for n := o.splitter.NextLen(); n > 0; n = o.splitter.NextLen() {
		if wire.Overhead+n > trainBytes {
			o.counters.drop(dropTooBig, 1)
			return
		}
		n, h, _ := o.splitter.Next(t.room(n, pieces > 1))
		h.Segment = o.seg.id
		t.add(h, n)
	}
}

// train returns the train to a peer, or nil if there is no way to it.
func (o *outbound) train(p id.PeerID) *train {
	for _, t := range o.trains[:o.active] {
		if t.peer == p {
			return t
		}
	}
	link := o.links.Link(p)
	if link == nil {
		return nil
	}
	t := o.freeTrain()
	t.peer, t.link = p, link
	return t
}

func (o *outbound) freeTrain() *train {
	if o.active == maxTrains {
		t := o.trains[o.oldest]
		o.oldest = (o.oldest + 1) % maxTrains
		t.send()
		return t
	}
	if o.trains[o.active] == nil {
		o.trains[o.active] = newTrain(o.packed, len(o.seg.outs) > 1, &o.counters)
	}
	o.active++
	return o.trains[o.active-1]
}

// sendAll ends a batch: nothing waits for more.
func (o *outbound) sendAll() {
	for _, t := range o.trains[:o.active] {
		t.send()
		t.link = nil
	}
	o.active, o.oldest = 0, 0
}
