package paxos

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestRound(t *testing.T) {
	var a, b State
	round := NewRound(Ballot{1, "a"}, 2, []byte("mine"))
	var p Promise
	a, p = a.Prepare(Ballot{1, "a"})
	round.Promise("a", p)
	round.Promise("a", p)
	if _, ok := round.Value(); ok {
		t.Fatal("one acceptor that answered twice is a quorum")
	}
	b, p = b.Prepare(Ballot{1, "a"})
	round.Promise("b", p)
	value, ok := round.Value()
	if !ok || string(value) != "mine" {
		t.Fatalf("value %q, %v", value, ok)
	}
	var v Vote
	a, v = a.Accept(Ballot{1, "a"}, value)
	round.Vote("a", v)
	b, _ = b.Prepare(Ballot{2, "b"})
	b, v = b.Accept(Ballot{1, "a"}, value)
	round.Vote("b", v)
	if round.Decided() || b.Value != nil {
		t.Fatal("accepted against a promise")
	}
	if round.Highest() != (Ballot{2, "b"}) {
		t.Fatalf("highest %v", round.Highest())
	}

	// The next round must take up what one acceptor has accepted.
	next := NewRound(Ballot{3, "b"}, 2, []byte("other"))
	_, p = a.Prepare(Ballot{3, "b"})
	next.Promise("a", p)
	_, p = b.Prepare(Ballot{3, "b"})
	next.Promise("b", p)
	if value, ok := next.Value(); !ok || string(value) != "mine" {
		t.Fatalf("value %q, %v", value, ok)
	}
}

func TestLonePeerDecides(t *testing.T) {
	var s State
	round := NewRound(Ballot{1, "a"}, 1, []byte("v"))
	s, p := s.Prepare(Ballot{1, "a"})
	round.Promise("a", p)
	value, _ := round.Value()
	_, v := s.Accept(Ballot{1, "a"}, value)
	if round.Vote("a", v); !round.Decided() {
		t.Fatal("not decided")
	}
}

// message is a request or an answer under way.
type message struct {
	from, to string
	ballot   Ballot
	value    []byte
	promise  *Promise
	vote     *Vote
	accept   bool
}

// network is peers that are proposers and acceptors at once. Messages stay in
// flight when delivered, so each may arrive at any time, often, or never.
type network struct {
	peers   []string
	disk    map[string][]byte // acceptors' states, all that a restart leaves
	rounds  map[string]*Round
	asked   map[string]bool // the round's value has gone out
	flight  []message
	decided []string
}

func (n *network) state(t *rapid.T, peer string) (s State) {
	if b := n.disk[peer]; b != nil {
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (n *network) store(t *rapid.T, peer string, s State) {
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	n.disk[peer] = b
}

// propose begins a round, in place of one that the peer may be in.
func (n *network) propose(t *rapid.T) {
	peer := rapid.SampledFrom(n.peers).Draw(t, "proposer")
	state := n.state(t, peer)
	ballot := Ballot{N: state.Promised.N + 1, Peer: peer}
	state, own := state.Prepare(ballot)
	n.store(t, peer, state)
	round := NewRound(ballot, len(n.peers)/2+1, fmt.Appendf(nil, "%s%d", peer, ballot.N))
	round.Promise(peer, own)
	n.rounds[peer], n.asked[peer] = round, false
	for _, to := range n.peers {
		n.flight = append(n.flight, message{from: peer, to: to, ballot: ballot})
	}
}

func (n *network) restart(t *rapid.T) {
	delete(n.rounds, rapid.SampledFrom(n.peers).Draw(t, "restarted"))
}

func (n *network) deliver(t *rapid.T) {
	if len(n.flight) == 0 {
		return
	}
	// Newer messages are likelier, or rounds seldom get anywhere.
	oldest := max(0, len(n.flight)-rapid.SampledFrom([]int{3, 8, len(n.flight)}).Draw(t, "window"))
	m := n.flight[rapid.IntRange(oldest, len(n.flight)-1).Draw(t, "message")]
	round := n.rounds[m.to]
	switch {
	case m.promise != nil && round != nil && !n.asked[m.to]:
		round.Promise(m.from, *m.promise)
		n.ask(m.to)
	case m.vote != nil && round != nil:
		if round.Vote(m.from, *m.vote); round.Decided() {
			n.decided = append(n.decided, string(round.value))
		}
	case m.promise != nil || m.vote != nil: // an answer that nobody waits for
	case m.accept:
		state, vote := n.state(t, m.to).Accept(m.ballot, m.value)
		n.store(t, m.to, state)
		n.flight = append(n.flight, message{from: m.to, to: m.from, vote: &vote})
	default:
		state, promise := n.state(t, m.to).Prepare(m.ballot)
		n.store(t, m.to, state)
		n.flight = append(n.flight, message{from: m.to, to: m.from, promise: &promise})
	}
}

func (n *network) ask(peer string) {
	value, ok := n.rounds[peer].Value()
	if !ok {
		return
	}
	n.asked[peer] = true
	for _, to := range n.peers {
		n.flight = append(n.flight, message{from: peer, to: to, ballot: n.rounds[peer].ballot, value: value, accept: true})
	}
}

// TestNeverTwoValues loses, repeats, delays and reorders messages and restarts
// peers from disk: all decisions are the same.
func TestNeverTwoValues(t *testing.T) {
	decisions := 0
	rapid.Check(t, func(t *rapid.T) {
		n := &network{disk: map[string][]byte{}, rounds: map[string]*Round{}, asked: map[string]bool{}}
		n.peers = []string{"a", "b", "c", "d", "e"}[:rapid.IntRange(1, 5).Draw(t, "peers")]
		for range rapid.IntRange(20, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 19).Draw(t, "step") {
			case 0:
				n.propose(t)
			case 1:
				n.restart(t)
			default:
				n.deliver(t)
			}
		}
		if len(slices.Compact(slices.Clone(n.decided))) > 1 {
			t.Fatalf("decided %q", n.decided)
		}
		decisions += len(n.decided)
	})
	if decisions == 0 && !t.Failed() {
		t.Error("no run decided anything: the test tests nothing")
	}
}
