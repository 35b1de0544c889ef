package sim

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weave/ipam"
	"weave/ipam/ring"
)

// maxCall is how long a call may take: all that it asks of peers has a limit of
// eight seconds.
const maxCall = 10 * time.Second

// docker is what the Docker of one host believes. It goes on while the plugin
// does not run, and is gone with the host's disk. Guarded by world.mu.
type docker struct {
	host  *host
	refs  map[string]int // networks, by pool ID
	using map[string]int // calls under way, by pool ID
	// Calls whose answer Docker never saw may have left that many leases and
	// pools behind which it does not know.
	doubtful struct {
		leases, pools int
		shares        map[key]bool
	}
	owing map[key]bool // asked for in vain: the owner may not have heard yet that it is over
}

func newDocker(h *host) *docker {
	d := &docker{host: h, refs: map[string]int{}, using: map[string]int{}, owing: map[key]bool{}}
	d.doubtful.shares = map[key]bool{}
	return d
}

// endpoint is a container's. It holds its address from the moment the lease was
// granted until Docker begins to release it, whatever becomes of the plugin.
type endpoint struct {
	docker *docker
	poolID string
	key    key
}

func poolOf(id string) netip.Prefix {
	pool, err := ipam.PoolOf(id)
	if err != nil {
		panic(err)
	}
	return pool
}

// overlaps says whether a network here does.
func (d *docker) overlaps(prefix netip.Prefix) bool {
	for id, n := range d.refs {
		if n > 0 && poolOf(id).Overlaps(prefix) {
			return true
		}
	}
	return false
}

// references counts the networks on a pool, of whatever ip range.
func (d *docker) references(pool netip.Prefix) (n int) {
	for id, refs := range d.refs {
		if poolOf(id) == pool {
			n += refs
		}
	}
	return n
}

// ids are the pools that this Docker has.
func (d *docker) ids() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(d.refs)), func(id string) bool { return d.refs[id] == 0 })
}

// endpoints are in the order of their addresses.
func (d *docker) endpoints(w *world) (all []*endpoint) {
	for _, holders := range w.held {
		for _, e := range holders {
			if e.docker == d {
				all = append(all, e)
			}
		}
	}
	slices.SortFunc(all, func(x, y *endpoint) int { return x.key.compare(y.key) })
	return all
}

