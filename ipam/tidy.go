package ipam

import (
	"net/netip"
	"slices"

	"weave/ipam/ring"
	"weave/ipam/space"
)

// Each address that is claimed out of another host's range cuts that range in
// two, and it would stay cut. The ring travels with each request, and has an end
// (ring.MaxTokens). So where a ring has many tokens, each owner joins its own,
// and gives small ranges that lie free within another peer's back to that one,
// unless it knows of containers there: the other might not, or forget it.

const (
	tidyTokens   = 256                 // rings that have no more are left alone
	scarceTokens = 2048                // and beyond that many, wishes give way
	manyTokens   = ring.GiveTokens / 2 // and beyond that many, people are told
	tidyAtOnce   = 256                 // ranges given back in one write
	strayed      = 16                  // addresses of a range that is given back; larger ones were not claimed one by one
)

// tidy joins and gives back what it can in p.
func (a *Allocator) tidy(p *pool) error {
	if a.isTidy(p) {
		return nil
	}
	alive, holders := a.cfg.Cluster.Alive(), a.holders(p.prefix)
	defer a.flush()
	for {
		if more, err := a.tidyOnce(p, alive, holders); err != nil || !more {
			return err
		}
	}
}

func (a *Allocator) isTidy(p *pool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return p.ring == nil || p.ring.Tokens() <= a.tidyTokens
}

func (a *Allocator) tidyOnce(p *pool, alive []ring.Peer, holders map[netip.Addr]ring.Peer) (more bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.ring.Tokens() <= a.tidyTokens || a.mayLease() != nil {
		return false, nil
	}
	next, returned := p.ring, 0
	for _, e := range p.ring.Enclosed(a.cfg.Self) {
		if returned == tidyAtOnce {
			break
		}
		if !slices.Contains(alive, e.By) || a.isRemoved(e.By) || !a.spare(p, e.Range) || heldIn(e.Range, holders) {
			continue
		}
		if next, _, err = next.Give(a.cfg.Self, e.Range, e.By); err != nil {
			return false, err
		}
		returned++
	}
	if next, err = next.Join(a.cfg.Self); err != nil || next == p.ring {
		return false, err
	}
	if err := a.saveRings(map[*pool]*ring.Ring{p: next}); err != nil {
		return false, err
	}
	a.deltas = append(a.deltas, gossip{Rings: []ring.Chunk{next.Chunk()}})
	return returned == tidyAtOnce, nil
}

// spare says whether all of an own range is free, and nobody wishes for any of
// it unless tokens are scarce. a.mu is held.
func (a *Allocator) spare(p *pool, r space.Range) bool {
	if r.Size() > strayed {
		return false
	}
	if p.ring.Tokens() <= a.scarceTokens {
		for addr := range p.wishes {
			if r.Contains(addr) {
				return false
			}
		}
	}
	usable, ok := r.Intersect(p.usable)
	free, _ := p.free.Largest(usable)
	return !ok || free == usable
}

// heldIn says whether a container has any of a range.
func heldIn(r space.Range, holders map[netip.Addr]ring.Peer) bool {
	for addr := range holders {
		if r.Contains(addr) {
			return true
		}
	}
	return false
}
