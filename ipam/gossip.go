package ipam

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weave/ipam/ring"
)

const (
	tokenSize     = 96        // rough size of a token in JSON, for bounds
	digestRemoved = "removed" // key of the removed peers in a digest; the others are pools
)

// gossip is what Broadcast, Missing and Merge carry, in JSON.
type gossip struct {
	Rings   []ring.Chunk `json:"rings,omitempty"`
	Removed removed      `json:"removed,omitempty"`
}

// Digest is a short form of all rings and of who was removed: equal digests,
// equal state.
func (a *Allocator) Digest() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return encode(a.digests())
}

// digests are those of each pool, and of the removed peers. a.mu is held.
func (a *Allocator) digests() map[string]string {
	digests := map[string]string{}
	for prefix, p := range a.pools {
		if p.ring != nil {
			digest := p.ring.Digest()
			digests[prefix.String()] = hex.EncodeToString(digest[:])
		}
	}
	if len(a.removed) > 0 {
		digest := sha256.Sum256(encode(a.removed)) // maps are encoded in order
		digests[digestRemoved] = hex.EncodeToString(digest[:8])
	}
	return digests
}

// Missing is for Merge by a peer with that digest: the whole rings of all pools
// that differ. What does not fit one message follows after the next digest. It
// is nil if nothing differs or the digest cannot be read.
func (a *Allocator) Missing(digest []byte) []byte {
	if g := a.missing(digest, maxDelta/2); g != nil {
		return encode(g)
	}
	return nil
}

func (a *Allocator) missing(digest []byte, limit int) *gossip {
	var theirs map[string]string
	if decode(digest, maxDelta, &theirs) != nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	ours := a.digests()
	var g gossip
	if ours[digestRemoved] != theirs[digestRemoved] {
		g.Removed = maps.Clone(a.removed)
	}
	delete(ours, digestRemoved)
	size := 0
	for _, key := range slices.Sorted(maps.Keys(ours)) {
		if ours[key] == theirs[key] {
			continue
		}
		c := a.pools[netip.MustParsePrefix(key)].ring.Chunk()
		if size += tokenSize * (len(c.Tokens) + 2); size > limit {
			break
		}
		g.Rings = append(g.Rings, c)
	}
	if len(g.Rings)+len(g.Removed) == 0 {
		return nil
	}
	return &g
}

// Merge learns what another peer sent. Rings that are good are kept even if
// others in the message are not; the error tells about the latter. It is
// ring.ErrGap if a broadcast came before what it builds upon: pull then.
func (a *Allocator) Merge(from ring.Peer, delta []byte) error {
	var g gossip
	if err := decode(delta, maxDelta, &g); err != nil {
		return fmt.Errorf("rings from host %s: %w", a.name(from), err)
	}
	if len(g.Rings) > maxPools {
		return fmt.Errorf("%d rings from host %s: %w", len(g.Rings), a.name(from), ErrInvalid)
	}
	return a.learn(from, g)
}

// learn merges what another peer knows, stores all rings that changed at once,
// and uses it. Of two rings that clusters apart made for one pool, the one with
// the smaller seed stays.
func (a *Allocator) learn(from ring.Peer, g gossip) error {
	host := a.name(from)
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	errs := []error{a.learnRemoved(g.Removed)}
	pools, rings := map[netip.Prefix]*pool{}, map[*pool]*ring.Ring{}
	for _, c := range g.Rings {
		p, err := a.poolOf(c.Pool)
		if known := pools[c.Pool]; known != nil {
			p = known
		}
		if err == nil {
			pools[c.Pool] = p
			err = a.merge(p, rings, c)
		}
		if err != nil {
			a.checkStale(c.Pool, from, err)
			errs = append(errs, fmt.Errorf("from host %s: %w", host, err))
		}
	}
	errs = append(errs, a.useRings(host, rings))
	return errors.Join(errs...)
}

// merge puts the merged ring of p into rings if c changes it. a.mu is held.
func (a *Allocator) merge(p *pool, rings map[*pool]*ring.Ring, c ring.Chunk) error {
	current := rings[p]
	if current == nil {
		current = p.ring
	}
	var next *ring.Ring
	var err error
	switch {
	case current == nil || c.Seed.Compare(current.Seed()) < 0:
		next, err = ring.FromChunk(c)
	case c.Seed != current.Seed():
		return nil // it loses; whoever sent it will hear of ours
	default:
		next, err = current.Merge(a.cfg.Self, c)
	}
	if err == nil && next != current {
		rings[p] = next
	}
	return err
}

// useRings stores rings that were learnt. a.mu is held.
func (a *Allocator) useRings(host string, rings map[*pool]*ring.Ring) error {
	if len(rings) == 0 {
		return nil
	}
	var replaced []*pool
	for p, r := range rings {
		if p.ring != nil && p.ring.Seed() != r.Seed() {
			replaced = append(replaced, p)
		}
		if a.inherits(r) {
			a.wake() // it is Run's to ask the others first
		}
	}
	if err := a.saveRings(rings); err != nil {
		return err
	}
	for _, p := range replaced {
		a.cfg.Log.WithField("pool", p.prefix).WithField("peer", host).WithField("leases", len(p.unbacked(a.cfg.Self))).
			Warn("another cluster had started this pool too, and its ring stays: our leases are claimed from its owners")
	}
	return nil
}

// poolOf is a pool that may not be in a.pools yet: it gets there with what is
// first stored of it. a.mu is held.
func (a *Allocator) poolOf(prefix netip.Prefix) (*pool, error) {
	if p := a.pools[prefix]; p != nil {
		return p, nil
	}
	if len(a.pools) >= maxPools {
		return nil, fmt.Errorf("pool %s: more than %d pools: %w", prefix, maxPools, ErrFull)
	}
	return newPool(prefix)
}
