package ipam

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"weave/ipam/ring"
)

// ghost is a cluster of a and b, of which b was cut off with a container on
// an announced address, and removed by a. The other addresses are leased.
func ghost(t *testing.T) (n *net, a, b *host, held netip.Addr) {
	t.Helper()
	n, hosts := newNet(t, "a", "b")
	n.table = map[netip.Addr]map[ring.Peer]bool{}
	a, b = hosts[0], hosts[1]
	a.pool(t, small, "")
	b.pool(t, small, "")
	held = b.lease(t, small)
	b.announce(held, true)
	n.partition(map[ring.Peer]int{"b": 1})
	if _, err := a.RemovePeer(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	return n, a, b, held
}

// restart is one of the plugin while nobody else is there who could tell what
// was announced.
func (h *host) restart(t *testing.T) {
	t.Helper()
	h.net.mu.Lock()
	h.net.table = map[netip.Addr]map[ring.Peer]bool{}
	h.net.mu.Unlock()
	if err := h.start(); err != nil {
		t.Fatal(err)
	}
}

// TestHeldOverRestart has nobody announce any more what a removed host's
// container holds, until it is known to be gone.
func TestHeldOverRestart(t *testing.T) {
	n, a, _, held := ghost(t)
	for range 2 {
		a.restart(t)
		a.Settle(t.Context())
		for _, kind := range []Kind{KindLease, KindGateway} {
			_, err := a.request(small, held.String(), kind)
			want(t, err, ErrInUse, "host-b")
		}
	}
	for range 13 {
		if got := a.lease(t, small); got == held {
			t.Fatalf("%s is held by a container of b", held)
		}
	}
	_, err := a.request(small, "", KindLease)
	want(t, err, ErrFull)
	report, err := a.RemovePeer(t.Context(), "b")
	if err != nil || len(report.Pools) != 1 || len(report.Pools[0].Held) != 1 || report.Pools[0].Held[0] != held {
		t.Errorf("%+v, %v", report, err)
	}
	n.setGone("b")
	a.Settle(t.Context())
	n.mu.Lock()
	clear(n.gone) // who said so is not heard any more
	n.mu.Unlock()
	a.restart(t)
	if got := a.lease(t, small); got != held {
		t.Errorf("leased %s, want %s", got, held)
	}
}

// TestHeldIsStoredWithTheRing has the plugin die after each of its writes, and
// nobody announce what is held from then on.
func TestHeldIsStoredWithTheRing(t *testing.T) {
	for writes := range 8 {
		n, hosts := newNet(t, "a", "b")
		n.table = map[netip.Addr]map[ring.Peer]bool{}
		a, b := hosts[0], hosts[1]
		a.pool(t, small, "")
		b.pool(t, small, "")
		held := b.lease(t, small)
		b.announce(held, true)
		n.partition(map[ring.Peer]int{"b": 1})
		a.disk.failAfter(writes)
		_, _ = a.RemovePeer(t.Context(), "b")
		a.disk.failAfter(-1)
		owned := a.pools[netip.MustParsePrefix(small)].owner(held) == "a"
		a.restart(t)
		if _, err := a.request(small, held.String(), KindLease); err == nil && owned {
			t.Errorf("after %d writes: %s leased, which a container of b holds", writes, held)
		}
	}
}

// TestHeldWhileWaiting has the heir restart before it may take over.
func TestHeldWhileWaiting(t *testing.T) {
	n, hosts, _ := gaveAway(t)
	a := hosts[0]
	held := netip.MustParseAddr("10.40.0.9") // c's; d was given more
	n.table = map[netip.Addr]map[ring.Peer]bool{held: {"c": true}}
	if _, err := a.RemovePeer(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	a.Settle(t.Context())
	for range 2 {
		a.restart(t)
	}
	n.mu.Lock()
	delete(n.hosts, "d")
	n.mu.Unlock()
	if _, err := a.RemovePeer(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	_, err := a.request(small, held.String(), KindLease)
	want(t, err, ErrInUse, "host-c")
}

// TestHeldByWhoIsRemovedMeanwhile has a second peer removed while the heir looks
// up what containers hold in the ranges of the first one.
func TestHeldByWhoIsRemovedMeanwhile(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	a := hosts[0]
	const other = "10.41.0.0/28"
	n.table = map[netip.Addr]map[ring.Peer]bool{}
	for _, pool := range []string{small, other} {
		for _, h := range hosts {
			h.pool(t, pool, "")
		}
		n.table[hosts[1].lease(t, pool)] = map[ring.Peer]bool{"b": true}
	}
	held := slices.Collect(maps.Keys(n.table))
	if err := a.Merge("b", encode(gossip{Removed: removed{"c": {"a", 1}}})); err != nil {
		t.Fatal(err)
	}
	holders, asked := a.cfg.Holders, 0
	a.cfg.Holders = func(pool netip.Prefix) map[netip.Addr]ring.Peer {
		if asked++; asked == 2 {
			if err := a.Merge("b", encode(gossip{Removed: removed{"b": {"a", 1}}})); err != nil {
				t.Error(err)
			}
		}
		return holders(pool)
	}
	if err := a.takeOver(t.Context()); err != nil || asked != 2 {
		t.Fatalf("%d pools, %v", asked, err)
	}
	a.restart(t)
	for _, addr := range held {
		pool, _ := addr.Prefix(28)
		_, err := a.request(pool.String(), addr.String(), KindLease)
		want(t, err, ErrInUse, "host-b")
	}
}

// TestHeldInOwnRange has a removed host's container on an address in another
// host's range, which it had not claimed yet.
func TestHeldInOwnRange(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	a, c := hosts[0], hosts[2]
	for _, h := range hosts {
		h.pool(t, small, "")
	}
	addr := a.pools[netip.MustParsePrefix(small)].free.Runs()[0].First
	n.table = map[netip.Addr]map[ring.Peer]bool{addr: {"c": true}}
	n.partition(map[ring.Peer]int{"c": 1})
	if _, err := hosts[1].RemovePeer(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	a.Settle(t.Context())
	a.restart(t)
	_, err := a.request(small, addr.String(), KindLease)
	want(t, err, ErrInUse, "host-c")

	// It comes back under another name, and claims it.
	n.partition(nil)
	c.Settle(t.Context())
	if err := errors.Join(n.sync(), c.rejoin("c2")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.request(small, addr.String(), KindLease); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.sync(), n.invariants()); err != nil {
		t.Fatal(err)
	}
	a.restart(t)
}
