package vni

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weave/mesh/id"
)

var p1, p2, p3 = id.PeerID{1}, id.PeerID{2}, id.PeerID{3}

func TestHash(t *testing.T) {
	seen := map[uint32]string{}
	for i := range 2000 {
		key := fmt.Sprintf("10.%d.%d.0/24", i/256, i%256)
		n := Hash(key)
		if !Valid(n) || n == Beat {
			t.Fatalf("%s: %d", key, n)
		}
		seen[n] = key
	}
	if len(seen) < 1990 {
		t.Errorf("2000 keys have only %d numbers", len(seen))
	}
	for _, n := range []uint32{0, Beat, Last + 1} {
		if Valid(n) {
			t.Errorf("%d is a segment's", n)
		}
	}
}

func TestFirstHostTakesTheHash(t *testing.T) {
	c := New()
	if got := c.Settle("a"); got != Hash("a") {
		t.Errorf("Settle = %d, want %d", got, Hash("a"))
	}
}

func TestLaterHostsFollow(t *testing.T) {
	c := New()
	c.Set(p2, "a", 77)
	if got := c.Settle("a"); got != 77 {
		t.Errorf("Settle = %d, want 77", got)
	}
	c.Set(p2, "a", 0)
	if got := c.Settle("a"); got != Hash("a") || len(c.byKey)+len(c.byVNI) != 0 {
		t.Errorf("after the last claim Settle = %d, %+v", got, c)
	}
	c.Set(p2, "a", Last+1)
	if got := c.Settle("a"); got != Hash("a") {
		t.Errorf("a claim out of range counts: %d", got)
	}
}

func TestOneInUseIsNotTaken(t *testing.T) {
	c := New()
	c.Set(p1, "z", Hash("a")) // by a larger key, and it keeps it
	if got := c.Settle("a"); got != Hash("a")+1 {
		t.Errorf("Settle(a) = %d, want the next free one, %d", got, Hash("a")+1)
	}
	c.Set(p1, "y", Hash("a")+1)
	if got := c.Settle("a"); got != Hash("a")+2 {
		t.Errorf("Settle(a) = %d, want %d", got, Hash("a")+2)
	}
	if got := c.Settle("z"); got != Hash("a") {
		t.Errorf("Settle(z) = %d, want %d", got, Hash("a"))
	}
}

func TestRangeWrapsAround(t *testing.T) {
	c := New()
	key := "a"
	for i := 0; Hash(key) < Last-2000; i++ {
		key = fmt.Sprint(i)
	}
	for n := Hash(key); n <= Last; n++ {
		c.Set(p1, fmt.Sprint("taken ", n), n)
	}
	if got := c.Settle(key); got != First {
		t.Errorf("Settle = %d, want %d", got, First)
	}
}

func TestSeveralNumbersOfOneSegment(t *testing.T) {
	c := New()
	c.Set(p1, "a", 90)
	c.Set(p2, "a", 80)
	if got := c.Settle("a"); got != 80 {
		t.Errorf("a draw: %d, want the lowest, 80", got)
	}
	c.Set(p3, "a", 90)
	if got := c.Settle("a"); got != 90 {
		t.Errorf("two against one: %d, want 90", got)
	}
}

func TestTwoSegmentsWithOneNumber(t *testing.T) {
	c := New()
	c.Set(p1, "a", 50)
	c.Set(p2, "b", 50)
	if a, b := c.Settle("a"), c.Settle("b"); a != 50 || b != Hash("b") {
		t.Errorf("Settle: a %d, b %d, want 50 and %d", a, b, Hash("b"))
	}
	c.Set(p3, "b", 60) // another host of b was wiser
	if got := c.Settle("b"); got != 60 {
		t.Errorf("Settle(b) = %d, want 60", got)
	}
}

// TestHostsAgree holds that hosts which start from any claims, and do what
// Settle says, come to one number for each segment, and to different numbers
// for different segments.
func TestHostsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := []string{"k0", "k1", "k2", "k3"}
		numbers := []uint32{Hash("k0"), Hash("k1"), Hash("k1") + 1, Hash("k2"), 100}
		type claim struct {
			owner id.PeerID
			key   string
		}
		claims := map[claim]uint32{}
		hosts := []*Claims{}
		for i := range rapid.IntRange(1, 4).Draw(t, "hosts") {
			hosts = append(hosts, New())
			for _, key := range keys {
				if rapid.Bool().Draw(t, "member") {
					claims[claim{id.PeerID{byte(i + 1)}, key}] = rapid.SampledFrom(numbers).Draw(t, "vni")
				}
			}
		}
		// Each host sees its own claims at once, and those of others late.
		for round := 0; ; round++ {
			for who, n := range claims {
				for _, h := range hosts {
					h.Set(who.owner, who.key, n)
				}
			}
			changed := false
			order := rapid.Permutation(sorted(claims, func(a, b claim) int {
				return slices.Compare([]string{a.key, a.owner.String()}, []string{b.key, b.owner.String()})
			})).Draw(t, "order")
			for _, who := range order {
				h := hosts[who.owner[0]-1]
				if n := h.Settle(who.key); n != claims[who] {
					claims[who], changed = n, true
					h.Set(who.owner, who.key, n)
				}
			}
			if !changed {
				break
			}
			if round > 20 {
				t.Fatalf("no end to it: %v", claims)
			}
		}
		of := map[string]uint32{}
		for who, n := range claims {
			if other, ok := of[who.key]; ok && other != n {
				t.Fatalf("%s has %d and %d", who.key, n, other)
			}
			of[who.key] = n
		}
		used := map[uint32]string{}
		for key, n := range of {
			if other, ok := used[n]; ok {
				t.Fatalf("%s and %s have %d", key, other, n)
			}
			used[n] = key
		}
	})
}

func sorted[K comparable, V any](m map[K]V, cmp func(a, b K) int) []K {
	var out []K
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, cmp)
	return out
}
