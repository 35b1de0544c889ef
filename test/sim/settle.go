package sim

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"weave/ipam"
)

const (
	endAfter    = 12 * time.Second // how long it may take for calls to end, and for debts to be paid
	settleEvery = 5 * time.Second  // how often an Allocator looks whether all is right
)

// converge is how long it may take for gossip to bring everything everywhere,
// and for leases to be claimed.
func (w *world) converge() time.Duration {
	return 2*endAfter + time.Duration(len(w.hosts))*time.Second/2
}

// settle ends a schedule. All faults are over, and all must come right: every
// ring equal, every lease where Docker believes it, every clash reported, every
// address within reach of every host, and nothing left once everything is
// released.
func (w *world) settle() {
	for _, stage := range []func(){
		w.calmDown, w.sweep, w.reconcile, w.joinAll, w.fill, w.empty,
	} {
		stage()
		if !w.check() {
			return
		}
	}
}

// calmDown ends all faults, starts all plugins and connects all hosts.
func (w *world) calmDown() {
	w.heal()
	w.mu.Lock()
	w.log("calm")
	w.calm = true
	for _, h := range w.hosts {
		h.peer.disk.full = false
		if h.proc != nil {
			h.proc.dieIn = 0
		}
	}
	w.mu.Unlock()
	for range w.hosts {
		w.startDown()
	}
	for _, h := range w.hosts[1:] {
		w.connect(h, w.hosts[0])
	}
	w.sleep(lateBy)
	w.await(w.converge(), w.idle)
}

// await lets time pass, in which removed peers may re-join, until what is to
// come right has: it must in that time, and must still be right a while later.
func (w *world) await(most time.Duration, right func() error) {
	for end := time.Now().Add(most); w.check(); {
		err := right()
		if err == nil {
			w.pass(settleEvery)
			err = right()
		}
		switch {
		case err == nil:
			return
		case time.Now().After(end):
			w.failed("after %s: %w", most, err)
			return
		}
		w.pass(2 * time.Second)
	}
}

func (w *world) pass(d time.Duration) {
	w.rejoin()
	w.sleep(d)
	w.check()
}

// idle verifies that no call of Docker is under way, all who were removed are
// back, and all know the same rings.
func (w *world) idle() error {
	for _, p := range w.running() {
		w.mu.Lock()
		removed, busy := p.removed, w.busy
		w.mu.Unlock()
		if removed || busy > 0 {
			return fmt.Errorf("%d calls hang, %s is removed: %v", busy, p.self, removed)
		}
	}
	return w.agreed()
}

// all verifies several things.
func all(right ...func() error) func() error {
	return func() error {
		for _, f := range right {
			if err := f(); err != nil {
				return err
			}
		}
		return nil
	}
}

// sweep has people remove the peers that lost their state, if they care to. The
// records of what those had are out of date by then, and gone.
func (w *world) sweep() {
	for _, id := range slices.Sorted(maps.Keys(w.peers)) {
		if !w.peers[id].wiped {
			continue
		}
		w.mu.Lock()
		for _, h := range w.hosts {
			h.proc.ownViews()
			delete(h.proc.views, id)
		}
		if w.plan.Sweeps {
			h := w.hosts[w.rng.IntN(len(w.hosts))]
			w.removePeer(h.proc, id, 0, func(err error) {
				if err != nil && !errors.Is(err, ipam.ErrUnknownPeer) && 2*len(w.hosts) > len(w.peers) {
					w.fail("%s cannot remove %s: %w", h, id, err)
				}
			})
		}
		w.mu.Unlock()
		w.await(endAfter, w.idle)
	}
}

// joinAll makes a network on each pool on each host.
func (w *world) joinAll() {
	w.mu.Lock()
	var delay time.Duration
	for _, h := range w.hosts {
		for i, pool := range w.plan.Pools {
			delay += time.Duration(w.rng.Int64N(int64(time.Millisecond))) + 1
			if h.docker.overlapsOther(pool) {
				continue
			}
			var sub netip.Prefix
			if usableOf(pool) > fillMost {
				sub = w.plan.Subs[i]
			}
			w.requestPool(h.proc, pool, sub, delay, time.Minute, func(_ string, err error) {
				if err != nil && !w.mayLackRing(pool, err) {
					w.fail("pool %s is refused on %s after healing: %w", pool, h, err)
				}
			})
		}
	}
	w.mu.Unlock()
	w.await(w.converge(), all(w.idle, w.kept, w.reported))
}

