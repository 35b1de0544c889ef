package sim

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"weave/ipam"
	"weave/ipam/ring"
)

// unheard is a plan in which hosts hear little but answers.
var unheard = Plan{
	Seed: 1, Hosts: 4, Groups: 1, Quiet: true, Rates: rates{cast: 1, delay: time.Millisecond},
	Pools: []netip.Prefix{netip.MustParsePrefix("10.32.1.0/28")}, Subs: []netip.Prefix{netip.MustParsePrefix("10.32.1.0/29")},
}

// TestBothEndsOfAGiftAreRemoved has a host give an address to another, of which
// nobody else hears, and both die and be removed. The heir of the giver gets the
// address with the rest, while on the disk of the receiver, who has another
// heir, it still is the receiver's. In the end both come back.
func TestBothEndsOfAGiftAreRemoved(t *testing.T) {
	for _, announced := range []bool{false, true} {
		for _, giverFirst := range []bool{false, true} {
			t.Run(fmt.Sprintf("container announced: %v, giver removed first: %v", announced, giverFirst), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					cryptotest.SetGlobalRandom(t, 1)
					o := play(unheard, func(w *world) { removeBothEnds(t, w, announced, giverFirst) })
					if o.Bug != nil || t.Failed() {
						t.Errorf("%v\n%s", o.Bug, o.Trace())
					}
				})
			})
		}
	}
}

func removeBothEnds(t *testing.T, w *world, announced, giverFirst bool) {
	pool, addr := w.plan.Pools[0], netip.MustParseAddr("10.32.1.5")
	w.startPool(pool, w.hosts...)
	giver, others := ownerAmong(w.hosts, pool, addr)
	receiver, heir, other := others[0], others[1], others[2]
	claim := func(h *host) error {
		return w.result(func(done func(error)) { w.lease(h.proc, pool.String(), addr, 0, time.Minute, done) })
	}
	remove := func(by, h *host) error {
		return w.result(func(done func(error)) { w.removePeer(by.proc, h.peer.id, 0, done) })
	}

	if err := claim(receiver); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	if announced {
		heir.proc.see(receiver.peer.id, receiver.peer.own)
	}
	w.mu.Unlock()
	w.crash(giver)
	w.crash(receiver)
	w.sleep(3 * time.Second) // until the others have noticed
	if owner := heir.owner(pool, addr); owner != giver.peer.id {
		t.Fatalf("%s is %s's, as %s knows", addr, owner, heir)
	}
	var errs []error
	if giverFirst {
		errs = append(errs, remove(heir, giver), remove(other, receiver))
	} else {
		errs = append(errs, remove(other, receiver), remove(heir, giver))
	}
	w.sleep(settleEvery)
	if err := errors.Join(errs...); err != nil || heir.owner(pool, addr) != heir.peer.id || receiver.owner(pool, addr) != receiver.peer.id {
		t.Errorf("%v; %s is %s's, says %s, and %s's, says %s", err, addr, heir.owner(pool, addr), heir, receiver.owner(pool, addr), receiver)
	}
	w.crash(heir) // what was announced is known from the disk only
	w.boot(heir)
	if err := claim(heir); announced && !errors.Is(err, ipam.ErrInUse) || !announced && err != nil {
		t.Errorf("%s claims %s: %v", heir, addr, err)
	}
	w.check()
}

// TestGiverHasMovedOn has a cluster of three meet another one, whose ring of the
// pool stays. One of the three had given an address to the second, who is down
// since, as is the third, who has not heard of it. Then the second is removed:
// on the third one's disk the address still is the giver's, who does not have
// that ring any more, but was right.
func TestGiverHasMovedOn(t *testing.T) {
	plan := unheard
	plan.Hosts, plan.Groups, plan.Quiet = 6, 2, false
	synctest.Test(t, func(t *testing.T) {
		cryptotest.SetGlobalRandom(t, 1)
		o := play(plan, func(w *world) { removeReceiver(t, w) })
		if o.Bug != nil || t.Failed() {
			t.Errorf("%v\n%s", o.Bug, o.Trace())
		}
	})
}

