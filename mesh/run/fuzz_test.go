package run

import (
	"testing"

	"weave/mesh/wire"
)

func seeds() (frames [][]byte) {
	for _, spec := range []runSpec{
		{flags: 0x18, payload: make([]byte, 300), gsoSize: 100},
		{v6: true, flags: 0x90, options: []byte{1, 1, 1, 0}, payload: make([]byte, 250), gsoSize: 100},
		{udp: true, tags: 1, payload: make([]byte, 210), gsoSize: 100},
		{udp: true, v6: true, exts: 3, payload: make([]byte, 210), gsoSize: 100},
	} {
		frame, m := spec.build()
		b := make([]byte, VnetHdrLen, VnetHdrLen+len(frame))
		m.EncodeVnet(b)
		frames = append(frames, append(b, frame...))
	}
	return frames
}

// FuzzSplit: any bytes from a TAP end in an error, or in pieces that hold all
// of the payload and stay within their bounds.
func FuzzSplit(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b, uint16(200))
	}
	f.Fuzz(func(t *testing.T, b []byte, maxFrame uint16) {
		m, err := DecodeVnet(b)
		if err != nil {
			return
		}
		var again [VnetHdrLen]byte
		m.EncodeVnet(again[:])
		if m2, err := DecodeVnet(again[:]); err != nil || m2 != m {
			t.Fatalf("%+v came back as %+v, %v", m, m2, err)
		}
		frame := b[VnetHdrLen:]
		var s Splitter
		n, err := s.Reset(frame, m, int(maxFrame))
		if err != nil {
			return
		}
		payload, taken := 0, 0
		for s.NextLen() > 0 {
			dst := make([]byte, s.NextLen())
			_, h, ok := s.Next(dst)
			if !ok || n > 1 && m.GSO != GSOUDP && len(dst) > int(maxFrame) {
				t.Fatalf("piece of %d bytes, ok %v", len(dst), ok)
			}
			if h.Flags&(wire.FlagTCP|wire.FlagUDP) != 0 && int(h.HdrLen) >= len(dst) {
				t.Fatal("piece without payload")
			}
			payload += len(dst) - s.head
			taken++
		}
		if taken != n || payload != len(frame)-s.head {
			t.Fatalf("%d of %d pieces, %d of %d bytes", taken, n, payload, len(frame)-s.head)
		}
	})
}

// FuzzJoin: any two pieces from the wire end in a frame that is no longer than
// both, or in none.
func FuzzJoin(f *testing.F) {
	for _, b := range seeds() {
		m, err := DecodeVnet(b)
		if err != nil {
			f.Fatal(err)
		}
		pieces := split(f, b[VnetHdrLen:], m, testMaxFrame)
		f.Add(item(pieces[0]), item(pieces[1]))
	}
	flow := datagrams(f, runSpec{}, [][]byte{make([]byte, 60), make([]byte, 60)})
	f.Add(item(flow[0]), item(flow[1]))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var j Joiner
		longest := 0
		for _, body := range [][]byte{a, b} {
			h, frame, err := wire.ParseFrame(body)
			if err != nil {
				return
			}
			longest += len(frame)
			if held := j.Held(); !j.Add(h, frame) && !held && j.Held() {
				t.Fatal("holds what it refused")
			}
		}
		out := j.Frame()
		if len(out) > VnetHdrLen+min(longest, MaxFrame) {
			t.Fatalf("%d bytes of %d", len(out), longest)
		}
		if len(out) == 0 {
			return
		}
		m, err := DecodeVnet(out)
		if err != nil {
			t.Fatal(err)
		}
		if m.NeedsCsum && checkCsum(m, len(out)-VnetHdrLen) != nil {
			t.Fatal("checksum outside the frame")
		}
	})
}

func item(p piece) []byte {
	b := make([]byte, wire.FrameHeaderLen, wire.FrameHeaderLen+len(p.frame))
	p.h.Put(b)
	return append(b, p.frame...)
}
