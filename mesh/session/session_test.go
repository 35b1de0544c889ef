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
	if err := s.Seal(d); err != nil {
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
	if err := a.Seal(make([]byte, wire.HeaderLen+wire.TagLen-1)); !errors.Is(err, ErrShort) {
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
		if err := a.Seal(make([]byte, 64)); !errors.Is(err, want) {
			t.Errorf("number %d: %v, want %v", n, err, want)
		}
	}
}

func TestRetire(t *testing.T) {
	a, b := pair(t, true, DefaultLimits())
	d := sealed(t, b, "late")
	a.Retire()
	a.Retire()
	if err := a.Seal(make([]byte, 64)); !errors.Is(err, ErrSpent) {
		t.Errorf("seal: %v", err)
	}
	if _, err := a.Open(d); err != nil {
		t.Errorf("open: %v", err)
	}
}

// Many goroutines seal while one opens: no counter comes twice, and of two
// copies of a datagram exactly one is opened.
func TestConcurrent(t *testing.T) {
	a, b := pair(t, true, DefaultLimits())
	const workers, each = 4, 500
	var mu sync.Mutex
	opened := map[uint64]int{} // mu is held by who opens, too
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				d := make([]byte, 64)
				if err := a.Seal(d); err != nil {
					t.Error(err)
					return
				}
				h, _ := wire.ParseHeader(d)
				for _, c := range [][]byte{bytes.Clone(d), d} {
					mu.Lock()
					if _, err := b.Open(c); err == nil {
						opened[h.Counter]++
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if len(opened) != workers*each {
		t.Errorf("%d counters, want %d", len(opened), workers*each)
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
		d := make([]byte, 1400)
		if n := testing.AllocsPerRun(200, func() {
			if a.Seal(d) != nil {
				t.Fatal("seal")
			}
			if _, err := b.Open(d); err != nil {
				t.Fatal(err)
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
				_ = x.Seal(d)
				if _, err := y.Open(d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
