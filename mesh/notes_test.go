package mesh

import (
	"slices"
	"strings"
	"testing"
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
