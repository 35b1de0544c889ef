package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"weave/ipam/paxos"
	"weave/ipam/ring"
)

// cut takes a host off the others; it goes on by itself.
func (b *books) cut(t *rapid.T) {
	h := b.host(t)
	b.net.mu.Lock()
	defer b.net.mu.Unlock()
	part := map[ring.Peer]int{}
	for p, n := range b.net.part {
		part[p] = n
	}
	b.next++
	part[h.self] = b.next
	b.net.part = part
}

// die takes a host away for good, with its containers; the endpoint table still
// has them.
func (b *books) die(t *rapid.T) {
	if len(b.hosts) < 3 {
		return
	}
	h := b.host(t)
	b.net.mu.Lock()
	delete(b.net.hosts, h.self)
	b.net.mu.Unlock()
	b.hosts = slices.DeleteFunc(slices.Clone(b.hosts), func(other *host) bool { return other == h })
	b.dead = append(b.dead, h)
	delete(b.held, h)
	for s := range b.shared {
		if s.host == h {
			delete(b.shared, s)
		}
	}
}

// remove has one or two hosts remove the same peer at once.
func (b *books) remove(t *rapid.T) {
	b.coins(t)
	target := rapid.SampledFrom(b.net.known()).Draw(t, "target")
	one, other := b.host(t), b.host(t)
	_, gone := one.Removed()[target]
	alive := slices.Contains(one.Alive(), target)
	var wait sync.WaitGroup
	if one != other {
		wait.Go(func() { _, _ = other.RemovePeer(context.Background(), target) })
	}
	_, err := one.RemovePeer(context.Background(), target)
	wait.Wait()
	if alive && !gone && err == nil && one == other {
		t.Fatalf("%s removed %s, which it reaches", one.self, target)
	}
	for _, ok := range []error{nil, ErrAlive, ErrNoAgreement, ErrNoAnswer, ErrRemoved, ErrInvalid, ErrUnknownPeer, context.DeadlineExceeded} {
		if errors.Is(err, ok) {
			return
		}
	}
	t.Fatal(err)
}

