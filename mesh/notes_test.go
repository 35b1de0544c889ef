package mesh

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weave/mesh/state"
)

// TestNotes holds that hosts read each other's notes, the latest of each, under
// their topic only; that none is longer than MaxNote; and that those of a removed
// host do not count.
func TestNotes(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.47.1"))
	b := start(t, configure(t, "127.0.47.2", a.addr))
	awaitMembers(t, a, b)
	read := func(n *node, topic string) (out []string) {
		for _, x := range n.Notes(topic) {
			owner := "a"
			if x.Owner == b.self {
				owner = "b"
			}
			out = append(out, owner+" "+x.Key+"="+string(x.Value))
		}
		slices.Sort(out) // owners' IDs are random
		return out
	}
	must(t, a.Publish("pets", "cat", []byte("old")))
	must(t, a.Publish("pets", "cat", []byte("Tom")))
	must(t, b.Publish("pets", "cat", []byte("Cleo")))
	must(t, b.Publish("pets", "ant", []byte{}))
	must(t, b.Publish("cars", "cat", []byte("C5")))
	for _, n := range []*node{a, b} {
		await(t, "all notes", func() bool {
			return slices.Equal(read(n, "pets"), []string{"a cat=Tom", "b ant=", "b cat=Cleo"}) && slices.Equal(read(n, "cars"), []string{"b cat=C5"})
		})
	}
	must(t, b.Publish("pets", "ant", nil))
	await(t, "one to be taken back", func() bool { return slices.Equal(read(a, "pets"), []string{"a cat=Tom", "b cat=Cleo"}) })
	if err := a.Publish("pets", "whale", []byte(strings.Repeat("x", MaxNote+1))); err == nil {
		t.Error("a note of more than MaxNote was taken")
	}
	b.stop()
	must(t, a.MarkGone(b.self))
	if got := read(a, "pets"); !slices.Equal(got, []string{"a cat=Tom"}) {
		t.Errorf("notes %q, with those of a removed host", got)
	}
}

// TestRestartIsNoGap holds that what a host publishes does not go for a moment
// when it starts anew, however many datagrams it takes to tell it, and that what
// it does not publish again goes later, once it is there to ask for it.
func TestRestartIsNoGap(t *testing.T) {
	t.Parallel()
	const count = 100
	cfg := configure(t, "127.0.47.3")
	cfg.tune.staleAge = time.Millisecond
	a := start(t, cfg)
	hers := configure(t, "127.0.47.4", a.addr)
	owner := hers.Identity.ID
	publish := func(run uint64, from int) *state.Table {
		table := state.New(owner, run)
		for i := from; i < count; i++ {
			if _, err := table.Set(kindNote+"pets", fmt.Sprint(i), bytes.Repeat([]byte("x"), 100)); err != nil {
				t.Fatal(err)
			}
		}
		return table
	}
	replica := recordsReplica{a.Node}
	must(t, replica.Merge(owner, publish(1, 0).Announce()))
	pieces := publish(2, 1).AnnounceIn(1200, maxAnnouncement)
	if len(pieces) < 5 {
		t.Fatalf("told in %d pieces", len(pieces))
	}
	for i, piece := range pieces {
		must(t, replica.Merge(owner, piece))
		a.dropStale() // who is no member may not have told all
		if got := len(a.Notes("pets")); got != count {
			t.Fatalf("%d of %d notes after piece %d", got, count, i)
		}
	}
	b := start(t, hers)
	must(t, b.Publish("pets", "1", []byte("x")))
	await(t, "all but one to go", func() bool { return len(a.Notes("pets")) == 1 })
}

// TestStaleNotesComeLast holds that no note of a run before is in the way of one
// of the current run.
func TestStaleNotesComeLast(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.47.5"))
	owner := testIdentity(t).ID
	for run, keys := range [][]string{make([]string, MaxNotes), {"new"}} {
		table := state.New(owner, uint64(run)+1)
		for i, key := range keys {
			if key == "" {
				key = fmt.Sprint(i)
			}
			if _, err := table.Set(kindNote+"pets", key, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		must(t, recordsReplica{a.Node}.Merge(owner, table.Announce()))
	}
	notes := a.Notes("pets")
	if len(notes) != MaxNotes || !slices.ContainsFunc(notes, func(n Note) bool { return n.Key == "new" }) {
		t.Errorf("%d notes, without the new one", len(notes))
	}
}
