package ipam

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weave/ipam/ring"
)

const (
	keySelf       = "self"
	keySerials    = "serials"
	keyHeard      = "heard "
	maxFormer     = 16
	serialsAtOnce = 1 << 10 // so that few of them cost a write
)

// identity is whom this peer is and was before it was removed, the latest first.
type identity struct {
	Self   ring.Peer   `json:"self"`
	Former []ring.Peer `json:"former,omitempty"`
}

// load reads all buckets. Rings come before what refers to them, also in their
// own bucket, where the keys of all else have a space.
func (a *Allocator) load() error {
	for _, bucket := range []struct {
		name string
		load func(key string, value []byte) error
	}{
		{bucketSelf, a.loadSelf},
		{bucketRemoved, a.loadRemoved},
		{bucketRings, a.loadRing},
		{bucketPaxos, a.loadAcceptor},
		{bucketLeases, a.loadRecord},
		{bucketPools, a.loadHandle},
	} {
		values, err := a.cfg.Store.Load(bucket.name)
		if err != nil {
			return fmt.Errorf("load %s: %w", bucket.name, err)
		}
		depends := func(key string) int { return strings.Count(key, " ") }
		keys := slices.SortedFunc(maps.Keys(values), func(x, y string) int { return cmp.Compare(depends(x), depends(y)) })
		for _, key := range keys {
			if err := bucket.load(key, values[key]); err != nil {
				return fmt.Errorf("%w: bucket %s, key %q: %w", ErrCorrupt, bucket.name, key, err)
			}
		}
	}
	return a.rename()
}

func (a *Allocator) loadRing(key string, value []byte) error {
	if of, ok := strings.CutPrefix(key, keyHeard); ok {
		return a.loadHeard(of, value)
	}
	if of, ok := strings.CutPrefix(key, keyHeld); ok {
		return a.loadHeld(of, value)
	}
	if strings.Contains(key, " ") {
		return a.loadReservation(key, value)
	}
	c, err := ring.Decode(value)
	if err != nil {
		return err
	}
	r, err := ring.FromChunk(c)
	if err != nil {
		return err
	}
	p, err := a.loadPool(key)
	if err != nil {
		return err
	}
	if r.Pool() != p.prefix {
		return fmt.Errorf("ring of pool %s", r.Pool())
	}
	p.setRing(a.cfg.Self, r)
	return nil
}

func (a *Allocator) loadSelf(key string, value []byte) error {
	switch key {
	case keySerials: // those of the last run may have been used, all of them
		err := json.Unmarshal(value, &a.serials)
		a.serial = a.serials
		return err
	case keyStale:
		return a.loadStale(value)
	}
	var stored identity
	if err := json.Unmarshal(value, &stored); err != nil {
		return err
	}
	if key != keySelf || stored.Self == "" {
		return errors.New("no name of this peer")
	}
	a.stored = stored
	return nil
}

// rename notes who this peer is. A name other than the stored one is that of a
// host that was removed and re-joins: nothing is owned under it yet.
func (a *Allocator) rename() error {
	next := identity{Self: a.cfg.Self, Former: a.stored.Former}
	if a.stored.Self != a.cfg.Self && a.stored.Self != "" {
		next.Former = append([]ring.Peer{a.stored.Self}, next.Former...)
		next.Former = next.Former[:min(len(next.Former), maxFormer)]
	}
	a.former = next.Former
	if a.stored.Self == a.cfg.Self {
		return nil
	}
	if len(a.lost) > 0 {
		changes := map[string][]byte{}
		for _, key := range a.lost {
			changes[key] = nil
		}
		if err := a.cfg.Store.Apply(bucketRings, changes); err != nil {
			return fmt.Errorf("drop what was known of the ranges of a former name: %w", err)
		}
		a.lost = nil
	}
	if err := a.cfg.Store.Apply(bucketSelf, map[string][]byte{keySelf: encode(next), keyStale: nil}); err != nil {
		return fmt.Errorf("store the name of this peer: %w", err)
	}
	a.stored = next
	return nil
}

func (a *Allocator) loadRemoved(key string, value []byte) error {
	var i inheritance
	if err := json.Unmarshal(value, &i); err != nil {
		return err
	}
	a.removed[ring.Peer(key)] = i
	return i.check(ring.Peer(key), i.Round)
}

// loadReservation passes over those that this peer had before it was removed:
// rename is to delete them.
func (a *Allocator) loadReservation(key string, value []byte) error {
	p, addr, err := a.loadAddress(key)
	if err != nil {
		return err
	}
	var r reservation
	if err := json.Unmarshal(value, &r); err != nil {
		return err
	}
	switch {
	case len(r) == 0:
		return errors.New("held by nobody")
	case a.stored.Self != a.cfg.Self:
		a.lost = append(a.lost, key)
		return nil
	case p.owner(addr) != a.cfg.Self:
		return errors.New("reservation of an address that another peer owns")
	}
	slices.Sort(r)
	p.setReserved(a.cfg.Self, addr, r.without(a.isRemoved))
	return nil
}

func (a *Allocator) loadHeard(of string, value []byte) error {
	prefix, peer, _ := strings.Cut(of, " ")
	p, err := a.loadPool(prefix)
	if err != nil {
		return err
	}
	var serial uint64
	if err := json.Unmarshal(value, &serial); err != nil {
		return err
	}
	if peer == "" || serial == 0 || serial > maxSerial {
		return fmt.Errorf("serial %d of peer %q", serial, peer)
	}
	if !a.isRemoved(ring.Peer(peer)) {
		p.heard[ring.Peer(peer)] = serial
	}
	return nil
}

func (a *Allocator) loadRecord(key string, value []byte) error {
	if of, ok := strings.CutPrefix(key, keyWish); ok {
		return a.loadWish(of)
	}
	p, addr, err := a.loadAddress(key)
	if err != nil {
		return err
	}
	r := record{since: time.Now()}
	if err := json.Unmarshal(value, &r); err != nil {
		return err
	}
	switch {
	case !slices.Contains([]Kind{KindLease, KindGateway, KindReserved}, r.Kind) || r.Count < 0:
		return fmt.Errorf("kind %q, count %d", r.Kind, r.Count)
	case r.Kind == KindLease && p.reserved[addr] != nil:
		return errors.New("lease of a reserved address")
	}
	p.setRecord(a.cfg.Self, addr, &r)
	return nil
}

func (a *Allocator) loadHandle(key string, value []byte) error {
	h, err := parseHandle(key)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(value, &h); err != nil {
		return err
	}
	if p := a.pools[h.pool]; h.Refs < 1 || p == nil || p.ring == nil {
		return errors.New("no references, or no ring for this pool")
	}
	a.handles[key] = h
	return nil
}

// loadPool is the pool of a key, made if it is the first key that names it.
func (a *Allocator) loadPool(key string) (*pool, error) {
	prefix, err := netip.ParsePrefix(key)
	if err != nil {
		return nil, err
	}
	if p := a.pools[prefix]; p != nil {
		return p, nil
	}
	p, err := newPool(prefix)
	if err == nil {
		a.pools[prefix] = p
	}
	return p, err
}

func (a *Allocator) loadAddress(key string) (*pool, netip.Addr, error) {
	prefix, address, _ := strings.Cut(key, " ")
	p, err := a.loadPool(prefix)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	if p.ring == nil || !p.usable.Contains(addr) || addr.Zone() != "" {
		return nil, netip.Addr{}, errors.New("no ring for this pool, or address outside it")
	}
	return p, addr, nil
}
