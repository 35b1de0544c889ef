package run

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weave/mesh/wire"
)

// datagrams are what a container sends that does not make runs: each a frame
// of its own, as Splitter marks it.
func datagrams(t interface{ Fatalf(string, ...any) }, spec runSpec, payloads [][]byte) []piece {
	var out []piece
	for i, payload := range payloads {
		one := spec
		one.udp, one.payload, one.id = true, payload, spec.id+uint16(i)
		frame, m := one.build()
		m.GSO, m.GSOSize = GSONone, 0
		out = append(out, split(t, frame, m, testMaxFrame)...)
	}
	return out
}

// chunks cuts a payload as a sender of equal datagrams would.
func chunks(b []byte, size int) (out [][]byte) {
	for ; len(b) > size; b = b[size:] {
		out = append(out, b[:size])
	}
	return append(out, b)
}

// TestGatheredIsTheRunThatWasNotMade: datagrams sent one by one become, to the
// byte, the run that the kernel would have handed over for all of them.
func TestGatheredIsTheRunThatWasNotMade(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := drawSpec(t)
		spec.udp, spec.exts = true, min(spec.exts, 2) // longer ones are finished by Splitter
		payloads := chunks(spec.payload, spec.gsoSize)
		var j Joiner
		for i, p := range datagrams(t, spec, payloads) {
			if last := i == len(payloads)-1; !j.Add(p.h, p.frame) || !last && !j.Open() {
				t.Fatalf("datagram %d of %d refused", i, len(payloads))
			}
		}
		frame, m := spec.build()
		if len(payloads) == 1 {
			m.GSO, m.GSOSize, m.HdrLen = GSONone, 0, 0
		}
		want := make([]byte, VnetHdrLen)
		m.EncodeVnet(want)
		if got := j.Frame(); !bytes.Equal(got, append(want, frame...)) {
			t.Fatalf("got %x\nwant %x%x", got, want, frame)
		}
	})
}

func TestGatherKeepsApart(t *testing.T) {
	spec := runSpec{udp: true, id: 7}
	size := func(sizes ...int) (out [][]byte) {
		for _, n := range sizes {
			out = append(out, make([]byte, n))
		}
		return out
	}
	second := func(change func(p *piece)) func([]piece) { return func(p []piece) { change(&p[1]) } }
	put := func(at int, v uint16) func([]piece) {
		return second(func(p *piece) { binary.BigEndian.PutUint16(p.frame[at:], v) })
	}
	// number gives all datagrams one ID, and a header checksum that fits.
	number := func(fragment byte) func([]piece) {
		return func(pieces []piece) {
			for _, p := range pieces {
				ip := p.frame[ethLen : ethLen+ipv4Len]
				ip[ipv4Fragment] = fragment
				binary.BigEndian.PutUint16(ip[ipv4ID:], 7)
				binary.BigEndian.PutUint16(ip[ipv4Csum:], 0)
				binary.BigEndian.PutUint16(ip[ipv4Csum:], ^dumbSum(ip))
			}
		}
	}
	for name, tc := range map[string]struct {
		noUDP  bool
		sizes  [][]byte
		change func([]piece)
		want   int // how many are gathered
	}{
		"equal":                 {sizes: size(10, 10, 10), want: 3},
		"a shorter one ends it": {sizes: size(10, 9, 9), want: 2},
		"a longer one":          {sizes: size(10, 11), want: 1},
		"one ID, no fragments":  {sizes: size(10, 10, 10), change: number(0x40), want: 3},
		"one ID, fragments":     {sizes: size(10, 10), change: number(0), want: 1},
		"device takes none":     {noUDP: true, sizes: size(10, 10), want: 1},
		"other port":            {sizes: size(10, 10), change: put(36, 1), want: 1},
		"other address":         {sizes: size(10, 10), change: put(32, 9), want: 1},
		"other destination":     {sizes: size(10, 10), change: put(4, 9), want: 1},
		"wrong header checksum": {sizes: size(10, 10), change: put(24, 9), want: 1},
		"other transport sum":   {sizes: size(10, 10), change: put(40, 9), want: 1},
		"finished checksum":     {sizes: size(10, 10), change: second(func(p *piece) { p.h.Flags = 0 }), want: 1},
		"other segment":         {sizes: size(10, 10), change: second(func(p *piece) { p.h.Segment = 9 }), want: 1},
		"piece of a run":        {sizes: size(10, 10), change: second(func(p *piece) { p.h.Flags |= wire.FlagUDP | wire.FlagContinues }), want: 1},
	} {
		t.Run(name, func(t *testing.T) {
			pieces := datagrams(t, spec, tc.sizes)
			if tc.change != nil {
				tc.change(pieces)
			}
			j, n := Joiner{NoUDP: tc.noUDP}, 0
			for n < len(pieces) && (n == 0 || j.Open()) && j.Add(pieces[n].h, pieces[n].frame) {
				n++
			}
			if n != tc.want {
				t.Fatalf("%d gathered, want %d", n, tc.want)
			}
		})
	}
}

// TestGatherBound: what an older kernel cannot cut again is not built.
func TestGatherBound(t *testing.T) {
	var j Joiner
	for i, p := range datagrams(t, runSpec{udp: true}, chunks(make([]byte, 1000), 10)) {
		if i == maxGathered {
			if j.Open() || j.Add(p.h, p.frame) {
				t.Fatalf("gathered more than %d", maxGathered)
			}
			return
		}
		if !j.Add(p.h, p.frame) {
			t.Fatalf("datagram %d refused", i)
		}
	}
}

// TestGatherLongHeaders: an extension header may bring the transport header as
// far as a byte can tell.
func TestGatherLongHeaders(t *testing.T) {
	var j Joiner
	for i, p := range datagrams(t, runSpec{v6: true}, chunks(make([]byte, 30), 10)) {
		const at, n = ethLen + ipv6Len, 200
		options := make([]byte, n)
		options[0], options[1] = protoUDP, n/8-1
		p.frame = slices.Insert(p.frame, at, options...)
		p.frame[ethLen+ipv6Next] = 60
		binary.BigEndian.PutUint16(p.frame[ethLen+ipv6PayloadLen:], uint16(len(p.frame)-at))
		p.h.CsumStart += n
		if !j.Add(p.h, p.frame) || !j.Open() {
			t.Fatalf("datagram %d refused", i)
		}
	}
}
