package ipam

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"weave/ipam/paxos"
	"weave/ipam/ring"
)

// What an acceptor must not forget is kept for each decree until the outcome is
// known here: from then on that is the answer. Of those that come to nothing,
// as creates in a minority do, only the highest promise is kept for all of them:
// to promise too much is always safe, and the next round has a higher ballot.

const (
	keyElectors  = "electors"
	keyFloor     = "floor"
	tidyDecrees  = 1 << 12 // from that many on, what can be forgotten is
	maxDecrees   = maxPools + maxRemoved
	highestFloor = 1 << 40 // no honest promise gets there
)

// acceptor is the state for a decree. a.mu is held.
func (a *Allocator) acceptor(key string) paxos.State {
	if s, known := a.acceptors[key]; known {
		return s
	}
	return paxos.State{Promised: paxos.Ballot{N: a.floor}}
}

// saveAcceptor keeps with the state of an acceptor the electors of the round.
func (a *Allocator) saveAcceptor(key string, s paxos.State, electors []ring.Peer) error {
	if _, known := a.acceptors[key]; !known && len(a.acceptors) >= a.tidyDecrees {
		if err := a.forgetDecrees(); err != nil {
			return err
		}
		if len(a.acceptors) >= maxDecrees {
			return fmt.Errorf("agreement on %s: more than %d of them: %w", key, len(a.acceptors), ErrFull)
		}
	}
	if err := a.applyPaxos(map[string][]byte{key: encode(s)}, electors); err != nil {
		return fmt.Errorf("store agreement on %s: %w", key, err)
	}
	a.acceptors[key] = s
	return nil
}

// forgetDecrees drops those whose outcome is known, or for which nothing was
// accepted here.
func (a *Allocator) forgetDecrees() error {
	changes, floor := map[string][]byte{}, a.floor
	for key, s := range a.acceptors {
		switch {
		case a.isDecided(key):
			changes[key] = nil
		case s.Value == nil && s.Promised.N < highestFloor:
			changes[key] = nil
			floor = max(floor, s.Promised.N+1)
		}
	}
	dropped := len(changes)
	if dropped == 0 {
		return nil
	}
	changes[keyFloor] = encode(floor)
	if err := a.applyPaxos(changes, nil); err != nil {
		return fmt.Errorf("forget %d old agreements: %w", dropped, err)
	}
	a.floor = floor
	for key := range changes {
		delete(a.acceptors, key)
	}
	return nil
}

// isDecided says whether the outcome of a decree is on disk here. a.mu is held.
func (a *Allocator) isDecided(key string) bool {
	if of, ok := strings.CutPrefix(key, removalKey); ok {
		round, peer, _ := strings.Cut(of, " ")
		n, err := strconv.ParseUint(round, 10, 64)
		return err == nil && a.removed[ring.Peer(peer)].Round >= n
	}
	prefix, err := netip.ParsePrefix(key)
	return err == nil && a.pools[prefix] != nil && a.pools[prefix].ring != nil
}

func (a *Allocator) saveElectors(more []ring.Peer) error {
	if err := a.applyPaxos(map[string][]byte{}, more); err != nil {
		return fmt.Errorf("store who takes part in agreements: %w", err)
	}
	return nil
}

// applyPaxos adds electors to those that are stored.
func (a *Allocator) applyPaxos(changes map[string][]byte, electors []ring.Peer) error {
	all := union(a.electors, electors)
	if err := checkElectors(all); err != nil {
		return err
	}
	if len(all) > len(a.electors) {
		changes[keyElectors] = encode(all)
	}
	if len(changes) == 0 {
		return nil
	}
	if err := a.cfg.Store.Apply(bucketPaxos, changes); err != nil {
		return err
	}
	a.electors = all
	return nil
}

// loadAcceptor checks no value of a removal: it is checked when it is decided.
func (a *Allocator) loadAcceptor(key string, value []byte) error {
	switch key {
	case keyElectors:
		var electors []ring.Peer
		if err := json.Unmarshal(value, &electors); err != nil {
			return err
		}
		a.electors = union(electors, nil)
		return checkElectors(electors)
	case keyFloor:
		if err := json.Unmarshal(value, &a.floor); err != nil {
			return err
		}
		if a.floor > highestFloor {
			return fmt.Errorf("floor %d: %w", a.floor, ErrInvalid)
		}
		return nil
	}
	var state paxos.State
	if err := json.Unmarshal(value, &state); err != nil {
		return err
	}
	a.acceptors[key] = state
	if strings.HasPrefix(key, removalKey) {
		return nil
	}
	prefix, err := netip.ParsePrefix(key)
	if err == nil {
		err = checkPrefix(prefix)
	}
	if err == nil && state.Value != nil {
		_, err = decodeFounding(prefix, state.Value)
	}
	return err
}
