package state

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weave/mesh/id"
)

var (
	alice = id.PeerID{0xa1}
	bob   = id.PeerID{0xb0}
	carol = id.PeerID{0xc0}

	noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
)

// tb is what helpers need of a *testing.T or a *rapid.T.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
}

// set writes a record and returns its delta.
func set(t tb, table *Table, key, value string) []byte {
	t.Helper()
	delta, err := table.Set("k", key, []byte(value))
	if err != nil {
		t.Fatalf("Set(%q): %v", key, err)
	}
	return delta
}

// merge takes in a delta that must be good.
func merge(t testing.TB, table *Table, delta []byte) Result {
	t.Helper()
	res, err := table.Merge(delta, noon)
	if err != nil {
		t.Fatalf("Merge: %v", err)
	}
	return res
}

// pull brings what a table lacks from another, as long as that changes anything.
func pull(t testing.TB, to, from *Table) Result {
	t.Helper()
	var all Result
	for {
		digest := to.Digest()
		delta, err := from.Missing(digest)
		if err != nil {
			t.Fatalf("Missing: %v", err)
		}
		if delta == nil {
			return all
		}
		res := merge(t, to, delta)
		if res.Gap {
			t.Fatal("the answer to a pull leaves a gap")
		}
		all.Changes = append(all.Changes, res.Changes...)
		all.Raised = all.Raised || res.Raised
		if bytes.Equal(digest, to.Digest()) {
			return all
		}
	}
}

// show writes the records of a table as owner/key=value, in order.
func show(table *Table) string {
	var out []string
	for _, r := range table.All("k") {
		out = append(out, fmt.Sprintf("%x/%s=%s", r.Owner[0], r.Key, r.Value))
	}
	return strings.Join(out, " ")
}

func showChanges(changes []Change) string {
	var out []string
	for _, c := range changes {
		value := func(v []byte) string {
			if v == nil {
				return "-"
			}
			return string(v)
		}
		out = append(out, fmt.Sprintf("%x/%s:%s>%s", c.Owner[0], c.Key, value(c.Old), value(c.New)))
	}
	return strings.Join(out, " ")
}

