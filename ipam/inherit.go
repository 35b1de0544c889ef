package ipam

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"weave/ipam/ring"
	"weave/ipam/space"
)

// What a removed peer gave away shortly before its end, only the receiver may
// know; and it leases from there, though it is out of reach. Therefore an heir
// takes nothing over until each peer that was not removed has told its rings,
// since it heard of the removal. Who is gone for good as well has to be removed,
// too: a gift that nobody else has heard of is then inherited with the rest of the
// giver's. Run comes back to it, also after a restart.

// Waiting is a removed peer whose ranges are nobody's yet: For are the peers
// that Heir must hear of before, as far as is known here.
type Waiting struct {
	Peer ring.Peer
	Heir ring.Peer
	For  []ring.Peer
}

// Waiting lists the removed peers whose ranges wait for others.
func (a *Allocator) Waiting() []Waiting {
	others, alive := a.others(), a.cfg.Cluster.Alive()
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []Waiting
	owners := a.owners()
	for _, p := range slices.Sorted(maps.Keys(a.removed)) {
		w := Waiting{Peer: p}
		w.Heir, _ = a.heirOf(p)
		if w.Heir == a.cfg.Self {
			w.For = a.untold(others)
		} else {
			w.For = slices.DeleteFunc(slices.Clone(others), func(o ring.Peer) bool { return slices.Contains(alive, o) })
		}
		if owners[p] && len(w.For) > 0 {
			all = append(all, w)
		}
	}
	return all
}

// others are all peers that may know of gifts: known ones and owners of ranges,
// but for removed ones and this one.
func (a *Allocator) others() []ring.Peer {
	known := a.electorate("", nil).others
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.owners()
	for _, p := range known {
		all[p] = true
	}
	maps.DeleteFunc(all, func(p ring.Peer, _ bool) bool { return p == a.cfg.Self || a.isRemoved(p) })
	return slices.Sorted(maps.Keys(all))
}

// owners are those of any range. a.mu is held.
func (a *Allocator) owners() map[ring.Peer]bool {
	all := map[ring.Peer]bool{}
	for _, p := range a.pools {
		if p.ring != nil {
			for _, owner := range p.ring.Owners() {
				all[owner] = true
			}
		}
	}
	return all
}

// untold are those of some peers that have not told their rings since the last
// removal. a.mu is held.
func (a *Allocator) untold(of []ring.Peer) []ring.Peer {
	return slices.DeleteFunc(slices.Clone(of), func(p ring.Peer) bool { return a.told[p] || a.isRemoved(p) })
}

// inherits says whether a ring has ranges for this peer to take over. a.mu is
// held.
func (a *Allocator) inherits(r *ring.Ring) bool {
	return slices.ContainsFunc(r.Owners(), func(owner ring.Peer) bool {
		heir, _ := a.heirOf(owner)
		return heir == a.cfg.Self
	})
}

// taken is what was taken over from one peer in one pool.
type taken struct {
	from   ring.Peer
	ring   *ring.Ring // with it
	ranges []space.Range
}

// inherit takes over in r what this peer inherits. a.mu is held.
func (a *Allocator) inherit(r *ring.Ring) (*ring.Ring, []taken, error) {
	var all []taken
	for _, owner := range r.Owners() {
		heir, steps := a.heirOf(owner)
		if heir != a.cfg.Self {
			continue
		}
		ranges := r.Ranges(owner)
		next, err := r.Inherit(owner, heir, steps)
		if err != nil {
			return nil, nil, err
		}
		r, all = next, append(all, taken{from: owner, ranges: ranges})
	}
	for i := range all {
		all[i].ring = r
	}
	return r, all, nil
}

// tellInherited has everybody hear of what was taken over and is stored, and
// keeps it for reports. a.mu is held.
func (a *Allocator) tellInherited(all []taken) {
	for _, t := range all {
		a.deltas = append(a.deltas, gossip{Rings: []ring.Chunk{t.ring.Chunk()}})
		if a.inherited[t.from] == nil {
			a.inherited[t.from] = map[netip.Prefix]uint64{}
		}
		for _, r := range t.ranges {
			a.inherited[t.from][t.ring.Pool()] += r.Size()
		}
	}
}

