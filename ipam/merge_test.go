package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"weave/ipam/ring"
)

// apart starts clusters of the given sizes that do not know each other, each
// with the pool.
func apart(t testing.TB, sizes ...int) (*net, []*host) {
	t.Helper()
	var peers []ring.Peer
	var clusters [][]ring.Peer
	part := map[ring.Peer]int{}
	for i, size := range sizes {
		var cluster []ring.Peer
		for range size {
			p := ring.Peer(fmt.Sprintf("%c", 'a'+len(peers)))
			peers, cluster = append(peers, p), append(cluster, p)
			part[p] = i
		}
		clusters = append(clusters, cluster)
	}
	n, hosts := newNet(t, peers...)
	n.partition(part)
	for _, h := range hosts {
		h.known = clusters[part[h.self]]
	}
	for _, h := range hosts {
		h.pool(t, small, "")
	}
	return n, hosts
}

// meet has all hosts know each other; they do not reach each other yet.
func meet(n *net) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.hosts {
		h.known = slices.Sorted(maps.Keys(n.hosts))
	}
}

func TestMergeMachine(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		sizes := rapid.SliceOfN(rapid.IntRange(1, 3), 2, 3).Draw(rt, "clusters")
		n, hosts := apart(t, sizes...)
		b := newBooks(n, hosts)
		for range rapid.IntRange(0, 8).Draw(rt, "before") {
			rapid.SampledFrom([]func(*rapid.T){b.lease, b.lease, b.claim, b.release, b.reserve, b.crash}).Draw(rt, "step")(rt)
		}
		if rapid.Bool().Draw(rt, "announced") {
			n.table = map[netip.Addr]map[ring.Peer]bool{}
			for h, held := range b.held {
				for addr := range held {
					h.announce(addr, true)
				}
			}
		}
		meet(n)
		n.partition(nil)
		n.lose(b.flip, b.flip)
		rt.Repeat(map[string]func(*rapid.T){
			"lease": b.lease, "claim": b.claim, "release": b.release, "reserve": b.reserve, "unreserve": b.unreserve,
			"crash": b.crash, "split": b.split, "heal": b.heal, "gossip": b.gossip, "gossip more": b.gossip,
			"settle": b.settle, "settle more": b.settle, "full disk": b.full, "": func(t *rapid.T) { b.check(t) },
		})
		b.converged(rt)
	})
}

// winnerFirst orders two clusters' hosts by whose ring stays.
func winnerFirst(x, y *host) (winner, loser *host) {
	if x.Status()[0].Seed < y.Status()[0].Seed {
		return x, y
	}
	return y, x
}

func TestTwoClustersMeet(t *testing.T) {
	n, hosts := apart(t, 1, 1)
	winner, loser := winnerFirst(hosts[0], hosts[1])
	for _, addr := range []string{"10.40.0.3", "10.40.0.5"} {
		if _, err := winner.request(small, addr, KindLease); err != nil {
			t.Fatal(err)
		}
	}
	for _, addr := range []string{"10.40.0.3", "10.40.0.4"} {
		if _, err := loser.request(small, addr, KindLease); err != nil {
			t.Fatal(err)
		}
	}
	for _, addr := range []string{"10.40.0.5", "10.40.0.6"} {
		if _, err := loser.request(small, addr, KindGateway); err != nil {
			t.Fatal(err)
		}
	}
	meet(n)
	n.partition(nil)
	if err := n.sync(); err != nil {
		t.Fatal(err)
	}
	pool, twice := netip.MustParsePrefix(small), netip.MustParseAddr("10.40.0.3")
	if s := loser.Status()[0]; s.Unbacked != 2 || s.Seed != winner.Status()[0].Seed || s.LeasesOff != "" {
		t.Errorf("%+v", s)
	}
	_, err := loser.request(small, "10.40.0.4", KindLease)
	want(t, err, ErrInUse, "this host")
	for range 2 { // it is told once, and not forgotten
		loser.Settle(t.Context())
		c := loser.Clashes()
		if len(c) != 2 || c[0].Addr != twice || c[0].Peer != winner.self || c[0].Host != "host-"+string(winner.self) || c[0].Since.IsZero() {
			t.Fatalf("%+v", c)
		}
		if c[1].Kind != KindGateway || c[1].Addr.String() != "10.40.0.5" {
			t.Fatalf("%+v", c)
		}
		if !loser.Clashed(pool, twice) || loser.Clashed(pool, netip.MustParseAddr("10.40.0.4")) || len(loser.clashes) != 1 || len(winner.Clashes()) != 0 {
			t.Fatalf("%v, %v", loser.clashes, winner.Clashes())
		}
		if len(loser.Leases()) != 4 || loser.Status()[0].Unbacked != 1 || winner.Status()[0].Reserved != 1 {
			t.Fatalf("%+v, %+v", loser.Status()[0], winner.Status()[0])
		}
		if err := loser.start(); err != nil {
			t.Fatal(err)
		}
	}
	// When the winner lets go it is the loser's; but the container there is not
	// announced, so it stays listed, until it lets go too.
	if err := winner.ReleaseAddress(t.Context(), small, twice); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		loser.Settle(t.Context())
		if c := loser.Clashes(); len(c) != 2 || c[0].Addr != twice || !c[0].Over || c[1].Over || !loser.Clashed(pool, twice) || loser.Status()[0].Unbacked != 0 {
			t.Errorf("%+v", c)
		}
		if err := loser.start(); err != nil {
			t.Fatal(err)
		}
	}
	if err := loser.ReleaseAddress(t.Context(), small, twice); err != nil {
		t.Fatal(err)
	}
	if _, err := loser.request(small, twice.String(), KindLease); err != nil || loser.Clashed(pool, twice) {
		t.Errorf("%v, %+v", err, loser.Clashes())
	}
	if err := n.invariants(); err != nil {
		t.Fatal(err)
	}
}

