package ipam

import (
	"fmt"
	"net/netip"
	"time"
)

// A wish is an address that somebody named for a container of this host. Docker
// gives it back when the container, or the whole engine, stops, and asks for it
// again when they start, maybe after containers that take any address. So who
// takes any gets those that nobody wished for first.

const (
	keyWish   = "wish "
	maxWishes = 1 << 10 // in one pool; what is beyond them is not kept free
)

func wishKey(p *pool, addr netip.Addr) string { return keyWish + addressKey(p, addr) }

// saveWished stores the lease of an address that was asked for by name. a.mu is
// held.
func (a *Allocator) saveWished(p *pool, h handle, addr netip.Addr) error {
	lease := record{Kind: KindLease, PoolID: h.id(), since: time.Now()}
	if p.wishes[addr] || len(p.wishes) >= maxWishes {
		return a.saveRecord(p, addr, &lease)
	}
	changes := map[string][]byte{addressKey(p, addr): encode(lease), wishKey(p, addr): encode(true)}
	if err := a.cfg.Store.Apply(bucketLeases, changes); err != nil {
		return fmt.Errorf("store lease of pool %s: %w", p.prefix, err)
	}
	p.wishes[addr] = true
	p.setRecord(a.cfg.Self, addr, &lease)
	a.changed[p.prefix] = true
	return nil
}

// dropWishes forgets the wishes in a pool that this host has no network of any
// more. a.mu is held.
func (a *Allocator) dropWishes(p *pool) error {
	if len(p.wishes) == 0 {
		return nil
	}
	changes := make(map[string][]byte, len(p.wishes))
	for addr := range p.wishes {
		changes[wishKey(p, addr)] = nil
	}
	if err := a.cfg.Store.Apply(bucketLeases, changes); err != nil {
		return fmt.Errorf("store leases of pool %s: %w", p.prefix, err)
	}
	clear(p.wishes)
	return nil
}

func (a *Allocator) loadWish(of string) error {
	p, addr, err := a.loadAddress(of)
	if err == nil {
		p.wishes[addr] = true
	}
	return err
}

// nextUnwished is the next free address from the cursor onwards that nobody
// wished for.
func (p *pool) nextUnwished(h handle) (netip.Addr, bool) {
	first, ok := p.free.Next(h.within, p.cursors[h.sub])
	for addr := first; ok; {
		if !p.wishes[addr] {
			return addr, true
		}
		if addr, ok = p.free.Next(h.within, addr.Next()); addr == first {
			break
		}
	}
	return netip.Addr{}, false
}