// mayLackRing says whether a pool may still be without a ring: a majority of
// all peers ever known is too many if some have lost their identity.
func (w *world) mayLackRing(pool netip.Prefix, err error) bool {
	if !w.wiped || !errors.Is(err, ipam.ErrNoAgreement) {
		return false
	}
	for _, h := range w.hosts {
		if h.peer.disk.rings[pool] != nil {
			return false
		}
	}
	return true
}

// overlapsOther says whether a network here is on another pool that shares
// addresses with this one.
func (d *docker) overlapsOther(pool netip.Prefix) bool {
	for _, id := range d.ids() {
		if other := poolOf(id); other != pool && other.Overlaps(pool) {
			return true
		}
	}
	return false
}

// agreed verifies that all rings are equal.
func (w *world) agreed() error {
	all := w.running()
	for _, p := range all[1:] {
		if string(p.digest()) != string(all[0].digest()) {
			return fmt.Errorf("%s and %s differ: %s and %s", all[0].host, p.host, all[0].digest(), p.digest())
		}
	}
	return nil
}

// reconcile gives back what Docker does not know, as the plugin does in the
// background. There may be as much as calls whose end Docker did not see.
func (w *world) reconcile() {
	for _, p := range w.running() {
		leases, handles := p.alloc.Leases(), p.handles()
		w.mu.Lock()
		d := p.host.docker
		leaked := 0
		for _, l := range leases {
			if k := (key{l.Pool, l.Addr}); l.Kind == ipam.KindLease && !d.holds(w, k) {
				leaked++
				w.giveBack(p, l.PoolID, k, 0, func(error) {})
			}
		}
		if leaked > d.doubtful.leases {
			w.fail("%s has leaked %d leases; %d calls were cut short", p.host, leaked, d.doubtful.leases)
		}
		leaked = 0
		for _, id := range slices.Sorted(maps.Keys(handles)) {
			for surplus := handles[id] - d.refs[id]; surplus > 0; surplus-- {
				leaked++
				d.refs[id]++ // as if Docker knew it
				w.releasePool(p, id, 0)
			}
		}
		if leaked > d.doubtful.pools {
			w.fail("%s has leaked %d pools; %d calls were cut short", p.host, leaked, d.doubtful.pools)
		}
		w.mu.Unlock()
		p.announce()
	}
	w.await(endAfter, w.idle)
}

// handles are the pools that an Allocator believes Docker to hold.
func (p *process) handles() map[string]int {
	all := map[string]int{}
	for _, s := range p.alloc.Status() {
		for _, h := range s.Handles {
			all[h.ID] = h.Refs
		}
	}
	return all
}

// kept verifies that what Docker and its plugin believe is now the same. That
// no lease is lost is verified all the time.
func (w *world) kept() error {
	for _, p := range w.running() {
		if err := p.kept(); err != nil {
			return err
		}
	}
	return nil
}

func (p *process) kept() error {
	leases, handles := p.alloc.Leases(), p.handles()
	w, d := p.w, p.host.docker
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range leases {
		if k := (key{l.Pool, l.Addr}); l.Kind == ipam.KindLease && !d.holds(w, k) {
			return fmt.Errorf("%s leases %s, which no container holds", p.host, k)
		}
	}
	for id, refs := range d.refs {
		if handles[id] != refs {
			return fmt.Errorf("%s has %d networks on pool %s, and its plugin knows %d", p.host, refs, id, handles[id])
		}
	}
	return nil
}

// reported verifies that of those who hold one address all but one know of the
// clash, and that what is called a clash is one.
func (w *world) reported() error {
	silent := map[key]int{}
	for _, p := range w.running() {
		if err := p.reported(silent); err != nil {
			return err
		}
	}
	for k, n := range silent {
		if n > 1 {
			return fmt.Errorf("%s is held by %d containers that do not know of each other", k, n)
		}
	}
	return nil
}

