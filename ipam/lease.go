package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weave/ipam/ring"
)

const (
	maxAsks  = 64      // of one owner for one lease: each gift may be used up by others meanwhile, or be held elsewhere
	maxHops  = 8       // after an address whose owner changes
	maxTries = 1 << 12 // for one lease, past addresses that containers elsewhere hold
)

// AddressRequest asks for an address of a held pool.
type AddressRequest struct {
	PoolID  string
	Address netip.Addr // zero: any. A gateway is then the first usable address
	Kind    Kind
}

// RequestAddress leases or reserves an address; the prefix has the bits of the
// pool. An address given by the user may lie outside the sub-pool, as in Docker.
func (a *Allocator) RequestAddress(ctx context.Context, r AddressRequest) (netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	h, p, err := a.held(r.PoolID)
	if err != nil {
		return netip.Prefix{}, err
	}
	addr := r.Address.Unmap()
	if !addr.IsValid() && r.Kind != KindLease {
		addr = p.usable.First
	}
	if addr.IsValid() {
		if err := checkAddress(p, addr); err != nil {
			return netip.Prefix{}, err
		}
	}
	switch {
	case r.Kind == KindGateway || r.Kind == KindReserved:
		err = a.holdShared(ctx, p, addr, record{Kind: r.Kind, PoolID: h.id()})
	case r.Kind != KindLease:
		err = fmt.Errorf("address of kind %q: %w", r.Kind, ErrInvalid)
	case addr.IsValid():
		err = a.leaseThis(ctx, p, h, addr)
	default:
		addr, err = a.leaseAny(ctx, p, h)
	}
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(addr, p.prefix.Bits()), nil
}

// held finds a handle by its ID.
func (a *Allocator) held(id string) (handle, *pool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h, ok := a.handles[id]
	if !ok {
		return handle{}, nil, errorf(ErrUnknownPool, "pool %q was not requested on this host; make the network anew", id)
	}
	return h, a.pools[h.pool], nil
}

func checkAddress(p *pool, addr netip.Addr) error {
	switch {
	case !p.prefix.Contains(addr):
		return errorf(ErrInvalid, "address %s is outside subnet %s", addr, p.prefix)
	case !p.usable.Contains(addr):
		return errorf(ErrInvalid, "address %s is the network or broadcast address of subnet %s; use one from %s to %s",
			addr, p.prefix, p.usable.First, p.usable.Last)
	}
	return nil
}

// leaseAny leases from own ranges, and if they are full asks other owners.
func (a *Allocator) leaseAny(ctx context.Context, p *pool, h handle) (addr netip.Addr, err error) {
	err = a.withSpace(ctx, p, h, func() (err error) {
		addr, err = a.leaseFree(p, h)
		return err
	})
	return addr, err
}

// withSpace repeats use while it says ErrFull, and asks other owners for space
// in between.
func (a *Allocator) withSpace(ctx context.Context, p *pool, h handle, use func() error) error {
	if err := use(); !errors.Is(err, ErrFull) {
		return err
	}
	pass, err := a.take(ctx, p)
	if err != nil {
		return err
	}
	defer pass()
	asks := map[ring.Peer]int{}
	var silent []ring.Peer
	for {
		// Who had the turn before may have brought more than it needed.
		if err := use(); !errors.Is(err, ErrFull) {
			return err
		}
		owner, ok := a.nextOwner(p, h, asks)
		if !ok {
			return a.full(p, h, silent)
		}
		asks[owner]++
		ans, err := a.ask(ctx, p, owner, request{Op: opSpace, Within: h.sub})
		switch {
		case err != nil:
			a.cfg.Log.WithError(err).WithField("pool", p.prefix).Warn("no space from a peer")
			silent, asks[owner] = append(silent, owner), maxAsks
		case ans.Refusal == refusedFull:
			asks[owner] = maxAsks
		case ans.Refusal != "" && ans.Refusal != refusedSeeds:
			a.cfg.Log.WithError(a.refused(owner, ans.Refusal, "", ans.Detail)).WithField("pool", p.prefix).Warn("no space from a peer")
			silent, asks[owner] = append(silent, owner), maxAsks
		}
		if len(silent) > 0 {
			a.noteStuck(p, a.full(p, h, silent))
		}
	}
}

