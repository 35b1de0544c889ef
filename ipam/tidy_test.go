package ipam

import (
	"flag"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weave/ipam/ring"
)

var claims = flag.Int("claims", 300, "addresses that TestClaimsAreGivenBack claims and releases")

// TestClaimsAreGivenBack has one host claim every other address of another
// one's range, and release it at once.
func TestClaimsAreGivenBack(t *testing.T) {
	const pool = "10.64.0.0/16"
	n, hosts := newNet(t, "a", "b")
	a, b := hosts[0], hosts[1]
	id := a.pool(t, pool, "")
	b.pool(t, pool, "")
	if *claims < 1000 {
		a.tidyTokens, a.scarceTokens = 32, 64
		b.tidyTokens, b.scarceTokens = 32, 64
	}
	tokens := func(h *host) int { return h.pools[netip.MustParsePrefix(pool)].ring.Tokens() }
	addr, most, start := netip.MustParseAddr("10.64.128.10"), 0, time.Now()
	for i := range *claims {
		if _, err := a.request(id, addr.String(), KindLease); err != nil {
			t.Fatalf("claim %d: %v", i, err)
		}
		if err := a.ReleaseAddress(t.Context(), id, addr); err != nil {
			t.Fatal(err)
		}
		addr = addr.Next().Next()
		most = max(most, tokens(a))
		if i%50 == 0 { // as Run does
			a.Settle(t.Context())
			b.Settle(t.Context())
		}
	}
	a.Settle(t.Context())
	b.Settle(t.Context())
	if err := n.sync(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d claims in %v, at most %d tokens, %d in the end", *claims, time.Since(start).Round(time.Millisecond), most, tokens(a))
	if most > a.scarceTokens+110 || tokens(a) > a.scarceTokens || tokens(b) != tokens(a) {
		t.Errorf("at most %d tokens, %d in the end, %d at b", most, tokens(a), tokens(b))
	}
	a.manyTokens = 1
	if s := a.Status()[0]; !strings.Contains(s.Pieces, pool) {
		t.Errorf("status tells of %q", s.Pieces)
	}
	if *claims < 1000 {
		if err := n.invariants(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWishesAreKept while tokens are not scarce, and so is what is in use.
func TestWishesAreKept(t *testing.T) {
	const wide = "10.40.0.0/27"
	n, hosts := newNet(t, "a", "b")
	n.tidy = 1
	a, b := hosts[0], hosts[1]
	for _, h := range hosts {
		h.pool(t, wide, "")
		h.tidyTokens, h.scarceTokens = 1, 100
	}
	for _, addr := range []string{"10.40.0.18", "10.40.0.22", "10.40.0.26"} {
		if _, err := a.request(wide, addr, KindLease); err != nil {
			t.Fatal(err)
		}
	}
	release := func(addr string) {
		if err := a.ReleaseAddress(t.Context(), wide, netip.MustParseAddr(addr)); err != nil {
			t.Fatal(err)
		}
		a.Settle(t.Context())
		b.Settle(t.Context())
	}
	ours := func() (n int) { return int(a.Status()[0].Owners[0].Addresses) }
	if release("10.40.0.18"); ours() != 16+3 {
		t.Errorf("a has %d addresses: a wish was not kept", ours())
	}
	a.scarceTokens = 0
	if release("10.40.0.22"); ours() != 16+1 {
		t.Errorf("a has %d addresses, want one beyond its share, which is leased", ours())
	}
	n.partition(map[ring.Peer]int{"b": 1})
	if release("10.40.0.26"); ours() != 16+1 {
		t.Errorf("a has %d addresses: it gave to one who is not there", ours())
	}
	n.partition(nil)
	if a.Settle(t.Context()); ours() != 16 {
		t.Errorf("a has %d addresses", ours())
	}
	b.Settle(t.Context())
	if tokens := b.pools[netip.MustParsePrefix(wide)].ring.Tokens(); tokens != 2 {
		t.Errorf("%d tokens", tokens)
	}
}

// TestHeldIsNotGivenBack has a container of a removed host on an address that
// lies free within another host's range, whose owner has never heard of it.
func TestHeldIsNotGivenBack(t *testing.T) {
	const wide = "10.40.0.0/27"
	n, hosts := newNet(t, "a", "b", "c")
	a, b := hosts[0], hosts[1]
	for _, h := range hosts {
		h.pool(t, wide, "")
	}
	addr := netip.MustParseAddr("10.40.0.14")
	owner := func() ring.Peer { return a.pools[netip.MustParsePrefix(wide)].owner(addr) }
	settle := func() {
		a.tidyTokens, a.scarceTokens = 1, 0
		a.Settle(t.Context())
	}
	if _, err := a.request(wide, addr.String(), KindLease); err != nil {
		t.Fatal(err)
	}
	n.table = map[netip.Addr]map[ring.Peer]bool{addr: {"c": true}}
	if err := a.ReleaseAddress(t.Context(), wide, addr); err != nil {
		t.Fatal(err)
	}
	if settle(); owner() != "a" {
		t.Fatalf("%s has %s, which is announced", owner(), addr)
	}
	n.partition(map[ring.Peer]int{"c": 1})
	if _, err := b.RemovePeer(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	a.Settle(t.Context())
	for _, h := range []*host{a, b} {
		h.restart(t)
	}
	settle()
	_, err := b.request(wide, addr.String(), KindLease)
	want(t, err, ErrInUse, "host-c")
	n.setGone("c")
	if settle(); owner() != "b" {
		t.Errorf("%s has %s, which nobody has any more", owner(), addr)
	}
}
