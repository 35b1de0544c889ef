package run

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"weave/mesh/wire"
)

// TestJoinerNeedsSameHeaders: one changed byte in a piece's headers, and it
// does not join.
func TestJoinerNeedsSameHeaders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := drawSpec(t)
		spec.exts, spec.flags = 0, 0x10
		spec.payload = spec.payload[:1]
		for len(spec.payload) <= spec.gsoSize {
			spec.payload = append(spec.payload, 7)
		}
		frame, m := spec.build()
		pieces := split(t, frame, m, testMaxFrame)
		at := rapid.IntRange(0, int(m.HdrLen)-1).Draw(t, "at")
		bit := byte(1) << rapid.IntRange(0, 7).Draw(t, "bit")
		pieces[1].frame[at] ^= bit
		if !spec.udp && at == int(m.CsumStart)+13 && bit&0x09 != 0 {
			t.Skip("FIN and PSH may come with the last piece")
		}
		var j Joiner
		if !j.Add(pieces[0].h, pieces[0].frame) {
			t.Fatal("first piece refused")
		}
		if j.Add(pieces[1].h, pieces[1].frame) {
			t.Fatalf("joined although byte %d differs", at)
		}
	})
}

func TestJoinerKeepsApart(t *testing.T) {
	spec := runSpec{flags: 0x10, seq: 1, payload: make([]byte, 3000), gsoSize: 1000}
	frame, m := spec.build()
	tcp := split(t, frame, m, testMaxFrame)
	spec.udp = true
	frame, m = spec.build()
	udp := split(t, frame, m, testMaxFrame)
	flip := func(p piece, at int, bits byte) piece {
		p.frame = bytes.Clone(p.frame)
		p.frame[at] ^= bits
		return p
	}
	with := func(p piece, change func(*wire.FrameHeader)) piece {
		change(&p.h)
		return p
	}
	for name, tc := range map[string]struct {
		noUDP bool
		a, b  piece
		want  bool
	}{
		"next":            {a: tcp[0], b: tcp[1], want: true},
		"last":            {a: tcp[1], b: tcp[2], want: true},
		"next of UDP":     {a: udp[0], b: udp[1], want: true},
		"one lost":        {a: tcp[0], b: tcp[2]},
		"one lost of UDP": {a: udp[0], b: udp[2]},
		"repeated":        {a: tcp[1], b: tcp[1]},
		"after the last":  {a: tcp[2], b: tcp[1]},
		"UDP not wanted":  {noUDP: true, a: udp[0], b: udp[1]},
		"not marked":      {a: tcp[0], b: with(tcp[1], func(h *wire.FrameHeader) { h.Flags &^= wire.FlagContinues })},
		"no more":         {a: with(tcp[0], func(h *wire.FrameHeader) { h.Flags &^= wire.FlagMore }), b: tcp[1]},
		"other segment":   {a: tcp[0], b: with(tcp[1], func(h *wire.FrameHeader) { h.Segment = 9 })},
		"other kind":      {a: tcp[0], b: with(tcp[1], func(h *wire.FrameHeader) { h.Flags ^= wire.FlagUDP })},
		"wrong IPv4 sum":  {a: flip(tcp[0], 24, 1), b: tcp[1]},
		"behind a FIN":    {a: flip(tcp[0], 47, 0x01), b: tcp[1]},
		"behind a PSH":    {a: flip(tcp[0], 47, 0x08), b: tcp[1]},
		"of a SYN":        {a: flip(tcp[0], 47, 0x02), b: flip(tcp[1], 47, 0x02)},
		"other hdrlen":    {a: tcp[0], b: with(tcp[1], func(h *wire.FrameHeader) { h.HdrLen-- })},
	} {
		t.Run(name, func(t *testing.T) {
			j := Joiner{NoUDP: tc.noUDP}
			if !j.Add(tc.a.h, tc.a.frame) {
				t.Fatal("first piece refused")
			}
			if got := j.Add(tc.b.h, tc.b.frame); got != tc.want {
				t.Fatalf("Add = %v", got)
			}
			if b := j.Frame(); !tc.want && !bytes.Equal(b[VnetHdrLen:], tc.a.frame) {
				t.Fatal("the refused piece changed what was held")
			}
		})
	}
}

// TestJoinerBound: a run that never ends is cut at what an IP header can say.
func TestJoinerBound(t *testing.T) {
	frame, m := runSpec{flags: 0x10, payload: make([]byte, 3000), gsoSize: 1000}.build()
	l, err := parseLayout(frame, int(m.CsumStart), false)
	if err != nil {
		t.Fatal(err)
	}
	series := newSeries(frame, l)
	first := split(t, frame, m, testMaxFrame)[0]
	var j Joiner
	for i := range 100 {
		h, b := first.h, bytes.Clone(first.frame)
		h.Flags |= place(i, false)
		series.put(b, i, i*1000, 1000, false)
		if !j.Add(h, b) {
			if want := (65535 - 40) / 1000; i != want {
				t.Fatalf("%d pieces joined, want %d", i, want)
			}
			return
		}
	}
	t.Fatal("joined 100,000 bytes")
}

// TestNothingFollowsAShorterPiece, not even what has the right headers: the
// kernel would cut the run elsewhere.
func TestNothingFollowsAShorterPiece(t *testing.T) {
	frame, m := runSpec{flags: 0x10, payload: make([]byte, 1500), gsoSize: 1000}.build()
	l, err := parseLayout(frame, int(m.CsumStart), false)
	if err != nil {
		t.Fatal(err)
	}
	series := newSeries(frame, l)
	pieces := split(t, frame, m, testMaxFrame)
	pieces[1].h.Flags |= wire.FlagMore
	third := bytes.Clone(pieces[1].frame)
	series.put(third, 2, 1500, 500, false)
	var j Joiner
	for _, p := range pieces {
		if !j.Add(p.h, p.frame) {
			t.Fatal("refused")
		}
	}
	if j.Add(pieces[1].h, third) {
		t.Fatal("joined behind a shorter piece")
	}
}

func TestFrameTwice(t *testing.T) {
	frame, m := runSpec{flags: 0x99, payload: make([]byte, 2500), gsoSize: 1000}.build()
	var j Joiner
	if j.Held() || j.Frame() != nil {
		t.Fatal("a new Joiner holds something")
	}
	pieces := split(t, frame, m, testMaxFrame)
	for _, p := range pieces {
		if !j.Add(p.h, p.frame) {
			t.Fatal("refused")
		}
	}
	once := bytes.Clone(j.Frame())
	if !bytes.Equal(once, j.Frame()) || !bytes.Equal(once[VnetHdrLen:], frame) {
		t.Fatal("other frame the second time")
	}
	if j.Add(pieces[1].h, pieces[1].frame) {
		t.Fatal("joined after Frame")
	}
}
