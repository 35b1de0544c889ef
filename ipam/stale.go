package ipam

import (
	"encoding/json"
	"errors"
	"net/netip"

	"weave/ipam/ring"
)

// A host whose disk was put back to an earlier state, as from a snapshot of a
// virtual machine, does not know what it has given away and voted for since. It
// shows when gossip tells of a change in its ranges that nobody but it can have
// made. From then on it leases, gives and votes for nothing, in any pool, until
// it is a new peer: what others know of the old one is right.

const keyStale = "stale"

// stale is how that showed. It is void for another self.
type stale struct {
	Self ring.Peer    `json:"self"`
	Pool netip.Prefix `json:"pool"`
	From ring.Peer    `json:"from"` // who told
}

func (s stale) err() error {
	return errorf(ErrStale, "the disk of this host is older than what it has told others, as when a snapshot is restored; it gives out no address. "+
		"Stop weave here, run `weave rmpeer %s` on another host, and start weave again: it comes back as a new peer, and containers keep their addresses", s.Self)
}

// checkStale looks at why a ring was not learnt. a.mu is held.
func (a *Allocator) checkStale(pool netip.Prefix, from ring.Peer, err error) {
	if !errors.Is(err, ring.ErrOurs) || a.mayLease() != nil {
		return
	}
	a.stale = &stale{Self: a.cfg.Self, Pool: pool, From: from}
	log := a.cfg.Log.WithError(err).WithField("pool", pool).WithField("peer", from)
	log.Error(a.stale.err())
	if err := a.cfg.Store.Apply(bucketSelf, map[string][]byte{keyStale: encode(a.stale)}); err != nil {
		log.WithError(err).Warn("not stored that the disk of this host is too old")
	}
}

func (a *Allocator) loadStale(value []byte) error {
	var s stale
	if err := json.Unmarshal(value, &s); err != nil {
		return err
	}
	if s.Self == a.cfg.Self {
		a.stale = &s
	}
	return nil
}
