package ipam

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"weave/ipam/ring"
	"weave/ipam/space"
)

// Bounds of pools. Smaller ones have no address for a container to spare.
const (
	minBits4, maxBits4 = 8, 30
	minBits6, maxBits6 = 16, 126
)

// record is an address that this peer holds. A shared one (gateway, reserved)
// with Count 0 is a debt: its owner may still have a reservation for us, and
// must hear that it is over.
type record struct {
	Kind   Kind      `json:"kind"`
	PoolID string    `json:"pool_id"`
	At     at        `json:"at,omitzero"`      // where it was asked for
	Asking bool      `json:"asking,omitempty"` // the owner has not agreed yet, though Count networks hold it
	Count  int       `json:"count,omitempty"`  // networks here that hold a shared address
	Clash  *clash    `json:"clash,omitempty"`  // who holds the address too
	since  time.Time // this run's time of the lease; of the start for older ones
}

// at is where a reservation is: it is void under another seed, with another
// owner, and for another self. A range may come back to an heir that had lost it
// to a gift of a removed peer: so of what was inherited also the version counts,
// which is another one then.
type at struct {
	Seed    ring.SeedID `json:"seed"`
	Owner   ring.Peer   `json:"owner"`
	Self    ring.Peer   `json:"self"`
	Version uint64      `json:"version,omitempty"`
}

func (r record) isDebt() bool { return r.Kind != KindLease && r.Count == 0 }

// reservation is a shared address of an own range: the peers that hold it, in
// ascending order.
type reservation []ring.Peer

// with and without leave r as it is.
func (r reservation) with(p ring.Peer) reservation {
	next := append(slices.Clone(r), p)
	slices.Sort(next)
	return slices.Compact(next)
}

func (r reservation) without(gone func(ring.Peer) bool) reservation {
	return slices.DeleteFunc(slices.Clone(r), gone)
}

// pool is all that this peer knows of one pool.
type pool struct {
	prefix netip.Prefix
	usable space.Range
	turn   chan struct{} // holds one token; taken while peers are asked

	// Guarded by Allocator.mu.
	ring      *ring.Ring // nil until known
	records   map[netip.Addr]record
	reserved  map[netip.Addr]reservation
	heard     map[ring.Peer]uint64        // the highest Serial of each peer that asked for reservations
	refused   map[netip.Addr]refusedClaim // lost with a restart, and soon repeated
	held      map[netip.Addr]ring.Peer    // by containers of removed peers; see held.go
	wishes    map[netip.Addr]bool         // asked for by name, leased or not
	free      space.Set                   // own and usable, neither recorded nor reserved
	cursors   map[netip.Prefix]netip.Addr // by sub-pool: where the next search starts; lost with a restart
	published uint64                      // free addresses that the Cluster knows of
	seeking   int                         // requests that want a first ring; with the last of them goes a pool that got none
	stuck     error                       // why the latest request that had the turn got no further; nil if it did
}

func newPool(prefix netip.Prefix) (*pool, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, err
	}
	usable, err := space.Usable(prefix)
	if err != nil {
		return nil, err
	}
	return &pool{
		prefix:   prefix,
		usable:   usable,
		turn:     make(chan struct{}, 1),
		records:  map[netip.Addr]record{},
		reserved: map[netip.Addr]reservation{},
		heard:    map[ring.Peer]uint64{},
		refused:  map[netip.Addr]refusedClaim{},
		held:     map[netip.Addr]ring.Peer{},
		wishes:   map[netip.Addr]bool{},
		cursors:  map[netip.Prefix]netip.Addr{},
	}, nil
}

// checkPrefix says whether p can be a pool, and if not, what could.
func checkPrefix(p netip.Prefix) error {
	if !p.IsValid() || p.Addr().Is4In6() {
		return errorf(ErrInvalid, "subnet %s: not a prefix of IPv4 or IPv6", p)
	}
	if p != p.Masked() {
		return errorf(ErrInvalid, "subnet %s has bits set beyond its mask; use %s", p, p.Masked())
	}
	least, most := minBits6, maxBits6
	if p.Addr().Is4() {
		least, most = minBits4, maxBits4
	}
	if p.Bits() < least || p.Bits() > most {
		return errorf(ErrInvalid, "subnet %s: use a mask from /%d to /%d", p, least, most)
	}
	return nil
}

