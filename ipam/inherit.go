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

// taken is what was taken over from one peer in one pool.
type taken struct {
	from   ring.Peer
	ring   *ring.Ring // with it
	ranges []space.Range
}

// inherit takes over in r what this peer inherits. Only what the living know of
// the removed peer's gifts has been asked of them first is it done. a.mu is held.
func (a *Allocator) inherit(r *ring.Ring) (*ring.Ring, []taken, error) {
	var all []taken
	for _, owner := range r.Owners() {
		heir, steps := a.heirOf(owner)
		if heir != a.cfg.Self || !a.collected[owner] {
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

// takeOver takes over all that this peer inherits. Before it does so for the
// first time, it asks the living for their rings: they may know of gifts of the
// removed peer that nobody else has heard of.
func (a *Allocator) takeOver(ctx context.Context) error {
	a.mu.Lock()
	var from []ring.Peer
	for p := range a.removed {
		if heir, _ := a.heirOf(p); heir == a.cfg.Self && !a.collected[p] {
			from = append(from, p)
		}
	}
	a.mu.Unlock()
	if len(from) == 0 {
		return nil
	}
	a.collect(ctx)
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range from {
		heir, _ := a.heirOf(p)
		a.collected[p] = heir == a.cfg.Self
	}
	rings := map[*pool]*ring.Ring{}
	for _, p := range a.pools {
		if p.ring != nil && slices.ContainsFunc(from, func(gone ring.Peer) bool { return slices.Contains(p.ring.Owners(), gone) }) {
			rings[p] = p.ring
		}
	}
	err := a.useRings("", rings)
	if err != nil {
		clear(a.collected) // to try again
	}
	return err
}

// collect asks all living peers for rings that differ from ours.
func (a *Allocator) collect(ctx context.Context) {
	var wait sync.WaitGroup
	for p := range a.electorate("", nil).alive {
		wait.Go(func() {
			if err := a.pull(ctx, p); err != nil {
				a.cfg.Log.WithError(err).WithField("peer", p).Warn("rings of a peer not seen before taking over a removed peer's ranges")
			}
		})
	}
	wait.Wait()
}

// pull learns the rings of a peer. What does not fit one answer comes with the
// next, until nothing is new.
func (a *Allocator) pull(ctx context.Context, from ring.Peer) error {
	for {
		before := a.Digest()
		askCtx, cancel := context.WithTimeout(ctx, a.askTimeout)
		ans, err := a.send(askCtx, from, request{Op: opRings, Digest: before})
		cancel()
		if err != nil || ans.Gossip == nil {
			return err
		}
		if err := a.learn(from, *ans.Gossip); err != nil || string(a.Digest()) == string(before) {
			return err
		}
	}
}

// report is what this peer took over from p.
func (a *Allocator) report(p ring.Peer) RemoveReport {
	r := RemoveReport{Peer: p, Host: a.name(p), Heir: a.cfg.Self, HeirHost: a.name(a.cfg.Self)}
	a.mu.Lock()
	pools := maps.Clone(a.inherited[p])
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
