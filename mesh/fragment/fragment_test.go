package fragment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weave/mesh/wire"
)

var start = time.Unix(1_700_000_000, 0)

// tester is a testing.TB or a rapid.T.
type tester interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// sealed looks like a sealed datagram of n bytes, and differs from others.
func sealed(n int, index, seed uint32) []byte {
	d := make([]byte, n)
	for i := range d {
		d[i] = byte(uint32(i)*7 + seed)
	}
	wire.Header{Type: wire.TypeSealed, Version: wire.Version, Index: index}.Put(d)
	binary.BigEndian.PutUint32(d[n-4:], seed)
	return d
}

// cut returns a datagram's fragments.
func cut(t tester, datagram []byte, limit int) (out [][]byte) {
	t.Helper()
	count, size := Layout(len(datagram), limit)
	all := Append(nil, datagram, count, size)
	if len(all) != count*size || size > limit || count > Max || len(all) > Room {
		t.Fatalf("%d bytes by %d: %d fragments of %d are %d bytes", len(datagram), limit, count, size, len(all))
	}
	for ; len(all) > 0; all = all[size:] {
		out = append(out, all[:size])
	}
	return out
}

// add gives a fragment to j, as it came.
func add(t tester, j *Joiner, fragment []byte, now time.Time) (datagram []byte, dropped int) {
	t.Helper()
	h, piece, err := wire.ParseFragment(fragment)
	if err != nil {
		t.Fatal(err)
	}
	datagram, dropped, err = j.Add(h, piece, now)
	if err != nil {
		t.Fatal(err)
	}
	return datagram, dropped
}

// TestRoundTrip: whatever the length, the limit and the order, and if some come
// twice, the datagram is complete with the last fragment and not before.
func TestRoundTrip(t *testing.T) {
	var j Joiner
	seed := uint32(0)
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.OneOf(rapid.IntRange(MinSize, 1500), rapid.IntRange(MinSize, 9000)).Draw(t, "limit")
		n := rapid.OneOf(rapid.IntRange(limit+1, 2*limit), rapid.IntRange(limit+1, maxDatagram)).Draw(t, "n")
		seed++
		want := sealed(n, 5, seed)
		fragments := cut(t, want, limit)
		order := rapid.Permutation(fragments).Draw(t, "order")
		for i, f := range order {
			if rapid.Bool().Draw(t, "twice") && i < len(order)-1 {
				if got, _ := add(t, &j, f, start); got != nil {
					t.Fatal("complete too early")
				}
			}
			got, dropped := add(t, &j, f, start)
			if dropped != 0 || (got != nil) != (i == len(order)-1) {
				t.Fatalf("fragment %d of %d: %v, %d dropped", i, len(order), got != nil, dropped)
			}
			if got != nil && !bytes.Equal(got, want) {
				t.Fatal("other bytes than were sent")
			}
		}
	})
}

// TestTrain: the fragments of equal datagrams are equally long.
func TestTrain(t *testing.T) {
	for n := 1201; n < 9100; n += 13 {
		count, size := Layout(n, 1200)
		for _, d := range [][]byte{sealed(n, 1, 1), sealed(n, 1, 2)} {
			if got := Append(nil, d, count, size); len(got) != count*size {
				t.Fatalf("%d bytes: %d", n, len(got))
			}
		}
		if count > 2 && (count-1)*(1200-wire.HeaderLen) >= n {
			t.Fatalf("%d bytes in %d fragments", n, count)
		}
	}
}

// TestMix: fragments of several datagrams and sessions may come mixed, and one that
// is lost costs its datagram only.
func TestMix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var j Joiner
		type piece struct {
			of int
			f  []byte
		}
		var all []piece
		var want [][]byte
		lost := map[int]bool{}
		for i := range rapid.IntRange(1, maxOfOne).Draw(t, "datagrams") {
			d := sealed(rapid.IntRange(1000, 5000).Draw(t, "n"), uint32(i%3), uint32(i))
			want = append(want, d)
			lost[i] = rapid.Bool().Draw(t, "lost")
			for k, f := range cut(t, d, 600) {
				if k > 0 || !lost[i] {
					all = append(all, piece{i, f})
				}
			}
		}
		got := map[int]bool{}
		for _, p := range rapid.Permutation(all).Draw(t, "order") {
			if d, _ := add(t, &j, p.f, start); d != nil {
				if got[p.of] || !bytes.Equal(d, want[p.of]) {
					t.Fatal("twice, or other bytes")
				}
				got[p.of] = true
			}
		}
		for i := range want {
			if got[i] == lost[i] {
				t.Fatalf("datagram %d: lost a fragment %v, arrived %v", i, lost[i], got[i])
			}
		}
	})
}

func TestMalformed(t *testing.T) {
	good := wire.FragmentHeader{Number: 1, Count: 2, Index: 1, ID: 2, Total: 100}
	for name, tt := range map[string]struct {
		change func(*wire.FragmentHeader)
		size   int
	}{
		"none":                   {func(h *wire.FragmentHeader) { h.Count = 0 }, 50},
		"one":                    {func(h *wire.FragmentHeader) { h.Count, h.Number = 1, 0 }, 100},
		"too many":               {func(h *wire.FragmentHeader) { h.Count, h.Total = Max+1, Max*10+1 }, 10},
		"number out of range":    {func(h *wire.FragmentHeader) { h.Number = 2 }, 50},
		"no datagram so short":   {func(h *wire.FragmentHeader) { h.Total = minDatagram - 1 }, 16},
		"no datagram so long":    {func(h *wire.FragmentHeader) { h.Total = maxDatagram + 1 }, 40000},
		"empty":                  {func(h *wire.FragmentHeader) {}, 0},
		"too short for total":    {func(h *wire.FragmentHeader) {}, 49},
		"one would do":           {func(h *wire.FragmentHeader) {}, 100},
		"last is nothing at all": {func(h *wire.FragmentHeader) { h.Count = 3 }, 50},
	} {
		var j Joiner
		h := good
		tt.change(&h)
		if _, _, err := j.Add(h, make([]byte, tt.size), start); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		if j.held() != 0 {
			t.Errorf("%s: something is kept", name)
		}
	}
}

