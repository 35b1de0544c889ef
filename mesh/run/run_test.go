package run

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"weave/mesh/wire"
)

const testMaxFrame = 2000 // above any piece that drawSpec's sizes give

type piece struct {
	h     wire.FrameHeader
	frame []byte
}

// split takes all pieces of a frame, which is to be valid.
func split(t interface{ Fatalf(string, ...any) }, frame []byte, m Meta, maxFrame int) []piece {
	var s Splitter
	n, err := s.Reset(frame, m, maxFrame)
	if err != nil {
		t.Fatalf("Reset: %v", err)
	}
	var out []piece
	for {
		dst := make([]byte, s.NextLen())
		got, h, ok := s.Next(dst)
		if !ok {
			break
		}
		out = append(out, piece{h, dst[:got]})
	}
	if len(out) != n {
		t.Fatalf("Reset announced %d pieces, Next gave %d", n, len(out))
	}
	return out
}

// join gives what a receiver writes to its TAP for these pieces.
func join(t interface{ Fatalf(string, ...any) }, pieces []piece) [][]byte {
	var j Joiner
	var out [][]byte
	flush := func() {
		if j.Held() {
			out = append(out, bytes.Clone(j.Frame()))
			j.Reset()
		}
	}
	for i, p := range pieces {
		if j.Add(p.h, p.frame) {
			continue
		}
		flush()
		if !j.Add(p.h, p.frame) {
			t.Fatalf("piece %d refused", i)
		}
	}
	flush()
	return out
}

// packets gives the packets that the kernel makes of vnet frames, by the
// segmentation of the test's own.
func packets(t *rapid.T, vnetFrames [][]byte) []packet {
	var out []packet
	for _, b := range vnetFrames {
		m, err := DecodeVnet(b)
		if err != nil {
			t.Fatal(err)
		}
		frame := b[VnetHdrLen:]
		if m.GSO == GSONone {
			out = append(out, finished(t, frame, m))
			continue
		}
		for _, p := range split(t, frame, m, 1<<16) {
			out = append(out, finished(t, p.frame, m))
		}
	}
	return out
}

func finished(t *rapid.T, frame []byte, m Meta) packet {
	f := bytes.Clone(frame)
	if err := FinishChecksum(f, m); err != nil {
		t.Fatal(err)
	}
	return dissect(f)
}

// TestPiecesAreCorrectPackets: each piece alone is what RFC 9293 and 768 want,
// and together they are the run.
func TestPiecesAreCorrectPackets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := drawSpec(t)
		frame, m := spec.build()
		before := bytes.Clone(frame)
		maxFrame := rapid.SampledFrom([]int{testMaxFrame, 700}).Draw(t, "maxFrame")
		pieces := split(t, frame, m, maxFrame)
		if !bytes.Equal(frame, before) {
			t.Fatal("Splitter changed the frame")
		}
		off := 0
		for i, pc := range pieces {
			f := bytes.Clone(pc.frame)
			if pc.h.Flags&wire.FlagNeedsCsum != 0 {
				m := Meta{NeedsCsum: true, CsumStart: uint16(pc.h.CsumStart), CsumOffset: uint16(pc.h.CsumOffset)}
				if err := FinishChecksum(f, m); err != nil {
					t.Fatal(err)
				}
			}
			p := dissect(f)
			if p.wrong != "" {
				t.Fatalf("piece %d of %d: %s", i, len(pieces), p.wrong)
			}
			const ofRun = wire.FlagTCP | wire.FlagUDP
			if pc.h.Flags&ofRun != 0 && int(pc.h.HdrLen) != len(f)-len(p.payload) {
				t.Fatalf("header length %d, is %d", pc.h.HdrLen, len(f)-len(p.payload))
			}
			checkPlace(t, spec, p, i, off, i == len(pieces)-1)
			if !spec.udp && len(f) > maxFrame {
				t.Fatalf("piece of %d bytes", len(f))
			}
			if spec.udp && i < len(pieces)-1 && len(p.payload) != spec.gsoSize {
				t.Fatalf("datagram of %d bytes for one of %d", len(p.payload), spec.gsoSize)
			}
			off += len(p.payload)
		}
		if off != len(spec.payload) {
			t.Fatalf("%d of %d bytes of payload", off, len(spec.payload))
		}
	})
}

