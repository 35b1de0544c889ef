package sim

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"weave/ipam"
	"weave/ipam/space"
)

// Larger pools are not filled at all, and those above fillOften in one of eight
// schedules: the last address of a small one is as hard to get.
const (
	fillOften = 30
	fillMost  = 256
)

// fill leases every address that is left, each from whatever host, and then
// verifies that none is.
func (w *world) fill() {
	if w.clashed { // what was released lately may still be claimed in vain, for all that its owner knows
		w.pass(4 * settleEvery)
	}
	for i, pool := range w.plan.Pools {
		id, within := pool.String(), usableRange(pool)
		if within.Size() > fillMost { // its IP range, then
			id, within = id+","+w.plan.Subs[i].String(), w.usableSub(i)
		}
		hosts, size := w.having(id), within.Size()
		if len(hosts) == 0 || size > fillMost || size > fillOften && w.plan.Seed%8 != 0 {
			continue
		}
		for range size + 1 {
			if !w.fillOne(id, hosts[w.rng.IntN(len(hosts))]) {
				break
			}
		}
		w.check()
		if taken := w.taken(pool, within); taken != size {
			w.failed("pool %s is called full: %d of %d are taken", id, taken, size)
		}
	}
}

// fillOne leases one more address, and says whether there was one.
func (w *world) fillOne(id string, h *host) (more bool) {
	w.mu.Lock()
	w.lease(h.proc, id, netip.Addr{}, 0, time.Minute, func(err error) {
		more = err == nil
		if err != nil && !errors.Is(err, ipam.ErrFull) {
			w.fail("%s cannot fill pool %s: %w", h, id, err)
		}
	})
	w.mu.Unlock()
	for {
		w.sleep(20 * time.Millisecond)
		w.mu.Lock()
		idle := w.busy == 0
		w.mu.Unlock()
		if idle {
			return more
		}
	}
}

// having are the hosts with a network of a pool ID.
func (w *world) having(id string) (hosts []*host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		if h.docker.refs[id] > 0 {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// usableSub is what can be leased of a pool's IP range.
func (w *world) usableSub(i int) space.Range {
	r, _ := space.Of(w.plan.Subs[i]).Intersect(usableRange(w.plan.Pools[i]))
	return r
}

// taken counts the addresses that somebody leases, though it may be a clash, that
// are reserved, or owned by a peer that is gone.
func (w *world) taken(pool netip.Prefix, within space.Range) uint64 {
	all := w.running()
	w.mu.Lock()
	defer w.mu.Unlock()
	some := map[netip.Addr]bool{}
	for _, p := range all {
		for k := range p.seen.leases {
			some[k.addr] = some[k.addr] || k.pool == pool && within.Contains(k.addr)
		}
		for s := range p.peer.disk.buckets[bucketRings] {
			if strings.Count(s, " ") == 1 {
				k := parseKey(s)
				some[k.addr] = some[k.addr] || k.pool == pool && within.Contains(k.addr)
			}
		}
	}
	n := w.goneIn(pool, within)
	for addr, taken := range some {
		if taken && !w.ownerless(w.hosts[0].proc, key{pool, addr}) {
			n++
		}
	}
	return n
}

// goneIn counts addresses that are owned by peers which do not exist any more.
// w.mu is held.
func (w *world) goneIn(pool netip.Prefix, within space.Range) (n uint64) {
	r := w.hosts[0].peer.disk.rings[pool]
	if r == nil {
		return 0
	}
	for _, owner := range r.Owners() {
		if w.peers[owner].proc != nil {
			continue
		}
		for _, own := range r.Ranges(owner) {
			if part, ok := own.Intersect(within); ok {
				n += part.Size()
			}
		}
	}
	return n
}

// count is where the addresses of a pool are, all peers together.
type count struct {
	Leases   uint64 // within the ranges of their peers
	Shared   uint64 // held as gateways and the like, by any number of hosts
	Reserved uint64 // for such
	Free     uint64
	Gone     uint64 // owned by peers that do not exist any more
}

func (w *world) count(pool netip.Prefix) (c count) {
	all := w.running()
	for _, p := range all {
		for k := range p.seen.leases {
			if k.pool == pool && p.backs(k) {
				c.Leases++
			}
		}
		for _, s := range p.alloc.Status() {
			if s.Pool == pool {
				c.Shared += uint64(s.Shared)
				c.Reserved += uint64(s.Reserved)
				c.Free += s.Free
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c.Gone = w.goneIn(pool, usableRange(pool))
	return c
}
