package sim

import (
	"encoding/json"
	"net/netip"
	"slices"

	"weave/ipam"
	"weave/ipam/ring"
	"weave/ipam/space"
)

// view is what one Allocator knows, as last looked at.
type view struct {
	writes int
	digest string
	rings  map[netip.Prefix]*ring.Ring
	leases map[key]bool
}

// emptyDigest is that of an Allocator without rings: Missing then has them all.
var emptyDigest = []byte("{}")

// check looks at all Allocators whose state has changed. It is called by the
// driving goroutine when nothing else can run.
func (w *world) check() bool {
	changed := false
	for _, p := range w.running() {
		w.mu.Lock()
		writes := p.peer.disk.writes
		w.mu.Unlock()
		if writes == p.seen.writes {
			continue
		}
		p.seen.writes = writes
		changed = p.lookRings() || changed
		p.lookLeases()
		w.checkLeases(p)
	}
	if changed {
		w.checkOwners()
	}
	return w.ok()
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

// lookRings fetches the rings if they have changed.
func (p *process) lookRings() (changed bool) {
	digest := string(p.digest())
	if digest == p.seen.digest {
		return false
	}
	p.seen.digest, p.seen.rings = digest, map[netip.Prefix]*ring.Ring{}
	before := p.peer.rings
	p.peer.rings = p.seen.rings
	for id := range p.alloc.Removed() {
		p.w.gone[id] = true
	}
	var all struct {
		Rings []ring.Chunk `json:"rings"`
	}
	if missing := p.alloc.Missing(emptyDigest); missing != nil {
		if err := json.Unmarshal(missing, &all); err != nil {
			p.w.failed("%s has no readable rings: %w", p.self, err)
		}
	}
	for _, c := range all.Rings {
		r, err := ring.FromChunk(c)
		if err != nil {
			p.w.failed("%s has a bad ring: %w", p.self, err)
			continue
		}
		p.seen.rings[c.Pool] = r
		p.w.noteHeirs(p.self, before[c.Pool], r)
	}
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

// checkLeases holds the leases of one peer against its Docker and its ranges.
func (w *world) checkLeases(p *process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range p.host.docker.endpoints(w) {
		if !p.seen.leases[e.key] {
			w.fail("%s has lost the lease of %s, which a container holds", p.host, e.key)
		}
	}
	for k := range p.seen.leases {
		r := p.seen.rings[k.pool]
		if r == nil {
			w.fail("%s leases %s and has no ring", p.host, k)
			continue
		}
		if owner, _ := r.Owner(k.addr); owner != p.self && !w.mayClash {
			w.fail("%s leases %s, which %s owns", p.host, k, owner)
		}
	}
}

// seeded is one ring of a pool. Peers whose rings were seeded apart are no
// concern of each other.
type seeded struct {
	pool netip.Prefix
	seed ring.SeedID
}

// noteHeirs notes what a peer has taken over from removed ones: those may have
// been alive and have given it to others meanwhile. Who has a ring for the first
// time may have taken over any of it.
func (w *world) noteHeirs(self ring.Peer, old, now *ring.Ring) {
	if old == nil || old.Seed() != now.Seed() {
		for _, own := range now.Ranges(self) {
			w.noteInherited(now, own)
		}
		return
	}
	for _, gone := range old.Owners() {
		for _, theirs := range old.Ranges(gone) {
			for _, own := range now.Ranges(self) {
				if part, ok := own.Intersect(theirs); ok && w.gone[gone] {
					w.noteInherited(now, part)
				}
			}
		}
	}
}

func (w *world) noteInherited(of *ring.Ring, r space.Range) {
	if len(w.gone) == 0 {
		return
	}
	s := seeded{of.Pool(), of.Seed()}
	if w.inherited[s] == nil {
		w.inherited[s] = &space.Set{}
	}
	w.inherited[s].Add(r)
}

// owned is a range that a peer takes for its own.
type owned struct {
	space.Range
	by *process
}

// checkOwners verifies that no two peers take an address for their own. A peer
// that was removed and has not heard of it does not count.
func (w *world) checkOwners() {
	all := map[seeded][]owned{}
	for _, p := range w.running() {
		if w.gone[p.self] {
			continue
		}
		for pool, r := range p.seen.rings {
			s := seeded{pool, r.Seed()}
			for _, own := range r.Ranges(p.self) {
				all[s] = append(all[s], owned{own, p})
			}
		}
	}
	for s, ranges := range all {
		slices.SortFunc(ranges, func(x, y owned) int { return x.First.Compare(y.First) })
		for i := 1; i < len(ranges); i++ {
			a, b := ranges[i-1], ranges[i]
			if both, ok := a.Intersect(b.Range); ok && !w.inheritedAll(s, both) {
				w.failed("pool %s: %s owns %s and %s owns %s", s.pool, a.by.self, a.Range, b.by.self, b.Range)
			}
		}
	}
}

func (w *world) inheritedAll(s seeded, r space.Range) bool {
	set := w.inherited[s]
	if set == nil {
		return false
	}
	run, ok := set.Largest(r)
	return ok && run == r
}

func usableRange(pool netip.Prefix) space.Range {
	r, err := space.Usable(pool)
	if err != nil {
		panic(err)
	}
	return r
}

func usableOf(pool netip.Prefix) uint64 { return usableRange(pool).Size() }
