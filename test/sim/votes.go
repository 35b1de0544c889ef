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

// decided says whether a majority of all whom the voters know has voted for one
// proposal of a decree. A peer that is to be removed does not count, nor do those
// that are, as far as p knows, whose decision it is. w.mu is held.
func (w *world) decided(p *peer, decree string, is func(value string) bool, leaving ring.Peer) bool {
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
			return true
		}
	}
	return false
}

// noteFounding notes a new ring of a pool, which a majority must have agreed to
// make. Two majorities of the same hosts have one in common: there cannot be
// another ring.
func (w *world) noteFounding(p *peer, s seeded) {
	all := w.truth.foundings[s.pool]
	if all == nil {
		all = map[ring.SeedID]circle{}
		w.truth.foundings[s.pool] = all
	}
	if _, known := all[s.seed]; known {
		return
	}
	if !w.decided(p, s.pool.String(), s.founded, "") {
		w.fail("pool %s is started by %s, without a majority of all whom those know who agreed", s.pool, p.id)
	}
	c := circle{p.id, maps.Clone(p.known), maps.Clone(p.unmet)}
	for _, other := range all {
		if c.equal(other) && len(w.truth.removals) == 0 {
			w.fail("pool %s is started by %s and by %s, who know the same hosts", s.pool, other.by, p.id)
		}
	}
	all[s.seed] = c
}

// founded says whether a decided value is about a ring.
func (s seeded) founded(value string) bool {
	var f struct{ Seed ring.SeedID }
	return json.Unmarshal([]byte(value), &f) == nil && f.Seed == s.seed
}

// circle is whom a peer knew when it founded a ring.
type circle struct {
	by    ring.Peer
	known map[ring.Peer]bool
	unmet map[int]bool
}

func (c circle) equal(o circle) bool {
	return maps.Equal(c.known, o.known) && maps.Equal(c.unmet, o.unmet)
}

// gone says whether a peer was removed, as far as anybody knows. w.mu is held.
func (w *world) gone(id ring.Peer) bool {
	_, gone := w.truth.removals[id]
	return gone
}

// noteRemoved notes what is on all disks when a peer is first said to be gone,
// which a majority must have agreed on. Its own disk does not count from then on.
func (w *world) noteRemoved(p *peer, id ring.Peer, value []byte) {
	if w.gone(id) {
		return
	}
	if !w.decided(p, "remove 1 "+string(id), func(v string) bool { return v == string(value) }, id) {
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