func (n *net) known() (all []ring.Peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.hosts {
		all = append(all, h.known...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// rejoin has all that know they were removed come back under new names.
func (b *books) rejoin(t failer) {
	for _, h := range b.hosts {
		if h.removed == 0 {
			continue
		}
		if h.removed > 1 {
			t.Fatalf("%s was told %d times that it was removed", h.self, h.removed)
		}
		b.next++
		if err := h.rejoin(ring.Peer(fmt.Sprintf("%s%d", h.self[:1], b.next))); err != nil {
			t.Fatal(err)
		}
	}
}

// bury removes who is dead, now that all is healed, and has the table forget
// the containers.
func (b *books) bury(t failer) {
	for _, h := range b.dead {
		if _, err := b.hosts[0].RemovePeer(context.Background(), h.self); err != nil && !errors.Is(err, ErrUnknownPeer) {
			t.Fatal(err)
		}
		b.net.setGone(h.self)
		for _, former := range h.former {
			b.net.setGone(former)
		}
	}
}

func TestRemoveMachine(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var failure any     // rapid ends a run by a panic, on its own goroutine
		rt.Context().Done() // made outside of the bubble, since rapid closes it there
		synctest.Test(t, func(t *testing.T) {
			defer func() { failure = recover() }()
			removeMachine(t, rt)
		})
		if failure != nil {
			panic(failure)
		}
	})
}

func removeMachine(t *testing.T, rt *rapid.T) {
	n, hosts := apart(t, rapid.IntRange(2, 4).Draw(rt, "hosts"))
	if rapid.Bool().Draw(rt, "announced") {
		n.table = map[netip.Addr]map[ring.Peer]bool{}
	}
	b := newBooks(n, hosts)
	n.lose(b.flip, b.flip)
	rt.Repeat(map[string]func(*rapid.T){
		"lease": b.lease, "lease more": b.lease, "claim": b.claim, "release": b.release, "reserve": b.reserve, "unreserve": b.unreserve,
		"crash": b.crash, "cut": b.cut, "heal": b.heal, "split": b.split, "gossip": b.gossip, "settle": b.settle,
		"die": b.die, "remove": b.remove, "remove more": b.remove, "rejoin": func(t *rapid.T) { b.rejoin(t) }, "": func(t *rapid.T) { b.check(t) },
	})
	n.partition(nil)
	n.lose(never, never)
	for range 3 {
		b.calm(rt)
		b.rejoin(rt)
	}
	b.bury(rt)
	b.converged(rt)
}

func TestRemoveRefuses(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c", "d")
	a := hosts[0]
	a.pool(t, small, "")
	for _, test := range []struct {
		peer ring.Peer
		kind error
		word string
	}{{"a", ErrInvalid, "another"}, {"b", ErrAlive, "host-b"}, {"x", ErrUnknownPeer, "x"}} {
		_, err := a.RemovePeer(t.Context(), test.peer)
		want(t, err, test.kind, test.word)
	}
	a.patience = 100 * time.Millisecond
	n.partition(map[ring.Peer]int{"b": 1, "c": 1, "d": 1})
	_, err := a.RemovePeer(t.Context(), "b")
	want(t, err, ErrNoAgreement, "2 of 3", "host-b", "host-c", "host-d")
	n.partition(nil) // c reaches b, whatever a sees
	vote := request{Op: opPrepare, Decree: &removal{"b", 1}, Ballot: paxos.Ballot{N: 1, Peer: "a"}}
	if ans := hosts[2].serve(t.Context(), "a", vote); ans.Refusal != refusedAlive || ans.Promise != nil {
		t.Errorf("%+v", ans)
	}
	if len(a.Removed()) != 0 || a.Status()[0].Free != 3 {
		t.Errorf("removed %v, %d free", a.Removed(), a.Status()[0].Free)
	}
}

func TestRemoveOnTwoHostsAtOnce(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c", "d")
	n.table = map[netip.Addr]map[ring.Peer]bool{}
	for _, h := range hosts {
		h.pool(t, small, "")
	}
	d := hosts[3]
	held := d.lease(t, small)
	d.announce(held, true)
	if _, err := d.request(small, "10.40.0.1", KindGateway); err != nil {
		t.Fatal(err)
	}
	n.partition(map[ring.Peer]int{"d": 1})
	reports := make([]RemoveReport, 3)
	var wait sync.WaitGroup
	for i, h := range hosts[:3] {
		wait.Go(func() {
			var err error
			if reports[i], err = h.RemovePeer(context.Background(), "d"); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	for _, r := range reports {
		if r.Heir != reports[0].Heir || r.Pending || len(r.Pools) != 1 || r.Pools[0].Addresses != 4 || !slices.Equal(r.Pools[0].Held, []netip.Addr{held}) ||
			r.Host != "host-d" || r.HeirHost != "host-"+string(r.Heir) {
			t.Errorf("%+v", r)
		}
	}
	if err := n.sync(); err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts[:3] {
		if s := h.Status()[0]; len(s.Owners) != 3 || s.Reserved != 0 || h.Removed()["d"] != reports[0].Heir {
			t.Errorf("%+v", s)
		}
	}
	for range 13 { // all but what a container of d may hold
		if got := hosts[0].lease(t, small); got == held {
			t.Fatalf("%s is held by a container of d", got)
		}
	}
	_, err := hosts[0].request(small, "", KindLease)
	want(t, err, ErrFull)
	n.setGone("d")
	if got := hosts[1].lease(t, small); got != held {
		t.Errorf("leased %s", got)
	}
}

// TestRemovedComesBack has a host removed while it was only cut off.
func TestRemovedComesBack(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	a, c := hosts[0], hosts[2]
	for _, h := range hosts {
		h.pool(t, small, "")
	}
	n.table = map[netip.Addr]map[ring.Peer]bool{}
	kept := c.lease(t, small)
	c.announce(kept, true)
	lost := c.lease(t, small) // never announced: nobody knows
	n.partition(map[ring.Peer]int{"c": 1})
	report, err := a.RemovePeer(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	heir := n.hosts[report.Heir]
	if _, err := heir.request(small, lost.String(), KindLease); err != nil {
		t.Fatal(err)
	}
	n.partition(nil)
	for range 2 {
		c.Settle(t.Context())
		if err := n.sync(); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.request(small, "", KindLease)
	want(t, err, ErrRemoved, "re-joining")
	if c.removed != 1 || c.Status()[0].LeasesOff == "" {
		t.Fatalf("told %d times, %+v", c.removed, c.Status()[0])
	}
	if ans := c.serve(t.Context(), "a", request{Op: opSpace, Pool: netip.MustParsePrefix(small)}); ans.Refusal != refusedFailed {
		t.Errorf("a removed host answers %+v", ans)
	}
	if err := c.rejoin("c2"); err != nil {
		t.Fatal(err)
	}
	if len(c.Leases()) != 2 || len(c.Status()[0].Handles) != 1 || c.Status()[0].Unbacked != 2 {
		t.Fatalf("%+v", c.Status()[0])
	}
	c.Settle(t.Context())
	pool := netip.MustParsePrefix(small)
	if c.Clashed(pool, kept) || !c.Clashed(pool, lost) || c.Status()[0].Unbacked != 1 {
		t.Errorf("%+v", c.Clashes())
	}
	c.lease(t, small)
}

// TestEachRemovesTheOther has no heir left in the end; one is found.
func TestEachRemovesTheOther(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	for i, h := range hosts {
		h.pool(t, small, "")
		n.partition(map[ring.Peer]int{"b": 1})
		if _, err := h.RemovePeer(t.Context(), hosts[1-i].self); err != nil {
			t.Fatal(err)
		}
		n.partition(nil)
		if i == 0 {
			n.partition(map[ring.Peer]int{"b": 1})
		}
	}
	n.partition(nil)
	if err := n.sync(); err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if h.Removed()["a"] != "" || h.removed == 0 {
			t.Fatalf("%v", h.Removed())
		}
	}
	for i, h := range hosts {
		if err := h.rejoin(ring.Peer(fmt.Sprint("new", i))); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		for _, h := range hosts {
			h.Settle(t.Context())
		}
		if err := n.sync(); err != nil {
			t.Fatal(err)
		}
	}
	if free := hosts[0].Status()[0].Free + hosts[1].Status()[0].Free; free != 14 {
		t.Errorf("%d free: %+v", free, hosts[0].Status())
	}
	if err := n.invariants(); err != nil {
		t.Fatal(err)
	}
}

// TestHeirAsksTheLiving has a gift of the dead host known to its receiver only.
func TestHeirAsksTheLiving(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	a, b := hosts[0], hosts[1]
	for _, h := range hosts {
		h.pool(t, small, "")
	}
	n.lose(never, func() bool { return true })
	gift := netip.MustParseAddr("10.40.0.12")
	if _, err := b.request(small, gift.String(), KindLease); err != nil {
		t.Fatal(err)
	}
	n.partition(map[ring.Peer]int{"c": 1})
	p := a.pools[netip.MustParsePrefix(small)]
	_, late, err := p.ring.Give("c", rangeOf("10.40.0.14"), "b")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Merge("b", encode(gossip{Removed: removed{"c": {"a", 1}}, Rings: []ring.Chunk{late}})); err != nil {
		t.Fatal(err)
	}
	if owner := p.owner(gift); owner != "c" {
		t.Errorf("%s took over before it asked", owner)
	}
	if _, err := a.RemovePeer(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if owner := a.pools[netip.MustParsePrefix(small)].owner(gift); owner != "b" {
		t.Errorf("%s has %s, which was given to b", owner, gift)
	}
	for _, l := range b.Leases() {
		if !l.Backed {
			t.Errorf("%+v", l)
		}
	}
	delete(n.hosts, "c")
	if err := errors.Join(n.sync(), n.invariants()); err != nil {
		t.Fatal(err)
	}
}

// TestTwoHeirs has clusters apart remove one peer: they settle on one heir, in
// whatever order they hear.
func TestTwoHeirs(t *testing.T) {
	one, other, later := removed{"x": {"a", 1}}, removed{"x": {"b", 1}}, removed{"x": {"z", 2}}
	for _, order := range [][]removed{{one, other}, {other, one}, {one, other, one}} {
		_, hosts := newNet(t, "c")
		for _, r := range order {
			if err := hosts[0].Merge("d", encode(gossip{Removed: r})); err != nil {
				t.Fatal(err)
			}
		}
		if heir := hosts[0].Removed()["x"]; heir != "a" {
			t.Errorf("%v: heir %s", order, heir)
		}
		if err := hosts[0].Merge("d", encode(gossip{Removed: later})); err != nil {
			t.Fatal(err)
		}
		if err := hosts[0].start(); err != nil {
			t.Fatal(err)
		}
		if heir := hosts[0].Removed()["x"]; heir != "z" {
			t.Errorf("heir %s", heir)
		}
	}
	_, hosts := newNet(t, "c")
	for _, bad := range []removed{{"": {"a", 1}}, {"x": {"x", 1}}, {"x": {"", 1}}, {"x": {"a", 0}}, {"x": {"a", maxRounds + 1}}} {
		want(t, hosts[0].Merge("d", encode(gossip{Removed: bad})), ErrInvalid)
	}
}
