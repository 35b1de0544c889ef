package ring

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weave/ipam/space"
)

var pool = netip.MustParsePrefix("10.32.0.0/28")

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func span(first, last string) space.Range { return space.Range{First: addr(first), Last: addr(last)} }

func seeded(t *testing.T, owners ...Peer) *Ring {
	t.Helper()
	r, err := New(pool, SeedID{1}, owners)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func text(r *Ring) string {
	var b strings.Builder
	for _, t := range r.tokens {
		b.WriteString(strings.TrimPrefix(t.Start.String(), "10.32.0.") + string(t.Owner) + string(rune('0'+t.Version)) + " ")
	}
	return strings.TrimSpace(b.String())
}

func TestNewGivesEqualShares(t *testing.T) {
	if got, want := text(seeded(t, "a", "b", "c")), "0a1 6b1 11c1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := New(pool, SeedID{}, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("ring of nobody: %v", err)
	}
	tiny, err := New(netip.MustParsePrefix("fd00::/127"), SeedID{}, []Peer{"a", "b", "c"})
	if err != nil || !slices.Equal(tiny.Owners(), []Peer{"a", "b"}) {
		t.Errorf("three owners of two addresses: %v, %v", tiny, err)
	}
}

func TestGive(t *testing.T) {
	tests := []struct {
		name        string
		first, last string
		ring        string
		change, end string
	}{
		{"middle", "10.32.0.4", "10.32.0.5", "0a1 4b2 6a1 8b1", "4b2", "10.32.0.6"},
		{"start", "10.32.0.0", "10.32.0.1", "0b2 2a1 8b1", "0b2", "10.32.0.2"},
		{"end", "10.32.0.7", "10.32.0.7", "0a1 7b2 8b1", "7b2", "10.32.0.8"},
		{"all", "10.32.0.0", "10.32.0.7", "0b2 8b1", "0b2", "10.32.0.8"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := seeded(t, "a", "b")
			next, change, err := r.Give("a", span(test.first, test.last), "b")
			if err != nil {
				t.Fatal(err)
			}
			if text(next) != test.ring || text(&Ring{tokens: change.Tokens}) != test.change || change.End != addr(test.end) {
				t.Errorf("ring %s, change %s until %s", text(next), text(&Ring{tokens: change.Tokens}), change.End)
			}
			if text(r) != "0a1 8b1" {
				t.Errorf("the old ring became %s", text(r))
			}
			merged, err := r.Merge("b", change)
			if err != nil || text(merged) != test.ring {
				t.Errorf("merged: %v, %v", merged, err)
			}
		})
	}
}

func TestGiveAcrossTokens(t *testing.T) {
	r := seeded(t, "a", "b")
	r, _, err := r.Give("b", span("10.32.0.8", "10.32.0.11"), "a")
	if err != nil {
		t.Fatal(err)
	}
	r, change, err := r.Give("a", span("10.32.0.6", "10.32.0.9"), "c")
	if err != nil {
		t.Fatal(err)
	}
	if want := "0a1 6c3 10a2 12b1"; text(r) != want || change.End != addr("10.32.0.10") {
		t.Errorf("ring %s, change until %s", text(r), change.End)
	}
	if got := r.Ranges("c"); len(got) != 1 || got[0] != span("10.32.0.6", "10.32.0.9") {
		t.Errorf("c owns %v", got)
	}
}

func TestGiveRefusesWhatIsNotOwned(t *testing.T) {
	r := seeded(t, "a", "b")
	for _, what := range []space.Range{span("10.32.0.6", "10.32.0.9"), span("10.32.0.8", "10.32.0.8"), span("10.31.0.0", "10.32.0.1"), span("10.32.0.3", "10.32.0.2")} {
		if _, _, err := r.Give("a", what, "c"); !errors.Is(err, ErrNotOwner) {
			t.Errorf("give %s: %v", what, err)
		}
	}
}