func checkPlace(t *rapid.T, spec runSpec, p packet, i, off int, last bool) {
	if !bytes.Equal(p.payload, spec.payload[off:off+len(p.payload)]) {
		t.Fatalf("piece %d: other payload", i)
	}
	if !spec.v6 && p.id != spec.id+uint16(i) {
		t.Fatalf("piece %d: ID %d for %d", i, p.id, spec.id+uint16(i))
	}
	if spec.udp {
		return
	}
	want := spec.flags
	if i > 0 {
		want &^= 0x80
	}
	if !last {
		want &^= 0x09
	}
	if p.seq != spec.seq+uint32(off) || p.flags != want {
		t.Fatalf("piece %d: seq %d flags %#x, want %d %#x", i, p.seq, p.flags, spec.seq+uint32(off), want)
	}
}

// TestSplitJoin: what was split comes back as the identical run.
func TestSplitJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := drawSpec(t)
		if spec.exts > 1 {
			spec.exts = 1 // more do not fit the wire header
		}
		frame, m := spec.build()
		if int(m.HdrLen) > 0xff {
			t.Skip("headers do not fit the wire header")
		}
		out := join(t, split(t, frame, m, testMaxFrame))
		if len(out) != 1 {
			t.Fatalf("joined to %d frames", len(out))
		}
		got, err := DecodeVnet(out[0])
		if err != nil {
			t.Fatal(err)
		}
		if len(spec.payload) <= spec.gsoSize {
			m = Meta{NeedsCsum: true, CsumStart: m.CsumStart, CsumOffset: m.CsumOffset}
		}
		if got != m {
			t.Fatalf("meta %+v, want %+v", got, m)
		}
		if !bytes.Equal(out[0][VnetHdrLen:], frame) {
			t.Fatal("other frame")
		}
	})
}

// TestLossAndDisorder: whatever is lost, repeated or exchanged on the way, the
// packets that come out are those that came in, in that order.
func TestLossAndDisorder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sent []piece
		for range rapid.IntRange(1, 3).Draw(t, "runs") {
			spec := drawSpec(t)
			spec.payload = spec.payload[:min(len(spec.payload), 20*spec.gsoSize)]
			frame, m := spec.build()
			sent = append(sent, split(t, frame, m, testMaxFrame)...)
		}
		var received []piece
		for range rapid.IntRange(0, len(sent)).Draw(t, "n") {
			from := rapid.IntRange(0, len(sent)-1).Draw(t, "from")
			to := rapid.IntRange(from, min(len(sent), from+8)).Draw(t, "to")
			received = append(received, sent[from:to]...)
		}
		var want []packet
		for _, p := range received {
			m := Meta{NeedsCsum: p.h.Flags&wire.FlagNeedsCsum != 0, CsumStart: uint16(p.h.CsumStart), CsumOffset: uint16(p.h.CsumOffset)}
			want = append(want, finished(t, p.frame, m))
		}
		got := packets(t, join(t, received))
		if len(got) != len(want) {
			t.Fatalf("%d packets for %d", len(got), len(want))
		}
		for i := range got {
			g, w := got[i], want[i]
			if w.proto == 17 {
				g.id = w.id // which means nothing where nothing is to be fragmented
			}
			if g.wrong != "" || g.id != w.id || g.seq != w.seq || g.flags != w.flags || !bytes.Equal(g.payload, w.payload) {
				t.Fatalf("packet %d: %+v, want %+v", i, g, w)
			}
		}
	})
}

func TestFinishChecksumZero(t *testing.T) {
	frame := make([]byte, 60)
	frame[40], frame[41] = 0xff, 0xff
	m := Meta{NeedsCsum: true, CsumStart: 34, CsumOffset: 2}
	if err := FinishChecksum(frame, m); err != nil {
		t.Fatal(err)
	}
	if frame[36] != 0xff || frame[37] != 0xff {
		t.Fatalf("checksum %x, which UDP takes for none", frame[36:38])
	}
	m.CsumStart = 57
	if err := FinishChecksum(frame, m); !errors.Is(err, ErrMalformed) {
		t.Fatalf("outside the frame: %v", err)
	}
}

