package run

import (
	"bytes"

	"weave/mesh/wire"
)

// maxRun is the length in bytes of the longest IP packet that Joiner builds.
const maxRun = 65535

// maxGathered is how many datagrams become one run: UDP_MAX_SEGMENTS of the
// older kernels.
const maxGathered = 64

// Joiner makes runs of pieces again, so that one write brings a whole run to
// the TAP. It also gathers UDP datagrams that a container sent one by one, as
// the kernel's own receive offload does. The zero value is ready. It is not for
// concurrent use and allocates nothing.
//
// The caller adds pieces in the order of their datagrams. When Add refuses
// one, or nothing more is queued, the caller writes Frame and resets.
type Joiner struct {
	// NoUDP leaves UDP datagrams apart, for a TAP that takes no runs of them.
	// It is set once.
	NoUDP bool

	header wire.FrameHeader // of the first piece
	pieces int
	end    int  // of the frame, in buf
	open   bool // more may follow; what is below holds only then
	gather bool // what is held began with a datagram that is no piece

	series series
	size   int  // payload of each piece but the last
	final  byte // FIN and PSH, which only the last piece has

	want [0xff + udpLen]byte // scratch: headers as they must be; the longest are datagrams', whose CsumStart is 0xff
	buf  [VnetHdrLen + MaxFrame]byte
}

// Add takes a copy of a piece or of a frame that is no piece. False means that
// it does not continue what is held, which is unchanged; or, if nothing is
// held, that it is malformed and is to be dropped.
//
// A piece continues a run if its headers are, to the byte, those that Splitter
// would give it; so does a datagram, but for an ID that need not count up.
func (j *Joiner) Add(h wire.FrameHeader, frame []byte) bool {
	if j.pieces == 0 {
		return j.start(h, frame)
	}
	return j.follow(h, frame)
}

// Held tells whether Frame has something to write.
func (j *Joiner) Held() bool { return j.pieces > 0 }

// Open tells whether something may still continue what is held.
func (j *Joiner) Open() bool { return j.open }

// Reset forgets what is held.
func (j *Joiner) Reset() { j.pieces, j.open = 0, false }

func (j *Joiner) start(h wire.FrameHeader, frame []byte) bool {
	if len(frame) < ethLen || len(frame) > MaxFrame {
		return false
	}
	if m := plainMeta(h); m.NeedsCsum && checkCsum(m, len(frame)) != nil {
		return false
	}
	j.header, j.pieces = h, 1
	j.end = VnetHdrLen + copy(j.buf[VnetHdrLen:], frame)
	j.gather = h.Flags == wire.FlagNeedsCsum && h.CsumOffset == udpCsum
	j.open = (j.gather || h.Flags&wire.FlagMore != 0) && j.startRun()
	return true
}

// startRun tells whether the frame held can be the first piece of a run.
func (j *Joiner) startRun() bool {
	h, frame := j.header, j.buf[VnetHdrLen:j.end]
	udp := j.gather || h.Flags&wire.FlagUDP != 0
	tcp := h.Flags&wire.FlagTCP != 0
	if h.Flags&wire.FlagNeedsCsum == 0 || udp == tcp || udp && j.NoUDP {
		return false
	}
	l, err := parseLayout(frame, int(h.CsumStart), udp)
	if err != nil || !j.gather && l.hdrLen != int(h.HdrLen) || l.csumOffset() != int(h.CsumOffset) {
		return false
	}
	// The run gets a new header checksum: a wrong one must not become right.
	if !l.v6 && fold(sum(0, frame[l.l3:l.l4])) != 0xffff {
		return false
	}
	j.series = newSeries(frame, l)
	j.size, j.final = len(frame)-l.hdrLen, 0
	return j.series.flags&(tcpFIN|tcpSYN|tcpRST|tcpPSH) == 0
}

func (j *Joiner) follow(h wire.FrameHeader, frame []byte) bool {
	head := j.series.hdrLen
	n := len(frame) - head
	if !j.open || !j.samePlan(h) || n <= 0 || n > j.size || j.end-VnetHdrLen-j.series.l3+n > maxRun {
		return false
	}
	final, ok := j.match(frame[:head], n)
	if !ok {
		return false
	}
	j.end += copy(j.buf[j.end:], frame[head:])
	j.pieces++
	j.final = final
	more := h.Flags&wire.FlagMore != 0
	if j.gather {
		more = j.pieces < maxGathered
	}
	j.open = more && n == j.size && final == 0
	return true
}

// samePlan tells whether h is that of a further piece of the run held.
func (j *Joiner) samePlan(h wire.FrameHeader) bool {
	if j.gather {
		return h == j.header
	}
	const places = wire.FlagMore | wire.FlagContinues
	continues := h.Flags&wire.FlagContinues != 0
	h.Flags = h.Flags&^places | j.header.Flags&places
	return continues && h == j.header
}

// match compares hdr, of a piece with n bytes of payload, with the headers of
// the next piece, and returns those of its flags that a last piece may have.
func (j *Joiner) match(hdr []byte, n int) (final byte, ok bool) {
	s := &j.series
	want := j.want[:len(hdr)]
	copy(want, j.buf[VnetHdrLen:])
	i := j.pieces
	if j.gather && s.sameID(hdr) {
		i = 0
	}
	s.put(want, i, j.end-VnetHdrLen-s.hdrLen, n, false)
	if !s.udp {
		final = hdr[s.l4+tcpFlags] & (tcpFIN | tcpPSH)
		want[s.l4+tcpFlags] |= final
	}
	return final, bytes.Equal(want, hdr)
}

// Frame returns a virtio-net header and the frame behind it: the run, or what
// was added if it stayed alone. It is empty if nothing is held, and valid until
// Reset; nothing continues it any more.
func (j *Joiner) Frame() []byte {
	if j.pieces == 0 {
		return nil
	}
	m := plainMeta(j.header)
	if j.pieces > 1 {
		m = j.finishRun(m)
	}
	j.open = false
	m.EncodeVnet(j.buf[:])
	return j.buf[:j.end]
}

// finishRun makes the headers held those of the run and describes it. Doing so
// twice changes nothing.
func (j *Joiner) finishRun(m Meta) Meta {
	s := &j.series
	hdr := j.buf[VnetHdrLen:][:s.hdrLen]
	s.put(hdr, 0, 0, j.end-VnetHdrLen-s.hdrLen, true)
	m.HdrLen, m.GSOSize = uint16(s.hdrLen), uint16(j.size)
	switch {
	case s.udp:
		m.GSO = GSOUDP
		return m
	case s.v6:
		m.GSO = GSOTCPv6
	default:
		m.GSO = GSOTCPv4
	}
	hdr[s.l4+tcpFlags] |= j.final
	m.ECN = s.flags&tcpCWR != 0
	return m
}

// plainMeta describes a frame that is no run.
func plainMeta(h wire.FrameHeader) Meta {
	if h.Flags&wire.FlagNeedsCsum == 0 {
		return Meta{CsumValid: h.Flags&wire.FlagCsumValid != 0}
	}
	return Meta{NeedsCsum: true, CsumStart: uint16(h.CsumStart), CsumOffset: uint16(h.CsumOffset)}
}
