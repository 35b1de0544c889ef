package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"weave/ipam/ring"
)

// records are what one peer tells all others of itself: its endpoints and how
// much space it has free. A value is never changed; the higher version wins.
type records struct {
	version   uint64
	former    []ring.Peer // whose records these take the place of
	endpoints map[key]bool
	free      map[netip.Prefix]uint64
}

func (r *records) with(change func(*records)) *records {
	next := &records{r.version + 1, r.former, maps.Clone(r.endpoints), maps.Clone(r.free)}
	if next.endpoints == nil {
		next.endpoints = map[key]bool{}
	}
	if next.free == nil {
		next.free = map[netip.Prefix]uint64{}
	}
	change(next)
	return next
}

// note changes the own records; others hear of it when they compare. w.mu is
// held.
func (p *process) note(change func(*records)) {
	p.peer.own = p.peer.own.with(change)
	p.ownViews()
	p.views[p.self] = p.peer.own
}

// publish changes the own records and tells those alive. w.mu is held.
func (p *process) publish(change func(*records)) {
	if p.dead {
		return
	}
	p.note(change)
	own := p.peer.own
	p.spread("records", fmt.Append(nil, own.version), func(at *process) {
		at.w.mu.Lock()
		defer at.w.mu.Unlock()
		at.see(p.self, own)
	})
}

// spread sends to each peer that seems alive. w.mu is held.
func (p *process) spread(what string, content []byte, f func(at *process)) {
	for other := range p.alive {
		if other != p.self {
			p.w.send(message{p.peer, p.w.peers[other], p.w.plan.Rates.cast, what, content, 0}, f)
		}
	}
}

// see takes what is newer. w.mu is held.
func (p *process) see(owner ring.Peer, r *records) {
	if old := p.views[owner]; (old != nil && old.version >= r.version) || p.superseded(owner) {
		return
	}
	p.ownViews()
	p.views[owner] = r
	for _, former := range r.former {
		delete(p.views, former)
	}
}

// ownViews makes the table safe to change: what was sent of it may still be
// under way. w.mu is held.
func (p *process) ownViews() {
	if p.viewsSent {
		p.views, p.viewsSent = maps.Clone(p.views), false
	}
}

// superseded says whether a peer is known to have become another one. w.mu is
// held.
func (p *process) superseded(owner ring.Peer) bool {
	if p.w.peers[owner].wiped && p.w.calm {
		return true // known gone
	}
	for _, r := range p.views {
		if slices.Contains(r.former, owner) {
			return true
		}
	}
	return false
}

// holder says whose container has an address, as far as announced; another
// peer's rather than an own one. w.mu is held.
func (p *process) holder(k key) (holder ring.Peer, held bool) {
	for owner, r := range p.views {
		if r.endpoints[k] && (!held || holder == p.self || owner != p.self && owner < holder) {
			holder, held = owner, true
		}
	}
	return holder, held
}

// holders are those of a whole pool. w.mu is held.
func (p *process) holders(pool netip.Prefix) map[netip.Addr]ring.Peer {
	all := map[netip.Addr]ring.Peer{}
	for _, r := range p.views {
		for k := range r.endpoints {
			if k.pool == pool {
				all[k.addr], _ = p.holder(k)
			}
		}
	}
	return all
}

// gossip compares notes with one peer after the other, until the process dies.
func (p *process) gossip() {
	for {
		most := p.w.gossipEvery()
		timer := time.NewTimer(time.Duration(p.rng.Int64N(int64(most))) + time.Millisecond)
		select {
		case <-p.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			p.tick()
		}
	}
}

// gossipEvery is the longest time between two comparisons of one process.
func (w *world) gossipEvery() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.calm || len(w.hosts) > 12 {
		return 4 * time.Second
	}
	return 2 * time.Second
}

// quietFor is how many comparisons do not take place in a quiet cluster, for one
// that does.
const quietFor = 12

// tick looks who is there and compares notes with one of them.
func (p *process) tick() {
	digest := p.digest()
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.dead {
		return
	}
	w.look(p)
	others := slices.Sorted(maps.Keys(p.alive))
	others = slices.DeleteFunc(others, func(id ring.Peer) bool { return id == p.self })
	if len(others) == 0 || w.plan.Quiet && !w.calm && p.rng.IntN(quietFor) > 0 {
		return
	}
	p.compare(w.peers[others[p.rng.IntN(len(others))]], digest, true)
}

// look finds out who is alive, and meets configured hosts. w.mu is held.
func (w *world) look(p *process) {
	reach := func(h *host) bool {
		return h.proc != nil && !w.blocked(p.peer, h.peer) && !w.blocked(h.peer, p.peer)
	}
	for number := range p.peer.unmet {
		if h := w.hosts[number]; reach(h) {
			delete(p.peer.unmet, number)
			p.peer.known[h.peer.id], h.peer.known[p.self] = true, true
		}
	}
	for id := range maps.Clone(p.peer.known) { // who is known is dialled by address: somebody else may be there now
		if now := w.peers[id].host.peer; now.id != id && reach(now.host) {
			p.peer.known[now.id], now.known[p.self] = true, true
		}
	}
	clear(p.alive)
	p.alive[p.self] = true
	for id := range p.peer.known {
		if other := w.peers[id]; other.proc != nil && reach(other.host) {
			p.alive[id] = true
		}
	}
}