func TestMergeRefuses(t *testing.T) {
	token := func(last byte, owner Peer, version uint64) Token {
		return Token{Start: netip.AddrFrom4([4]byte{10, 32, 0, last}), Owner: owner, Version: version}
	}
	tests := []struct {
		name  string
		chunk Chunk
		want  error
	}{
		{"another seed", Chunk{Pool: pool, Seed: SeedID{2}, Tokens: []Token{token(0, "a", 1)}}, ErrSeeds},
		{"another pool", Chunk{Pool: netip.MustParsePrefix("10.32.0.0/24"), Seed: SeedID{1}, Tokens: []Token{token(0, "a", 1)}}, ErrInvalid},
		{"no tokens", Chunk{Pool: pool, Seed: SeedID{1}}, ErrInvalid},
		{"outside", Chunk{Pool: pool, Seed: SeedID{1}, Tokens: []Token{token(0, "a", 1), token(16, "b", 1)}}, ErrInvalid},
		{"out of order", Chunk{Pool: pool, Seed: SeedID{1}, Tokens: []Token{token(8, "b", 1), token(0, "a", 1)}}, ErrInvalid},
		{"twice", Chunk{Pool: pool, Seed: SeedID{1}, Tokens: []Token{token(8, "b", 1), token(8, "b", 1)}}, ErrInvalid},
		{"no owner", Chunk{Pool: pool, Seed: SeedID{1}, Tokens: []Token{token(8, "", 2)}}, ErrInvalid},
		{"version 0", Chunk{Pool: pool, Seed: SeedID{1}, Tokens: []Token{token(8, "b", 0)}}, ErrInvalid},
		{"version too high", Chunk{Pool: pool, Seed: SeedID{1}, Tokens: []Token{token(8, "b", maxVersion+1)}}, ErrInvalid},
		{"end before start", Chunk{Pool: pool, Seed: SeedID{1}, Tokens: []Token{token(8, "b", 2)}, End: addr("10.32.0.8")}, ErrInvalid},
		{"end outside", Chunk{Pool: pool, Seed: SeedID{1}, Tokens: []Token{token(8, "b", 2)}, End: addr("10.32.0.16")}, ErrInvalid},
		{"our token raised", Chunk{Pool: pool, Seed: SeedID{1}, Tokens: []Token{token(0, "b", 2)}, End: addr("10.32.0.8")}, ErrOurs},
		{"our range split", Chunk{Pool: pool, Seed: SeedID{1}, Tokens: []Token{token(4, "b", 2)}, End: addr("10.32.0.6")}, ErrOurs},
		{"of one version, us too", Chunk{Pool: pool, Seed: SeedID{1}, Tokens: []Token{token(8, "a", 1)}}, ErrOurs},
		{"two owners", Chunk{Pool: pool, Seed: SeedID{1}, Tokens: []Token{token(8, "c", 1)}}, ErrClash},
	}
	for _, test := range tests {
		r := seeded(t, "a", "b")
		if _, err := r.Merge("a", test.chunk); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if text(r) != "0a1 8b1" {
			t.Errorf("%s: ring changed to %s", test.name, text(r))
		}
	}
}

// TestLateGift: c hears of its range before it hears of the gift that it came
// out of, and must not take too much.
func TestLateGift(t *testing.T) {
	stale := seeded(t, "a")
	r, first, err := stale.Give("a", span("10.32.0.8", "10.32.0.11"), "b")
	if err != nil {
		t.Fatal(err)
	}
	_, second, err := r.Give("b", span("10.32.0.10", "10.32.0.11"), "c")
	if err != nil {
		t.Fatal(err)
	}
	got, err := stale.Merge("c", second)
	if err != nil || text(got) != "0a1 10c3 12a1" {
		t.Fatalf("%v, %v", got, err)
	}
	if got, err = got.Merge("c", first); err != nil || text(got) != "0a1 8b2 10c3 12a1" {
		t.Fatalf("%v, %v", got, err)
	}
}

// TestJoin: what is given and given back leaves no trace in the number of
// tokens, and those who have an old ring follow.
func TestJoin(t *testing.T) {
	r, old := seeded(t, "a", "b"), seeded(t, "a", "b")
	var err error
	for _, to := range []Peer{"b", "a"} {
		by := map[Peer]Peer{"b": "a", "a": "b"}[to]
		if r, _, err = r.Give(by, span("10.32.0.4", "10.32.0.4"), to); err != nil {
			t.Fatal(err)
		}
		if old, err = old.Merge("c", r.Chunk()); err != nil {
			t.Fatal(err)
		}
	}
	if same, err := r.Join("b"); same != r || err != nil {
		t.Errorf("b joined what is not its own: %v", err)
	}
	joined, err := r.Join("a")
	if err != nil || text(joined) != "0a3 8b1" || text(r) != "0a1 4a3 5a1 8b1" {
		t.Fatalf("%s of %s, %v", text(joined), text(r), err)
	}
	if old, err = old.Merge("c", joined.Chunk()); err != nil || old.Digest() != joined.Digest() {
		t.Errorf("merged: %s, %v", text(old), err)
	}
	if old, err = joined.Merge("a", r.Chunk()); err != nil || old != joined {
		t.Errorf("the old ring split it again: %s, %v", text(old), err)
	}
}

