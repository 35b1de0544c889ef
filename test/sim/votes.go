package sim

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weave/ipam/paxos"
	"weave/ipam/ring"
)

const bucketVotes = "ipam-paxos"

// proposal is what acceptors voted for in one round.
type proposal struct {
	decree, value string
	ballot        paxos.Ballot
}

// votes are those for one proposal: by whom, and whom those knew, removed peers
// excepted. Two majorities are sure to meet only if each is one of all whom its
// members know.
type votes map[ring.Peer][]ring.Peer

// noteVote notes a vote that was written down. w.mu is held.
func (w *world) noteVote(p *peer, decree string, value []byte) {
	if !strings.Contains(string(value), `"value"`) {
		return
	}
	var s paxos.State
	if err := json.Unmarshal(value, &s); err != nil {
		w.fail("%s stores of decree %s: %w", p.id, decree, err)
		return
	}
	prop := proposal{decree, string(s.Value), s.Accepted}
	if w.truth.votes[prop] == nil {
		w.truth.votes[prop] = votes{}
	}
	if w.truth.votes[prop][p.id] == nil {
		knows := slices.Collect(maps.Keys(p.known))
		w.truth.votes[prop][p.id] = slices.DeleteFunc(knows, func(id ring.Peer) bool { return p.disk.buckets[bucketRemoved][string(id)] != nil })
	}
}

// decided returns all whom the voters for one proposal of a decree knew, if these
// are a majority of them; nil if there is no such proposal. A peer that is to be removed does not count, nor do those
// that are, as far as p knows, whose decision it is. w.mu is held.
func (w *world) decided(p *peer, decree string, is func(value string) bool, leaving ring.Peer) (electors map[ring.Peer]bool) {
	for prop, by := range w.truth.votes {
		if prop.decree != decree || !is(prop.value) {
			continue
		}
		known := map[ring.Peer]bool{}
		for voter, knows := range by {
			known[voter] = true
			for _, id := range knows {
				known[id] = known[id] || id != leaving && p.disk.buckets[bucketRemoved][string(id)] == nil
			}
		}
		maps.DeleteFunc(known, func(_ ring.Peer, counts bool) bool { return !counts })
		if 2*len(by) > len(known) {
			return known
		}
	}
	return nil
}

// noteFounding notes a new ring of a pool, which a majority must have agreed to
// make. Two majorities of the same hosts have one in common: there cannot be
// another ring.
func (w *world) noteFounding(p *peer, s seeded) {
	all := w.truth.foundings[s.pool]
	if all == nil {
		all = map[ring.SeedID]map[ring.Peer]bool{}
		w.truth.foundings[s.pool] = all
	}
	if _, known := all[s.seed]; known {
		return
	}
	electors := w.decided(p, s.pool.String(), s.founded, "")
	if electors == nil {
		w.fail("pool %s is started by %s, without a majority of all whom those know who agreed", s.pool, p.id)
	}
	for _, others := range all {
		if maps.Equal(electors, others) {
			w.fail("pool %s is started twice by majorities of %v, at last by %s", s.pool, slices.Sorted(maps.Keys(electors)), p.id)
		}
	}
	all[s.seed] = electors
}

// founded says whether a decided value is about a ring.
func (s seeded) founded(value string) bool {
	var f struct{ Seed ring.SeedID }
	return json.Unmarshal([]byte(value), &f) == nil && f.Seed == s.seed
}

// gone says whether a peer was removed, as far as anybody knows. w.mu is held.
func (w *world) gone(id ring.Peer) bool {
	_, gone := w.truth.removals[id]
	return gone
}

// removedApart says whether two peers know different heirs of a removed one, each
// decided upon by voters of whom none had heard of any of the others. w.mu is held.
func (w *world) removedApart(gone ring.Peer, p, q *peer) bool {
	if slices.Equal(p.disk.buckets[bucketRemoved][string(gone)], q.disk.buckets[bucketRemoved][string(gone)]) {
		return false
	}
	xs, ys := w.removers(p, gone), w.removers(q, gone)
	for x := range xs {
		if ys[x] {
			return false
		}
	}
	return xs != nil && ys != nil
}

// heard says whether any of those who decided upon the heir of a removed peer, as
// p knows it, is a certain peer or had heard of it. w.mu is held.
func (w *world) heard(p *peer, gone, of ring.Peer) bool {
	all := w.removers(p, gone)
	return all == nil || all[of]
}

// removers are the voters for the heir of a removed peer, as p knows it, and all of
// whom they had heard; nil if there is none. w.mu is held.
func (w *world) removers(p *peer, gone ring.Peer) map[ring.Peer]bool {
	heir := p.disk.buckets[bucketRemoved][string(gone)]
	if heir == nil {
		return nil
	}
	return w.decided(p, "remove 1 "+string(gone), func(v string) bool { return v == string(heir) }, gone)
}

// noteRemoved notes what is on all disks when a peer is first said to be gone,
// which a majority must have agreed on. Its own disk does not count from then on.
func (w *world) noteRemoved(p *peer, id ring.Peer, value []byte) {
	if w.gone(id) {
		return
	}
	if w.decided(p, "remove 1 "+string(id), func(v string) bool { return v == string(value) }, id) == nil {
		w.fail("%s was removed, says %s, without a majority of all whom those know who agreed", id, p.id)
	}
	r := removal{time.Now(), map[ring.Peer]map[netip.Prefix]*ring.Ring{}}
	for _, h := range w.hosts {
		if h.peer.id != id {
			r.rings[h.peer.id] = maps.Clone(h.peer.disk.rings)
		}
	}
	w.truth.removals[id] = r
	w.joinRings()
}
