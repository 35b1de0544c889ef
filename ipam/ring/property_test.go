package ring

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weave/ipam/space"
)

// world is a number of peers with rings of their own, and beside them the dumb
// model: who really owns each address.
type world struct {
	peers []Peer
	rings map[Peer]*Ring
	sent  []Chunk // may arrive late, often, or never
	truth map[netip.Addr]Peer
}

func newWorld(t *rapid.T, p netip.Prefix) *world {
	w := &world{rings: map[Peer]*Ring{}, truth: map[netip.Addr]Peer{}}
	for i := range rapid.IntRange(1, 4).Draw(t, "peers") {
		w.peers = append(w.peers, Peer(fmt.Sprint("p", i)))
	}
	owners := w.peers[:rapid.IntRange(1, len(w.peers)).Draw(t, "first owners")]
	for _, p := range w.peers {
		r, err := New(pool, SeedID{7}, owners)
		if err != nil {
			t.Fatal(err)
		}
		w.rings[p] = r
	}
	for a := p.Addr(); p.Contains(a); a = a.Next() {
		w.truth[a], _ = w.rings["p0"].Owner(a)
	}
	return w
}

func (w *world) peer(t *rapid.T, name string) Peer { return rapid.SampledFrom(w.peers).Draw(t, name) }

// give takes any run of addresses. The giver may not have heard yet that it
// owns them, but must never give what it does not own.
func (w *world) give(t *rapid.T) {
	by, to := w.peer(t, "by"), w.peer(t, "to")
	last := rapid.IntRange(0, 15).Draw(t, "last")
	what := space.Range{First: nth(rapid.IntRange(max(0, last-5), last).Draw(t, "first")), Last: nth(last)}
	next, change, err := w.rings[by].Give(by, what, to)
	if errors.Is(err, ErrNotOwner) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	w.rings[by] = next
	w.sent = append(w.sent, change)
	for a := what.First; !what.Last.Less(a); a = a.Next() {
		if w.truth[a] != by {
			t.Fatalf("%s gave %s, which is of %s", by, a, w.truth[a])
		}
		w.truth[a] = to
	}
}

// join has a peer tidy up what it believes to own.
func (w *world) join(t *rapid.T) {
	by := w.peer(t, "by")
	next, err := w.rings[by].Join(by)
	if err != nil {
		t.Fatal(err)
	}
	for i, token := range next.tokens {
		if i > 0 && token.Owner == by && next.tokens[i-1].Owner == by && token.epoch() == next.tokens[i-1].epoch() {
			t.Fatalf("%s has not joined %v", by, next.tokens)
		}
	}
	w.rings[by] = next
	w.sent = append(w.sent, next.Chunk())
}

// deliver hands an old message, or a whole ring, to anybody.
func (w *world) deliver(t *rapid.T) {
	to := w.peer(t, "to")
	message := w.rings[w.peer(t, "from")].Chunk()
	if len(w.sent) > 0 && rapid.Bool().Draw(t, "old") {
		message = rapid.SampledFrom(w.sent).Draw(t, "message")
	}
	next, err := w.rings[to].Merge(to, message)
	if err != nil {
		t.Fatalf("%s merges %v: %v", to, message, err)
	}
	w.rings[to] = next
}

// check holds at any time: no two peers believe that they own one address, and
// what a peer believes to own is its own.
func (w *world) check(t *rapid.T) {
	for _, p := range w.peers {
		r := w.rings[p]
		if err := r.Check(); err != nil {
			t.Fatal(err)
		}
		for a, owner := range w.truth {
			if believed, ok := r.Owner(a); !ok || believed == p && owner != p {
				t.Fatalf("%s believes %s of %s; it is of %s", p, a, believed, owner)
			}
		}
	}
}

// TestNoRangeTwice lets messages be lost, late and repeated, and compares with
// the model at each step; in the end all peers must agree with it.
func TestNoRangeTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, pool)
		t.Repeat(map[string]func(*rapid.T){
			"give": w.give, "join": w.join, "deliver": w.deliver, "deliver more": w.deliver, "": w.check,
		})
		for range w.peers {
			for _, from := range w.peers {
				for _, to := range w.peers {
					next, err := w.rings[to].Merge(to, w.rings[from].Chunk())
					if err != nil {
						t.Fatal(err)
					}
					w.rings[to] = next
				}
			}
		}
		for _, p := range w.peers {
			for a, owner := range w.truth {
				if believed, _ := w.rings[p].Owner(a); believed != owner {
					t.Fatalf("%s: %s is of %s, not %s", p, a, owner, believed)
				}
			}
			if w.rings[p].Digest() != w.rings["p0"].Digest() {
				t.Fatalf("%s and p0 differ", p)
			}
		}
	})
}

