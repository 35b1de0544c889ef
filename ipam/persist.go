package ipam

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"

	"weave/ipam/paxos"
	"weave/ipam/ring"
)

// Buckets of the Store. Keys are a pool ("ipam-rings"), a decree ("ipam-paxos"),
// a peer ("ipam-removed"), a pool ID ("ipam-pools"), pool, space, address
// ("ipam-leases", "ipam-reservations"), "heard", space, pool, space, peer
// ("ipam-reservations"), or "self" and "serials" ("ipam-self"). Values are JSON.
//
// A ring and what depends on it are in different buckets, so the ring alone
// decides: by it leases are backed or not, and reservations void or not.
const (
	bucketRings        = "ipam-rings"
	bucketPaxos        = "ipam-paxos"
	bucketRemoved      = "ipam-removed"
	bucketSelf         = "ipam-self"
	bucketPools        = "ipam-pools"
	bucketLeases       = "ipam-leases"
	bucketReservations = "ipam-reservations"
)

// encode cannot fail for the types of this package.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("ipam: " + err.Error())
	}
	return b
}

func addressKey(p *pool, addr netip.Addr) string { return p.prefix.String() + " " + addr.String() }

// The save functions store a change and then use it. a.mu is held.

func (a *Allocator) saveRings(rings map[*pool]*ring.Ring) error {
	changes := make(map[string][]byte, len(rings))
	for p, r := range rings {
		changes[p.prefix.String()] = encode(r.Chunk())
	}
	if err := a.cfg.Store.Apply(bucketRings, changes); err != nil {
		return fmt.Errorf("store rings: %w", err)
	}
	for p, r := range rings {
		a.pools[p.prefix] = p
		moved, void := p.setRing(a.cfg.Self, r)
		a.changed[p.prefix] = true
		a.dropVoid(p, void)
		if moved && len(p.unbacked(a.cfg.Self)) > 0 {
			a.wake()
		}
	}
	return nil
}

// dropVoid forgets reservations that have no meaning any more. What stays on
// disk is passed over when it is loaded.
func (a *Allocator) dropVoid(p *pool, addrs []netip.Addr) {
	if len(addrs) == 0 {
		return
	}
	changes := map[string][]byte{}
	for _, addr := range addrs {
		changes[addressKey(p, addr)] = nil
	}
	if err := a.cfg.Store.Apply(bucketReservations, changes); err != nil {
		a.cfg.Log.WithError(err).WithField("pool", p.prefix).Warn("void reservations stay on disk")
	}
}

// saveRecords stores the records of some addresses of p; nil deletes.
func (a *Allocator) saveRecords(p *pool, records map[netip.Addr]*record) error {
	changes := make(map[string][]byte, len(records))
	for addr, r := range records {
		changes[addressKey(p, addr)] = nil
		if r != nil {
			changes[addressKey(p, addr)] = encode(r)
		}
	}
	if err := a.cfg.Store.Apply(bucketLeases, changes); err != nil {
		return fmt.Errorf("store leases of pool %s: %w", p.prefix, err)
	}
	for addr, r := range records {
		p.setRecord(a.cfg.Self, addr, r)
	}
	a.changed[p.prefix] = true
	return nil
}

func (a *Allocator) saveRecord(p *pool, addr netip.Addr, r *record) error {
	return a.saveRecords(p, map[netip.Addr]*record{addr: r})
}

// saveReserved stores who holds addr, and what was heard of those who asked.
func (a *Allocator) saveReserved(p *pool, addr netip.Addr, r reservation, heard map[ring.Peer]uint64) error {
	var value []byte
	if len(r) > 0 {
		value = encode(reservationOnDisk{p.ring.Seed(), r})
	}
	changes := map[string][]byte{addressKey(p, addr): value}
	for peer, serial := range heard {
		changes[keyHeard+p.prefix.String()+" "+string(peer)] = encode(serial)
	}
	if err := a.cfg.Store.Apply(bucketReservations, changes); err != nil {
		return fmt.Errorf("store reservation of %s: %w", addr, err)
	}
	p.setReserved(a.cfg.Self, addr, r)
	maps.Copy(p.heard, heard)
	a.changed[p.prefix] = true
	return nil
}

// saveSerials allows this peer to use Serials up to the given one.
func (a *Allocator) saveSerials(upTo uint64) error {
	if err := a.cfg.Store.Apply(bucketSelf, map[string][]byte{keySerials: encode(upTo)}); err != nil {
		return fmt.Errorf("store serials of requests: %w", err)
	}
	a.serials = upTo
	return nil
}

func (a *Allocator) saveAcceptor(key string, s paxos.State) error {
	if _, known := a.acceptors[key]; !known && len(a.acceptors) >= maxPools+maxRemoved {
		return fmt.Errorf("agreement on %s: more than %d of them: %w", key, len(a.acceptors), ErrFull)
	}
	if err := a.cfg.Store.Apply(bucketPaxos, map[string][]byte{key: encode(s)}); err != nil {
		return fmt.Errorf("store agreement on %s: %w", key, err)
	}
	a.acceptors[key] = s
	return nil
}

func (a *Allocator) saveRemoved(more removed) error {
	changes := map[string][]byte{}
	for p, i := range more {
		changes[string(p)] = encode(i)
	}
	if err := a.cfg.Store.Apply(bucketRemoved, changes); err != nil {
		return fmt.Errorf("store removed peers: %w", err)
	}
	maps.Copy(a.removed, more)
	return nil
}

func (a *Allocator) saveHandle(h handle) error {
	var value []byte
	if h.Refs > 0 {
		value = encode(h)
	}
	if err := a.cfg.Store.Apply(bucketPools, map[string][]byte{h.id(): value}); err != nil {
		return fmt.Errorf("store pool %s: %w", h.id(), err)
	}
	if h.Refs > 0 {
		a.handles[h.id()] = h
	} else {
		delete(a.handles, h.id())
	}
	return nil
}