func (d *docker) sharing(w *world) (all []key) {
	for k, holders := range w.shared {
		if holders[d] > 0 {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, key.compare)
	return all
}

func (k key) compare(o key) int {
	if c := k.pool.Addr().Compare(o.pool.Addr()); c != 0 {
		return c
	}
	return k.addr.Compare(o.addr)
}

// vanish drops all that a Docker holds: the machine is reinstalled. w.mu is
// held.
func (d *docker) vanish(w *world) {
	for _, e := range d.endpoints(w) {
		w.drop(e)
	}
	for k, holders := range w.shared {
		if holders[d] > 0 {
			w.ghosts[k] = true
		}
		delete(holders, d)
	}
	maps.Copy(w.ghosts, d.doubtful.shares)
	maps.Copy(w.ghosts, d.owing)
	d.refs = map[string]int{}
}

func pick[T any](rng *rand.Rand, all []T) (one T, ok bool) {
	if len(all) == 0 {
		return one, false
	}
	return all[rng.IntN(len(all))], true
}

// requestPool is a `docker network create`. w.mu is held, as it is in all that
// begins a call.
func (w *world) requestPool(p *process, pool, sub netip.Prefix, delay, timeout time.Duration, done func(id string, err error)) {
	d := p.host.docker
	w.call(p, delay, timeout, func(ctx context.Context) {
		reply, err := p.alloc.RequestPool(ctx, ipam.PoolRequest{Pool: pool, SubPool: sub, V6: pool.IsValid() && pool.Addr().Is6()})
		w.mu.Lock()
		defer w.mu.Unlock()
		w.log("pool", p.host, pool, sub, reply.ID, outcome(err))
		switch {
		case p.dead:
			d.doubtful.pools++
		case err == nil:
			d.refs[reply.ID]++
		case errors.Is(err, errDiskFull):
		default:
			w.expect(p, err, ipam.ErrNoAgreement, ipam.ErrOverlap, ipam.ErrNoAnswer, ipam.ErrFull)
		}
		if done != nil {
			done(reply.ID, err)
		}
	})
}

// releasePool is a `docker network rm`. Docker sees to it that nobody uses the
// network.
func (w *world) releasePool(p *process, id string, delay time.Duration) {
	d := p.host.docker
	pool := poolOf(id)
	if d.refs[id]--; d.references(pool) == 0 {
		for k, holders := range w.shared {
			if k.pool == pool && holders[d] > 0 {
				delete(holders, d)
				d.doubtful.shares[k] = true // while the plugin counts more networks than Docker
			}
		}
	}
	d.using[id]++
	w.call(p, delay, maxCall, func(ctx context.Context) {
		err := p.alloc.ReleasePool(ctx, id)
		w.mu.Lock()
		defer w.mu.Unlock()
		d.using[id]--
		w.log("pool gone", p.host, id, outcome(err))
		if p.dead || err != nil {
			d.doubtful.pools++
		}
		if !p.dead && err != nil {
			w.expect(p, err, errDiskFull)
		}
	})
}

// lease asks for an address for a container: any, or a certain one.
func (w *world) lease(p *process, id string, addr netip.Addr, delay, timeout time.Duration, done func(error)) {
	d, k := p.host.docker, key{pool: poolOf(id)}
	d.using[id]++
	w.call(p, delay, timeout, func(ctx context.Context) {
		got, err := p.alloc.RequestAddress(ctx, ipam.AddressRequest{PoolID: id, Address: addr, Kind: ipam.KindLease})
		k.addr = got.Addr()
		w.mu.Lock()
		defer w.mu.Unlock()
		d.using[id]--
		w.log("lease", p.host, id, addr, k.addr, outcome(err))
		switch {
		case p.dead:
			d.doubtful.leases++
		case err == nil:
			w.hold(p, d, id, k)
		case errors.Is(err, errDiskFull):
		default:
			w.expect(p, err, ipam.ErrFull, ipam.ErrInUse, ipam.ErrNoAnswer)
		}
		if done != nil {
			done(err)
		}
	})
}

// hold notes that a container has an address, and announces it. Nobody else may
// have it, unless clusters that had not heard of each other gave it out, or a
// peer that was removed; and then it must be reported in the end. w.mu is held.
func (w *world) hold(p *process, d *docker, id string, k key) {
	for _, other := range w.held[k] {
		if other.docker == d || !w.mayBoth(k, d.grant(k), other.docker.grant(k)) {
			w.fail("%s is given out twice: on %s and on %s", k, other.docker.host, d.host)
		}
		if ghost := p.peer.ghosts[k]; ghost != "" && ghost == other.docker.host.peer.id {
			w.fail("%s is leased on %s, which knew when it inherited it that a container of %s has it", k, d.host, ghost)
		}
	}
	for other, n := range w.shared[k] {
		if n > 0 && (other == d || !w.mayBoth(k, d.grant(k), other.grant(k))) {
			w.fail("%s is leased on %s, and reserved on %s", k, d.host, other.host)
		}
	}
	if holder, ok := p.holder(k); ok && holder != p.self {
		w.fail("%s is leased on %s, which knows that a container of %s has it", k, d.host, holder)
	}
	w.held[k] = append(w.held[k], &endpoint{docker: d, poolID: id, key: k})
	p.publish(func(r *records) { r.endpoints[k] = true })
}

// drop forgets an endpoint. w.mu is held.
func (w *world) drop(e *endpoint) {
	w.held[e.key] = slices.DeleteFunc(w.held[e.key], func(o *endpoint) bool { return o == e })
}

// holds says whether a container here has an address. w.mu is held.
func (d *docker) holds(w *world, k key) bool {
	return slices.ContainsFunc(w.held[k], func(e *endpoint) bool { return e.docker == d })
}

// release gives an address back. If the plugin does not run, Docker forgets the
// container all the same.
func (w *world) release(e *endpoint, delay time.Duration) {
	d, p := e.docker, e.docker.host.proc
	w.drop(e)
	if w.plan.Fault == FaultDeaf {
		return
	}
	if p == nil {
		w.log("forgotten", d.host, e.key)
		d.doubtful.leases++
		return
	}
	p.publish(func(r *records) { delete(r.endpoints, e.key) })
	w.giveBack(p, e.poolID, e.key, delay, func(err error) {
		if err != nil {
			d.doubtful.leases++
		}
	})
}

func (w *world) giveBack(p *process, id string, k key, delay time.Duration, done func(error)) {
	d := p.host.docker
	d.using[id]++
	w.call(p, delay, maxCall, func(ctx context.Context) {
		err := p.alloc.ReleaseAddress(ctx, id, k.addr)
		w.mu.Lock()
		defer w.mu.Unlock()
		d.using[id]--
		w.log("release", p.host, k, outcome(err))
		if !p.dead && err != nil {
			w.expect(p, err, errDiskFull)
		}
		if p.dead {
			err = errDead
		}
		done(err)
	})
}

// share asks for a gateway or another reserved address.
func (w *world) share(p *process, id string, kind ipam.Kind, addr netip.Addr, delay, timeout time.Duration) {
	d := p.host.docker
	d.using[id]++
	w.call(p, delay, timeout, func(ctx context.Context) {
		got, err := p.alloc.RequestAddress(ctx, ipam.AddressRequest{PoolID: id, Address: addr, Kind: kind})
		if !addr.IsValid() {
			addr = usableRange(poolOf(id)).First
		}
		k := key{poolOf(id), got.Addr()}
		w.mu.Lock()
		defer w.mu.Unlock()
		d.using[id]--
		w.log("share", p.host, id, kind, addr, k.addr, outcome(err))
		switch {
		case p.dead, errors.Is(err, errDiskFull):
			w.doubt(d, key{poolOf(id), addr})
		case err != nil:
			w.expect(p, err, ipam.ErrInUse, ipam.ErrNoAnswer)
			if !errors.Is(err, ipam.ErrInUse) {
				d.owing[key{poolOf(id), addr}] = true
			}
		default:
			for _, e := range w.held[k] {
				if e.docker == d || !w.mayBoth(k, d.grant(k), e.docker.grant(k)) {
					w.fail("%s is reserved on %s, and leased on %s", k, d.host, e.docker.host)
				}
			}
			if w.shared[k] == nil {
				w.shared[k] = map[*docker]int{}
			}
			w.shared[k][d]++
		}
	})
}

func (w *world) unshare(p *process, id string, k key, delay time.Duration) {
	d := p.host.docker
	w.shared[k][d]--
	w.giveBack(p, id, k, delay, func(err error) {
		if err != nil {
			w.doubt(d, k)
		}
	})
}

// doubt notes that a shared address may be reserved, of which Docker knows
// nothing; not even that, if its disk was lost meanwhile. w.mu is held.
func (w *world) doubt(d *docker, k key) {
	if d.host.docker != d {
		w.ghosts[k] = true
		return
	}
	d.doubtful.shares[k] = true
}

// removePeer is no call of Docker, but of a person who runs `weave rmpeer`.
func (w *world) removePeer(p *process, id ring.Peer, delay time.Duration, done func(error)) {
	w.call(p, delay, maxCall, func(ctx context.Context) {
		report, err := p.alloc.RemovePeer(ctx, id)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.log("rmpeer", p.self, id, report.Heir, outcome(err))
		if err != nil && !errors.Is(err, errDiskFull) {
			w.expect(p, err, ipam.ErrAlive, ipam.ErrNoAgreement, ipam.ErrNoAnswer, ipam.ErrInvalid, ipam.ErrUnknownPeer)
		}
		done(err)
	})
}

// expect breaks the schedule if an error is none of those that may be; timeouts
// and the death of the process are always among them. w.mu is held.
func (w *world) expect(p *process, err error, may ...error) {
	if p.dead || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return
	}
	if s := err.Error(); strings.Contains(s, errDiskFull.Error()) || strings.Contains(s, "was removed") {
		return // another host's error, as text
	}
	for _, e := range append(may, ipam.ErrRemoved) {
		if errors.Is(err, e) {
			return
		}
	}
	w.fail("unexpected on %s: %w", p.host, err)
}

// outcome is the part of an error that does not depend on the order of what
// happens at one instant.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	return "refused"
}
