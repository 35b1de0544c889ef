package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weave/ipam/ring"
)

// holdShared reserves a shared address with its owner, once for all networks of
// this host. A debt is stored before the owner is asked, so that whatever gets
// lost, the owner hears in the end that the reservation is over.
func (a *Allocator) holdShared(ctx context.Context, p *pool, addr netip.Addr, r record) error {
	pass, err := a.take(ctx, p)
	if err != nil {
		return err
	}
	defer pass()
	if again, err := a.holdAgain(p, addr); again || err != nil {
		return err
	}
	if err := a.settle(ctx, p, addr); err != nil {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	owner, ans, err := a.reserveAt(ctx, p, addr, &r)
	if err != nil {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	if ans.Refusal != "" {
		err = fmt.Errorf("address %s: %w", addr, a.refused(owner, ans.Refusal, ans.Holder, ans.Detail))
	}
	switch {
	case ans.Refusal == refusedLeased: // and the owner has stored that it refused
		return errors.Join(err, a.writeRecord(p, addr, nil))
	case err != nil: // a debt remains: the request may be on its way a second time
		return err
	}
	r.Count = 1
	return a.writeRecord(p, addr, &r)
}

// reserveAt asks the owner of addr, which may be this peer, for the reservation
// r. Where it is asked for is stored before, each time.
func (a *Allocator) reserveAt(ctx context.Context, p *pool, addr netip.Addr, r *record) (owner ring.Peer, ans answer, err error) {
	for range maxHops {
		if err := a.note(p, addr, r); err != nil {
			return "", answer{}, err
		}
		owner = r.At.Owner
		ans, err = a.ask(ctx, p, owner, request{Op: opReserve, Addr: addr, pinned: &r.At.Seed})
		if err != nil || ans.Refusal != refusedMoved && ans.Refusal != refusedSeeds {
			return owner, ans, err
		}
		if a.untaken(p, addr) {
			return owner, ans, errUntaken(addr)
		}
	}
	return owner, ans, errorf(ErrNoAnswer, "%s keeps changing its owner; try again", addr)
}

// note stores where the reservation r belongs now. Networks may have released
// the address meanwhile: the count that is stored stands.
func (a *Allocator) note(p *pool, addr netip.Addr, r *record) error {
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.mayLease(); err != nil {
		return err
	}
	current, ok := p.records[addr]
	if ok {
		r.Count = current.Count
	}
	r.At = a.place(p, addr)
	if ok && *r == current {
		return nil
	}
	return a.saveRecord(p, addr, r)
}

// place is where a reservation of addr belongs now. a.mu is held.
func (a *Allocator) place(p *pool, addr netip.Addr) at {
	w := at{Seed: p.ring.Seed(), Owner: a.ownerOf(p, addr), Self: a.cfg.Self}
	if t, _ := p.ring.Token(addr); t.Inherited() {
		w.Version = t.Version
	}
	return w
}

// holdAgain counts one more network for an address that this host holds.
func (a *Allocator) holdAgain(p *pool, addr netip.Addr) (done bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := p.records[addr]
	switch {
	case !ok || r.isDebt():
		return false, nil
	case r.Kind == KindLease:
		return false, errorf(ErrInUse, "address %s: in use on this host; choose another", addr)
	}
	r.Count++
	return true, a.saveRecord(p, addr, &r)
}

func (a *Allocator) writeRecord(p *pool, addr netip.Addr, r *record) error {
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.saveRecord(p, addr, r)
}

// displaced says whether the owner of a shared address does not know, or not for
// sure, that this host holds it. a.mu is held.
func (a *Allocator) displaced(p *pool, addr netip.Addr, r record) bool {
	return r.Asking || r.At != a.place(p, addr)
}

// void says whether a reservation of addr cannot exist any more where it was
// made: that host has dropped it, or will as soon as it hears, or gave the address
// away, as no host does with what is reserved. a.mu is held.
func (a *Allocator) void(p *pool, addr netip.Addr, w at) bool {
	return w.Seed != p.ring.Seed() || w.Self != a.cfg.Self || a.isRemoved(w.Owner) || w.Owner != a.ownerOf(p, addr)
}

// settle brings what the owner of addr knows into line: it pays a debt, or asks
// a new owner for the reservation that the former one had. The turn of p is held.
func (a *Allocator) settle(ctx context.Context, p *pool, addr netip.Addr) error {
	a.mu.Lock()
	r, ok := p.records[addr]
	void, displaced := a.void(p, addr, r.At), a.displaced(p, addr, r)
	a.mu.Unlock()
	switch {
	case !ok || r.Kind == KindLease:
		return nil
	case r.isDebt() && void:
		return a.writeRecord(p, addr, nil)
	case r.isDebt():
		return a.payDebt(ctx, p, addr, r)
	case displaced:
		return a.reserveAgain(ctx, p, addr, r)
	}
	return nil
}

func (a *Allocator) payDebt(ctx context.Context, p *pool, addr netip.Addr, r record) error {
	ans, err := a.ask(ctx, p, r.At.Owner, request{Op: opUnreserve, Addr: addr, pinned: &r.At.Seed})
	switch {
	case err != nil:
		return err
	case ans.Refusal == "" || ans.Refusal == refusedMoved: // reservations do not move
		return a.writeRecord(p, addr, nil)
	case ans.Refusal == refusedSeeds:
		return fmt.Errorf("pool %s has got another ring: %w", p.prefix, ErrNoAnswer)
	}
	return a.refused(r.At.Owner, ans.Refusal, ans.Holder, ans.Detail)
}

// reserveAgain leaves the address with the networks that hold it, even if its
// owner refuses: that is a Clash.
func (a *Allocator) reserveAgain(ctx context.Context, p *pool, addr netip.Addr, r record) error {
	r.Asking = true
	owner, ans, err := a.reserveAt(ctx, p, addr, &r)
	switch {
	case err != nil:
		return err
	case ans.Refusal == refusedLeased:
		a.clash(p, addr, holderOf(owner, ans.Holder))
		return nil
	case ans.Refusal != "":
		return a.refused(owner, ans.Refusal, ans.Holder, ans.Detail)
	}
	return a.confirm(p, addr)
}

// confirm notes that the owner agreed. Meanwhile networks may have released the
// address, or others taken it too.
func (a *Allocator) confirm(p *pool, addr netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := p.records[addr]
	if !ok || r.Kind == KindLease {
		return nil
	}
	r.Asking, r.Clash = false, nil
	return a.saveRecord(p, addr, &r)
}

// settleSoon tries once to bring owners up to date. What fails is left to Run.
func (a *Allocator) settleSoon(ctx context.Context, p *pool) {
	unsettled := a.unsettled(p)
	if len(unsettled) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, a.askTimeout)
	defer cancel()
	pass, err := a.take(ctx, p)
	if err != nil {
		return
	}
	defer pass()
	for _, addr := range unsettled {
		if err := a.settle(ctx, p, addr); err != nil {
			a.cfg.Log.WithError(err).WithField("pool", p.prefix).WithField("addr", addr).Debug("owner of a shared address does not know the latest yet")
		}
	}
}

// unsettled lists the shared addresses that owners must hear of.
func (a *Allocator) unsettled(p *pool) (addrs []netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for addr, r := range p.records {
		if r.Kind != KindLease && (r.isDebt() || a.displaced(p, addr, r)) {
			addrs = append(addrs, addr)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}
