package ipam

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"weave/ipam/paxos"
	"weave/ipam/ring"
)

const (
	firstBackoff = 20 * time.Millisecond
	maxBackoff   = time.Second
)

// errGrown ends a round whose electors were not all: the next one has more.
var errGrown = errorf(ErrNoAgreement, "hosts are still getting to know each other; try again")

// electorate is whom a round of agreement asks. It is read anew for each round.
type electorate struct {
	all    []ring.Peer        // every peer heard of, this one and removed ones too
	others []ring.Peer        // those of all that count, but this one
	alive  map[ring.Peer]bool // those of others that should answer
	unmet  []string
	quorum int // majority of all that count, this one and the unmet
}

// size is the number of hosts of which quorum is a majority.
func (e electorate) size() int { return 1 + len(e.others) + len(e.unmet) }

// electorate leaves out a peer that is to be removed.
func (a *Allocator) electorate(leaving ring.Peer, unmet []string) electorate {
	e := electorate{alive: map[ring.Peer]bool{}, unmet: unmet}
	met, alive := a.met(), a.cfg.Cluster.Alive()
	a.mu.Lock()
	defer a.mu.Unlock()
	counts := func(p ring.Peer) bool { return !a.isRemoved(p) && p != a.cfg.Self && p != leaving }
	e.all = union(met, a.electors)
	for _, p := range e.all {
		if counts(p) {
			e.others = append(e.others, p)
		}
	}
	for _, p := range alive {
		if counts(p) {
			e.alive[p] = true
		}
	}
	e.quorum = e.size()/2 + 1
	return e
}

// met are all peers that the Cluster knows, and this one. a.mu is not held.
func (a *Allocator) met() []ring.Peer {
	return slices.Concat(a.cfg.Cluster.Known(), a.cfg.Cluster.Alive(), []ring.Peer{a.cfg.Self})
}

// union is sorted.
func union(x, y []ring.Peer) []ring.Peer {
	all := slices.Concat(x, y)
	slices.Sort(all)
	return slices.Compact(all)
}

// leftOut are those whom this peer has heard of, removed ones excepted, but who
// are not among electors. a.mu is held.
func (a *Allocator) leftOut(met, electors []ring.Peer) (more []ring.Peer) {
	electors = union(electors, nil)
	for _, p := range union(met, a.electors) {
		if _, found := slices.BinarySearch(electors, p); !found && !a.isRemoved(p) {
			more = append(more, p)
		}
	}
	return more
}

// decree is one question that peers agree upon.
type decree struct {
	key        string // of the acceptors' state
	electorate func() electorate
	propose    func(electorate) []byte
	settled    func() bool                                 // whether the outcome is known here
	decide     func(value []byte) (stands bool, err error) // uses a decided value, unless another outcome came meanwhile
	disagree   func(e electorate, silent []string) error
	// ask sends a request with the question in it, and learns the outcome if
	// that is the answer.
	ask func(ctx context.Context, to ring.Peer, req request) (answer, error)
}

// agree runs rounds of Paxos until the outcome is known; mine says that it is
// what this peer proposed.
func (a *Allocator) agree(ctx context.Context, d decree) (mine bool, err error) {
	backoff := firstBackoff
	var highest uint64
	for !d.settled() {
		var n uint64
		mine, n, err = a.round(ctx, d, highest)
		if err == nil {
			continue
		}
		if n <= maxBallot { // else made up by somebody
			highest = max(highest, n)
		}
		if errors.Is(err, errGrown) && ctx.Err() == nil {
			continue
		}
		if !errors.Is(err, ErrNoAgreement) || !pause(ctx, jitter(backoff)) {
			return false, err
		}
		backoff = min(2*backoff, maxBackoff)
	}
	return mine, nil
}

// round is one round of Paxos: it ends with the outcome or an error, which is
// ErrNoAgreement if another round may help. seen is the highest ballot so far,
// and so is what it returns.
func (a *Allocator) round(ctx context.Context, d decree, seen uint64) (mine bool, highest uint64, err error) {
	e := d.electorate()
	own := d.propose(e)
	ballot, promise, err := a.begin(d.key, seen, e.all)
	if err != nil {
		return false, seen, err
	}
	r := paxos.NewRound(ballot, e.quorum, own)
	r.Promise(string(a.cfg.Self), promise)
	silent, err := a.askAll(ctx, d, e, request{Op: opPrepare, Ballot: ballot, Electors: e.all}, func(from ring.Peer, ans answer) bool {
		if ans.Promise != nil {
			r.Promise(string(from), *ans.Promise)
		}
		_, ready := r.Value()
		return ready
	})
	if err != nil || d.settled() {
		return false, r.Highest().N, err
	}
	value, ready := r.Value()
	if !ready {
		return false, r.Highest().N, d.disagree(e, silent)
	}
	accept := request{Op: opAccept, Ballot: ballot, Value: value, Electors: e.all}
	// This peer's own vote may bring the outcome, too.
	if vote, err := d.ask(ctx, a.cfg.Self, accept); err == nil && vote.Vote != nil {
		r.Vote(string(a.cfg.Self), *vote.Vote)
	}
	if !r.Decided() {
		silent, err = a.askAll(ctx, d, e, accept, func(from ring.Peer, ans answer) bool {
			if ans.Vote != nil {
				r.Vote(string(from), *ans.Vote)
			}
			return r.Decided()
		})
	}
	if err != nil || d.settled() {
		return false, r.Highest().N, err
	}
	if !r.Decided() {
		return false, r.Highest().N, d.disagree(e, silent)
	}
	stands, err := d.decide(value)
	return stands && bytes.Equal(value, own), r.Highest().N, err
}

