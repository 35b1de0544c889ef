package tunnel

import (
	"encoding/binary"

	"weave/mesh/id"
	"weave/mesh/wire"
)

const (
	// trainBytes and trainDatagrams are what one UDP_SEGMENT call takes.
	trainBytes     = 65000
	trainDatagrams = 64
	// itemLen is what stands in front of a frame in a datagram.
	itemLen = wire.ItemHeaderLen + wire.FrameHeaderLen
)

// load is what a part of a train carries.
type load struct{ frames, bytes uint64 }

// train lays out datagrams for one peer where they are sealed and sent from:
//
//	buf: | sent | ready | ready | header room | item | frame | item | fra...
//	             ^first          ^open                               ^end
//
// Datagrams that are ready are all size bytes long: one that is shorter can only
// be the last, and one that is longer begins a new train. Behind end there is
// always room for the tag of the open datagram. One goroutine owns a train.
//
// Each datagram is sealed as soon as it is closed, while the CPU's first cache
// has it: to seal a whole train at once makes a turn 4 % longer. But where others
// seal for the peer meanwhile, only the latter gives consecutive counters, and
// without them the pieces of a run are not joined again.
type train struct {
	peer   id.PeerID
	link   Link
	packed int  // bytes that a datagram of several frames may have
	shared bool // others may seal for the peer meanwhile
	count  *counters

	buf       []byte
	first     int
	open, end int // equal if no datagram is open
	size      int // 0 if none is ready
	ready     int // how many are
	waiting   load
	filling   load // of the open datagram
}

func newTrain(packed int, shared bool, count *counters) *train {
	return &train{packed: packed, shared: shared, count: count, buf: make([]byte, trainBytes)}
}

// room returns where a frame of n bytes is to be written before it is added: in
// the open datagram, unless that is full or the frame is to be alone. n is at
// most what a datagram of trainBytes has room for.
func (t *train) room(n int, alone bool) []byte {
	if t.end > t.open && (alone || t.end-t.open+itemLen+n+wire.TagLen > t.limit()) {
		t.finish()
	}
	if t.end == t.open {
		t.begin(max(wire.Overhead+n, t.packed))
	}
	return t.buf[t.end+itemLen : t.end+itemLen+n]
}

// limit is what the open datagram may grow to without breaking up the train.
func (t *train) limit() int {
	if t.size > 0 {
		return min(t.size, t.packed)
	}
	return t.packed
}

// begin opens a datagram that may become n bytes long.
func (t *train) begin(n int) {
	if t.open+n > len(t.buf) || t.ready == trainDatagrams {
		t.send()
	}
	t.end = t.open + wire.HeaderLen
}

// add puts the headers in front of the frame of n bytes that was written to
// room.
func (t *train) add(h wire.FrameHeader, n int) {
	item := t.buf[t.end:]
	item[0] = byte(wire.KindFrame)
	binary.BigEndian.PutUint16(item[1:], uint16(wire.FrameHeaderLen+n))
	h.Put(item[wire.ItemHeaderLen:])
	t.end += itemLen + n
	t.filling.frames++
	t.filling.bytes += uint64(n)
}

// finish closes the open datagram, and is the first half of step 6. Without a
// session to seal it with, its frames are lost.
func (t *train) finish() {
	filled := t.filling
	t.filling = load{}
	datagram := t.buf[t.open : t.end+wire.TagLen]
	if !t.shared {
		if err := t.link.Seal(datagram, len(datagram)); err != nil {
			t.count.drop(dropNoPath, filled.frames)
			t.end = t.open
			return
		}
	}
	if t.ready > 0 && len(datagram) > t.size {
		t.sendReady()
	}
	if t.ready == 0 {
		t.size = len(datagram)
	}
	t.open += len(datagram)
	t.end = t.open
	t.ready++
	t.waiting.frames += filled.frames
	t.waiting.bytes += filled.bytes
	if len(datagram) < t.size {
		t.sendReady()
	}
}

// sendReady is the second half of step 6. The open datagram stays where it is.
func (t *train) sendReady() {
	if t.ready == 0 {
		return
	}
	datagrams := t.buf[t.first:t.open]
	switch {
	case t.shared && t.link.Seal(datagrams, t.size) != nil:
		t.count.drop(dropNoPath, t.waiting.frames)
	case t.link.Send(datagrams, t.size) != nil:
		t.count.drop(dropSend, t.waiting.frames)
	default:
		t.count.pass(t.waiting)
	}
	t.first, t.size, t.ready, t.waiting = t.open, 0, 0, load{}
}

// send sends all there is; the train is empty then.
func (t *train) send() {
	if t.end > t.open {
		t.finish()
	}
	t.sendReady()
	t.first, t.open, t.end = 0, 0, 0
}