// held counts the datagrams that are not complete.
func (j *Joiner) held() (n int) {
	for _, p := range j.waiting {
		if p.used {
			n++
		}
	}
	return n
}

// TestBounds: who sends parts of datagrams only has few of them kept, and pushes
// out his own.
func TestBounds(t *testing.T) {
	var j Joiner
	victim := cut(t, sealed(1500, 99, 99), 1200)
	add(t, &j, victim[0], start)
	dropped := 0
	for i := range uint32(100) {
		_, n := add(t, &j, cut(t, sealed(1500, 1, i), 1200)[0], start)
		dropped += n
	}
	if j.held() != maxOfOne+1 || dropped != 100-maxOfOne {
		t.Errorf("%d are kept, %d dropped", j.held(), dropped)
	}
	if got, _ := add(t, &j, victim[1], start); got == nil {
		t.Error("another session's was pushed out")
	}
	for i := range uint32(1000) {
		add(t, &j, cut(t, sealed(maxDatagram, i, i), 1200)[0], start)
	}
	if j.held() != maxWaiting {
		t.Errorf("%d are kept", j.held())
	}
	for i := range uint32(maxWaiting) { // all that are kept now are long
		f := cut(t, sealed(maxDatagram, 1000-maxWaiting+i, 1000-maxWaiting+i), 1200)
		for _, f := range f[1:] {
			add(t, &j, f, start)
		}
	}
	kept := 0
	for _, p := range j.waiting {
		kept += cap(p.buf)
	}
	if j.held() != 0 || kept > maxWaiting*maxKept {
		t.Errorf("%d bytes are kept of nothing, %d datagrams", kept, j.held())
	}
}

// TestExpiry: what is late is the beginning of nothing old.
func TestExpiry(t *testing.T) {
	var j Joiner
	f := cut(t, sealed(1500, 1, 1), 1200)
	add(t, &j, f[0], start)
	if got, dropped := add(t, &j, f[1], start.Add(patience)); got != nil || dropped != 1 {
		t.Errorf("after %s: %v, %d dropped", patience, got != nil, dropped)
	}
	if got, _ := add(t, &j, f[0], start.Add(2*patience-1)); got == nil {
		t.Error("not complete")
	}
	add(t, &j, f[0], start)
	other := cut(t, sealed(1500, 2, 2), 1200)
	if _, dropped := add(t, &j, other[0], start.Add(patience)); dropped != 1 || j.held() != 1 {
		t.Errorf("%d dropped, %d kept", dropped, j.held())
	}
}

// TestCutAnew: a datagram of which a part was sent already goes in shorter fragments
// where the path takes no longer ones.
func TestCutAnew(t *testing.T) {
	var j Joiner
	d := sealed(3000, 1, 1)
	add(t, &j, cut(t, d, 1400)[0], start)
	var got []byte
	for _, f := range cut(t, d, 600) {
		got, _ = add(t, &j, f, start)
	}
	if !bytes.Equal(got, d) {
		t.Error("did not arrive")
	}
}

func TestNothingIsAllocated(t *testing.T) {
	var j Joiner
	room, datagrams := make([]byte, 0, Room), [][]byte{sealed(1500, 1, 1), sealed(1500, 1, 2)}
	count, size := Layout(1500, 1200)
	if n := testing.AllocsPerRun(100, func() {
		out := room
		for _, d := range datagrams {
			out = Append(out, d, count, size)
		}
		for ; len(out) > 0; out = out[size:] {
			add(t, &j, out[:size], start)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzJoiner: whatever comes is joined as its headers say, or refused; memory stays
// bounded.
func FuzzJoiner(f *testing.F) {
	whole := Append(nil, sealed(100, 1, 7), 4, wire.HeaderLen+25)
	f.Add(whole, uint8(wire.HeaderLen+25))
	f.Add(append(bytes.Clone(whole[41:]), whole...), uint8(41))
	f.Add(bytes.Repeat([]byte{2}, 300), uint8(60))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		var j Joiner
		now := start
		for len(b) > 0 && size > 0 {
			d := b[:min(int(size), len(b))]
			b = b[len(d):]
			now = now.Add(time.Duration(d[0]) * time.Millisecond)
			h, piece, err := wire.ParseFragment(d)
			if err != nil {
				continue
			}
			before := j.held()
			got, dropped, err := j.Add(h, piece, now)
			switch {
			case err != nil && (got != nil || dropped != 0 || j.held() != before):
				t.Fatal("refused, and something changed")
			case got != nil && len(got) != int(h.Total):
				t.Fatalf("%d bytes of %d", len(got), h.Total)
			case got != nil && !bytes.HasPrefix(got[min(len(got), int(h.Number)*len(piece)):], piece[:min(len(piece), len(got)-int(h.Number)*len(piece))]):
				t.Fatal("the last piece is not where it belongs")
			case j.held() > before+1 || j.held() > maxWaiting:
				t.Fatalf("%d are kept", j.held())
			}
		}
	})
}
