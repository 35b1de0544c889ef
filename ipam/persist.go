package ipam

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"

	"weave/ipam/ring"
)

// Buckets of the Store, and their keys. Values are JSON.
//
//	ipam-rings    a pool: its ring; pool, space, address: who reserves that
//	              address; "heard", space, pool, space, peer: its last Serial;
//	              "held", space, pool, space, address: which removed peer's
//	              container has it
//	ipam-paxos    a decree; "electors", "floor"
//	ipam-removed  a peer
//	ipam-self     "self", "serials", "stale"
//	ipam-pools    a pool ID
//	ipam-leases   pool, space, address; "wish", space, pool, space, address
//
// Reservations are in one bucket with the rings: what a new ring makes void goes
// in the same write, else it could come back with the range; and what others hold
// in a range comes with it. Leases are not; the
// ring alone decides which are backed.
const (
	bucketRings   = "ipam-rings"
	bucketPaxos   = "ipam-paxos"
	bucketRemoved = "ipam-removed"
	bucketSelf    = "ipam-self"
	bucketPools   = "ipam-pools"
	bucketLeases  = "ipam-leases"
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

func (a *Allocator) saveRings(rings map[*pool]*ring.Ring) error { return a.saveInherited(rings, nil) }

// saveInherited stores, with rings, what ghosts have in own ranges there.
func (a *Allocator) saveInherited(rings map[*pool]*ring.Ring, ghosts map[netip.Prefix]map[netip.Addr]ring.Peer) error {
	changes := make(map[string][]byte, len(rings))
	held := make(map[*pool]map[netip.Addr]ring.Peer, len(rings))
	for p, r := range rings {
		all := maps.Clone(p.held)
		maps.Copy(all, ghosts[p.prefix])
		held[p] = a.heldUnder(p, r, all)
		p.addHeld(changes, held[p])
		changes[p.prefix.String()] = encode(r.Chunk())
		for _, addr := range p.voidUnder(a.cfg.Self, r) {
			changes[addressKey(p, addr)] = nil
		}
	}
	if err := a.cfg.Store.Apply(bucketRings, changes); err != nil {
		return fmt.Errorf("store rings: %w", err)
	}
	for p, r := range rings {
		a.pools[p.prefix] = p
		p.held = held[p]
		moved := p.setRing(a.cfg.Self, r)
		a.changed[p.prefix] = true
		if moved && len(p.unbacked(a.cfg.Self)) > 0 || r.Tokens() > a.scarceTokens {
			a.wake()
		}
	}
	return nil
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
		value = encode(r)
	}
	changes := map[string][]byte{addressKey(p, addr): value}
	for peer, serial := range heard {
		changes[keyHeard+p.prefix.String()+" "+string(peer)] = encode(serial)
	}
	if err := a.cfg.Store.Apply(bucketRings, changes); err != nil {
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