func TestEnclosed(t *testing.T) {
	r := seeded(t, "a", "b")
	give := func(by Peer, first, last string, to Peer) {
		t.Helper()
		var err error
		if r, _, err = r.Give(by, span("10.32.0."+first, "10.32.0."+last), to); err != nil {
			t.Fatal(err)
		}
	}
	want := func(p Peer, ranges ...Enclosure) {
		t.Helper()
		if got := r.Enclosed(p); !slices.Equal(got, ranges) {
			t.Errorf("%s: %v in %s", p, got, text(r))
		}
	}
	want("a")
	want("b")
	give("a", "2", "2", "b")
	want("b", Enclosure{span("10.32.0.2", "10.32.0.2"), "a"})
	give("a", "4", "4", "b") // 3 lies between 2 and 4, and they are alike
	want("a")
	want("b", Enclosure{span("10.32.0.2", "10.32.0.2"), "a"}, Enclosure{span("10.32.0.4", "10.32.0.4"), "a"})
	give("a", "3", "3", "b")
	give("a", "6", "7", "b")
	want("a", Enclosure{span("10.32.0.5", "10.32.0.5"), "b"})
	want("b")
	give("b", "8", "8", "c")
	want("c", Enclosure{span("10.32.0.8", "10.32.0.8"), "b"})
	give("b", "6", "7", "a")
	want("c")
}

func TestFromChunkNeedsTheWhole(t *testing.T) {
	c := seeded(t, "a", "b").Chunk()
	for _, part := range []Chunk{{Pool: pool, Tokens: c.Tokens[1:]}, {Pool: pool, Tokens: c.Tokens[:1], End: c.Tokens[1].Start}} {
		if _, err := FromChunk(part); !errors.Is(err, ErrGap) {
			t.Errorf("%v: %v", part, err)
		}
	}
}

func TestTooManyTokens(t *testing.T) {
	wide := netip.MustParsePrefix("fd00::/64")
	r, err := New(wide, SeedID{}, []Peer{"a"})
	if err != nil {
		t.Fatal(err)
	}
	for a := wide.Addr(); len(r.tokens) < GiveTokens; a = a.Next() {
		r.tokens = append(r.tokens, Token{Start: a.Next(), Owner: "a", Version: uint64(2 + len(r.tokens)%2)})
	}
	last := r.tokens[GiveTokens-1].Start.Next()
	if _, _, err := r.Give("a", space.Single(last), "b"); !errors.Is(err, ErrFragmented) {
		t.Errorf("give: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	r, _ := New(pool, SeedID{1}, []Peer{"a", "b"})
	_, change, _ := r.Give("a", span("10.32.0.4", "10.32.0.5"), "b")
	for _, c := range []Chunk{r.Chunk(), change} {
		b, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"pool":"::/0","tokens":[{"start":"::1%eth0","owner":"a","v":1}]}`))
	f.Add([]byte(`{"pool":"10.0.0.0/8","tokens":[{"start":"::ffff:10.0.0.0","owner":"a","v":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Decode(b)
		if err != nil {
			return
		}
		if got, err := FromChunk(c); err == nil && got.Check() != nil {
			t.Fatalf("made a bad ring: %v", got.Check())
		}
		if got, err := r.Merge("a", c); err == nil {
			if err := got.Check(); err != nil {
				t.Fatalf("merged into a bad ring: %v", err)
			}
			inherited := slices.ContainsFunc(c.Tokens, func(t Token) bool { return t.epoch() > 0 })
			if !inherited && !slices.Equal(got.Ranges("a"), r.Ranges("a")) {
				t.Fatalf("took our range: %v", got)
			}
		}
	})
}