// reported counts who holds an address and does not call it a clash.
func (p *process) reported(silent map[key]int) error {
	clashes := map[key]bool{}
	for _, c := range p.alloc.Clashes() {
		if !c.Over {
			clashes[key{c.Pool, c.Addr}] = true
		}
	}
	w, d := p.w, p.host.docker
	w.mu.Lock()
	defer w.mu.Unlock()
	for k := range clashes {
		if !w.contested(k) && !w.ownerless(p, k) {
			return fmt.Errorf("%s calls %s a clash, and no other host holds it", p.host, k)
		}
	}
	for _, e := range d.endpoints(w) {
		if w.ownerless(p, e.key) {
			continue // it cannot be claimed from anybody
		}
		if p.backs(e.key) == clashes[e.key] {
			return fmt.Errorf("%s holds %s, owns it: %v, calls it a clash: %v", p.host, e.key, p.backs(e.key), clashes[e.key])
		}
		if !clashes[e.key] {
			silent[e.key]++
		}
	}
	for _, k := range d.sharing(w) {
		if !clashes[k] && len(w.held[k]) > 0 && silent[k] > 0 {
			return fmt.Errorf("%s is reserved on %s and held by a container, and neither calls it a clash", k, p.host)
		}
	}
	return nil
}

// contested says whether several hosts have an address, and not all of them as
// a shared one. w.mu is held.
func (w *world) contested(k key) bool {
	sharers := 0
	for _, h := range w.hosts {
		if w.shared[k][h.docker] > 0 || h.docker.doubtful.shares[k] {
			sharers++
		}
	}
	if w.ghosts[k] && !w.allRemoved() {
		sharers++
	}
	return len(w.held[k]) > 0 && len(w.held[k])+sharers > 1
}

// allRemoved says whether all peers that lost their state were removed.
func (w *world) allRemoved() bool {
	for id, p := range w.peers {
		if p.wiped && !w.gone(id) {
			return false
		}
	}
	return true
}

// ownerless says whether an address is owned by a peer that is gone, and that
// nobody has removed. w.mu is held.
func (w *world) ownerless(p *process, k key) bool {
	r := p.peer.disk.rings[k.pool]
	if r == nil {
		return false
	}
	owner, _ := r.Owner(k.addr)
	return w.peers[owner].proc == nil
}

// backs says whether a lease lies in a range that its peer owns.
func (p *process) backs(k key) bool {
	r := p.peer.disk.rings[k.pool]
	if r == nil {
		return false
	}
	owner, _ := r.Owner(k.addr)
	return owner == p.self
}

// empty releases everything, and verifies that nothing is left anywhere.
func (w *world) empty() {
	w.mu.Lock()
	var delay time.Duration
	next := func() time.Duration {
		delay += time.Duration(w.rng.Int64N(int64(time.Millisecond))) + 1
		return delay
	}
	for _, h := range w.hosts {
		for _, e := range h.docker.endpoints(w) {
			w.release(e, next())
		}
	}
	delay += time.Second
	for _, h := range w.hosts {
		for _, id := range h.docker.ids() {
			for h.docker.refs[id] > 0 {
				w.releasePool(h.proc, id, next())
			}
		}
	}
	w.mu.Unlock()
	w.sleep(delay)
	w.await(2*endAfter, all(w.idle, w.nothingLeft))
}

// nothingLeft verifies that after all was released every address is free.
func (w *world) nothingLeft() error {
	for _, pool := range w.plan.Pools {
		if !w.hasRing(pool) {
			continue
		}
		c := w.count(pool)
		leaked := c.Leases > 0 || c.Shared > 0 || c.Reserved > 0 && !w.wiped
		if leaked || c.Free+c.Reserved+c.Gone != usableOf(pool) {
			return fmt.Errorf("pool %s after all was released: %+v", pool, c)
		}
	}
	for _, p := range w.running() {
		if left := p.handles(); len(left) > 0 {
			return fmt.Errorf("%s still has pools %v", p.host, left)
		}
	}
	return nil
}

func (w *world) hasRing(pool netip.Prefix) bool { return w.running()[0].peer.disk.rings[pool] != nil }
