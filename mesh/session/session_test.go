package session

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weave/mesh/wire"
)

var start = time.Unix(1_700_000_000, 0)

// pair returns the two ends of a session.
func pair(t testing.TB, aes bool, limits Limits) (a, b *Session) {
	t.Helper()
	k1, k2 := [32]byte{1}, [32]byte{2}
	a, err := New(Params{Send: k1, Receive: k2, AES: aes, Index: 5, Established: start, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	b, err = New(Params{Send: k2, Receive: k1, AES: aes, Index: 6, Established: start, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func sealed(t testing.TB, s *Session, text string) []byte {
	t.Helper()
	d := make([]byte, wire.HeaderLen+len(text)+wire.TagLen)
	copy(d[wire.HeaderLen:], text)
	if err := s.Seal(d, len(d)); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSealOpen(t *testing.T) {
	for _, aes := range []bool{true, false} {
		a, b := pair(t, aes, DefaultLimits())
		for i, text := range []string{"", "hello", string(make([]byte, 1400))} {
			d := sealed(t, a, text)
			h, err := wire.ParseHeader(d)
			want := wire.Header{Type: wire.TypeSealed, Version: wire.Version, Index: 5, Counter: uint64(i)}
			if err != nil || h != want {
				t.Errorf("header %+v, want %+v", h, want)
			}
			if text != "" && bytes.Contains(d, []byte(text)) {
				t.Error("text in clear")
			}
			plain, err := b.Open(d)
			if err != nil || string(plain) != text {
				t.Errorf("opened %q, %v", plain, err)
			}
			if len(plain) > 0 && &plain[0] != &d[wire.HeaderLen] {
				t.Error("plain does not alias the datagram")
			}
		}
	}
}

func TestHostile(t *testing.T) {
	a, b := pair(t, true, DefaultLimits())
	first := sealed(t, a, "first")
	for n := range first {
		if _, err := b.Open(bytes.Clone(first[:n])); !errors.Is(err, ErrShort) && !errors.Is(err, ErrForged) {
			t.Errorf("cut to %d: %v", n, err)
		}
	}
	for bit := range len(first) * 8 {
		d := bytes.Clone(first)
		d[bit/8] ^= 1 << (bit % 8)
		if _, err := b.Open(d); !errors.Is(err, ErrForged) {
			t.Errorf("bit %d flipped: %v", bit, err)
		}
	}
	// None of the forgeries, some with huge counters, moved the window.
	if _, err := b.Open(bytes.Clone(first)); err != nil {
		t.Errorf("after forgeries: %v", err)
	}
	if _, err := b.Open(bytes.Clone(first)); !errors.Is(err, ErrReplay) {
		t.Errorf("replayed: %v", err)
	}
	if _, err := a.Open(sealed(t, a, "mirrored")); !errors.Is(err, ErrForged) {
		t.Errorf("sent back: %v", err)
	}
	if err := a.Seal(make([]byte, wire.HeaderLen+wire.TagLen-1), 1000); !errors.Is(err, ErrShort) {
		t.Errorf("no room: %v", err)
	}
}

func TestDisorder(t *testing.T) {
	a, b := pair(t, false, DefaultLimits())
	rapid.Check(t, func(rt *rapid.T) {
		var sent [][]byte
		for range rapid.IntRange(1, 40).Draw(rt, "n") {
			sent = append(sent, sealed(t, a, "x"))
		}
		for _, i := range rapid.Permutation(indices(len(sent))).Draw(rt, "order") {
			if _, err := b.Open(bytes.Clone(sent[i])); err != nil {
				rt.Fatal(err)
			}
			if _, err := b.Open(bytes.Clone(sent[i])); !errors.Is(err, ErrReplay) {
				rt.Fatal(err)
			}
		}
	})
}

func indices(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func TestLimits(t *testing.T) {
	limits := Limits{RekeyAge: 2 * time.Minute, RejectAge: 3 * time.Minute, RekeyMessages: 2, RejectMessages: 4}
	a, _ := pair(t, true, limits)
	for _, tt := range []struct {
		age       time.Duration
		due, over bool
	}{
		{0, false, false},
		{2*time.Minute - 1, false, false},
		{2 * time.Minute, true, false},
		{3 * time.Minute, true, true},
	} {
		now := start.Add(tt.age)
		if a.Due(now) != tt.due || a.Over(now) != tt.over {
			t.Errorf("age %v: due %v, over %v", tt.age, a.Due(now), a.Over(now))
		}
	}
	for n, want := range []error{nil, nil, nil, nil, ErrSpent, ErrSpent} {
		if due := a.Due(start); due != (n >= 2) {
			t.Errorf("after %d: due %v", n, due)
		}
		if over := a.Over(start); over != (n >= 4) {
			t.Errorf("after %d: over %v", n, over)
		}
		if err := a.Seal(make([]byte, 64), 64); !errors.Is(err, want) {
			t.Errorf("number %d: %v, want %v", n, err, want)
		}
	}
	b, _ := pair(t, true, limits)
	for n, want := range []error{nil, ErrSpent} { // of three datagrams, all or none
		buf := trainOf(3, 64, 64)
		if err := b.Seal(buf, 64); !errors.Is(err, want) {
			t.Errorf("train %d: %v, want %v", n, err, want)
		} else if sealed := !bytes.Equal(buf, make([]byte, len(buf))); sealed != (want == nil) {
			t.Errorf("train %d: sealed %v", n, sealed)
		}
	}
}

func TestRetire(t *testing.T) {
	a, b := pair(t, true, DefaultLimits())
	d := sealed(t, b, "late")
	a.Retire()
	a.Retire()
	if err := a.Seal(make([]byte, 64), 64); !errors.Is(err, ErrSpent) {
		t.Errorf("seal: %v", err)
	}
	if _, err := a.Open(d); err != nil {
		t.Errorf("open: %v", err)
	}
}

// trainOf returns n datagrams to seal, each size bytes long but the last.
func trainOf(n, size, last int) []byte { return make([]byte, (n-1)*size+last) }

// each calls f with the datagrams of a train.
func each(buf []byte, size int, f func(datagram []byte)) {
	for len(buf) > 0 {
		d := buf[:min(size, len(buf))]
		f(d)
		buf = buf[len(d):]
	}
}

func TestTrain(t *testing.T) {
	a, b := pair(t, true, DefaultLimits())
	rapid.Check(t, func(t *rapid.T) {
		const least = wire.HeaderLen + wire.TagLen
		size := rapid.IntRange(least, 200).Draw(t, "size")
		n := rapid.IntRange(1, 64).Draw(t, "n")
		buf := trainOf(n, size, rapid.IntRange(least, size).Draw(t, "last"))
		for i := range buf {
			buf[i] = byte(i)
		}
		want := bytes.Clone(buf)
		next := a.counter.Load()
		if err := a.Seal(buf, size); err != nil {
			t.Fatal(err)
		}
		each(buf, size, func(d []byte) {
			h, err := wire.ParseHeader(d)
			if err != nil || h.Counter != next {
				t.Fatalf("header %+v, %v, want counter %d", h, err, next)
			}
			next++
			plain, err := b.Open(d)
			if err != nil || !bytes.Equal(plain, want[wire.HeaderLen:len(d)-wire.TagLen]) {
				t.Fatalf("opened %x, %v", plain, err)
			}
			want = want[len(d):]
		})
		if got := a.counter.Load(); got != next {
			t.Fatalf("%d counters gone, want %d", got, next)
		}
		for _, bad := range [][2]int{{len(buf), least - 1}, {len(buf), 0}, {size + least - 1, size}, {0, size}} {
			if err := a.Seal(make([]byte, max(bad[0], size))[:bad[0]], bad[1]); err != ErrShort {
				t.Fatalf("%d bytes in datagrams of %d: %v", bad[0], bad[1], err)
			}
		}
	})
}

// Many goroutines seal trains while one opens: no counter comes twice, those of
// a train are consecutive, none is above the limit, and of two copies of a
// datagram exactly one is opened.
func TestConcurrent(t *testing.T) {
	const limit, size, workers = 2000, 64, 4
	limits := DefaultLimits()
	limits.RejectMessages = limit
	a, b := pair(t, true, limits)
	var mu sync.Mutex
	opened := map[uint64]int{} // mu is held by who opens, too
	open := func(buf []byte) {
		mu.Lock()
		defer mu.Unlock()
		first, _ := wire.ParseHeader(buf)
		next := first.Counter
		each(buf, size, func(d []byte) {
			h, _ := wire.ParseHeader(d)
			if h.Counter != next || h.Counter >= limit {
				t.Errorf("counter %d, want %d", h.Counter, next)
			}
			next++
			for _, c := range [][]byte{bytes.Clone(d), d} {
				if _, err := b.Open(c); err == nil {
					opened[h.Counter]++
				}
			}
		})
	}
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			for n := worker; ; n++ {
				buf := trainOf(1+n%7, size, size)
				if err := a.Seal(buf, size); err != nil {
					if err != ErrSpent {
						t.Error(err)
					}
					return
				}
				open(buf)
			}
		})
	}
	wg.Wait()
	if len(opened) < limit-7 {
		t.Errorf("%d counters, want %d but for less than a train", len(opened), limit)
	}
	for c, n := range opened {
		if n != 1 {
			t.Errorf("counter %d opened %d times", c, n)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	for _, aes := range []bool{true, false} {
		a, b := pair(t, aes, DefaultLimits())
		buf, size := trainOf(2, 1400, 1000), 1400
		if n := testing.AllocsPerRun(200, func() {
			if a.Seal(buf, size) != nil {
				t.Fatal("seal")
			}
			for _, d := range [][]byte{buf[:size], buf[size:]} {
				if _, err := b.Open(d); err != nil {
					t.Fatal(err)
				}
			}
		}); n != 0 {
			t.Errorf("AES %v: %v allocations", aes, n)
		}
	}
}

// model is the window as one would write it without a thought for speed.
type model struct {
	seen map[uint64]bool
	top  uint64
}

func (m *model) commit(c uint64) bool {
	if c == math.MaxUint64 || m.seen[c] || m.top >= Window && c <= m.top-Window {
		return false
	}
	m.seen[c] = true
	m.top = max(m.top, c)
	return true
}

func TestWindowAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		m := model{seen: map[uint64]bool{}}
		steps := rapid.IntRange(1, 400).Draw(t, "steps")
		for range steps {
			var c uint64
			switch rapid.IntRange(0, 5).Draw(t, "kind") {
			case 0: // anywhere
				c = rapid.Uint64().Draw(t, "any")
			case 1: // the next
				c = m.top + 1
			case 2: // about one window on or back
				c = m.top + Window + rapid.Uint64Range(0, 130).Draw(t, "on") - 65
			case 3:
				c = m.top - Window + rapid.Uint64Range(0, 130).Draw(t, "back") - 65
			default: // near
				c = m.top + rapid.Uint64Range(0, 300).Draw(t, "near") - 200
			}
			fresh := w.fresh(c)
			want := m.commit(c)
			if got := w.commit(c); got != want || fresh != want {
				t.Fatalf("counter %d at top %d: fresh %v, commit %v, model %v", c, m.top, fresh, got, want)
			}
		}
	})
}

func FuzzOpen(f *testing.F) {
	a, _ := pair(f, true, DefaultLimits())
	f.Add(sealed(f, a, "seed"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, d []byte) {
		_, b := pair(t, true, DefaultLimits())
		b.receive = b.send // no key that the fuzzer's seeds are under
		if plain, err := b.Open(d); err == nil {
			t.Fatalf("opened %x", plain)
		}
	})
}

func BenchmarkSealOpen(b *testing.B) {
	for _, aes := range []bool{true, false} {
		b.Run(fmt.Sprintf("aes=%v", aes), func(b *testing.B) {
			x, y := pair(b, aes, DefaultLimits())
			d := make([]byte, 1420)
			b.SetBytes(int64(len(d)))
			b.ReportAllocs()
			for b.Loop() {
				_ = x.Seal(d, len(d))
				if _, err := y.Open(d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