func want(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestSetGetDelete(t *testing.T) {
	a := New(alice, 1)
	if delta := set(t, a, "x", "1"); delta == nil {
		t.Error("no delta for a new record")
	}
	if delta := set(t, a, "x", "1"); delta != nil {
		t.Error("a delta for no change")
	}
	set(t, a, "x", "2")
	set(t, a, "empty", "")
	r, ok := a.Get(alice, "k", "x")
	if !ok || string(r.Value) != "2" || r.Version != 2 || r.Owner != alice {
		t.Errorf("Get: %+v, %v", r, ok)
	}
	if r, ok := a.Get(alice, "k", "empty"); !ok || r.Value == nil {
		t.Errorf("an empty value is not there: %+v, %v", r, ok)
	}
	if _, ok := a.Get(bob, "k", "x"); ok {
		t.Error("a record of a stranger")
	}
	if a.Delete("k", "y", noon) != nil {
		t.Error("a delta for deleting nothing")
	}
	if a.Delete("k", "x", noon) == nil || a.Delete("k", "x", noon) != nil {
		t.Error("Delete: want a delta once")
	}
	want(t, "records", show(a), "a1/empty=")
	if all := a.All("other"); all != nil {
		t.Errorf("records of another kind: %v", all)
	}
}

func TestSetCopiesTheValue(t *testing.T) {
	a := New(alice, 1)
	value := []byte("one")
	if _, err := a.Set("k", "x", value); err != nil {
		t.Fatal(err)
	}
	value[0] = '!'
	want(t, "records", show(a), "a1/x=one")
}

func TestDeltas(t *testing.T) {
	a, b := New(alice, 1), New(bob, 1)
	one, two := set(t, a, "x", "1"), set(t, a, "y", "2")
	three, four := set(t, a, "x", "3"), a.Delete("k", "y", noon)

	if res := merge(t, b, two); !res.Gap || res.Changes != nil {
		t.Errorf("the second delta alone: %+v, want a gap", res)
	}
	want(t, "first", showChanges(merge(t, b, one).Changes), "a1/x:->1")
	want(t, "again", showChanges(merge(t, b, one).Changes), "")
	want(t, "second", showChanges(merge(t, b, two).Changes), "a1/y:->2")
	want(t, "third", showChanges(merge(t, b, three).Changes), "a1/x:1>3")
	want(t, "old", showChanges(merge(t, b, one).Changes), "")
	want(t, "fourth", showChanges(merge(t, b, four).Changes), "a1/y:2>-")
	want(t, "records", show(b), "a1/x=3")
	want(t, "digests", string(b.Digest()), string(func() []byte { pull(t, a, b); return a.Digest() }()))
}

func TestGapIsHealedByAPull(t *testing.T) {
	a, b, c := New(alice, 1), New(bob, 1), New(carol, 1)
	set(t, a, "x", "1")
	late := set(t, a, "y", "2")
	if !merge(t, b, late).Gap {
		t.Fatal("no gap reported")
	}
	pull(t, c, a)
	want(t, "pulled from a third", showChanges(pull(t, b, c).Changes), "a1/x:->1 a1/y:->2")
}

func TestNewIncarnationReplacesAll(t *testing.T) {
	a, b := New(alice, 1), New(bob, 1)
	set(t, a, "same", "s")
	set(t, a, "old", "o")
	set(t, a, "new", "1")
	pull(t, b, a)

	again := New(alice, 2)
	first := set(t, again, "same", "s")
	second := set(t, again, "new", "2")
	if !merge(t, b, second).Gap {
		t.Error("a later delta of an unknown run: want a gap")
	}
	want(t, "before the pull", show(b), "a1/new=1 a1/old=o a1/same=s")
	want(t, "changes", showChanges(pull(t, b, again).Changes), "a1/new:1>2")
	want(t, "late delta", showChanges(merge(t, b, first).Changes), "")
	want(t, "late delta of the old run", showChanges(merge(t, b, a.Announce()).Changes), "")
	want(t, "with what is stale", show(b), "a1/new=2 a1/same=s a1/old=o")
	want(t, "dropped", showDropped(b, noon.Add(time.Second)), "a1/old:o>-")
	want(t, "records", show(b), "a1/new=2 a1/same=s")
}

// A peer without records is no difference, unless it had some in its run before.
func TestNewcomerIsNoDifference(t *testing.T) {
	a, b := New(alice, 1), New(bob, 1)
	set(t, a, "x", "1")
	pull(t, b, a)
	want(t, "digests", string(b.Digest()), string(a.Digest()))
	if delta, err := b.Missing(a.Digest()); delta != nil || err != nil {
		t.Errorf("a newcomer's table has something for others: %x, %v", delta, err)
	}
	set(t, b, "y", "2")
	pull(t, a, b)
	b = New(bob, 2)
	pull(t, b, a)
	if bytes.Equal(a.Digest(), b.Digest()) {
		t.Error("a run without records has the digest of one with some")
	}
	pull(t, a, b)
	want(t, "dropped", showDropped(a, noon.Add(time.Second)), "b0/y:2>-")
	want(t, "records", show(a), "a1/x=1")
	want(t, "digests", string(b.Digest()), string(a.Digest()))
}

func TestAnnounceIn(t *testing.T) {
	a := New(alice, 1)
	if got := a.AnnounceIn(1000, 16); got != nil {
		t.Errorf("%d deltas of nothing", len(got))
	}
	for i := range 20 {
		set(t, a, fmt.Sprint(i), strings.Repeat("v", 100+i))
	}
	a.Delete("k", "3", noon)
	pieces := a.AnnounceIn(1000, 16)
	if len(pieces) < 3 {
		t.Fatalf("%d deltas, want some", len(pieces))
	}
	b, c := New(bob, 1), New(carol, 1)
	for i, piece := range pieces {
		if len(piece) > 1000 {
			t.Errorf("delta of %d bytes", len(piece))
		}
		if merge(t, b, piece).Gap {
			t.Errorf("delta %d does not join on", i)
		}
	}
	want(t, "digests", string(b.Digest()), string(a.Digest()))
	want(t, "records", show(b), show(a))
	if !merge(t, c, pieces[1]).Gap {
		t.Error("the second joins on to nothing")
	}

	if got := a.AnnounceIn(1000, len(pieces)); len(got) != len(pieces) {
		t.Errorf("%d deltas, want the same %d", len(got), len(pieces))
	}
	if got := a.AnnounceIn(1000, len(pieces)-1); got != nil {
		t.Errorf("%d deltas, want none: it takes more", len(got))
	}
	if got := a.AnnounceIn(100, 1000); got != nil {
		t.Errorf("%d deltas, want none: a record is larger", len(got))
	}
	a.Prune(noon.Add(time.Hour), 0)
	if got := a.AnnounceIn(1000, 16); got != nil {
		t.Errorf("%d deltas, want none: a tombstone is gone", len(got))
	}
}

func TestDigestOutlivesChanges(t *testing.T) {
	a := New(alice, 1)
	set(t, a, "x", "1")
	digest := a.Digest()
	before := bytes.Clone(digest)
	set(t, a, "y", "2")
	if bytes.Equal(a.Digest(), before) || !bytes.Equal(digest, before) {
		t.Errorf("digest %x became %x, of the changed table it is %x", before, digest, a.Digest())
	}
}

func TestPrunedTombstonesStillDelete(t *testing.T) {
	a, b, c := New(alice, 1), New(bob, 1), New(carol, 1)
	set(t, a, "x", "1")
	set(t, a, "y", "1")
	pull(t, b, a)
	pull(t, c, a)
	a.Delete("k", "x", noon)
	set(t, a, "z", "1")
	a.Prune(noon.Add(time.Minute), time.Hour)
	if n := len(a.owners[alice].records); n != 3 {
		t.Errorf("%d records after a prune of nothing, want 3", n)
	}
	a.Prune(noon.Add(time.Hour), time.Hour)
	if n := len(a.owners[alice].records); n != 2 {
		t.Errorf("%d records after the prune, want 2", n)
	}
	want(t, "the owner's full set", showChanges(pull(t, b, a).Changes), "a1/x:1>- a1/z:->1")
	want(t, "a copy's full set", showChanges(pull(t, c, b).Changes), "a1/x:1>- a1/z:->1")
	// And the next change is a plain delta again.
	want(t, "next", showChanges(merge(t, c, set(t, a, "z", "2")).Changes), "a1/z:1>2")
}

func TestFloorIsTheHighestPruned(t *testing.T) {
	a := New(alice, 1)
	for i := range 20 {
		set(t, a, fmt.Sprint(i), "1")
		a.Delete("k", fmt.Sprint(i), noon.Add(time.Duration(i%2)*time.Hour))
	}
	a.Prune(noon.Add(time.Hour), time.Hour)
	if floor := a.owners[alice].floor; floor != 38 {
		t.Errorf("floor %d, want 38", floor)
	}
	a.Prune(noon.Add(2*time.Hour), time.Hour)
	if o := a.owners[alice]; o.floor != 40 || o.size != 0 {
		t.Errorf("floor %d, size %d, want 40 and 0", o.floor, o.size)
	}
}

func TestNobodyWritesOurRecords(t *testing.T) {
	lost := New(alice, 5)
	set(t, lost, "ghost", "boo")
	b := New(bob, 1)
	pull(t, b, lost)

	a := New(alice, 3) // restored from an old backup
	set(t, a, "x", "1")
	res := pull(t, a, b)
	if !res.Raised || res.Changes != nil || a.Incarnation() != 6 {
		t.Fatalf("echo: %+v, incarnation %d, want raised to 6", res, a.Incarnation())
	}
	want(t, "our records", show(a), "a1/x=1")
	want(t, "announced", showChanges(merge(t, b, a.Announce()).Changes), "a1/x:->1")
	want(t, "dropped", showDropped(b, noon.Add(time.Second)), "a1/ghost:boo>-")
	if merge(t, a, b.Announce()).Raised || pull(t, a, b).Raised {
		t.Error("raised again without need")
	}
}

func TestEchoOfTheSameIncarnation(t *testing.T) {
	lost := New(alice, 3)
	set(t, lost, "x", "1")
	set(t, lost, "y", "1")
	a := New(alice, 3)
	set(t, a, "x", "2")
	if !merge(t, a, lost.Announce()).Raised || a.Incarnation() != 4 {
		t.Errorf("incarnation %d, want 4", a.Incarnation())
	}
}

func TestEchoThatCannotBeOutbid(t *testing.T) {
	a := New(alice, 3)
	claim := encodeDelta([]block{{owner: alice, incarnation: MaxIncarnation - 1, version: 1}})
	if merge(t, a, claim).Raised || a.Incarnation() != 3 {
		t.Errorf("incarnation %d, want 3", a.Incarnation())
	}
}

func TestLimits(t *testing.T) {
	a := New(alice, 1)
	long := func(n int) string { return strings.Repeat("x", n) }
	for _, tc := range []struct {
		kind, key, value string
		err              error
	}{
		{long(MaxKind), long(MaxKey), long(MaxValue), nil},
		{long(MaxKind + 1), "", "", ErrTooLarge},
		{"", long(MaxKey + 1), "", ErrTooLarge},
		{"", "", long(MaxValue + 1), ErrTooLarge},
	} {
		if _, err := a.Set(tc.kind, tc.key, []byte(tc.value)); !errors.Is(err, tc.err) {
			t.Errorf("Set(%d, %d, %d bytes): %v, want %v",
				len(tc.kind), len(tc.key), len(tc.value), err, tc.err)
		}
	}
	b := New(bob, 1)
	merge(t, b, a.Announce())
	if _, err := b.Merge(make([]byte, MaxDelta+1), noon); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Merge of too much: %v", err)
	}
	if _, err := b.Missing(make([]byte, MaxDigest+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Missing of too much: %v", err)
	}
}

func TestFullOwnerAndLargePull(t *testing.T) {
	a, b := New(alice, 1), New(bob, 1)
	value := make([]byte, MaxValue)
	var err error
	n := 0
	for ; err == nil; n++ {
		_, err = a.Set("k", fmt.Sprintf("%06d", n), value)
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("Set: %v, want ErrFull", err)
	}
	// Two owners of this size do not fit a page: the pull takes two turns.
	c := New(carol, 1)
	for i := range n - 1 {
		if _, err := c.Set("k", fmt.Sprintf("%06d", i), value); err != nil {
			t.Fatal(err)
		}
	}
	pull(t, a, c)
	first, err := a.Missing(b.Digest())
	if err != nil || len(first) > MaxDelta {
		t.Fatalf("Missing: %d bytes, %v", len(first), err)
	}
	if got, want := len(pull(t, b, a).Changes), 2*(n-1); got != want {
		t.Errorf("pulled %d records, want %d", got, want)
	}
	// One more is refused by the copy as well, and nothing of it is kept.
	o := a.owners[alice]
	over := encodeDelta([]block{{
		owner: alice, incarnation: 1, base: o.version, version: o.version + 1,
		changes: []change{{name{"k", "over"}, record{version: o.version + 1, value: value}}},
	}})
	if res, err := b.Merge(over, noon); !errors.Is(err, ErrFull) || res.Changes != nil {
		t.Errorf("Merge beyond the limit: %v", err)
	}
}

func TestTooManyOwners(t *testing.T) {
	a := New(alice, 1)
	var blocks []block
	for i := range MaxOwners {
		blocks = append(blocks, block{owner: id.PeerID{1, byte(i >> 8), byte(i)}, version: 1})
	}
	if _, err := a.Merge(encodeDelta(blocks), noon); !errors.Is(err, ErrFull) {
		t.Errorf("Merge: %v, want ErrFull", err)
	}
	if n := len(a.owners); n != MaxOwners {
		t.Errorf("%d owners, want %d", n, MaxOwners)
	}
	if _, err := New(bob, 1).Missing(a.Digest()); err != nil {
		t.Errorf("the digest of a full table: %v", err)
	}
}

func TestTooManyRecords(t *testing.T) {
	b := New(bob, 1)
	all := block{owner: alice, incarnation: 1, version: MaxRecords}
	for i := range MaxRecords {
		key := fmt.Sprintf("%x", i)
		all.changes = append(all.changes, change{name{"k", key}, record{version: uint64(i + 1)}})
	}
	merge(t, b, encodeDelta([]block{all}))
	next := block{
		owner: alice, incarnation: 1, base: MaxRecords, version: MaxRecords + 1,
		changes: []change{{name{"k", "z"}, record{version: MaxRecords + 1}}},
	}
	if _, err := b.Merge(encodeDelta([]block{next}), noon); !errors.Is(err, ErrFull) {
		t.Errorf("Merge: %v, want ErrFull", err)
	}
	next.changes[0].key = "0" // takes the place of another
	merge(t, b, encodeDelta([]block{next}))
}

func TestMalformedChangesNothing(t *testing.T) {
	good := block{
		owner: alice, incarnation: 1, base: 1, version: 3,
		changes: []change{{name{"k", "x"}, record{version: 2, value: []byte("1")}}},
	}
	bad := func(f func(*block)) []byte {
		b := good
		b.changes = slices.Clone(good.changes)
		f(&b)
		return encodeDelta([]block{{owner: carol, version: 1}, b})
	}
	table := map[string][]byte{
		"empty":            {},
		"other format":     {2, 0},
		"trailing":         {1, 0, 0},
		"false count":      {1, 200, 1},
		"zero owner":       bad(func(b *block) { b.owner = id.PeerID{} }),
		"incarnation":      bad(func(b *block) { b.incarnation = MaxIncarnation }),
		"base above":       bad(func(b *block) { b.base = 4; b.changes = nil }),
		"floor above":      bad(func(b *block) { b.base = 0; b.floor = 4 }),
		"floor with base":  bad(func(b *block) { b.floor = 1 }),
		"version above":    bad(func(b *block) { b.changes[0].version = 4 }),
		"version not up":   bad(func(b *block) { b.changes = append(b.changes, b.changes[0]) }),
		"version overflow": bad(func(b *block) { b.changes[0].version = 0 }),
		"kind too long":    bad(func(b *block) { b.changes[0].kind = strings.Repeat("x", MaxKind+1) }),
		"value too long":   bad(func(b *block) { b.changes[0].value = make([]byte, MaxValue+1) }),
	}
	for n, delta := range table {
		b := New(bob, 1)
		if _, err := b.Merge(delta, noon); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", n, err)
		}
		if len(b.owners) != 1 {
			t.Errorf("%s: part of it was merged", n)
		}
	}
	for n, digest := range map[string][]byte{
		"empty": {}, "order": encodeDigest([]knowledge{{owner: bob}, {owner: alice}}),
	} {
		if _, err := New(bob, 1).Missing(digest); !errors.Is(err, ErrMalformed) {
			t.Errorf("digest %s: %v, want ErrMalformed", n, err)
		}
	}
}