// begin draws a ballot that this peer never used and has its own acceptor
// promise it before anybody else hears of it.
func (a *Allocator) begin(key string, seen uint64, electors []ring.Peer) (paxos.Ballot, paxos.Promise, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	state := a.acceptor(key)
	ballot := paxos.Ballot{N: max(seen, state.Promised.N) + 1, Peer: string(a.cfg.Self)}
	next, promise := state.Prepare(ballot)
	return ballot, promise, a.saveAcceptor(key, next, electors)
}

// askAll sends a request to all others and hands their answers to take, which
// says whether they suffice. It waits for those alive even so: one of them may
// know the outcome already. It names the peers that gave no answer; an error is
// an answer that ends the matter, or the round.
func (a *Allocator) askAll(ctx context.Context, d decree, e electorate, req request, take func(ring.Peer, answer) (enough bool)) (silent []string, err error) {
	type reply struct {
		from ring.Peer
		answer
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	replies := make(chan reply, len(e.others))
	for _, to := range e.others {
		go func() {
			ans, err := d.ask(ctx, to, req)
			replies <- reply{to, ans, err}
		}()
	}
	waiting, enough := len(e.alive), false
	for range e.others {
		if waiting == 0 && enough {
			cancel() // the rest answers at once
		}
		r := <-replies
		if e.alive[r.from] {
			waiting--
		}
		switch {
		case r.Refusal == refusedRemoved:
			err = ErrRemoved
		case r.Refusal == refusedAlive:
			err = fmt.Errorf("%w: host %s still reaches it", ErrAlive, a.name(r.from))
		case r.err != nil || r.Refusal == refusedFailed || checkElectors(r.Electors) != nil:
			silent = append(silent, a.name(r.from))
		case len(r.Electors) > 0:
			grown, failed := a.heardOf(r.Electors)
			if err = cmp.Or(err, failed); grown {
				err = cmp.Or(err, errGrown)
			}
		default:
			enough = take(r.from, r.answer)
		}
	}
	slices.Sort(silent)
	return silent, err
}

// heardOf notes electors that an acceptor has named.
func (a *Allocator) heardOf(more []ring.Peer) (grown bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := len(a.electors)
	err = a.saveElectors(more)
	return len(a.electors) > before, err
}

// vote is the acceptor. valid says whether it may vote for a value. a.mu is held.
func (a *Allocator) vote(key string, from ring.Peer, req request, valid func(value []byte) error) answer {
	if req.Ballot.Peer != string(from) || req.Ballot.N == 0 || req.Ballot.N > maxBallot {
		return failed(fmt.Errorf("ballot %d of %q: %w", req.Ballot.N, req.Ballot.Peer, ErrInvalid))
	}
	if more := a.leftOut(req.met, req.Electors); len(more) > 0 {
		return answer{Electors: more}
	}
	state := a.acceptor(key)
	var next paxos.State
	var ans answer
	if req.Op == opPrepare {
		s, promise := state.Prepare(req.Ballot)
		next, ans = s, answer{Promise: &promise}
	} else {
		if err := valid(req.Value); err != nil {
			return failed(err)
		}
		s, vote := state.Accept(req.Ballot, req.Value)
		next, ans = s, answer{Vote: &vote}
	}
	if ans.Vote != nil && !ans.Vote.OK || ans.Promise != nil && !ans.Promise.OK {
		return ans
	}
	if err := a.saveAcceptor(key, next, req.Electors); err != nil {
		return failed(err)
	}
	return ans
}

// waitedFor is the end of an error about a majority that was not reached.
func waitedFor(e electorate, silent []string) string {
	hosts := slices.Concat(silent, e.unmet)
	if len(hosts) == 0 {
		return ""
	}
	return fmt.Sprintf("; no answer from %s: start weave there, or take back who will not come: a host that is gone for good with `weave rmpeer`, an address where nobody was met with `weave forget`, or out of WEAVE_PEERS", strings.Join(hosts, ", "))
}

func (a *Allocator) names(peers []ring.Peer) []string {
	names := make([]string, len(peers))
	for i, p := range peers {
		names[i] = a.name(p)
	}
	slices.Sort(names)
	return names
}

// jitter is a random time below most.
func jitter(most time.Duration) time.Duration { return time.Duration(random(int64(most))) }

// random is a number below most. All that is random in this package comes from
// crypto/rand, which testing/cryptotest makes repeat itself.
func random(most int64) int64 {
	n, err := rand.Int(rand.Reader, big.NewInt(most))
	if err != nil { // crypto/rand never fails
		return 0
	}
	return n.Int64()
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
