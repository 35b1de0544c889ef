package ipam

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"

	"weave/ipam/ring"
)

const maxOwners = 1 << 12

// founding is the value that peers agree upon: all who learn it make the same
// ring.
type founding struct {
	Seed   ring.SeedID `json:"seed"`
	Owners []ring.Peer `json:"owners"`
}

func decodeFounding(pool netip.Prefix, value []byte) (*ring.Ring, error) {
	var f founding
	if err := decode(value, maxMessage, &f); err != nil {
		return nil, err
	}
	if len(f.Owners) > maxOwners {
		return nil, fmt.Errorf("%d first owners of pool %s: %w", len(f.Owners), pool, ErrInvalid)
	}
	return ring.New(pool, f.Seed, f.Owners)
}

// founders is the value that this peer proposes: all alive peers.
func (a *Allocator) founders(e electorate) []byte {
	f := founding{Owners: []ring.Peer{a.cfg.Self}}
	for p := range e.alive {
		f.Owners = append(f.Owners, p)
	}
	slices.Sort(f.Owners)
	f.Owners = f.Owners[:min(len(f.Owners), maxOwners)]
	_, _ = rand.Read(f.Seed[:]) // never fails
	return encode(f)
}

// ensureRing sees to it that the pool has a ring; ours says that it was made on
// this peer's proposal just now.
func (a *Allocator) ensureRing(ctx context.Context, prefix netip.Prefix) (ours bool, err error) {
	a.mu.Lock()
	p, err := a.poolOf(prefix)
	if err == nil && p.ring == nil {
		err = a.mayLease()
	}
	if err == nil {
		a.pools[prefix] = p
		p.seeking++
	}
	a.mu.Unlock()
	if err != nil {
		return false, err
	}
	defer a.sought(p)
	pass, err := a.take(ctx, p)
	if err != nil {
		return false, err
	}
	defer pass()
	return a.agree(ctx, a.seeding(p))
}

// Prime has the peers agree on the first owners of a pool, and gets this one
// space of it, so that no container has to wait for that. It returns how many
// addresses are free here then.
func (a *Allocator) Prime(ctx context.Context, prefix netip.Prefix) (free uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	h, err := newHandle(prefix, netip.Prefix{})
	if err != nil {
		return 0, err
	}
	if _, err := a.ensureRing(ctx, prefix); err != nil {
		return 0, err
	}
	a.mu.Lock()
	p := a.pools[prefix]
	a.mu.Unlock()
	err = a.withSpace(ctx, p, h, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if err := a.mayLease(); err != nil {
			return err
		}
		if free = p.free.Count(); free == 0 {
			return ErrFull
		}
		return nil
	})
	return free, err
}

// sought ends what ensureRing began.
func (a *Allocator) sought(p *pool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.seeking--; p.seeking == 0 && p.ring == nil {
		delete(a.pools, p.prefix)
		delete(a.changed, p.prefix)
	}
}

// seeding is the agreement on the first owners of p.
func (a *Allocator) seeding(p *pool) decree {
	return decree{
		key:        p.prefix.String(),
		electorate: func() electorate { return a.electorate("", a.cfg.Cluster.Unmet()) },
		propose:    a.founders,
		settled:    func() bool { return a.hasRing(p) },
		decide:     func(value []byte) (bool, error) { return a.found(p, value) },
		disagree: func(e electorate, silent []string) error {
			if len(silent)+len(e.unmet) == 0 {
				return errorf(ErrNoAgreement, "pool %s: other hosts are starting it too; try again", p.prefix)
			}
			err := errorf(ErrNoAgreement, "pool %s is new, and a majority (%d of %d hosts) must agree who starts with it%s",
				p.prefix, e.quorum, e.size(), waitedFor(e, silent))
			a.noteStuck(p, err)
			return err
		},
		ask: func(ctx context.Context, to ring.Peer, req request) (answer, error) { return a.ask(ctx, p, to, req) },
	}
}

func (a *Allocator) hasRing(p *pool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return p.ring != nil
}

// found makes the ring of a decided value and tells everybody. The ring of
// another cluster may have come meanwhile, and stand.
func (a *Allocator) found(p *pool, value []byte) (stands bool, err error) {
	r, err := decodeFounding(p.prefix, value)
	if err != nil {
		return false, fmt.Errorf("decided owners of pool %s: %w", p.prefix, err)
	}
	if err := a.learn(a.cfg.Self, gossip{Rings: []ring.Chunk{r.Chunk()}}); err != nil {
		return false, err
	}
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deltas = append(a.deltas, gossip{Rings: []ring.Chunk{p.ring.Chunk()}})
	a.cfg.Log.WithField("pool", p.prefix).WithField("owners", len(p.ring.Owners())).Info("pool has its first owners")
	return p.ring.Seed() == r.Seed(), nil
}
