package mesh

import "testing"

// TestNoWayToTheDead holds that a host that is down has no way, though what it
// told of its links stays.
func TestNoWayToTheDead(t *testing.T) {
	a := start(t, configure(t, "127.0.0.1"))
	b := start(t, configure(t, "127.0.0.2", a.addr))
	c := start(t, configure(t, "127.0.0.3", a.addr))
	d := start(t, configure(t, "127.0.0.4", a.addr))
	awaitMembers(t, a, b, c, d)
	all := []*node{a, b, c}
	for _, n := range all {
		await(t, "direct ways", func() bool { return len(n.transport.Direct()) == 3 })
	}
	await(t, "links told", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.index.links) == 4
	})
	d.stop()
	for _, n := range all {
		await(t, "the death to be known", func() bool { return len(n.Alive()) == 2 })
		await(t, "the way to end", func() bool { _, ok := n.routeTo(d.self); return !ok })
	}
	for i, n := range all {
		for j, other := range all {
			if w, _ := n.routeTo(other.self); i != j && w.Hops != 1 {
				t.Errorf("way %+v", w)
			}
		}
	}
}

// TestAddressesAreToldInTime holds that our addresses are published when they
// change, and no more often than our links.
func TestAddressesAreToldInTime(t *testing.T) {
	n, err := New(configure(t, "127.0.0.1"))
	must(t, err)
	defer n.Close()
	n.relink(true)
	for _, step := range []struct {
		may  bool
		want linksOutcome
		told int
	}{{false, linksWait, 0}, {true, linksPublished, 1}, {true, linksSame, 1}} {
		if step.told == 0 {
			n.routes.candidates = nil // as if they had changed
		}
		if got := n.relink(step.may); got != step.want || len(n.routes.candidates) != step.told {
			t.Errorf("outcome %d, told of %v, want %+v", got, n.routes.candidates, step)
		}
	}
}
