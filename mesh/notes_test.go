package mesh

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
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

// TestRestartIsNoGap holds that what a host publishes does not go for a moment
// when it starts anew, however many datagrams it takes to tell it, and that what
// it does not publish again goes later.
func TestRestartIsNoGap(t *testing.T) {
	t.Parallel()
	const count = 100
	value := bytes.Repeat([]byte("x"), 100) // so that a datagram holds some ten
	var hearer atomic.Pointer[node]
	var least atomic.Int64
	cfg := configure(t, "127.0.47.3")
	cfg.Changed = func() {
		if a := hearer.Load(); a != nil {
			least.Store(min(least.Load(), int64(len(a.Notes("pets")))))
		}
	}
	a := start(t, cfg)
	hearer.Store(a)
	b := start(t, configure(t, "127.0.47.4", a.addr))
	publish := func(from int) {
		for i := from; i < count; i++ {
			must(t, b.Publish("pets", fmt.Sprint(i), value))
		}
	}
	publish(0)
	await(t, "all notes", func() bool { return len(a.Notes("pets")) == count })
	least.Store(count)
	first := incarnationOf(t, b.store)
	b = b.restart(t)
	publish(1)
	await(t, "a to have heard all of the new run", func() bool {
		return incarnationOf(t, b.store) > first && bytes.Equal(recordsReplica{a.Node}.Digest(), recordsReplica{b.Node}.Digest())
	})
	if least.Load() < count-1 {
		t.Errorf("%d of %d notes were known at times", least.Load(), count)
	}
	await(t, "what it has no more to go", func() bool { return len(a.Notes("pets")) == count-1 })
}