// take waits for the turn of p; give it back by calling pass. Who waits in vain
// is told what is in the way of those before it.
func (a *Allocator) take(ctx context.Context, p *pool) (pass func(), err error) {
	select {
	case p.turn <- struct{}{}:
		return func() { <-p.turn }, nil
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	kind := ErrNoAnswer
	switch {
	case p.stuck != nil:
		return nil, p.stuck
	case p.ring == nil:
		kind = ErrNoAgreement
	}
	return nil, errorf(kind, "pool %s: other requests are still waiting for answers of hosts; try again", p.prefix)
}

// noteStuck notes for those who wait for the turn what is in the way.
func (a *Allocator) noteStuck(p *pool, why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p.stuck = why
}

// replacedBy says whether r is the ring of another cluster.
func (p *pool) replacedBy(r *ring.Ring) bool { return p.ring != nil && p.ring.Seed() != r.Seed() }

// voidUnder lists the reservations that have no meaning under r: those in ranges
// that this peer has lost there, and all if the ring is another cluster's.
func (p *pool) voidUnder(self ring.Peer, r *ring.Ring) (void []netip.Addr) {
	for addr := range p.reserved {
		if owner, _ := r.Owner(addr); p.replacedBy(r) || owner != self {
			void = append(void, addr)
		}
	}
	return void
}

// setRing uses a ring that is stored. moved says that this peer owns something
// else than before.
func (p *pool) setRing(self ring.Peer, r *ring.Ring) (moved bool) {
	same := p.ring != nil && !p.replacedBy(r) && slices.Equal(p.ring.Ranges(self), r.Ranges(self))
	for _, addr := range p.voidUnder(self, r) {
		delete(p.reserved, addr)
	}
	p.ring, p.stuck = r, nil
	if same {
		return false
	}
	p.free = space.Set{}
	for _, own := range r.Ranges(self) {
		if own, ok := own.Intersect(p.usable); ok {
			p.free.Add(own)
		}
	}
	for addr := range p.records {
		p.free.Remove(space.Single(addr))
	}
	for addr := range p.reserved {
		p.free.Remove(space.Single(addr))
	}
	return true
}

// nextFree is the next free address from the cursor onwards.
func (p *pool) nextFree(h handle) (netip.Addr, bool) { return p.free.Next(h.within, p.cursors[h.sub]) }

// setRecord uses a record that is stored; nil removes it.
func (p *pool) setRecord(self ring.Peer, addr netip.Addr, r *record) {
	if r == nil {
		delete(p.records, addr)
	} else {
		p.records[addr] = *r
	}
	p.refresh(self, addr)
}

// setReserved uses a reservation that is stored; an empty one removes it.
func (p *pool) setReserved(self ring.Peer, addr netip.Addr, r reservation) {
	if len(r) == 0 {
		delete(p.reserved, addr)
	} else {
		p.reserved[addr] = r
	}
	p.refresh(self, addr)
}

// refresh puts addr into the free set, or takes it out.
func (p *pool) refresh(self ring.Peer, addr netip.Addr) {
	_, recorded := p.records[addr]
	_, reserved := p.reserved[addr]
	if p.owner(addr) == self && p.usable.Contains(addr) && !recorded && !reserved {
		p.free.Add(space.Single(addr))
		return
	}
	p.free.Remove(space.Single(addr))
}

// owner is the owner of addr, or nobody while there is no ring.
func (p *pool) owner(addr netip.Addr) ring.Peer {
	if p.ring == nil {
		return ""
	}
	owner, _ := p.ring.Owner(addr)
	return owner
}

// chunk is the ring as it travels, nil if there is none.
func (p *pool) chunk() *ring.Chunk {
	if p.ring == nil {
		return nil
	}
	c := p.ring.Chunk()
	return &c
}

// unpublished is the count of free addresses, and whether it is news.
func (p *pool) unpublished() (count uint64, changed bool) {
	count = p.free.Count()
	changed = count != p.published
	p.published = count
	return count, changed
}
