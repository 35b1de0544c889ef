package ipam

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weave/ipam/space"
)

// PoolRequest asks for a pool. All fields may be zero.
type PoolRequest struct {
	Pool    netip.Prefix // zero: any free one
	SubPool netip.Prefix // zero, or the part of Pool that addresses are leased from
	V6      bool
	Options map[string]string // none is known yet
}

// PoolReply names the pool for all later requests.
type PoolReply struct {
	ID   string
	Pool netip.Prefix
	// Gateway is for Docker's com.docker.network.gateway: the pool's network
	// address, which no container can have. Without it Docker would reserve an
	// address for a gateway that does not exist.
	Gateway string
}

// handle is a pool as Docker requested it, with the number of requests. Its ID
// is "pool" or "pool,sub-pool".
type handle struct {
	pool, sub netip.Prefix
	within    space.Range // where addresses are leased from
	Refs      int         `json:"refs"`
}

func (h handle) id() string {
	if h.sub.IsValid() {
		return h.pool.String() + "," + h.sub.String()
	}
	return h.pool.String()
}

func newHandle(pool, sub netip.Prefix) (handle, error) {
	if err := checkPrefix(pool); err != nil {
		return handle{}, err
	}
	usable, err := space.Usable(pool)
	if err != nil {
		return handle{}, err
	}
	h := handle{pool: pool, sub: sub, within: usable}
	if !sub.IsValid() {
		return h, nil
	}
	if sub != sub.Masked() {
		return handle{}, errorf(ErrInvalid, "ip range %s has bits set beyond its mask; use %s", sub, sub.Masked())
	}
	within, ok := space.Of(sub).Intersect(usable)
	if !ok || sub.Bits() < pool.Bits() {
		return handle{}, errorf(ErrInvalid, "ip range %s has no address for containers within subnet %s", sub, pool)
	}
	h.within = within
	return h, nil
}

func parseHandle(id string) (handle, error) {
	first, second, hasSub := strings.Cut(id, ",")
	pool, err := netip.ParsePrefix(first)
	var sub netip.Prefix
	if err == nil && hasSub {
		sub, err = netip.ParsePrefix(second)
	}
	if err != nil {
		return handle{}, fmt.Errorf("pool ID %q: %w: %w", id, ErrUnknownPool, err)
	}
	return newHandle(pool, sub)
}

// RequestPool gives out a pool and sees to it that the pool has a ring. Each
// success counts and needs a ReleasePool.
func (a *Allocator) RequestPool(ctx context.Context, r PoolRequest) (PoolReply, error) {
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	h, err := a.requestPool(ctx, r)
	if err != nil {
		return PoolReply{}, err
	}
	return PoolReply{ID: h.id(), Pool: h.pool, Gateway: h.pool.String()}, nil
}

func (a *Allocator) requestPool(ctx context.Context, r PoolRequest) (handle, error) {
	if len(r.Options) > 0 {
		return handle{}, errorf(ErrInvalid, "ipam option %q is not known; leave it out", slices.Sorted(maps.Keys(r.Options))[0])
	}
	switch {
	case !r.Pool.IsValid() && r.SubPool.IsValid():
		return handle{}, errorf(ErrInvalid, "ip range %s without a subnet; give --subnet too", r.SubPool)
	case !r.Pool.IsValid() && r.V6:
		return handle{}, errorf(ErrInvalid, "IPv6 subnets are not chosen automatically; give one, like --subnet fd00:a:b:c::/64")
	case !r.Pool.IsValid():
		return a.requestAnyPool(ctx)
	case r.V6 && r.Pool.Addr().Is4():
		return handle{}, errorf(ErrInvalid, "subnet %s is not of IPv6", r.Pool)
	}
	h, err := newHandle(r.Pool, r.SubPool)
	if err != nil {
		return handle{}, err
	}
	if err := a.checkBusy(h.pool); err != nil {
		return handle{}, err
	}
	if err := a.checkOverlap(h.pool); err != nil {
		return handle{}, err
	}
	if _, err := a.ensureRing(ctx, h.pool); err != nil {
		return handle{}, err
	}
	return a.hold(h)
}

func (a *Allocator) checkBusy(pool netip.Prefix) error {
	busy, err := a.cfg.Busy()
	if err != nil {
		return fmt.Errorf("read the routes of this host: %w", err)
	}
	for _, b := range busy {
		if b.Overlaps(pool) {
			return fmt.Errorf("subnet %s %w %s, which a route of this host uses; choose another subnet", pool, ErrOverlap, b)
		}
	}
	return nil
}

func (a *Allocator) checkOverlap(pool netip.Prefix) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.overlapped(pool)
}

// overlapped refuses pools which share addresses with another one held here,
// the very same pool excepted. a.mu is held.
func (a *Allocator) overlapped(pool netip.Prefix) error {
	for _, h := range a.handles {
		if h.pool != pool && h.pool.Overlaps(pool) {
			return fmt.Errorf("subnet %s %w %s of another network on this host; choose another subnet, or remove that network", pool, ErrOverlap, h.pool)
		}
	}
	return nil
}

// hold counts a handle.
func (a *Allocator) hold(h handle) (handle, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.overlapped(h.pool); err != nil {
		return handle{}, err
	}
	h.Refs = a.handles[h.id()].Refs + 1
	return h, a.saveHandle(h)
}

// ReleasePool takes back one RequestPool. With the last one, this host gives up
// the shared addresses that it still holds there; leases stay until they are
// released. An unknown pool is no error.
func (a *Allocator) ReleasePool(ctx context.Context, id string) error {
	p, err := a.unhold(id)
	if err != nil || p == nil {
		return err
	}
	a.settleSoon(ctx, p)
	return nil
}

// unhold drops one reference; the pool is nil unless it was the last one.
func (a *Allocator) unhold(id string) (*pool, error) {
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	h, ok := a.handles[id]
	if !ok {
		a.cfg.Log.WithField("pool", id).Debug("release of a pool that is not held")
		return nil, nil
	}
	h.Refs--
	p := a.pools[h.pool]
	if h.Refs > 0 || a.references(h.pool) > 1 {
		return nil, a.saveHandle(h)
	}
	debts := map[netip.Addr]*record{}
	for addr, r := range p.records {
		if r.Kind != KindLease {
			r.Count = 0
			debts[addr] = &r
		}
	}
	if len(debts) > 0 {
		if err := a.saveRecords(p, debts); err != nil {
			return nil, err
		}
	}
	if err := a.dropWishes(p); err != nil {
		return nil, err
	}
	return p, a.saveHandle(h)
}

// references counts the handles of a pool. a.mu is held.
func (a *Allocator) references(pool netip.Prefix) (n int) {
	for _, h := range a.handles {
		if h.pool == pool {
			n += h.Refs
		}
	}
	return n
}

// PoolOf returns the pool that a pool ID is for.
func PoolOf(id string) (netip.Prefix, error) {
	h, err := parseHandle(id)
	return h.pool, err
}
