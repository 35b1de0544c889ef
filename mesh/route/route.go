// Package route finds the ways between peers that do not all reach each other:
// who the next one on the way is, by the fewest hops, over the links that both
// ends say they have.
//
// Each peer tells of its own links. In a cluster where nearly all reach nearly
// all it names those that it does not reach, elsewhere those that it does:
// whichever list is shorter.
//
// What peers tell arrives late and in no order, so two may disagree for a
// moment. A Table is right for what it was made of; that nothing goes in circles
// meanwhile is for those who pass things on: they count hops, and send nothing
// back to where it came from.
//
// The package is pure, and a Table never changes once it is made.
package route

import (
	"encoding/json"
	"fmt"
	"slices"

	"weave/mesh/id"
)

// MaxListed bounds the peers that one Links names: with more it would not fit
// a record.
const MaxListed = 128

// Links is what a peer tells of whom it reaches directly: all but Peers, or none
// but Peers. The zero value reaches nobody.
type Links struct {
	AllBut bool
	Peers  []id.PeerID // in the order of their IDs
}

// Describe makes the Links of a peer that reaches some of the others, in the
// shorter form. Of more than MaxListed in either form only the first are named, of
// those it reaches.
func Describe(reached, others []id.PeerID) Links {
	can := make(map[id.PeerID]bool, len(reached))
	for _, p := range reached {
		can[p] = true
	}
	var yes, no []id.PeerID
	for _, p := range others {
		if can[p] {
			yes = append(yes, p)
		} else {
			no = append(no, p)
		}
	}
	l := Links{Peers: yes}
	if len(no) < len(yes) && len(no) <= MaxListed {
		l = Links{AllBut: true, Peers: no}
	}
	slices.SortFunc(l.Peers, id.PeerID.Compare)
	l.Peers = l.Peers[:min(len(l.Peers), MaxListed)]
	return l
}

// Reaches tells whether p is among those reached.
func (l Links) Reaches(p id.PeerID) bool {
	_, listed := slices.BinarySearchFunc(l.Peers, p, id.PeerID.Compare)
	return listed != l.AllBut
}

// Equal tells whether two say the same in the same form.
func (l Links) Equal(o Links) bool { return l.AllBut == o.AllBut && slices.Equal(l.Peers, o.Peers) }

// encoded is Links as it is published.
type encoded struct {
	Only   []id.PeerID `json:"only,omitempty"`
	AllBut []id.PeerID `json:"all_but,omitempty"`
	All    bool        `json:"all,omitempty"` // AllBut, of nobody
}

// Encode is the published form.
func (l Links) Encode() ([]byte, error) {
	switch {
	case l.AllBut && len(l.Peers) == 0:
		return json.Marshal(encoded{All: true})
	case l.AllBut:
		return json.Marshal(encoded{AllBut: l.Peers})
	}
	return json.Marshal(encoded{Only: l.Peers})
}

// Decode reads what Encode wrote; another host did.
func Decode(b []byte) (Links, error) {
	var e encoded
	if err := json.Unmarshal(b, &e); err != nil {
		return Links{}, fmt.Errorf("links: %w", err)
	}
	l := Links{AllBut: e.All || len(e.AllBut) > 0, Peers: e.Only}
	if l.AllBut {
		l.Peers = e.AllBut
	}
	if len(l.Peers) > MaxListed {
		return Links{}, fmt.Errorf("links: %d peers", len(l.Peers))
	}
	slices.SortFunc(l.Peers, id.PeerID.Compare)
	l.Peers = slices.Compact(l.Peers)
	return l, nil
}

// Way is how a peer is reached.
type Way struct {
	Next id.PeerID // who gets what is for it: the peer itself if the link is direct
	Hops int       // links on the way; 1 is direct
}

// Table is the ways from one peer to the others.
type Table struct {
	ways map[id.PeerID]Way
}

// Compute finds the ways from self, which reaches some peers directly, to those
// that told of their links. Self's own word counts for its own end of a link, and
// a peer that told nothing yet is reached if self says so, but passes nothing on.
// Of several ways with as few hops it takes the one that was taken before, if
// before is not nil, else that by the lowest ID.
func Compute(self id.PeerID, reached []id.PeerID, told map[id.PeerID]Links, before *Table) *Table {
	t := &Table{ways: make(map[id.PeerID]Way, len(told))}
	left := make([]id.PeerID, 0, len(told))
	for p := range told {
		if p != self {
			left = append(left, p)
		}
	}
	slices.SortFunc(left, id.PeerID.Compare)
	front := slices.DeleteFunc(slices.Clone(reached), func(p id.PeerID) bool {
		l, ok := told[p]
		return p == self || !ok || !l.Reaches(self) // it passes on only if it agrees that we are neighbours
	})
	slices.SortFunc(front, id.PeerID.Compare)
	for _, p := range front {
		t.ways[p] = Way{Next: p, Hops: 1}
	}
	left = t.unreached(left)
	for hops := 2; len(front) > 0 && len(left) > 0; hops++ {
		var next []id.PeerID
		for _, p := range left {
			if by, ok := t.via(p, front, told, before); ok {
				t.ways[p] = Way{Next: by, Hops: hops}
				next = append(next, p)
			}
		}
		front, left = next, t.unreached(left)
	}
	for _, p := range reached { // whoever agrees
		if p != self {
			t.ways[p] = Way{Next: p, Hops: 1}
		}
	}
	return t
}

// via chooses whom of front p is reached through, and returns the next hop
// towards that one.
func (t *Table) via(p id.PeerID, front []id.PeerID, told map[id.PeerID]Links, before *Table) (next id.PeerID, ok bool) {
	links := told[p]
	for _, q := range front {
		if !links.Reaches(q) || !told[q].Reaches(p) {
			continue
		}
		by := t.ways[q].Next
		if before != nil && before.ways[p].Next == by {
			return by, true
		}
		if !ok {
			next, ok = by, true
		}
	}
	return next, ok
}

func (t *Table) unreached(peers []id.PeerID) []id.PeerID {
	return slices.DeleteFunc(peers, func(p id.PeerID) bool { _, ok := t.ways[p]; return ok })
}

// Way returns how p is reached; false if it is not.
func (t *Table) Way(p id.PeerID) (Way, bool) {
	if t == nil {
		return Way{}, false
	}
	w, ok := t.ways[p]
	return w, ok
}
