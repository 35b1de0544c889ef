package tunnel

import (
	"time"

	"weave/mesh/fdb"
	"weave/mesh/id"
	"weave/mesh/run"
	"weave/mesh/wire"
)

// inbound is the way from the mesh to the TAPs: a frame or run that is held
// until its next piece, or something else, comes. One goroutine owns it.
type inbound struct {
	joiner  run.Joiner
	segment *segment // of what is held
	from    id.PeerID
	counter uint64 // of the last piece's datagram
	load    load

	now time.Time // of this batch; zero before its first frame

	// What was admitted last in this batch: most that comes at once is from one
	// container to another.
	admitted struct {
		segment *segment // nil: nothing
		from    id.PeerID
		source  fdb.MAC
	}
}

// Receive takes a frame that a peer sealed in the datagram of that counter. The
// frame is the caller's again when it returns. Receive and Flush are called by
// one goroutine: the one that receives for the transport.
func (t *Tunnel) Receive(from id.PeerID, counter uint64, h wire.FrameHeader, frame []byte) {
	in := &t.in
	if in.join(from, counter, h, frame) { // 7.
		return
	}
	in.write()
	s := (*t.segments.Load())[h.Segment]
	if s == nil {
		t.homeless.Add(1)
		return
	}
	_, source, ok := parseEthernet(frame)
	if !ok {
		s.in.drop(dropMalformed, 1)
		return
	}
	if !in.admit(s, from, source, t.cfg.Clock) { // 8.
		s.in.drop(dropSpoofed, 1)
		return
	}
	if !s.members.Load().has(from) {
		s.strangers.Add(1)
	}
	in.hold(s, from, counter, h, frame)
}

// Flush ends a batch of Receive: what is held is written.
func (t *Tunnel) Flush() {
	t.in.write()
	t.in.now = time.Time{}
	t.in.admitted.segment = nil
}

func (in *inbound) admit(s *segment, from id.PeerID, source fdb.MAC, clock func() time.Time) bool {
	last := &in.admitted
	if last.segment == s && last.source == source && last.from == from {
		return true
	}
	if in.now.IsZero() {
		in.now = clock()
	}
	if !s.admit(source, fdb.At(from), in.now) {
		return false
	}
	last.segment, last.from, last.source = s, from, source
	return true
}

// join is step 7. It reports whether the frame continued what is held: it comes
// from the same peer, and its headers are those of the first frame, which was
// admitted to the same segment. A piece of a run must be in the very next
// datagram, too, so that none is missing between them.
func (in *inbound) join(from id.PeerID, counter uint64, h wire.FrameHeader, frame []byte) bool {
	if !in.joiner.Open() || in.from != from || h.Flags&wire.FlagContinues != 0 && in.counter+1 != counter {
		return false
	}
	if !in.joiner.Add(h, frame) {
		return false
	}
	in.added(counter, frame)
	return true
}

// hold keeps a frame that continues nothing.
func (in *inbound) hold(s *segment, from id.PeerID, counter uint64, h wire.FrameHeader, frame []byte) {
	in.joiner.NoUDP = s.noUDPRuns
	if !in.joiner.Add(h, frame) {
		s.in.drop(dropMalformed, 1)
		return
	}
	in.segment, in.from = s, from
	in.added(counter, frame)
}

// added writes what is held unless more may come.
func (in *inbound) added(counter uint64, frame []byte) {
	in.counter = counter
	in.load.frames++
	in.load.bytes += uint64(len(frame))
	if !in.joiner.Open() {
		in.write()
	}
}

// write is step 9.
func (in *inbound) write() {
	if !in.joiner.Held() {
		return
	}
	s := in.segment
	if err := s.device.Write(in.joiner.Frame()); err != nil {
		s.in.drop(dropWrite, in.load.frames)
	} else {
		s.in.pass(in.load)
	}
	in.joiner.Reset()
	in.segment, in.load = nil, load{}
}