// leaseFree leases the next free address of own ranges, or says ErrFull. What
// somebody wished for comes last.
func (a *Allocator) leaseFree(p *pool, h handle) (netip.Addr, error) {
	defer a.flush()
	addr, err := a.leaseNext(p, h, (*pool).nextUnwished)
	if errors.Is(err, ErrFull) {
		addr, err = a.leaseNext(p, h, (*pool).nextFree)
	}
	return addr, err
}

// leaseNext leases the next of certain free addresses. It passes by what
// containers elsewhere hold without a lease of ours.
func (a *Allocator) leaseNext(p *pool, h handle, next func(*pool, handle) (netip.Addr, bool)) (netip.Addr, error) {
	var first netip.Addr // that was passed by
	for range maxTries {
		addr, err := a.advance(p, h, next)
		if err != nil {
			return netip.Addr{}, err
		}
		if addr == first {
			break
		}
		if _, held := a.heldElsewhere(p.prefix, addr); held {
			if !first.IsValid() {
				first = addr
			}
			continue
		}
		if done, err := a.leaseIfFree(p, h, addr); done || err != nil {
			return addr, err
		}
	}
	return netip.Addr{}, ErrFull
}

// advance moves the cursor on: a freed address is not reused at once.
func (a *Allocator) advance(p *pool, h handle, next func(*pool, handle) (netip.Addr, bool)) (netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.mayLease(); err != nil {
		return netip.Addr{}, err
	}
	addr, ok := next(p, h)
	if !ok {
		return netip.Addr{}, ErrFull
	}
	p.cursors[h.sub] = addr.Next()
	return addr, nil
}

// leaseIfFree leases addr unless it went meanwhile.
func (a *Allocator) leaseIfFree(p *pool, h handle, addr netip.Addr) (done bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.mayLease(); err != nil || !p.free.Contains(addr) {
		return false, err
	}
	err = a.saveRecord(p, addr, &record{Kind: KindLease, PoolID: h.id(), since: time.Now()})
	return err == nil, err
}

// nextOwner is the peer to ask for space: alive ones first, then by free space
// as far as it is known. The other owners' figures may be old.
func (a *Allocator) nextOwner(p *pool, h handle, asks map[ring.Peer]int) (ring.Peer, bool) {
	alive, free := a.cfg.Cluster.Alive(), a.cfg.Cluster.Free(p.prefix)
	a.mu.Lock()
	r := p.ring
	owners := slices.DeleteFunc(r.Owners(), a.isRemoved)
	a.mu.Unlock()
	rank := func(owner ring.Peer) (int, uint64) {
		order := 0
		if slices.Contains(alive, owner) {
			order += 2
		}
		count, known := free[owner]
		if !known || count > 0 {
			order++
		}
		return order, count
	}
	var best ring.Peer
	for _, owner := range owners {
		if owner == a.cfg.Self || asks[owner] >= maxAsks || !ownsWithin(r, owner, h) {
			continue
		}
		order, count := rank(owner)
		bestOrder, bestCount := rank(best)
		if best == "" || cmp.Or(cmp.Compare(order, bestOrder), cmp.Compare(count, bestCount)) > 0 {
			best = owner
		}
	}
	return best, best != ""
}

func ownsWithin(r *ring.Ring, owner ring.Peer, h handle) bool {
	for _, own := range r.Ranges(owner) {
		if _, ok := own.Intersect(h.within); ok {
			return true
		}
	}
	return false
}

