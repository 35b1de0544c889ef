package sim

import (
	"errors"
	"net/netip"
	"time"

	"weave/ipam"
)

// Larger pools are not filled at all, and those above fillOften in one of eight
// schedules: the last address of a small one is as hard to get.
const (
	fillOften = 30
	fillMost  = 254
)

// fill leases every address that is left, each from whatever host, and then
// verifies that none is.
func (w *world) fill() {
	for _, pool := range w.plan.Pools {
		hosts := w.having(pool)
		usable := usableOf(pool)
		if len(hosts) == 0 || usable > fillMost || usable > fillOften && w.plan.Seed%8 != 0 {
			continue
		}
		for range usable + 1 {
			if !w.fillOne(pool, hosts[w.rng.IntN(len(hosts))]) {
				break
			}
		}
		w.check()
		w.checkFull(pool)
	}
}

// fillOne leases one more address, and says whether there was one.
func (w *world) fillOne(pool netip.Prefix, h *host) (more bool) {
	w.mu.Lock()
	w.lease(h.proc, pool.String(), netip.Addr{}, 0, time.Minute, func(err error) {
		more = err == nil
		if err != nil && !errors.Is(err, ipam.ErrFull) {
			w.fail("%s cannot fill pool %s: %w", h, pool, err)
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

// having are the hosts with a network on a pool.
func (w *world) having(pool netip.Prefix) (hosts []*host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		if h.docker.refs[pool.String()] > 0 {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// checkFull verifies that every usable address is leased, reserved, or owned by
// a peer that is gone.
func (w *world) checkFull(pool netip.Prefix) {
	if c := w.count(pool); c.Leases+c.Reserved+c.Gone != usableOf(pool) {
		w.failed("pool %s is called full: %+v of %d", pool, c, usableOf(pool))
	}
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
	r := all[0].peer.disk.rings[pool]
	if r == nil {
		return c
	}
	for _, owner := range r.Owners() {
		w.mu.Lock()
		gone := w.peers[owner].proc == nil
		w.mu.Unlock()
		for _, own := range r.Ranges(owner) {
			if part, ok := own.Intersect(usableRange(pool)); ok && gone {
				c.Gone += part.Size()
			}
		}
	}
	return c
}
