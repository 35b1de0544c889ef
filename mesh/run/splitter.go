package run

import (
	"fmt"

	"weave/mesh/wire"
)

// Splitter cuts a frame from a TAP into pieces for the mesh. The zero value is
// ready; Reset starts it on a frame. It is not for concurrent use and
// allocates nothing.
type Splitter struct {
	frame  []byte
	meta   Meta
	series series
	header wire.FrameHeader // of every piece, but for its place in the run
	finish bool             // the wire header has no room: finish checksums here
	head   int              // bytes of headers that each piece repeats
	size   int              // payload of each piece but the last
	pieces int
	next   int
}

// Reset starts on frame, which m describes and which must stay unchanged until
// the last piece is taken, and returns the number of pieces.
//
// Pieces of TCP runs are at most maxFrame bytes long. Datagrams keep their
// boundaries, and a frame that is no run stays whole, even above maxFrame.
// After an error there are no pieces.
func (s *Splitter) Reset(frame []byte, m Meta, maxFrame int) (pieces int, err error) {
	*s = Splitter{frame: frame, meta: m}
	if len(frame) < ethLen || len(frame) > MaxFrame {
		return 0, fmt.Errorf("%w: %d bytes", ErrMalformed, len(frame))
	}
	if m.NeedsCsum {
		if err := checkCsum(m, len(frame)); err != nil {
			return 0, err
		}
	}
	if m.GSO == GSONone {
		s.whole()
	} else if err := s.cut(maxFrame); err != nil {
		return 0, err
	}
	return s.pieces, nil
}

// whole makes the frame the only piece.
func (s *Splitter) whole() {
	s.head, s.size, s.pieces = 0, len(s.frame), 1
	m := s.meta
	switch {
	case !m.NeedsCsum && m.CsumValid:
		s.header.Flags = wire.FlagCsumValid
	case m.NeedsCsum && (m.CsumStart > 0xff || m.CsumOffset > 0xff):
		s.finish = true
	case m.NeedsCsum:
		s.header.Flags = wire.FlagNeedsCsum
		s.header.CsumStart, s.header.CsumOffset = uint8(m.CsumStart), uint8(m.CsumOffset)
	}
}

// cut finds out how a run is to be cut.
func (s *Splitter) cut(maxFrame int) error {
	m := s.meta
	if m.GSO != GSOTCPv4 && m.GSO != GSOTCPv6 && m.GSO != GSOUDP {
		return fmt.Errorf("%w: GSO type %d", ErrUnsupported, m.GSO)
	}
	udp := m.GSO == GSOUDP
	l, err := parseLayout(s.frame, int(m.CsumStart), udp)
	if err != nil {
		return err
	}
	size := int(m.GSOSize)
	if !udp {
		size = min(size, maxFrame-l.hdrLen)
	}
	if !m.NeedsCsum || int(m.CsumOffset) != l.csumOffset() || !udp && l.v6 != (m.GSO == GSOTCPv6) || size <= 0 {
		return fmt.Errorf("%w: GSO type %d with size %d, checksum offset %d", ErrMalformed, m.GSO, m.GSOSize, m.CsumOffset)
	}
	payload := len(s.frame) - l.hdrLen
	if payload <= size {
		s.whole()
		return nil
	}
	s.series = newSeries(s.frame, l)
	s.head, s.size, s.pieces = l.hdrLen, size, (payload+size-1)/size
	if l.hdrLen > 0xff {
		s.finish = true // each piece goes as a frame of its own
		return nil
	}
	s.header = wire.FrameHeader{
		Flags:   wire.FlagNeedsCsum | wire.FlagTCP,
		Offsets: wire.Offsets{HdrLen: uint8(l.hdrLen), CsumStart: uint8(l.l4), CsumOffset: uint8(l.csumOffset())},
	}
	if udp {
		s.header.Flags = wire.FlagNeedsCsum | wire.FlagUDP
	}
	return nil
}

// NextLen returns the length in bytes of the piece that Next returns, 0 if
// there is none.
func (s *Splitter) NextLen() int {
	if s.next >= s.pieces {
		return 0
	}
	return s.head + min(s.size, len(s.frame)-s.head-s.next*s.size)
}

// Next copies the next piece to dst and returns its length and header, whose
// Segment is the caller's to fill in. ok is false after the last piece, and
// if dst is shorter than NextLen, when nothing was taken.
func (s *Splitter) Next(dst []byte) (n int, h wire.FrameHeader, ok bool) {
	n = s.NextLen()
	if n == 0 || len(dst) < n {
		return 0, wire.FrameHeader{}, false
	}
	i, off := s.next, s.next*s.size
	s.next++
	dst = dst[:n]
	copy(dst, s.frame[:s.head])
	copy(dst[s.head:], s.frame[s.head+off:])
	h = s.header
	if s.pieces > 1 {
		last := s.next == s.pieces
		s.series.put(dst[:s.head], i, off, n-s.head, last)
		if !s.finish {
			h.Flags |= place(i, last)
		}
	}
	if s.finish {
		// In bounds by Reset: a piece has all of the headers.
		_ = FinishChecksum(dst, s.meta)
	}
	return n, h, true
}

// Skip passes over the next piece, as if it were lost on its way.
func (s *Splitter) Skip() {
	if s.next < s.pieces {
		s.next++
	}
}

// place says where piece i stands in its run.
func place(i int, last bool) (f wire.FrameFlags) {
	if i > 0 {
		f |= wire.FlagContinues
	}
	if !last {
		f |= wire.FlagMore
	}
	return f
}