func (a *Allocator) full(p *pool, h handle, silent []ring.Peer) error {
	what := "pool " + p.prefix.String()
	if h.sub.IsValid() {
		what = fmt.Sprintf("ip range %s of pool %s", h.sub, p.prefix)
	}
	if len(silent) > 0 {
		return errorf(errors.Join(ErrFull, ErrNoAnswer), "%s: no free address on this host, and no answer from %s, where others may be free; start weave there, or use another subnet",
			what, strings.Join(a.names(silent), ", "))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.ContainsFunc(p.ring.Owners(), a.isRemoved) {
		return errorf(errors.Join(ErrFull, ErrNoAnswer), "%s: no free address but those of a removed host, not taken over yet; `weave status` says what is missing, or use another subnet", what)
	}
	here := 0
	for addr, r := range p.records {
		if r.Kind == KindLease && h.within.Contains(addr) {
			here++
		}
	}
	return errorf(ErrFull, "%s is full: all %d addresses are in use, %d of them by containers of this host; remove containers, or make a network with a larger subnet",
		what, h.within.Size(), here)
}

// refused is the error for an answer that is final.
func (a *Allocator) refused(by ring.Peer, why refusal, holder ring.Peer, detail string) error {
	switch why {
	case refusedLeased:
		return errorf(ErrInUse, "in use on host %s; choose another", a.name(holderOf(by, holder)))
	case refusedReserved:
		return errorf(ErrInUse, "in use as a gateway or auxiliary address of a network, says host %s; choose another", a.name(by))
	case refusedRemoved:
		return ErrRemoved
	case refusedLate:
		return errorf(ErrNoAnswer, "host %s takes the request for an old one; try again", a.name(by))
	}
	return fmt.Errorf("host %s refuses: %s", a.name(by), printable(string(why)+" "+detail, maxDetail))
}

// leaseThis leases one certain address, which it claims from its owner if that
// is another peer.
func (a *Allocator) leaseThis(ctx context.Context, p *pool, h handle, addr netip.Addr) error {
	for range maxHops {
		holder, held := a.heldElsewhere(p.prefix, addr)
		owner, err := a.leaseOwn(p, h, addr, held)
		switch {
		case err != nil:
			return err
		case owner == a.cfg.Self && held:
			return fmt.Errorf("address %s: %w", addr, a.refused(holder, refusedLeased, "", ""))
		case owner == a.cfg.Self:
			return nil
		}
		ans, err := a.ask(ctx, p, owner, a.claimRequest(addr))
		if err != nil {
			return fmt.Errorf("address %s belongs to another host: %w", addr, err)
		}
		v := verdict{Refusal: ans.Refusal}
		if v.Refusal == "" && len(ans.Verdicts) == 1 {
			v = ans.Verdicts[0]
		}
		if v.Refusal != "" && v.Refusal != refusedMoved && v.Refusal != refusedSeeds {
			return fmt.Errorf("address %s: %w", addr, a.refused(owner, v.Refusal, v.Holder, ans.Detail))
		}
		if v.Refusal == refusedMoved && a.untaken(p, addr) {
			return errUntaken(addr)
		}
	}
	return errorf(ErrNoAnswer, "address %s keeps changing its owner; try again", addr)
}

// leaseOwn leases addr if this peer owns it, and nobody elsewhere holds it; else
// it returns who is the owner.
func (a *Allocator) leaseOwn(p *pool, h handle, addr netip.Addr, held bool) (owner ring.Peer, err error) {
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.mayLease(); err != nil {
		return "", err
	}
	if r := p.records[addr]; r.Kind == KindLease {
		return "", errorf(ErrInUse, "address %s: in use on this host; choose another", addr)
	}
	if owner := a.ownerOf(p, addr); owner != a.cfg.Self {
		return owner, nil
	}
	switch {
	case p.owner(addr) != a.cfg.Self:
		return "", errUntaken(addr)
	case !p.free.Contains(addr):
		return "", errorf(ErrInUse, "address %s: in use as a gateway or auxiliary address of a network; choose another", addr)
	case held:
		return a.cfg.Self, nil
	}
	return a.cfg.Self, a.saveWished(p, h, addr)
}

// ReleaseAddress takes back an address. An unknown one is no error: Docker
// repeats itself, and releases gateways that it never had.
func (a *Allocator) ReleaseAddress(ctx context.Context, poolID string, addr netip.Addr) error {
	h, err := parseHandle(poolID)
	if err != nil {
		return err
	}
	p, err := a.release(h, addr.Unmap())
	if err == nil && p != nil {
		a.settleSoon(ctx, p)
	}
	return err
}

// release drops a lease, or one count of a shared address; the pool is nil
// unless a debt remains.
func (a *Allocator) release(h handle, addr netip.Addr) (*pool, error) {
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pools[h.pool]
	var r record
	if p != nil {
		r = p.records[addr]
	}
	switch {
	case r.Kind == "" || r.isDebt():
		a.cfg.Log.WithField("pool", h.id()).WithField("addr", addr).Debug("release of an address that is not held")
		return nil, nil
	case r.Kind == KindLease:
		return nil, a.saveRecord(p, addr, nil)
	}
	r.Count--
	if err := a.saveRecord(p, addr, &r); err != nil || !r.isDebt() {
		return nil, err
	}
	return p, nil
}
