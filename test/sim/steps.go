package sim

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"weave/ipam"
	"weave/ipam/ring"
)

// step draws what happens next, and lets it begin. Docker's calls may come in
// bursts, on one host or several.
func (w *world) step() {
	kind := w.plan.next(w.rng)
	burst := 1
	if kind == stepLease || kind == stepRelease || kind == stepPool || kind == stepRemove {
		burst += w.rng.IntN(w.plan.Burst)
	}
	for range burst {
		h := w.hosts[w.rng.IntN(len(w.hosts))]
		switch kind {
		case stepCrash:
			w.crash(h)
		case stepStart:
			w.startDown()
		case stepWipe:
			w.wipe(h)
		case stepSplit:
			w.split()
		case stepCut:
			w.cut()
		case stepHeal:
			w.heal()
		case stepConnect:
			w.connect(h, w.hosts[w.rng.IntN(len(w.hosts))])
		case stepRemove:
			w.remove(h)
		default:
			w.begin(kind, h)
		}
	}
}

// startDown starts a plugin that does not run. dockerd does so soon.
func (w *world) startDown() {
	for _, h := range w.hosts {
		w.mu.Lock()
		down := h.proc == nil
		w.mu.Unlock()
		if down {
			w.boot(h)
			return
		}
	}
}

// connect is a `weave connect`.
func (w *world) connect(from, to *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if from != to && !from.peer.known[to.peer.id] {
		w.log("connect", from, to)
		from.peer.unmet[to.number] = true
	}
}

// remove is a `weave rmpeer`, mostly of a peer that does not run. People may be
// wrong about that.
func (w *world) remove(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var down, up []ring.Peer
	for _, id := range slices.Sorted(maps.Keys(h.peer.known)) {
		if w.peers[id].proc == nil {
			down = append(down, id)
		} else {
			up = append(up, id)
		}
	}
	target, ok := pick(w.rng, down)
	if w.rng.IntN(4) == 0 || !ok {
		target, ok = pick(w.rng, up)
	}
	delay := time.Duration(w.rng.Int64N(int64(5 * time.Millisecond)))
	if ok && h.proc != nil {
		w.removePeer(h.proc, target, delay, func(error) {})
	}
}

// begin begins a call of Docker on a host.
func (w *world) begin(kind step, h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, d := h.proc, h.docker
	if p == nil {
		if e, ok := pick(w.rng, d.endpoints(w)); ok && kind == stepRelease {
			w.release(e, 0)
		}
		return
	}
	delay, timeout := time.Duration(w.rng.Int64N(int64(5*time.Millisecond))), w.timeout()
	id, some := pick(w.rng, d.ids())
	if !some && kind != stepAnyPool && kind != stepCrashWrite {
		kind = stepPool
	}
	switch kind {
	case stepPool, stepAnyPool:
		pool, sub := w.whichPool(kind)
		w.requestPool(p, pool, sub, delay, timeout, nil)
	case stepReleasePool:
		w.dropPool(p, id, delay)
	case stepLease:
		w.lease(p, id, netip.Addr{}, delay, timeout, nil)
	case stepClaim:
		w.lease(p, id, w.address(id), delay, timeout, nil)
	case stepRelease:
		if e, ok := pick(w.rng, d.endpoints(w)); ok {
			w.release(e, delay)
		}
	case stepGateway:
		w.share(p, id, ipam.KindGateway, netip.Addr{}, delay, timeout)
	case stepReserve:
		w.share(p, id, ipam.KindReserved, w.address(id), delay, timeout)
	case stepUnreserve:
		if k, ok := pick(w.rng, d.sharing(w)); ok {
			w.unshare(p, k.pool.String(), k, delay)
		}
	case stepCrashWrite:
		w.log("will die", h)
		p.dieIn = 1 + w.rng.IntN(4)
	case stepFull:
		w.log("disk full", h, !h.peer.disk.full)
		h.peer.disk.full = !h.peer.disk.full
	}
}

// timeout is that of Docker's call: mostly longer than all patience.
func (w *world) timeout() time.Duration {
	if w.rng.IntN(6) > 0 {
		return time.Minute
	}
	return time.Duration(w.rng.Int64N(int64(3 * time.Second)))
}

func (w *world) whichPool(kind step) (pool, sub netip.Prefix) {
	if kind == stepAnyPool {
		return netip.Prefix{}, netip.Prefix{}
	}
	i := w.rng.IntN(len(w.plan.Pools))
	if w.rng.IntN(4) == 0 {
		sub = w.plan.Subs[i]
	}
	return w.plan.Pools[i], sub
}

// dropPool releases a pool that no container is on.
func (w *world) dropPool(p *process, id string, delay time.Duration) {
	d := p.host.docker
	if d.refs[id] == 1 {
		if d.using[id] > 0 {
			return
		}
		for _, e := range d.endpoints(w) {
			if e.poolID == id {
				return
			}
		}
	}
	w.releasePool(p, id, delay)
}

// address draws one of the first addresses of a pool, which may be wanted by
// several hosts.
func (w *world) address(id string) netip.Addr {
	addr := poolOf(id).Addr().Next()
	for range w.rng.IntN(6) {
		addr = addr.Next()
	}
	return addr
}
