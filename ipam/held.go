package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weave/ipam/ring"
)

// What containers of removed peers hold, as they announced, is leased to nobody.
// The announcements are nowhere but in memory, and who made them makes them no
// more: so those in own ranges, and in ranges to be inherited, are also stored,
// at the latest with the ring that brings the range, until the containers are
// known to be gone.

const (
	keyHeld = "held "
	maxHeld = 1 << 16 // in one pool
)

// heldElsewhere says which other host's container has addr, as far as is known:
// one that is announced, or a removed peer's, or one that is not announced since
// its claim was refused. a.mu is not held.
func (a *Allocator) heldElsewhere(pool netip.Prefix, addr netip.Addr) (holder ring.Peer, held bool) {
	if a.cfg.Held != nil {
		holder, held = a.cfg.Held(pool, addr)
		if held && holder != a.cfg.Self && !slices.Contains(a.former, holder) {
			return holder, true
		}
	}
	ghost, claimer := a.unannounced(pool, addr)
	if ghost != "" && !a.gone(ghost) {
		return ghost, true
	}
	return claimer, claimer != ""
}

func (a *Allocator) unannounced(pool netip.Prefix, addr netip.Addr) (ghost, claimer ring.Peer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pools[pool]
	if p == nil {
		return "", ""
	}
	if c := p.refused[addr]; c.lasts() {
		claimer = c.by
	}
	return p.held[addr], claimer
}

// holders lists who has which address of a pool; see heldElsewhere. a.mu is not
// held.
func (a *Allocator) holders(pool netip.Prefix) map[netip.Addr]ring.Peer {
	all, ghosts := map[netip.Addr]ring.Peer{}, map[netip.Addr]ring.Peer{}
	a.mu.Lock()
	if p := a.pools[pool]; p != nil {
		maps.Copy(ghosts, p.held)
		for addr, c := range p.refused {
			if c.lasts() {
				all[addr] = c.by
			}
		}
	}
	a.mu.Unlock()
	for addr, ghost := range ghosts {
		if !a.gone(ghost) {
			all[addr] = ghost
		}
	}
	if a.cfg.Holders != nil {
		maps.Copy(all, a.cfg.Holders(pool))
	}
	return all
}

func (a *Allocator) gone(p ring.Peer) bool { return a.cfg.Gone != nil && a.cfg.Gone(p) }

// ghosts are the addresses of a pool that containers of removed peers have.
// a.mu is not held.
func (a *Allocator) ghosts(pool netip.Prefix) map[netip.Addr]ring.Peer {
	all := a.holders(pool)
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ghostsAmong(all)
}

// ghostsAmong leaves of holders those who are removed peers. a.mu is held.
func (a *Allocator) ghostsAmong(holders map[netip.Addr]ring.Peer) map[netip.Addr]ring.Peer {
	maps.DeleteFunc(holders, func(_ netip.Addr, holder ring.Peer) bool {
		return !a.isRemoved(holder) || slices.Contains(a.former, holder)
	})
	return holders
}

// keepHeld brings what is stored of ghosts into line with what is known.
func (a *Allocator) keepHeld() error {
	a.mu.Lock()
	gone := slices.Collect(maps.Keys(a.removed))
	a.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	gone = slices.DeleteFunc(gone, func(p ring.Peer) bool { return !a.gone(p) })
	var errs []error
	for _, p := range a.allPools() {
		errs = append(errs, a.mergeHeld(p, a.ghosts(p.prefix), gone))
	}
	return errors.Join(errs...)
}

func (a *Allocator) mergeHeld(p *pool, ghosts map[netip.Addr]ring.Peer, gone []ring.Peer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.ring == nil {
		return nil
	}
	next := maps.Clone(p.held)
	maps.DeleteFunc(next, func(_ netip.Addr, holder ring.Peer) bool { return slices.Contains(gone, holder) })
	maps.Copy(next, ghosts)
	return a.saveHeld(p, a.heldUnder(p, p.ring, next))
}

// heldUnder are those ghosts that lie in ranges which this peer has in r, or is
// to inherit. a.mu is held.
func (a *Allocator) heldUnder(p *pool, r *ring.Ring, ghosts map[netip.Addr]ring.Peer) map[netip.Addr]ring.Peer {
	held := map[netip.Addr]ring.Peer{}
	for addr, holder := range ghosts {
		owner, _ := r.Owner(addr)
		heir, _ := a.heirOf(owner)
		if (owner == a.cfg.Self || heir == a.cfg.Self) && p.usable.Contains(addr) && len(held) < maxHeld {
			held[addr] = holder
		}
	}
	return held
}

// addHeld adds to changes what makes next of what is stored for p.
func (p *pool) addHeld(changes map[string][]byte, next map[netip.Addr]ring.Peer) {
	for addr := range p.held {
		if next[addr] == "" {
			changes[heldKey(p, addr)] = nil
		}
	}
	for addr, holder := range next {
		if p.held[addr] != holder {
			changes[heldKey(p, addr)] = encode(holder)
		}
	}
}

func heldKey(p *pool, addr netip.Addr) string { return keyHeld + addressKey(p, addr) }

// saveHeld stores which addresses of p ghosts have. a.mu is held.
func (a *Allocator) saveHeld(p *pool, next map[netip.Addr]ring.Peer) error {
	changes := map[string][]byte{}
	if p.addHeld(changes, next); len(changes) == 0 {
		return nil
	}
	if err := a.cfg.Store.Apply(bucketRings, changes); err != nil {
		return fmt.Errorf("store what containers of removed peers hold in pool %s: %w", p.prefix, err)
	}
	p.held = next
	return nil
}

// loadHeld takes what is not of own ranges any more, too: it does no harm, and
// keepHeld deletes it. What a former name had is rename's to delete.
func (a *Allocator) loadHeld(of string, value []byte) error {
	p, addr, err := a.loadAddress(of)
	if err != nil {
		return err
	}
	var holder ring.Peer
	if err := json.Unmarshal(value, &holder); err != nil {
		return err
	}
	switch {
	case !a.isRemoved(holder):
		return fmt.Errorf("held by %q, which was not removed", holder)
	case a.stored.Self != a.cfg.Self:
		a.lost = append(a.lost, keyHeld+of)
	default:
		p.held[addr] = holder
	}
	return nil
}