// TestOrderDoesNotMatter merges rings of one history in two orders, with
// repetitions, as somebody who owns nothing.
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, pool)
		history := []Chunk{w.rings["p0"].Chunk()}
		for range 20 {
			w.give(t)
			w.join(t)
			w.deliver(t)
			history = append(history, w.rings[w.peer(t, "seen")].Chunk())
		}
		one := mergeAll(t, history)
		other := mergeAll(t, append(rapid.Permutation(history).Draw(t, "order"), history[:3]...))
		if !slices.Equal(one.tokens, other.tokens) {
			t.Fatalf("%v and %v", one.tokens, other.tokens)
		}
	})
}

func mergeAll(t *rapid.T, chunks []Chunk) *Ring {
	r, err := FromChunk(chunks[0])
	for _, c := range chunks {
		if err == nil {
			r, err = r.Merge("nobody", c)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func nth(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 32, 0, byte(i)}) }

// TestInheritConverges has peers removed and their heirs take over with old
// knowledge, again and again: whatever is delivered when, in the end all rings
// are alike and no removed peer owns anything.
func TestInheritConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, pool)
		heirs := map[Peer]Peer{}
		living := func(name string) Peer {
			return rapid.SampledFrom(slices.DeleteFunc(slices.Clone(w.peers), func(p Peer) bool { return heirs[p] != "" })).Draw(t, name)
		}
		inherit := func(p Peer) {
			for from := range heirs {
				heir, steps := heirs[from], uint64(1)
				for ; heirs[heir] != ""; steps++ {
					heir = heirs[heir]
				}
				if heir != p {
					continue
				}
				next, err := w.rings[p].Inherit(from, p, steps)
				if err != nil {
					t.Fatal(err)
				}
				w.rings[p] = next
			}
		}
		merge := func(to Peer, c Chunk) {
			next, err := w.rings[to].Merge(to, c)
			if err != nil {
				t.Fatalf("%s merges %v: %v", to, c, err)
			}
			w.rings[to] = next
		}
		t.Repeat(map[string]func(*rapid.T){
			"give": func(t *rapid.T) { // also by who was removed and does not know
				by := w.peer(t, "by")
				last := rapid.IntRange(0, 15).Draw(t, "last")
				what := space.Range{First: nth(rapid.IntRange(max(0, last-5), last).Draw(t, "first")), Last: nth(last)}
				if next, change, err := w.rings[by].Give(by, what, w.peer(t, "to")); err == nil {
					w.rings[by], w.sent = next, append(w.sent, change)
				}
			},
			"deliver": func(t *rapid.T) {
				to, c := w.peer(t, "to"), w.rings[w.peer(t, "from")].Chunk()
				if len(w.sent) > 0 && rapid.Bool().Draw(t, "old") {
					c = rapid.SampledFrom(w.sent).Draw(t, "message")
				}
				merge(to, c)
			},
			"remove": func(t *rapid.T) {
				if len(heirs) < len(w.peers)-1 {
					gone := living("gone")
					heirs[gone] = gone // not a candidate
					heirs[gone] = living("heir")
				}
			},
			"join":    w.join,
			"inherit": func(t *rapid.T) { inherit(living("heir")) },
		})
		for range 3 * len(w.peers) {
			for _, from := range w.peers {
				for _, to := range w.peers {
					merge(to, w.rings[from].Chunk())
				}
				if heirs[from] == "" {
					inherit(from)
				}
			}
		}
		for _, p := range w.peers {
			if w.rings[p].Digest() != w.rings["p0"].Digest() {
				t.Fatalf("%s has %v, p0 %v", p, w.rings[p].tokens, w.rings["p0"].tokens)
			}
			for _, owner := range w.rings[p].Owners() {
				if heirs[owner] != "" {
					t.Fatalf("%s was removed and owns %v", owner, w.rings[p].Ranges(owner))
				}
			}
		}
	})
}
