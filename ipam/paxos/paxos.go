// Package paxos lets peers agree once on one value: Lamport's single-decree
// Paxos ("Paxos Made Simple", 2001) as a pure machine.
//
// An acceptor is a State, and its answers are values: the caller stores the new
// state before it sends the answer. A proposer runs one Round after another,
// each with a higher ballot. If any two quorums share an acceptor, then no two
// rounds ever decide different values, whatever is lost, late, repeated or
// restarted.
//
// The package sends nothing, waits for nothing, does not know who the peers are
// and gives no meaning to the value. Choosing quorums is the caller's task.
package paxos

import "cmp"

// Ballot numbers a round. A peer never uses one number twice: it has its own
// acceptor promise the ballot before it asks anybody else.
type Ballot struct {
	N    uint64 `json:"n"`
	Peer string `json:"peer"`
}

// Compare orders ballots, peers within one number: -1, 0 or 1.
func (b Ballot) Compare(c Ballot) int {
	return cmp.Or(cmp.Compare(b.N, c.N), cmp.Compare(b.Peer, c.Peer))
}

// State is what an acceptor must not forget. The zero State has seen nothing.
type State struct {
	Promised Ballot `json:"promised"`
	Accepted Ballot `json:"accepted"`
	Value    []byte `json:"value,omitempty"` // accepted with Accepted; nil if nothing was
}

// Promise answers a prepare request. If it is not OK, Promised is the higher
// ballot that stands against it.
type Promise struct {
	OK       bool   `json:"ok"`
	Promised Ballot `json:"promised"`
	Accepted Ballot `json:"accepted"`
	Value    []byte `json:"value,omitempty"`
}

// Vote answers an accept request. If it is not OK, Promised is the higher
// ballot that stands against it.
type Vote struct {
	OK       bool   `json:"ok"`
	Promised Ballot `json:"promised"`
}

// Prepare answers a prepare request. The new state goes to disk before the
// answer leaves.
func (s State) Prepare(b Ballot) (State, Promise) {
	if b.Compare(s.Promised) < 0 {
		return s, Promise{Promised: s.Promised}
	}
	s.Promised = b
	return s, Promise{OK: true, Promised: b, Accepted: s.Accepted, Value: s.Value}
}

// Accept answers an accept request. The new state goes to disk before the
// answer leaves.
func (s State) Accept(b Ballot, value []byte) (State, Vote) {
	if b.Compare(s.Promised) < 0 {
		return s, Vote{Promised: s.Promised}
	}
	s = State{Promised: b, Accepted: b, Value: value}
	return s, Vote{OK: true, Promised: b}
}

// Round is one round of a proposer: gather promises until Value says what to
// ask the acceptors to accept, then votes until Decided. It is not safe for
// concurrent use.
type Round struct {
	ballot   Ballot
	quorum   int
	value    []byte // what to propose: own, or that of the highest accepted ballot
	accepted Ballot
	highest  Ballot
	promises map[string]bool
	votes    map[string]bool
}

// NewRound begins a round that proposes value unless an earlier round may have
// decided another. quorum is the number of acceptors that make a majority.
func NewRound(ballot Ballot, quorum int, value []byte) *Round {
	return &Round{
		ballot: ballot, quorum: quorum, value: value, highest: ballot,
		promises: map[string]bool{}, votes: map[string]bool{},
	}
}

// Promise takes the answer of an acceptor. Repeated answers count once, and
// those to another ballot not at all.
func (r *Round) Promise(acceptor string, p Promise) {
	r.see(p.Promised)
	if !p.OK || p.Promised != r.ballot {
		return
	}
	r.promises[acceptor] = true
	if p.Value != nil && r.accepted.Compare(p.Accepted) < 0 {
		r.accepted, r.value = p.Accepted, p.Value
	}
}

// Value is what acceptors shall be asked to accept; ok is false until a quorum
// has promised. No promise may be added after the first accept request is sent.
func (r *Round) Value() (value []byte, ok bool) { return r.value, len(r.promises) >= r.quorum }

// Vote takes the answer of an acceptor to the accept request.
func (r *Round) Vote(acceptor string, v Vote) {
	r.see(v.Promised)
	if v.OK && v.Promised == r.ballot {
		r.votes[acceptor] = true
	}
}

// Decided says whether a quorum has accepted the value. It is then decided for
// ever.
func (r *Round) Decided() bool { return len(r.votes) >= r.quorum }

// Highest is the highest ballot seen: the next round needs a higher one.
func (r *Round) Highest() Ballot { return r.highest }

func (r *Round) see(b Ballot) {
	if r.highest.Compare(b) < 0 {
		r.highest = b
	}
}
