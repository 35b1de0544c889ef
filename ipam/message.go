package ipam

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"

	"weave/ipam/paxos"
	"weave/ipam/ring"
)

// op is what a peer asks of another. Each may be repeated without harm.
type op string

const (
	opSpace     op = "space"     // part of a free run of Within, or of anywhere
	opClaim     op = "claim"     // the single addresses Addrs
	opReserve   op = "reserve"   // hold the shared address Addr
	opUnreserve op = "unreserve" // no longer
	opPrepare   op = "prepare"   // Paxos, phase 1
	opAccept    op = "accept"    // Paxos, phase 2
	opRings     op = "rings"     // all rings that differ from Digest
	opInherit   op = "inherit"   // take over from Decree.Peer, whose heir you are
)

// request travels in JSON. About a pool, it carries the asker's ring: for the
// answerer to learn, to see whether an earlier gift has been lost on the way,
// and because what is asked under one seed may not be done under another.
type request struct {
	Op       op           `json:"op"`
	Pool     netip.Prefix `json:"pool,omitzero"`
	Ring     *ring.Chunk  `json:"ring,omitempty"`
	Within   netip.Prefix `json:"within,omitzero"`
	Addr     netip.Addr   `json:"addr,omitzero"`
	Addrs    []netip.Addr `json:"addrs,omitempty"`
	Held     bool         `json:"held,omitempty"`   // the asker's containers have Addrs already
	Serial   uint64       `json:"serial,omitempty"` // of opReserve and opUnreserve: rises with each that a peer sends
	Ballot   paxos.Ballot `json:"ballot,omitzero"`
	Electors []ring.Peer  `json:"electors,omitempty"` // of opPrepare and opAccept: of whom the round needs a majority
	Value    []byte       `json:"value,omitempty"`
	Decree   *removal     `json:"decree,omitempty"`  // what opPrepare and opAccept are about, if not a pool
	Former   []ring.Peer  `json:"former,omitempty"`  // whom the asker was before it was removed
	Removed  removed      `json:"removed,omitempty"` // what the answerer must know to understand
	Digest   []byte       `json:"digest,omitempty"`
	pinned   *ring.SeedID // the only seed under which this may be asked
	met      []ring.Peer  // whom the answerer's Cluster knows; looked up before a.mu is taken
}

// refusal is why a peer did not do what it was asked.
type refusal string

const (
	refusedFull     refusal = "full"     // no free run
	refusedLeased   refusal = "leased"   // by a container, of Holder if that is another peer
	refusedReserved refusal = "reserved" // as gateway or so
	refusedMoved    refusal = "moved"    // another peer owns it; see Ring
	refusedLate     refusal = "late"     // the asker has sent another request since
	refusedSeeds    refusal = "seeds"    // the ring of the pool is another one; see Ring
	refusedRemoved  refusal = "removed"  // you were; see Removed
	refusedAlive    refusal = "alive"    // the peer to remove is, as far as I see
	refusedFailed   refusal = "failed"   // see Detail
)

// verdict is the answer about one claimed address.
type verdict struct {
	Refusal refusal   `json:"refusal,omitempty"`
	Holder  ring.Peer `json:"holder,omitempty"`
}

// answer travels in JSON. About a pool, it always carries the ring if there is
// one.
type answer struct {
	Ring     *ring.Chunk    `json:"ring,omitempty"`
	Refusal  refusal        `json:"refusal,omitempty"`
	Holder   ring.Peer      `json:"holder,omitempty"`
	Detail   string         `json:"detail,omitempty"`
	Verdicts []verdict      `json:"verdicts,omitempty"` // one for each of Addrs
	Promise  *paxos.Promise `json:"promise,omitempty"`
	Vote     *paxos.Vote    `json:"vote,omitempty"`
	Electors []ring.Peer    `json:"electors,omitempty"` // missing in those of the request: no promise, no vote
	Removed  removed        `json:"removed,omitempty"`
	Gossip   *gossip        `json:"gossip,omitempty"`
	Report   *RemoveReport  `json:"report,omitempty"`
}

func failed(err error) answer { return answer{Refusal: refusedFailed, Detail: err.Error()} }

// decode reads JSON of at most max bytes.
func decode(b []byte, max int, into any) error {
	if len(b) > max {
		return fmt.Errorf("message of %d bytes: %w", len(b), ErrInvalid)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("message: %w: %w", ErrInvalid, err)
	}
	return nil
}

// ask sends a request about a pool to the peer, which may be this one, and
// learns the ring of the answer. Neither a.mu nor another pool's turn may be
// held.
func (a *Allocator) ask(ctx context.Context, p *pool, to ring.Peer, req request) (answer, error) {
	ans, err := a.exchange(ctx, p, to, req)
	if err != nil || ans.Ring == nil || to == a.cfg.Self {
		return ans, err
	}
	return ans, a.learn(to, gossip{Rings: []ring.Chunk{*ans.Ring}})
}

// exchange is ask without learning the ring.
func (a *Allocator) exchange(ctx context.Context, p *pool, to ring.Peer, req request) (answer, error) {
	a.mu.Lock()
	req.Pool, req.Ring = p.prefix, p.chunk()
	err := a.number(&req)
	a.mu.Unlock()
	if err != nil {
		return answer{}, err
	}
	if req.pinned != nil && (req.Ring == nil || req.Ring.Seed != *req.pinned) {
		return answer{Refusal: refusedSeeds}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.askTimeout)
	defer cancel()
	ans, err := a.send(ctx, to, req)
	if err == nil && ans.Ring != nil && ans.Ring.Pool != p.prefix {
		return answer{}, fmt.Errorf("host %s answers with the ring of pool %s: %w", a.name(to), ans.Ring.Pool, ErrInvalid)
	}
	return ans, err
}

// number gives a request about a shared address its Serial. Those about one pool
// leave one by one: whoever sends them holds the turn of the pool. a.mu is held.
func (a *Allocator) number(req *request) error {
	if req.Op != opReserve && req.Op != opUnreserve {
		return nil
	}
	if a.serial == a.serials {
		if err := a.saveSerials(a.serials + serialsAtOnce); err != nil {
			return err
		}
	}
	a.serial++
	req.Serial = a.serial
	return nil
}

// send sends any request, and learns of removals that the answer tells.
func (a *Allocator) send(ctx context.Context, to ring.Peer, req request) (answer, error) {
	if to == a.cfg.Self {
		return a.serve(ctx, to, req), nil
	}
	b, err := a.cfg.Cluster.Ask(ctx, to, encode(req))
	if err != nil {
		return answer{}, fmt.Errorf("host %s: %w: %w", a.name(to), ErrNoAnswer, err)
	}
	var ans answer
	if err := decode(b, maxMessage, &ans); err != nil {
		return answer{}, fmt.Errorf("host %s: %w", a.name(to), err)
	}
	if len(ans.Removed) > 0 {
		return ans, a.learn(to, gossip{Removed: ans.Removed})
	}
	return ans, nil
}
