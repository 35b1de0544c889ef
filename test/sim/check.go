package sim

import (
	"net/netip"
	"slices"
	"time"

	"weave/ipam"
	"weave/ipam/ring"
	"weave/ipam/space"
)

// view is what one Allocator knows, as last looked at.
type view struct {
	writes int
	leases map[key]bool
}

// check looks at all that has changed. It is called by the driving goroutine
// when nothing else can run.
func (w *world) check() bool {
	for _, p := range w.running() {
		if p.changed() {
			p.lookLeases()
			w.checkLeases(p)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.truth.dirty {
		w.checkRing(s)
	}
	clear(w.truth.dirty)
	for _, h := range w.hosts {
		if d := h.peer.disk; d.checked != d.writes {
			d.checked = d.writes
			w.checkGrants(h.peer)
		}
	}
	w.endDisputes()
	return w.bug == nil
}

func (w *world) running() (all []*process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		if h.proc != nil {
			all = append(all, h.proc)
		}
	}
	return all
}

// changed says whether anything was written since the last time.
func (p *process) changed() bool {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if p.seen.writes == p.peer.disk.writes {
		return false
	}
	p.seen.writes = p.peer.disk.writes
	return true
}

func (p *process) lookLeases() {
	p.seen.leases = map[key]bool{}
	for _, l := range p.alloc.Leases() {
		if l.Kind == ipam.KindLease {
			p.seen.leases[key{l.Pool, l.Addr}] = true
		}
	}
}

// checkLeases holds the leases of one peer against its Docker.
func (w *world) checkLeases(p *process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range p.host.docker.endpoints(w) {
		if !p.seen.leases[e.key] {
			w.fail("%s has lost the lease of %s, which a container holds", p.host, e.key)
		}
	}
}

// checkGrants verifies that leases lie in ranges of their peer, but for those
// that clusters apart granted, and those whose range went to the heir of a peer
// that was removed though it was alive. w.mu is held.
func (w *world) checkGrants(p *peer) {
	for k, g := range p.disk.grants {
		if g.kind != ipam.KindLease {
			continue
		}
		r := p.disk.rings[k.pool]
		if r == nil {
			w.fail("%s leases %s and has no ring", p.id, k)
			continue
		}
		owner, _ := r.Owner(k.addr)
		if owner == p.id {
			continue
		}
		s := seeded{k.pool, r.Seed()}
		g.lost = g.lost || g.seed != s.seed || g.by != p.id && w.gone(g.by) || w.inherited(s, p.id, k.addr) || w.disputed(s, k.addr)
		if !g.lost {
			w.fail("%s leases %s, which %s owns", p.id, k, owner)
		}
	}
}

// checkRing holds each disk's ring against what all of them come to: what a peer
// takes for its own is its own, so no two have one address; and each address has
// an owner who knows, or who can still hear of it. w.mu is held.
func (w *world) checkRing(s seeded) {
	all := w.truth.rings[s]
	if all == nil {
		return // all who have it were removed
	}
	for _, h := range w.hosts {
		r := h.peer.disk.rings[s.pool]
		if r == nil || r == all || r.Seed() != s.seed {
			continue
		}
		w.checkOwn(h.peer.id, r, all)
		if w.gone(h.peer.id) {
			continue
		}
		if _, err := r.Merge(h.peer.id, all.Chunk()); err != nil {
			w.fail("pool %s: %s can never hear what others know: %w", s.pool, h.peer.id, err)
		}
	}
	for _, owner := range all.Owners() {
		if p := w.peers[owner]; p == nil || p.host.peer != p && !p.wiped && !w.gone(owner) {
			w.fail("pool %s: %s owns addresses, and is nobody", s.pool, owner)
		}
	}
}

// checkOwn verifies that nobody else owns what a peer takes for its own. A
// removed peer may not have heard of its heir, and not of what others do who
// take it for gone.
func (w *world) checkOwn(id ring.Peer, r, all *ring.Ring) {
	s := seeded{r.Pool(), r.Seed()}
	theirs := tokens(all)
	for _, own := range r.Ranges(id) {
		for _, t := range theirs {
			part, ok := t.Intersect(own)
			if !ok || t.Owner == id || w.disputed(s, part.First) {
				continue
			}
			if w.gone(id) && (w.inherited(s, id, part.First) || w.gone(t.Owner) || w.peers[t.Owner].wiped) {
				continue
			}
			w.fail("pool %s: %s owns %s, and %s owns %s", s.pool, id, own, t.Owner, part)
		}
	}
}

// endDisputes ends those about ranges of removed peers that are silent by now,
// once all disks agree. w.mu is held.
func (w *world) endDisputes() {
	for s, all := range w.truth.inheritance {
		if slices.ContainsFunc(w.hosts, func(h *host) bool {
			r := h.peer.disk.rings[s.pool]
			return r != nil && r.Seed() == s.seed && r != w.truth.rings[s]
		}) {
			continue
		}
		w.truth.inheritance[s] = slices.DeleteFunc(all, func(i inheritance) bool {
			return !slices.ContainsFunc(i.from, func(id ring.Peer) bool {
				return w.peers[id].proc != nil || !w.peers[id].until.Before(time.Now())
			})
		})
	}
}

func usableRange(pool netip.Prefix) space.Range {
	r, err := space.Usable(pool)
	if err != nil {
		panic(err)
	}
	return r
}

func usableOf(pool netip.Prefix) uint64 { return usableRange(pool).Size() }
