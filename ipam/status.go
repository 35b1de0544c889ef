package ipam

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"weave/ipam/ring"
)

// PoolStatus is one pool as seen here. Counts of addresses are at most the
// largest uint64.
type PoolStatus struct {
	Pool      netip.Prefix   `json:"pool"`
	Seed      string         `json:"seed,omitempty"`
	Owners    []OwnerStatus  `json:"owners,omitempty"`
	Leases    int            `json:"leases"`   // of containers on this host
	Shared    int            `json:"shared"`   // gateways and reserved addresses that this host holds
	Reserved  int            `json:"reserved"` // addresses of own ranges which somebody holds as such
	Free      uint64         `json:"free"`     // in own ranges
	Handles   []HandleStatus `json:"handles,omitempty"`
	Unbacked  int            `json:"unbacked,omitempty"`   // of Leases, those that other peers own and that are being claimed
	Conflicts []Clash        `json:"conflicts,omitempty"`  // addresses that are held here and elsewhere
	LeasesOff string         `json:"leases_off,omitempty"` // why no address is leased, if so
	Pieces    string         `json:"pieces,omitempty"`     // that the ring is in too many pieces, long before hosts give each other no more
}

// OwnerStatus is what one peer owns of a pool.
type OwnerStatus struct {
	Peer      ring.Peer `json:"peer"`
	Host      string    `json:"host"`
	Addresses uint64    `json:"addresses"`
	Ranges    int       `json:"ranges"`
}

// HandleStatus is a pool ID that Docker holds, with the number of requests.
type HandleStatus struct {
	ID   string `json:"id"`
	Refs int    `json:"refs"`
}

// Lease is an address that this host holds.
type Lease struct {
	PoolID string       `json:"pool_id"`
	Pool   netip.Prefix `json:"pool"`
	Addr   netip.Addr   `json:"addr"`
	Kind   Kind         `json:"kind"`
	// Backed is false while the owner of the address has not confirmed it.
	Backed bool `json:"backed"`
	// Since is when it was requested, or when the Allocator was made if that
	// was later. Reconciling spares young leases: Docker may not show their
	// container yet.
	Since time.Time `json:"since"`
}

// Status lists the pools that have a ring, in ascending order. Every pool that
// is held has one.
func (a *Allocator) Status() []PoolStatus {
	all := a.statuses()
	for _, s := range all {
		for i := range s.Owners {
			s.Owners[i].Host = a.name(s.Owners[i].Peer)
		}
	}
	return all
}

func (a *Allocator) statuses() (all []PoolStatus) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.sorted() {
		if p.ring != nil {
			all = append(all, a.status(p))
		}
	}
	return all
}

// status is all but the hosts' names. a.mu is held.
func (a *Allocator) status(p *pool) PoolStatus {
	s := PoolStatus{Pool: p.prefix, Seed: p.ring.Seed().String(), Reserved: len(p.reserved), Free: p.free.Count()}
	for _, owner := range p.ring.Owners() {
		o := OwnerStatus{Peer: owner}
		for _, r := range p.ring.Ranges(owner) {
			o.Ranges++
			if o.Addresses += r.Size(); o.Addresses < r.Size() {
				o.Addresses = ^uint64(0)
			}
		}
		s.Owners = append(s.Owners, o)
	}
	for _, r := range p.records {
		if r.Kind == KindLease {
			s.Leases++
		} else if !r.isDebt() {
			s.Shared++
		}
	}
	for _, id := range slices.Sorted(maps.Keys(a.handles)) {
		if h := a.handles[id]; h.pool == p.prefix {
			s.Handles = append(s.Handles, HandleStatus{ID: id, Refs: h.Refs})
		}
	}
	s.Unbacked = len(p.unbacked(a.cfg.Self))
	s.Conflicts = p.clashes(a.cfg.Self)
	if err := a.mayLease(); err != nil {
		s.LeasesOff = err.Error()
	}
	if n := p.ring.Tokens(); n > a.manyTokens {
		s.Pieces = fmt.Sprintf("addresses of pool %s are in %d ranges; from %d on, hosts get no more from each other: remove containers whose --ip is in the range of another host, or use another network",
			p.prefix, n, ring.GiveTokens)
	}
	return s
}

// Leases lists all addresses that this host holds, in ascending order.
func (a *Allocator) Leases() []Lease {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []Lease
	for _, p := range a.sorted() {
		for _, addr := range slices.SortedFunc(maps.Keys(p.records), netip.Addr.Compare) {
			if r := p.records[addr]; !r.isDebt() {
				all = append(all, Lease{PoolID: r.PoolID, Pool: p.prefix, Addr: addr, Kind: r.Kind, Since: r.since, Backed: a.backed(p, addr)})
			}
		}
	}
	return all
}

// backed says whether the owner of a held address knows of it. a.mu is held.
func (a *Allocator) backed(p *pool, addr netip.Addr) bool {
	if r := p.records[addr]; r.Kind != KindLease {
		return !a.displaced(p, addr, r)
	}
	return p.owner(addr) == a.cfg.Self
}

// sorted lists all pools in order. a.mu is held.
func (a *Allocator) sorted() []*pool {
	return slices.SortedFunc(maps.Values(a.pools), func(x, y *pool) int { return comparePrefixes(x.prefix, y.prefix) })
}

func comparePrefixes(x, y netip.Prefix) int {
	return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Bits(), y.Bits()))
}