func TestAllocs(t *testing.T) {
	frame, m := benchRun()
	var s Splitter
	var j Joiner
	dst := make([]byte, 2048)
	n := testing.AllocsPerRun(100, func() {
		if _, err := s.Reset(frame, m, 1414); err != nil {
			t.Fatal(err)
		}
		for n, h, ok := s.Next(dst); ok; n, h, ok = s.Next(dst) {
			if !j.Add(h, dst[:n]) {
				t.Fatal("refused")
			}
		}
		j.Frame()
		j.Reset()
	})
	if n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestPlainFrames(t *testing.T) {
	frame := make([]byte, 400)
	frame[12], frame[13], frame[399] = 0x08, 0x06, 7
	for name, m := range map[string]Meta{
		"no offload":      {},
		"verified":        {CsumValid: true},
		"unfinished":      {NeedsCsum: true, CsumStart: 34, CsumOffset: 6},
		"far behind":      {NeedsCsum: true, CsumStart: 300, CsumOffset: 16},
		"offset too wide": {NeedsCsum: true, CsumStart: 34, CsumOffset: 256},
	} {
		t.Run(name, func(t *testing.T) {
			pieces := split(t, frame, m, 100)
			if len(pieces) != 1 {
				t.Fatalf("%d pieces", len(pieces))
			}
			want := bytes.Clone(frame)
			if m.CsumStart > 0xff || m.CsumOffset > 0xff {
				if err := FinishChecksum(want, m); err != nil {
					t.Fatal(err)
				}
				if got := dumbSum(want[m.CsumStart:]); got != 0xffff && m.CsumOffset < 256 {
					t.Fatalf("sum %#04x", got)
				}
				m = Meta{}
			}
			out := join(t, pieces)[0]
			if got, _ := DecodeVnet(out); got != m || !bytes.Equal(out[VnetHdrLen:], want) {
				t.Fatalf("meta %+v, want %+v, or other frame", got, m)
			}
		})
	}
}

func TestResetRefuses(t *testing.T) {
	good := runSpec{flags: 0x10, payload: make([]byte, 3000), gsoSize: 1000}
	type change func(f []byte, m *Meta) []byte
	for name, c := range map[string]change{
		"empty":                func([]byte, *Meta) []byte { return nil },
		"too long":             func([]byte, *Meta) []byte { return make([]byte, MaxFrame+1) },
		"no size":              func(f []byte, m *Meta) []byte { m.GSOSize = 0; return f },
		"UFO":                  func(f []byte, m *Meta) []byte { m.GSO = GSOUFO; return f },
		"TCPv6 for IPv4":       func(f []byte, m *Meta) []byte { m.GSO = GSOTCPv6; return f },
		"UDP for TCP":          func(f []byte, m *Meta) []byte { m.GSO = GSOUDP; return f },
		"checksum elsewhere":   func(f []byte, m *Meta) []byte { m.CsumOffset = 6; return f },
		"checksum outside":     func(f []byte, m *Meta) []byte { m.CsumStart = 65535; return f },
		"checksum in Ethernet": func(f []byte, m *Meta) []byte { m.CsumStart = 0; return f },
		"checksum finished":    func(f []byte, m *Meta) []byte { m.NeedsCsum = false; return f },
		"headers only":         func(f []byte, m *Meta) []byte { return f[:54] },
		"IPv4 length":          func(f []byte, m *Meta) []byte { f[17]++; return f },
		"IPv4 fragment":        func(f []byte, m *Meta) []byte { f[20] |= 0x20; return f },
		"short TCP header":     func(f []byte, m *Meta) []byte { f[46] = 0x40; return f },
		"three VLAN tags": func(f []byte, m *Meta) []byte {
			tags := bytes.Repeat([]byte{0x81, 0, 0, 1}, 3)
			return append(append(bytes.Clone(f[:12]), tags...), f[12:]...)
		},
		"ARP": func(f []byte, m *Meta) []byte { f[13] = 6; return f },
	} {
		t.Run(name, func(t *testing.T) {
			frame, m := good.build()
			frame = c(frame, &m)
			var s Splitter
			n, err := s.Reset(frame, m, testMaxFrame)
			if n != 0 || !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("Reset = %d, %v", n, err)
			}
			if _, _, ok := s.Next(make([]byte, MaxFrame)); ok {
				t.Fatal("a piece after an error")
			}
		})
	}
}

func TestNextNeedsRoom(t *testing.T) {
	spec := runSpec{udp: true, payload: make([]byte, 2500), gsoSize: 1000}
	frame, m := spec.build()
	var s Splitter
	if _, err := s.Reset(frame, m, 500); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := s.Next(make([]byte, s.NextLen()-1)); ok {
		t.Fatal("a piece without room for it")
	}
	if n, _, ok := s.Next(make([]byte, s.NextLen())); !ok || n != 14+20+8+1000 {
		t.Fatalf("n = %d, ok = %v", n, ok)
	}
}
