// Package ring tells who owns which range of a pool.
//
// Every address has an owner and a version. Only the owner changes either, and
// raises the version of each address that it changes; so an address never had
// one version under two owners. Merging takes for each address what has the
// higher version, and all peers reach the same ring whatever the order,
// repetition or loss of messages. Its own addresses a peer always sees as they
// are; its view of others' may be old.
//
// A ring is written as a list of tokens: one where owner or version are others
// than of the address before. It says nothing else, so tokens come and go: those
// of one owner that lie beside each other become one when the owner raises all
// its addresses there to the highest version among them (Join).
//
// The exception is a peer that was removed: its heir takes its addresses over
// (Inherit) without having heard all that it did. The upper half of a version,
// the epoch, counts such steps, so that they win over all that the removed peer
// did and that surfaces later. Where an epoch above 0 is involved, Merge takes
// whatever is higher, even in its own peer's ranges, and rings still converge;
// but for a time two peers may believe that they own one address.
//
// Rings and chunks are values that are never changed: a change makes a new
// ring, which the caller stores before it uses it. The package does not know
// leases, does no IO, and does not decide who the first owners are.
package ring

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"sync"

	"weave/ipam/space"
)

// Errors of this package. Texts around them name the pool and the token.
var (
	ErrSeeds      = errors.New("seeded twice, by clusters apart")
	ErrGap        = errors.New("only part of a ring, and the rest is not known here")
	ErrOurs       = errors.New("changes a range that only this peer may change")
	ErrClash      = errors.New("one version of an address has two owners")
	ErrNotOwner   = errors.New("range is not owned by the giver")
	ErrFragmented = errors.New("ring has too many tokens")
	ErrInvalid    = errors.New("invalid ring")
)

// Peer names an owner. It is opaque here.
type Peer string

// Token is the start of a range that goes up to the next one. The upper 32 bits
// of its version are its epoch.
type Token struct {
	Start   netip.Addr `json:"start"`
	Owner   Peer       `json:"owner"`
	Version uint64     `json:"v"`
}

const epochBits = 32

// Inherited says whether the range was ever taken over from a removed peer.
func (t Token) Inherited() bool { return t.epoch() > 0 }

func (t Token) epoch() uint64 { return t.Version >> epochBits }

// newer orders what two peers say of one address.
func (t Token) newer(old Token) bool {
	return cmp.Or(cmp.Compare(t.Version, old.Version), cmp.Compare(t.Owner, old.Owner)) > 0
}

// Ring is the ring of one pool. It is immutable and safe for concurrent use.
type Ring struct {
	pool   netip.Prefix
	seed   SeedID
	tokens []Token // ascending; the first starts the pool; none is like the one before

	hashing sync.Once // made when it is first asked for: gossip does so all the time
	hash    [8]byte
}

// New makes the first ring of a pool: owners in the given order get equal
// shares. If they outnumber the addresses, the last ones get none. The same
// arguments make the same ring everywhere.
func New(pool netip.Prefix, seed SeedID, owners []Peer) (*Ring, error) {
	r := &Ring{pool: pool, seed: seed}
	for i, share := range space.Of(pool).Shares(len(owners)) {
		r.tokens = push(r.tokens, Token{Start: share.First, Owner: owners[i], Version: 1})
	}
	if err := r.Check(); err != nil {
		return nil, err
	}
	return r, nil
}

// FromChunk makes a ring of a chunk that covers a whole pool.
func FromChunk(c Chunk) (*Ring, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if !c.Whole() {
		return nil, fmt.Errorf("ring %s: %w", c.Pool, ErrGap)
	}
	r := &Ring{pool: c.Pool, seed: c.Seed, tokens: make([]Token, 0, len(c.Tokens))}
	for _, t := range c.Tokens {
		r.tokens = push(r.tokens, t)
	}
	return r, nil
}

// push appends a token unless it says no more than the last one.
func push(tokens []Token, t Token) []Token {
	if n := len(tokens); n > 0 && tokens[n-1].Owner == t.Owner && tokens[n-1].Version == t.Version {
		return tokens
	}
	return append(tokens, t)
}

// Pool is the pool whose ring this is.
func (r *Ring) Pool() netip.Prefix { return r.pool }

// Seed tells rings of one pool apart that were made independently.
func (r *Ring) Seed() SeedID { return r.seed }

// Chunk is the whole ring as it travels and is stored. The tokens are shared
// with the ring and must not be changed.
func (r *Ring) Chunk() Chunk { return Chunk{Pool: r.pool, Seed: r.seed, Tokens: r.tokens} }

// Check verifies the invariants: tokens ascend within the pool, the first one
// starts it, each has an owner and a version. Every ring made by this package
// holds them.
func (r *Ring) Check() error {
	if err := r.Chunk().Check(); err != nil {
		return err
	}
	if !r.Chunk().Whole() {
		return fmt.Errorf("ring %s: no token at the start of the pool: %w", r.pool, ErrInvalid)
	}
	return nil
}

