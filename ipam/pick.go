package ipam

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"weave/ipam/space"
)

const (
	defaultBits = 16 // size of the default subnet, where the range has room
	freshBits   = 24 // size of pools that nobody chose
	maxPicks    = 8  // how often one request picks anew after losing a race
)

// requestAnyPool holds a random pool that is used nowhere. If another peer
// seeds the picked pool at the same time, that peer keeps it for itself.
func (a *Allocator) requestAnyPool(ctx context.Context) (handle, error) {
	for range maxPicks {
		pool, hasRing, err := a.pick()
		if err != nil {
			return handle{}, err
		}
		h, err := a.holdPicked(ctx, pool, hasRing)
		if errors.Is(err, ErrOverlap) { // with a pool requested meanwhile
			continue
		}
		if err != nil || h.Refs > 0 {
			return h, err
		}
	}
	return handle{}, errorf(ErrNoAgreement, "other hosts took each subnet that was picked out of %s; try again, or give --subnet", a.cfg.Range)
}

// holdPicked returns no references if the pool was lost to another peer.
func (a *Allocator) holdPicked(ctx context.Context, pool netip.Prefix, hasRing bool) (handle, error) {
	defer func() {
		a.mu.Lock()
		delete(a.picked, pool)
		a.mu.Unlock()
	}()
	h, err := newHandle(pool, netip.Prefix{})
	if err != nil {
		return handle{}, err
	}
	ours, err := a.ensureRing(ctx, pool)
	if err != nil || !ours && !hasRing {
		return handle{}, err
	}
	return a.hold(h)
}

// occupied is the address space that a fresh pool keeps away from.
type occupied struct {
	taken space.Set // by routes, networks and leases of this host
	rings space.Set // by pools that somebody has or had
	known []netip.Prefix
}

func (a *Allocator) occupied() (*occupied, error) {
	busy, err := a.cfg.Busy()
	if err != nil {
		return nil, fmt.Errorf("read the routes of this host: %w", err)
	}
	o := &occupied{}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.handles {
		busy = append(busy, h.pool)
	}
	for prefix := range a.picked {
		busy = append(busy, prefix)
	}
	for _, prefix := range busy {
		if prefix.Addr().Is4() {
			o.taken.Add(space.Of(prefix))
		}
	}
	for prefix, p := range a.pools {
		if prefix.Addr().Is4() && len(p.records) > 0 {
			o.taken.Add(space.Of(prefix))
		}
		if prefix.Addr().Is4() && p.ring != nil {
			o.rings.Add(space.Of(prefix))
			o.known = append(o.known, prefix)
		}
	}
	return o, nil
}

// DefaultSubnet is the part of a range that is for containers which name no
// subnet, the same on all hosts: its first /16, or all of it if that is less.
func DefaultSubnet(within netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(within.Addr(), max(defaultBits, within.Bits())).Masked()
}

// pick chooses a pool and marks it as picked. Those that never had a ring come
// first; then those whose pools nobody uses any more; then those that keep this
// host from using the default subnet.
func (a *Allocator) pick() (pool netip.Prefix, hasRing bool, err error) {
	o, err := a.occupied()
	if err != nil {
		return netip.Prefix{}, false, err
	}
	fresh := func(p netip.Prefix) bool { return !o.rings.Overlaps(space.Of(p)) }
	unused := func(p netip.Prefix) bool {
		for _, known := range o.known {
			if known.Overlaps(p) && a.cfg.InUse(known) {
				return false
			}
		}
		return true
	}
	beyond := func(suits func(netip.Prefix) bool) func(netip.Prefix) bool {
		standard := DefaultSubnet(a.cfg.Range)
		return func(p netip.Prefix) bool { return !standard.Overlaps(p) && suits(p) }
	}
	for _, suits := range []func(netip.Prefix) bool{beyond(fresh), beyond(unused), fresh, unused} {
		for candidate := range candidates(a.cfg.Range) {
			if o.taken.Overlaps(space.Of(candidate)) || !suits(candidate) || a.cfg.InUse(candidate) {
				continue
			}
			if hasRing, ok := a.mark(candidate); ok {
				return candidate, hasRing, nil
			}
		}
	}
	return netip.Prefix{}, false, errorf(ErrFull, "no subnet is free in %s; remove networks, or give --subnet, or set WEAVE_IPALLOC_RANGE to a larger range", a.cfg.Range)
}

// mark picks a candidate unless a request that runs beside this one has it.
func (a *Allocator) mark(candidate netip.Prefix) (hasRing, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.picked[candidate] || a.references(candidate) > 0 {
		return false, false
	}
	a.picked[candidate] = true
	p := a.pools[candidate]
	return p != nil && p.ring != nil, true
}

// candidates yields all pools of the fresh size in r, from a random one on.
func candidates(r netip.Prefix) func(yield func(netip.Prefix) bool) {
	bits := max(freshBits, r.Bits())
	count := uint32(1) << (bits - r.Bits())
	first := r.Addr().As4()
	base, start := binary.BigEndian.Uint32(first[:]), uint32(random(int64(count)))
	return func(yield func(netip.Prefix) bool) {
		for i := range count {
			n := base + (start+i)%count<<(32-bits)
			addr := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
			if !yield(netip.PrefixFrom(addr, bits)) {
				return
			}
		}
	}
}