// takeOver takes over all that this peer inherits, once all others have told
// their rings.
func (a *Allocator) takeOver(ctx context.Context) error {
	if len(a.legacies()) == 0 {
		return nil
	}
	others := a.others()
	a.collect(ctx, others)
	holders := map[netip.Prefix]map[netip.Addr]ring.Peer{}
	for _, prefix := range a.legacies() { // some may have come with what others told
		holders[prefix] = a.holders(prefix)
	}
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	untold := a.untold(others)
	if len(untold) > 0 && !slices.Equal(untold, a.awaited) {
		a.cfg.Log.WithField("peers", untold).Warn("ranges of removed peers are not taken over before these have told what they were given")
	}
	if a.awaited = untold; len(untold) > 0 {
		return nil
	}
	rings, ghosts := map[*pool]*ring.Ring{}, map[netip.Prefix]map[netip.Addr]ring.Peer{}
	var inherited []taken
	for _, p := range a.pools {
		if p.ring == nil || holders[p.prefix] == nil || !a.inherits(p.ring) {
			continue
		}
		ghosts[p.prefix] = a.ghostsAmong(holders[p.prefix]) // a peer may have been removed just now
		next, more, err := a.inherit(p.ring)
		if err != nil {
			return err
		}
		rings[p], inherited = next, append(inherited, more...)
	}
	if len(rings) == 0 {
		return nil
	}
	if err := a.saveInherited(rings, ghosts); err != nil {
		return err
	}
	a.tellInherited(inherited)
	return nil
}

// legacies are the pools in which this peer has something to take over.
func (a *Allocator) legacies() (all []netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for prefix, p := range a.pools {
		if p.ring != nil && a.inherits(p.ring) {
			all = append(all, prefix)
		}
	}
	return all
}

// collect asks those of others that live, and have not told their rings yet.
func (a *Allocator) collect(ctx context.Context, others []ring.Peer) {
	alive := a.cfg.Cluster.Alive()
	a.mu.Lock()
	told, ask := a.told, a.untold(others) // told is another one after the next removal
	a.mu.Unlock()
	var wait sync.WaitGroup
	for _, p := range ask {
		if !slices.Contains(alive, p) {
			continue
		}
		wait.Go(func() {
			if err := a.pull(ctx, p); err != nil {
				a.cfg.Log.WithError(err).WithField("peer", p).Warn("rings of a peer not seen before taking over a removed peer's ranges")
				return
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			told[p] = true
		})
	}
	wait.Wait()
}

// pull learns the rings of a peer, which first learns who was removed: later it
// takes no gift of those. What does not fit one answer comes with the next,
// until nothing is new.
func (a *Allocator) pull(ctx context.Context, from ring.Peer) error {
	for {
		a.mu.Lock()
		before, gone := encode(a.digests()), maps.Clone(a.removed)
		a.mu.Unlock()
		askCtx, cancel := context.WithTimeout(ctx, a.askTimeout)
		ans, err := a.send(askCtx, from, request{Op: opRings, Digest: before, Removed: gone})
		cancel()
		switch {
		case err != nil:
			return err
		case ans.Refusal != "":
			return a.refused(from, ans.Refusal, "", ans.Detail)
		case ans.Gossip == nil:
			return nil
		}
		if err := a.learn(from, *ans.Gossip); err != nil || string(a.Digest()) == string(before) {
			return err
		}
	}
}

// report is what this peer took over from p.
func (a *Allocator) report(p ring.Peer) RemoveReport {
	r := RemoveReport{Peer: p, Host: a.name(p), Heir: a.cfg.Self, HeirHost: a.name(a.cfg.Self)}
	for _, w := range a.Waiting() {
		if w.Peer == p {
			r.Missing = w.For
		}
	}
	a.mu.Lock()
	pools := map[netip.Prefix]uint64{}
	for prefix, known := range a.pools {
		if slices.Contains(slices.Collect(maps.Values(known.held)), p) {
			pools[prefix] = 0 // taken over before the start
		}
	}
	maps.Copy(pools, a.inherited[p])
	a.mu.Unlock()
	for prefix, addresses := range pools {
		rp := RemovedPool{Pool: prefix, Addresses: addresses}
		for addr, holder := range a.holders(prefix) {
			if holder == p {
				rp.Held = append(rp.Held, addr)
			}
		}
		slices.SortFunc(rp.Held, netip.Addr.Compare)
		r.Pools = append(r.Pools, rp)
	}
	slices.SortFunc(r.Pools, func(x, y RemovedPool) int { return comparePrefixes(x.Pool, y.Pool) })
	return r
}

// adoptOrphans agrees on new heirs for peers that removed each other apart, so
// that none was left. It does not wait long for a majority: Run comes back.
func (a *Allocator) adoptOrphans(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, a.askTimeout)
	defer cancel()
	a.mu.Lock()
	var orphans []ring.Peer
	for p := range a.removed {
		if heir, _ := a.heirOf(p); heir == "" && a.mayLease() == nil {
			orphans = append(orphans, p)
		}
	}
	a.mu.Unlock()
	slices.Sort(orphans)
	var errs []error
	for _, p := range orphans {
		errs = append(errs, a.agreeHeir(ctx, p))
	}
	return errors.Join(errs...)
}

// untaken says whether an address is that of a removed peer, and nobody's yet.
func (a *Allocator) untaken(p *pool, addr netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.isRemoved(p.owner(addr))
}

func errUntaken(addr netip.Addr) error {
	return errorf(ErrNoAnswer, "address %s is that of a removed host, not taken over yet; `weave status` says what is missing", addr)
}