// Owner is the owner of an address of the pool.
func (r *Ring) Owner(a netip.Addr) (Peer, bool) {
	t, ok := r.Token(a)
	return t.Owner, ok
}

// Token is the token in whose range an address of the pool lies.
func (r *Ring) Token(a netip.Addr) (Token, bool) {
	if !r.pool.Contains(a) {
		return Token{}, false
	}
	return r.tokens[r.covering(a)], true
}

// Owners lists everyone who owns a range, in ascending order.
func (r *Ring) Owners() []Peer {
	var owners []Peer
	for _, t := range r.tokens {
		owners = append(owners, t.Owner)
	}
	slices.Sort(owners)
	return slices.Compact(owners)
}

// Ranges lists what p owns, in ascending order; no two ranges touch.
func (r *Ring) Ranges(p Peer) []space.Range {
	var ranges []space.Range
	for i, t := range r.tokens {
		switch {
		case t.Owner != p:
		case i > 0 && r.tokens[i-1].Owner == p:
			ranges[len(ranges)-1].Last = r.last(i)
		default:
			ranges = append(ranges, space.Range{First: t.Start, Last: r.last(i)})
		}
	}
	return ranges
}

// Tokens is the number of tokens: what the ring costs in messages.
func (r *Ring) Tokens() int { return len(r.tokens) }

// Enclosure is a range that one other owner's lie around.
type Enclosure struct {
	Range space.Range
	By    Peer
}

// Enclosed lists the ranges of p that lie between two of another peer which are
// larger. Of equal ones that alternate, only one peer's are.
func (r *Ring) Enclosed(p Peer) (all []Enclosure) {
	for _, own := range r.Ranges(p) {
		if own.First == r.pool.Addr() || own.Last == space.Of(r.pool).Last {
			continue
		}
		before, left := r.around(own.First.Prev())
		after, right := r.around(own.Last.Next())
		most := min(left.Size(), right.Size())
		if before == after && (own.Size() < most || own.Size() == most && before < p) {
			all = append(all, Enclosure{own, before})
		}
	}
	return all
}

// around is the range, and its owner, that an address lies in.
func (r *Ring) around(a netip.Addr) (owner Peer, within space.Range) {
	first := r.covering(a)
	last := first
	owner = r.tokens[first].Owner
	for first > 0 && r.tokens[first-1].Owner == owner {
		first--
	}
	for last+1 < len(r.tokens) && r.tokens[last+1].Owner == owner {
		last++
	}
	return owner, space.Range{First: r.tokens[first].Start, Last: r.last(last)}
}

// Give hands the addresses of what over from their owner by to another peer.
// It returns the new ring, and the change for those who know the old one.
func (r *Ring) Give(by Peer, what space.Range, to Peer) (*Ring, Chunk, error) {
	if !r.pool.Contains(what.First) || !r.pool.Contains(what.Last) || what.Last.Less(what.First) {
		return nil, Chunk{}, fmt.Errorf("give %s of pool %s: %w", what, r.pool, ErrNotOwner)
	}
	first, last := r.covering(what.First), r.covering(what.Last)
	given := Token{Start: what.First, Owner: to}
	for _, t := range r.tokens[first : last+1] {
		if t.Owner != by {
			return nil, Chunk{}, fmt.Errorf("give %s of pool %s: %s is owned by %s: %w", what, r.pool, t.Start, t.Owner, ErrNotOwner)
		}
		given.Version = max(given.Version, t.Version+1)
	}
	next, change, err := r.replace(what, given)
	if err != nil {
		return nil, Chunk{}, err
	}
	if len(next.tokens) > GiveTokens && len(next.tokens) > len(r.tokens) {
		return nil, Chunk{}, fmt.Errorf("give %s of pool %s: more than %d tokens: %w", what, r.pool, GiveTokens, ErrFragmented)
	}
	return next, change, nil
}

// Join makes one token of those that lie side by side and are by's. It returns r
// itself if there are none.
func (r *Ring) Join(by Peer) (*Ring, error) {
	next := &Ring{pool: r.pool, seed: r.seed}
	for i := 0; i < len(r.tokens); {
		t, n := r.tokens[i], i+1
		for n < len(r.tokens) && t.Owner == by && r.tokens[n].Owner == by && t.epoch() == r.tokens[n].epoch() {
			t.Version = max(t.Version, r.tokens[n].Version)
			n++
		}
		next.tokens, i = push(next.tokens, t), n
	}
	if len(next.tokens) == len(r.tokens) {
		return r, nil
	}
	return next, next.Check()
}