func removeReceiver(t *testing.T, w *world) {
	pool, addr := w.plan.Pools[0], netip.MustParseAddr("10.32.1.5")
	w.startPool(pool, w.hosts...)
	groups := make([][]*host, 2)
	for _, h := range w.hosts {
		groups[h.number%2] = append(groups[h.number%2], h)
	}
	if groups[0][0].seed(pool).Compare(groups[1][0].seed(pool)) < 0 {
		slices.Reverse(groups)
	}
	giver, others := ownerAmong(groups[0], pool, addr) // the greater seed gives way
	receiver, third, winners := others[0], others[1], groups[1]

	w.crash(third)
	w.sleep(3 * time.Second) // until the others have noticed
	if err := w.result(func(done func(error)) { w.lease(receiver.proc, pool.String(), addr, 0, time.Minute, done) }); err != nil {
		t.Fatal(err)
	}
	w.crash(receiver)
	w.connect(giver, winners[0])
	w.sleep(20 * time.Second) // until all have met
	if giver.seed(pool) != winners[0].seed(pool) || third.seed(pool) != receiver.seed(pool) || third.owner(pool, addr) != giver.peer.id {
		t.Fatalf("%s has not moved on, or %s has, or knows of the gift", giver, third)
	}
	if err := w.result(func(done func(error)) { w.removePeer(winners[1].proc, receiver.peer.id, 0, done) }); err != nil {
		t.Error(err)
	}
	w.check()
}

// TestRemovedByClustersApart has a host that two others have met, who have not
// heard of each other, die and be removed: by both, each of which is a majority
// of all that it knows, and inherits the pool; or by one, while the other has
// been given the address. Then they meet.
func TestRemovedByClustersApart(t *testing.T) {
	plan := unheard
	plan.Hosts, plan.Groups, plan.Quiet = 3, 3, false
	for _, given := range []bool{false, true} {
		t.Run(fmt.Sprintf("one was given the address: %v", given), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cryptotest.SetGlobalRandom(t, 1)
				o := play(plan, func(w *world) { removeApart(t, w, given) })
				if o.Bug != nil || t.Failed() {
					t.Errorf("%v\n%s", o.Bug, o.Trace())
				}
			})
		})
	}
}

func removeApart(t *testing.T, w *world, given bool) {
	pool, addr := w.plan.Pools[0], netip.MustParseAddr("10.32.1.5")
	between, one, other := w.hosts[0], w.hosts[1], w.hosts[2]
	lease := func(h *host) {
		w.startPool(pool, h)
		if err := w.result(func(done func(error)) { w.lease(h.proc, pool.String(), addr, 0, time.Minute, done) }); err != nil {
			t.Error(err)
		}
	}
	remove := func(h *host) {
		if err := w.result(func(done func(error)) { w.removePeer(h.proc, between.peer.id, 0, done) }); err != nil {
			t.Error(err)
		}
	}

	w.startPool(pool, between)
	for _, h := range []*host{one, other} {
		w.connect(h, between)
		w.sleep(20 * time.Second) // until it has the ring
		w.crash(h)
	}
	w.boot(one)
	if given {
		lease(one)
	}
	w.crash(between)
	w.mu.Lock()
	clear(other.peer.known) // what it has heard of the one
	other.peer.known[between.peer.id] = true
	w.mu.Unlock()
	w.boot(other)
	w.sleep(3 * time.Second) // until both have noticed
	remove(other)
	lease(other)
	if !given {
		remove(one)
		lease(one)
	}
	for _, h := range []*host{one, other} {
		if h.owner(pool, addr) != h.peer.id {
			t.Errorf("%s does not own %s", h, addr)
		}
	}
	w.check()
	w.connect(one, other)
	w.sleep(20 * time.Second) // until they have met
	if x, y := one.owner(pool, addr), other.owner(pool, addr); x != y {
		t.Errorf("%s is %s's and %s's", addr, x, y)
	}
	w.check()
}

// startPool has hosts ask for a pool.
func (w *world) startPool(pool netip.Prefix, hosts ...*host) {
	for _, h := range hosts {
		_ = w.result(func(done func(error)) {
			w.requestPool(h.proc, pool, netip.Prefix{}, 0, time.Minute, func(_ string, err error) { done(err) })
		})
	}
}

// ownerAmong is which of some hosts owns an address, and the others.
func ownerAmong(hosts []*host, pool netip.Prefix, addr netip.Addr) (owner *host, others []*host) {
	for _, h := range hosts {
		if h.owner(pool, addr) == h.peer.id {
			owner = h
		} else {
			others = append(others, h)
		}
	}
	return owner, others
}

// result is what a call that begins now comes to.
func (w *world) result(begin func(done func(error))) error {
	err := errors.New("no answer")
	w.mu.Lock()
	begin(func(e error) { err = e })
	w.mu.Unlock()
	for range 100 {
		w.sleep(10 * time.Millisecond)
		w.mu.Lock()
		busy := w.busy
		w.mu.Unlock()
		if busy == 0 {
			break
		}
	}
	return err
}

// owner is who owns an address, as on the disk of this host.
func (h *host) owner(pool netip.Prefix, addr netip.Addr) ring.Peer {
	owner, _ := h.peer.disk.rings[pool].Owner(addr)
	return owner
}

// seed tells which ring of a pool is on the disk of this host.
func (h *host) seed(pool netip.Prefix) ring.SeedID { return h.peer.disk.rings[pool].Seed() }