// compare sends what this process knows to another, which pulls rings if its
// own differ, and answers in kind. w.mu is held.
func (p *process) compare(to *peer, digest []byte, first bool) {
	views, known := p.views, maps.Clone(p.peer.known)
	p.viewsSent = true
	p.w.send(message{p.peer, to, p.w.plan.Rates.loss, "compare", digest, 0}, func(at *process) {
		own := at.digest()
		at.w.mu.Lock()
		defer at.w.mu.Unlock()
		for owner, r := range views {
			if at.views[owner] != r {
				at.see(owner, r)
			}
		}
		maps.Copy(at.peer.known, known)
		if first {
			at.compare(p.peer, own, false)
		}
		if !bytes.Equal(own, digest) {
			at.pull(p.peer, own)
		}
	})
}

// pull asks a peer for the rings that differ. w.mu is held.
func (p *process) pull(from *peer, digest []byte) {
	p.w.send(message{p.peer, from, p.w.plan.Rates.loss, "pull", digest, 0}, func(at *process) {
		delta := at.alloc.Missing(digest)
		if delta == nil {
			return
		}
		at.w.mu.Lock()
		defer at.w.mu.Unlock()
		m := message{from, p.peer, at.w.plan.Rates.loss, "missing", delta, 0}
		at.w.send(m, func(back *process) { back.merge(from, delta) })
	})
}

// merge learns rings. What comes from a peer that keeps to the rules never
// breaks them.
func (p *process) merge(from *peer, delta []byte) {
	err := p.alloc.Merge(from.id, delta)
	switch {
	case err == nil, errors.Is(err, errDead), errors.Is(err, errDiskFull):
	case errors.Is(err, ring.ErrGap):
		digest := p.digest()
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		p.pull(from, digest)
	default:
		p.w.failed("%s merges what %s sent: %w", p.self, from.id, err)
	}
}

// digest is the Allocator's, which changes with its store only.
func (p *process) digest() []byte {
	p.w.mu.Lock()
	writes, value := p.peer.disk.writes, p.digests.value
	known := p.digests.writes == writes
	p.w.mu.Unlock()
	if known {
		return value
	}
	value = p.alloc.Digest()
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.digests.writes, p.digests.value = writes, value
	return value
}

// cluster is the mesh as the Allocator of one process sees it.
type cluster struct{ p *process }

// Known implements ipam.Cluster.
func (c cluster) Known() []ring.Peer {
	c.p.w.mu.Lock()
	defer c.p.w.mu.Unlock()
	if c.p.w.plan.Fault == FaultStrangers {
		return []ring.Peer{c.p.self}
	}
	return slices.Sorted(maps.Keys(c.p.peer.known))
}

// Alive implements ipam.Cluster.
func (c cluster) Alive() []ring.Peer {
	c.p.w.mu.Lock()
	defer c.p.w.mu.Unlock()
	if c.p.w.plan.Fault == FaultStrangers {
		return []ring.Peer{c.p.self}
	}
	return slices.Sorted(maps.Keys(c.p.alive))
}

// Unmet implements ipam.Cluster.
func (c cluster) Unmet() (names []string) {
	c.p.w.mu.Lock()
	defer c.p.w.mu.Unlock()
	for _, number := range slices.Sorted(maps.Keys(c.p.peer.unmet)) {
		names = append(names, c.p.w.hosts[number].String())
	}
	return names
}

// Ask implements ipam.Cluster.
func (c cluster) Ask(ctx context.Context, to ring.Peer, req []byte) ([]byte, error) {
	return c.p.ask(ctx, to, req)
}

// Broadcast implements ipam.Cluster.
func (c cluster) Broadcast(delta []byte) {
	c.p.w.mu.Lock()
	defer c.p.w.mu.Unlock()
	if !c.p.dead {
		c.p.spread("rings", delta, func(at *process) { at.merge(c.p.peer, delta) })
	}
}

// Name implements ipam.Cluster.
func (c cluster) Name(p ring.Peer) string { return "host of " + string(p) }

// SetFree implements ipam.Cluster.
func (c cluster) SetFree(pool netip.Prefix, free uint64) {
	c.p.w.mu.Lock()
	defer c.p.w.mu.Unlock()
	if !c.p.dead {
		c.p.note(func(r *records) { r.free[pool] = free })
	}
}

// Free implements ipam.Cluster.
func (c cluster) Free(pool netip.Prefix) map[ring.Peer]uint64 {
	c.p.w.mu.Lock()
	defer c.p.w.mu.Unlock()
	free := map[ring.Peer]uint64{}
	for owner, r := range c.p.views {
		if count, ok := r.free[pool]; ok && owner != c.p.self {
			free[owner] = count
		}
	}
	return free
}