// TestAnswerOfTheOldRing has the ring replaced while a gift of the old one is
// under way: it brings nothing.
func TestAnswerOfTheOldRing(t *testing.T) {
	n, hosts := apart(t, 2, 1)
	a, b, c := hosts[0], hosts[1], hosts[2]
	loser, _ := ring.New(netip.MustParsePrefix(small), ring.SeedID{0xff}, []ring.Peer{"a", "b"})
	winner, _ := ring.New(netip.MustParsePrefix(small), ring.SeedID{0}, []ring.Peer{"c"})
	for _, h := range hosts {
		r := loser
		if h == c {
			r = winner
		}
		h.mu.Lock()
		err := h.saveRings(map[*pool]*ring.Ring{h.pools[r.Pool()]: r})
		h.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 7 {
		a.lease(t, small)
	}
	meet(n)
	n.partition(nil)
	n.lose(func() bool { // b has given; before its answer arrives, a hears of c's ring
		if err := a.Merge("c", encode(gossip{Rings: []ring.Chunk{winner.Chunk()}})); err != nil {
			panic(err)
		}
		return false
	}, func() bool { return true })
	n.mu.Lock()
	reply := n.loseReply
	n.loseReply = func() bool { // without the net's lock, once
		n.loseReply = never
		n.mu.Unlock()
		defer n.mu.Lock()
		return reply()
	}
	n.mu.Unlock()
	got := a.lease(t, small)
	if owner := a.pools[winner.Pool()].owner(got); owner != "a" || a.Status()[0].Seed != winner.Seed().String() {
		t.Errorf("%s is owned by %s", got, owner)
	}
	for range 2 {
		for _, h := range []*host{a, b, c} {
			h.Settle(t.Context())
		}
		if err := n.sync(); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.invariants(); err != nil {
		t.Fatal(err)
	}
	if s := a.Status()[0]; s.Leases != 8 || s.Unbacked != 0 {
		t.Errorf("%+v", s)
	}
}

// TestHeldElsewhere has the endpoint table know of containers before their
// leases are claimed.
func TestHeldElsewhere(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	a, b := hosts[0], hosts[1]
	a.pool(t, small, "")
	b.pool(t, small, "")
	n.table = map[netip.Addr]map[ring.Peer]bool{}
	for _, addr := range []string{"10.40.0.1", "10.40.0.2", "10.40.0.7"} {
		n.table[netip.MustParseAddr(addr)] = map[ring.Peer]bool{"c": true}
	}
	if got := a.lease(t, small); got.String() != "10.40.0.3" {
		t.Errorf("leased %s", got)
	}
	for _, kind := range []Kind{KindLease, KindGateway} {
		for _, h := range []*host{a, b} {
			_, err := h.request(small, "10.40.0.2", kind)
			want(t, err, ErrInUse, "10.40.0.2", "host-c")
		}
	}
	hosts[2].pool(t, small, "")
	if _, err := hosts[2].request(small, "10.40.0.2", KindLease); err != nil {
		t.Errorf("its holder claims it: %v", err)
	}
	for range 10 {
		b.lease(t, small)
	}
	_, err := b.request(small, "", KindLease)
	want(t, err, ErrFull)
	delete(n.table, netip.MustParseAddr("10.40.0.7"))
	if got := b.lease(t, small); got.String() != "10.40.0.7" {
		t.Errorf("leased %s", got)
	}
}

// TestSpaceIsSeenTwice has an address go, between a look at it and its lease.
func TestSpaceIsSeenTwice(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	a, b := hosts[0], hosts[1]
	a.pool(t, small, "")
	b.pool(t, small, "")
	first := netip.MustParseAddr("10.40.0.1")
	var once sync.Once
	a.cfg.Held = func(netip.Prefix, netip.Addr) (ring.Peer, bool) {
		once.Do(func() {
			a.cfg.Held = nil
			if _, err := b.request(small, first.String(), KindLease); err != nil {
				t.Error(err)
			}
		})
		return "", false
	}
	if got := a.lease(t, small); got == first {
		t.Errorf("%s is leased by both", got)
	}
}

// TestOwnerHasTheLastWord asks an owner for what the asker thinks is free, or
// its own ring.
func TestOwnerHasTheLastWord(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	a := hosts[0]
	a.pool(t, small, "")
	pool, addr := netip.MustParsePrefix(small), netip.MustParseAddr("10.40.0.2")
	n.table = map[netip.Addr]map[ring.Peer]bool{addr: {"c": true}}
	claim := request{Op: opClaim, Pool: pool, Ring: a.pools[pool].chunk(), Addrs: []netip.Addr{addr}}
	if ans := a.serve(t.Context(), "b", claim); ans.Verdicts[0] != (verdict{refusedLeased, "c"}) {
		t.Errorf("%+v", ans)
	}
	claim.Former = []ring.Peer{"c"} // who was not removed
	if ans := a.serve(t.Context(), "b", claim); ans.Verdicts[0] != (verdict{refusedLeased, "c"}) {
		t.Errorf("%+v", ans)
	}
	claim.Removed = removed{"c": {"a", 1}}
	if ans := a.serve(t.Context(), "b", claim); ans.Verdicts[0] != (verdict{}) || a.pools[pool].owner(addr) != "b" {
		t.Errorf("%+v", ans)
	}
	later, _ := ring.New(pool, ring.SeedID{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, []ring.Peer{"b"})
	whole := later.Chunk()
	for _, o := range []op{opSpace, opClaim, opReserve} {
		req := request{Op: o, Pool: pool, Ring: &whole, Addr: addr.Next(), Addrs: []netip.Addr{addr.Next()}, Serial: 1}
		if ans := a.serve(t.Context(), "b", req); ans.Refusal != refusedSeeds || ans.Ring.Seed == later.Seed() {
			t.Errorf("%s: %+v", o, ans)
		}
	}
}

// TestReservationsEndWithTheRing has one host own the same in both rings.
func TestReservationsEndWithTheRing(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	a, b := hosts[0], hosts[1]
	b.pool(t, small, "")
	if _, err := b.request(small, "10.40.0.2", KindGateway); err != nil {
		t.Fatal(err)
	}
	other, _ := ring.New(netip.MustParsePrefix(small), ring.SeedID{}, []ring.Peer{"a", "b"})
	a.disk.failAfter(1) // the ring is stored, and what it makes void stays
	if err := a.Merge("b", encode(gossip{Rings: []ring.Chunk{other.Chunk()}})); err != nil {
		t.Fatal(err)
	}
	a.disk.failAfter(-1)
	for range 2 {
		if s := a.Status()[0]; s.Reserved != 0 || s.Free != 7 {
			t.Errorf("%+v", s)
		}
		if err := a.start(); err != nil {
			t.Fatal(err)
		}
	}
	b.Settle(t.Context()) // learns the ring as it asks
	b.Settle(t.Context())
	if err := b.Merge("a", a.Missing(b.Digest())); err != nil {
		t.Fatal(err)
	}
	b.Settle(t.Context())
	if s := a.Status()[0]; s.Reserved != 1 {
		t.Errorf("%+v", s)
	}
}

// TestReservationUnderWay has the count and the ring change while a new owner is
// asked for an old reservation.
func TestReservationUnderWay(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	a := hosts[0]
	a.pool(t, small, "")
	addr := netip.MustParseAddr("10.40.0.9")
	for range 2 {
		if _, err := a.request(small, addr.String(), KindGateway); err != nil {
			t.Fatal(err)
		}
	}
	p := a.pools[netip.MustParsePrefix(small)]
	stale := p.records[addr]
	if err := a.ReleaseAddress(t.Context(), small, addr); err != nil {
		t.Fatal(err)
	}
	if err := a.note(p, addr, &stale); err != nil || p.records[addr].Count != 1 {
		t.Errorf("%v, %+v", err, p.records[addr])
	}
	asked := a.asked
	ans, err := a.ask(t.Context(), p, "b", request{Op: opReserve, Addr: addr, Serial: 1, pinned: &ring.SeedID{1}})
	if err != nil || ans.Refusal != refusedSeeds || a.asked != asked {
		t.Errorf("%+v, %v: asked under another seed", ans, err)
	}
}

// refusedTwice is two clusters that met, with one address on both sides, whose
// claim has been refused.
func refusedTwice(t *testing.T) (n *net, winner, loser *host, twice netip.Addr) {
	t.Helper()
	n, hosts := apart(t, 1, 1)
	winner, loser = winnerFirst(hosts[0], hosts[1])
	twice = netip.MustParseAddr("10.40.0.3")
	for _, h := range hosts {
		if _, err := h.request(small, twice.String(), KindLease); err != nil {
			t.Fatal(err)
		}
	}
	meet(n)
	n.partition(nil)
	if err := n.sync(); err != nil {
		t.Fatal(err)
	}
	loser.Settle(t.Context())
	if !loser.clashing(twice) {
		t.Fatal("no clash")
	}
	return n, winner, loser, twice
}

// TestRefusedClaimStands has the winner release an address between two claims
// of the loser, whose container has it and is not announced: nobody else gets it.
func TestRefusedClaimStands(t *testing.T) {
	_, winner, loser, twice := refusedTwice(t)
	if err := winner.ReleaseAddress(t.Context(), small, twice); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []Kind{KindLease, KindGateway} {
		_, err := winner.request(small, twice.String(), kind)
		want(t, err, ErrInUse, "host-"+string(loser.self))
	}
	for range 13 {
		if got := winner.lease(t, small); got == twice {
			t.Fatalf("%s is given to a third container", twice)
		}
	}
	_, err := winner.request(small, "", KindLease)
	want(t, err, ErrFull)
	loser.Settle(t.Context())
	if s := loser.Status()[0]; s.Unbacked != 0 || loser.clashing(twice) {
		t.Errorf("%+v", s)
	}
}

// TestRefusedClaimEnds has the loser release the address first, or die.
func TestRefusedClaimEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, winner, loser, twice := refusedTwice(t)
		if err := loser.ReleaseAddress(t.Context(), small, twice); err != nil {
			t.Fatal(err)
		}
		time.Sleep(claimLasts)
		// Who asks by name has nothing yet, so that it was refused means nothing.
		_, err := loser.request(small, twice.String(), KindLease)
		want(t, err, ErrInUse)
		n.partition(map[ring.Peer]int{loser.self: 1})
		if err := winner.ReleaseAddress(t.Context(), small, twice); err != nil {
			t.Fatal(err)
		}
		if _, err := winner.request(small, twice.String(), KindLease); err != nil {
			t.Error(err)
		}
	})
}

// TestRefusedClaims has an owner remember the first of those who repeat theirs.
func TestRefusedClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, hosts := newNet(t, "a", "b", "c")
		a := hosts[0]
		a.pool(t, small, "")
		addr := a.lease(t, small)
		p := a.pools[netip.MustParsePrefix(small)]
		claim := func(by ring.Peer) verdict {
			return a.serve(t.Context(), by, request{Op: opClaim, Held: true, Pool: p.prefix, Ring: p.chunk(), Addrs: []netip.Addr{addr}}).Verdicts[0]
		}
		for range 4 {
			for _, by := range []ring.Peer{"b", "c"} {
				if v := claim(by); v.Refusal != refusedLeased {
					t.Errorf("%+v", v)
				}
			}
			time.Sleep(settleEvery)
		}
		if err := a.ReleaseAddress(t.Context(), small, addr); err != nil {
			t.Fatal(err)
		}
		if v := claim("c"); v != (verdict{refusedLeased, "b"}) {
			t.Errorf("%+v", v)
		}
		if v := claim("b"); v != (verdict{}) {
			t.Errorf("%+v", v)
		}
	})
}