// replace puts t, which starts a range, in place of all that covers it.
func (r *Ring) replace(what space.Range, t Token) (*Ring, Chunk, error) {
	next := &Ring{pool: r.pool, seed: r.seed, tokens: make([]Token, 0, len(r.tokens)+2)}
	for _, before := range r.tokens {
		if before.Start.Less(what.First) {
			next.tokens = push(next.tokens, before)
		}
	}
	next.tokens = push(next.tokens, t)
	change := Chunk{Pool: r.pool, Seed: r.seed, Tokens: []Token{t}}
	if what.Last != space.Of(r.pool).Last {
		change.End = what.Last.Next()
		after := r.covering(change.End)
		rest := r.tokens[after]
		rest.Start = change.End
		next.tokens = push(next.tokens, rest)
		next.tokens = append(next.tokens, r.tokens[after+1:]...)
	}
	return next, change, next.Check()
}

// Inherit hands all that a removed peer owns to its heir, who does this and
// nobody else. steps is the number of removals between the two: more than one if
// an earlier heir was removed too. It returns r itself if there is nothing.
func (r *Ring) Inherit(from, heir Peer, steps uint64) (*Ring, error) {
	next := &Ring{pool: r.pool, seed: r.seed}
	changed := false
	for _, t := range r.tokens {
		if t.Owner == from {
			t = Token{Start: t.Start, Owner: heir, Version: t.Version + steps<<epochBits}
			changed = true
		}
		next.tokens = push(next.tokens, t)
	}
	if !changed {
		return r, nil
	}
	return next, next.Check()
}

// Merge takes from c what is newer than r, on behalf of peer self. It returns r
// itself if there is nothing new. It refuses what belongs to another ring
// (ErrSeeds) and what breaks the rules: ErrOurs, ErrClash, ErrInvalid; the
// former two only where no removal had a part.
func (r *Ring) Merge(self Peer, c Chunk) (*Ring, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	switch {
	case c.Pool != r.pool:
		return nil, fmt.Errorf("merge ring %s into %s: %w", c.Pool, r.pool, ErrInvalid)
	case c.Seed != r.seed:
		return nil, fmt.Errorf("pool %s: %w", r.pool, ErrSeeds)
	}
	next := &Ring{pool: r.pool, seed: r.seed, tokens: make([]Token, 0, len(r.tokens)+len(c.Tokens)+1)}
	ours, theirs, changed := -1, -1, false
	for _, start := range r.starts(c) {
		if ours+1 < len(r.tokens) && r.tokens[ours+1].Start == start {
			ours++
		}
		if theirs+1 < len(c.Tokens) && c.Tokens[theirs+1].Start == start {
			theirs++
		}
		t := r.tokens[ours]
		if theirs >= 0 && (!c.End.IsValid() || start.Less(c.End)) {
			newer, err := r.newer(self, start, t, c.Tokens[theirs])
			if err != nil {
				return nil, err
			}
			if newer {
				t, changed = c.Tokens[theirs], true
			}
		}
		t.Start = start
		next.tokens = push(next.tokens, t)
	}
	if !changed {
		return r, nil
	}
	return next, next.Check()
}

// starts are all addresses where r or c has something else than before.
func (r *Ring) starts(c Chunk) []netip.Addr {
	starts := make([]netip.Addr, 0, len(r.tokens)+len(c.Tokens)+1)
	for _, t := range r.tokens {
		starts = append(starts, t.Start)
	}
	for _, t := range c.Tokens {
		starts = append(starts, t.Start)
	}
	if c.End.IsValid() {
		starts = append(starts, c.End)
	}
	slices.SortFunc(starts, netip.Addr.Compare)
	return slices.Compact(starts)
}

// newer says whether what another peer says of an address stands.
func (r *Ring) newer(self Peer, addr netip.Addr, ours, theirs Token) (bool, error) {
	strict, mine := ours.epoch()+theirs.epoch() == 0, self == ours.Owner || self == theirs.Owner
	switch {
	case theirs.Version == ours.Version && theirs.Owner != ours.Owner && strict && !mine:
		return false, fmt.Errorf("ring %s: %s version %d of %s and %s: %w", r.pool, addr, ours.Version, ours.Owner, theirs.Owner, ErrClash)
	case theirs.Version == ours.Version && theirs.Owner != ours.Owner && strict,
		theirs.Version > ours.Version && ours.Owner == self && strict:
		return false, fmt.Errorf("ring %s: %s version %d of %s: %w", r.pool, addr, theirs.Version, theirs.Owner, ErrOurs)
	}
	return theirs.newer(ours), nil
}

// covering is the index of the token in whose range a lies; a is in the pool.
func (r *Ring) covering(a netip.Addr) int {
	return sort.Search(len(r.tokens), func(i int) bool { return a.Less(r.tokens[i].Start) }) - 1
}

// last is the last address of the range of token i.
func (r *Ring) last(i int) netip.Addr {
	if i+1 < len(r.tokens) {
		return r.tokens[i+1].Start.Prev()
	}
	return space.Of(r.pool).Last
}
