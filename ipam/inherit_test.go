package ipam

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"weave/ipam/ring"
)

// gaveAway is a cluster of a, b, c and d, split between b and c. Then c gives d
// half of a run, in which d leases, and dies.
func gaveAway(t *testing.T) (n *net, hosts []*host, leases []netip.Addr) {
	t.Helper()
	n, hosts = newNet(t, "a", "b", "c", "d")
	for _, h := range hosts {
		h.pool(t, small, "")
	}
	n.partition(map[ring.Peer]int{"c": 1, "d": 1})
	for range 5 {
		leases = append(leases, hosts[3].lease(t, small))
	}
	n.mu.Lock()
	delete(n.hosts, "c")
	n.mu.Unlock()
	return n, hosts, leases
}

// fillUp has hosts lease all that they get, and nothing of what others have.
func fillUp(t *testing.T, leases []netip.Addr, hosts ...*host) {
	t.Helper()
	for _, h := range hosts {
		for range 20 {
			got, err := h.request(small, "", KindLease)
			if err != nil {
				want(t, err, ErrFull)
				break
			}
			if slices.Contains(leases, got.Addr()) {
				t.Errorf("%s leased %s, which another host has", h.self, got)
			}
			leases = append(leases, got.Addr())
		}
	}
}

// TestHeirWaitsForAll has a gift of the dead host known to a host only that is
// out of reach when people remove the dead one.
func TestHeirWaitsForAll(t *testing.T) {
	n, hosts, leases := gaveAway(t)
	a, b, d := hosts[0], hosts[1], hosts[3]
	for range 2 {
		report, err := a.RemovePeer(t.Context(), "c")
		if err != nil || report.Heir != "a" || !slices.Equal(report.Missing, []ring.Peer{"d"}) || len(report.Pools) > 0 {
			t.Fatalf("%+v, %v", report, err)
		}
	}
	report, err := b.RemovePeer(t.Context(), "c")
	if err != nil || report.Heir != "a" || !slices.Equal(report.Missing, []ring.Peer{"d"}) {
		t.Fatalf("%+v, %v", report, err)
	}
	for range 2 {
		a.Settle(t.Context())
		for _, h := range []*host{a, b} {
			w := h.Waiting()
			if len(w) != 1 || w[0].Peer != "c" || w[0].Heir != "a" || !slices.Equal(w[0].For, []ring.Peer{"d"}) {
				t.Fatalf("%s: %+v", h.self, w)
			}
			_, err := h.request(small, "10.40.0.9", KindLease)
			want(t, err, ErrNoAnswer, "removed host", "weave status")
			_, err = h.request(small, "10.40.0.9", KindGateway)
			want(t, err, ErrNoAnswer, "removed host", "weave status")
		}
		if err := a.start(); err != nil {
			t.Fatal(err)
		}
	}
	fillUp(t, leases, a, b)

	n.partition(nil)
	a.Settle(t.Context())
	if err := errors.Join(n.sync(), n.invariants()); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*host{a, b, d} {
		if w := h.Waiting(); len(w) > 0 || slices.ContainsFunc(h.Status()[0].Owners, func(o OwnerStatus) bool { return o.Peer == "c" }) {
			t.Errorf("%s: %+v, %+v", h.self, w, h.Status()[0])
		}
	}
	for _, l := range d.Leases() {
		if !l.Backed {
			t.Errorf("%+v", l)
		}
	}
	fillUp(t, leases, b)
}

// TestWhoIsMissedIsGoneToo has both that are missed removed.
func TestWhoIsMissedIsGoneToo(t *testing.T) {
	n, hosts, _ := gaveAway(t)
	a := hosts[0]
	if _, err := a.RemovePeer(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	delete(n.hosts, "d")
	n.mu.Unlock()
	report, err := a.RemovePeer(t.Context(), "d")
	if err != nil || len(report.Missing) > 0 || len(report.Pools) != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	if err := errors.Join(n.sync(), n.invariants()); err != nil {
		t.Fatal(err)
	}
	if s := a.Status()[0]; len(a.Waiting()) > 0 || len(s.Owners) != 2 || s.Free != 3+4+3 {
		t.Errorf("%+v", s)
	}
}

// TestTellingIsOfTheRemoval has a peer that cannot store who was removed: it may
// still be given something, so what it tells does not count.
func TestTellingIsOfTheRemoval(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	a, b := hosts[0], hosts[1]
	n.partition(map[ring.Peer]int{"b": 1}) // so it owns nothing
	a.pool(t, small, "")
	n.partition(map[ring.Peer]int{"c": 1})
	if err := a.Merge("b", encode(gossip{Removed: removed{"c": {"a", 1}}})); err != nil {
		t.Fatal(err)
	}
	b.disk.failAfter(0)
	a.Settle(t.Context())
	if w := a.Waiting(); len(w) != 1 || !slices.Equal(w[0].For, []ring.Peer{"b"}) {
		t.Errorf("%+v", w)
	}
	for range 7 {
		a.lease(t, small)
	}
	_, err := a.request(small, "", KindLease)
	want(t, err, ErrFull, "removed host", "weave status")
	b.disk.failAfter(-1)
	a.Settle(t.Context())
	a.lease(t, small)
	if _, gone := b.Removed()["c"]; !gone || len(a.Waiting()) > 0 {
		t.Errorf("b knows of the removal: %v; %+v", gone, a.Waiting())
	}
}

// TestEachRemovalAsksAnew has a host hear of a gift after it has told its rings to
// the heir of the giver, and then remove the host that had told it.
func TestEachRemovalAsksAnew(t *testing.T) {
	n, hosts, leases := gaveAway(t)
	a, b, d := hosts[0], hosts[1], hosts[3]
	n.lose(never, func() bool { return true })
	if _, err := a.RemovePeer(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := b.Merge("d", d.Missing(b.Digest())); err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	delete(n.hosts, "d")
	n.mu.Unlock()
	if _, err := b.RemovePeer(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	a.Settle(t.Context())
	pool := netip.MustParsePrefix(small)
	for _, addr := range leases {
		if of, at := b.pools[pool].owner(addr), a.pools[pool].owner(addr); of != "b" || at != "b" {
			t.Errorf("%s is %s's, says b, and %s's, says a", addr, of, at)
		}
	}
	if owner := a.pools[pool].owner(netip.MustParseAddr("10.40.0.9")); owner != "a" || len(a.Waiting()) > 0 {
		t.Errorf("the rest of c's is %s's; %+v", owner, a.Waiting())
	}
}

// TestRemovalBeginsInTime: a removal whose turn comes as its time is up asks
// nobody any more, and writes nothing.
func TestRemovalBeginsInTime(t *testing.T) {
	_, hosts := newNet(t, "a", "b", "c")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 { // the turn is free as well: either may be noticed first
		if err := hosts[0].agreeHeir(ctx, "c"); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	for _, h := range hosts {
		if removed := h.Removed(); len(removed) > 0 {
			t.Errorf("%s removed %v", h.self, removed)
		}
	}
}
