// Package ring tells who owns which range of a pool.
//
// A ring is an ordered list of tokens; the owner of a token owns the addresses
// from its start up to the next token. Tokens are never removed, and only the
// owner changes one or puts new ones into its range, each time with a higher
// version. So merging takes the higher version of each token, and all peers
// reach the same ring whatever the order, repetition or loss of messages.
//
// The exception is a peer that was removed: its heir takes its tokens over
// (Inherit) without having heard all that it did. The upper half of a version,
// the epoch, counts such steps, so that they win over what the removed peer did
// to the same token; gifts of parts of its ranges which surface later stand.
// Where an epoch above 0 is involved, Merge therefore takes whatever is higher,
// even in its own peer's ranges, and rings still converge; but for a time two
// peers may believe that they own one address.
//
// One rule keeps ranges from overlapping while news is under way: who knows a
// token knows also where its range ended when it got that version. Therefore
// tokens travel in a Chunk, which is complete between two boundaries, and a
// chunk whose end the receiver does not know is refused with ErrGap. Its own
// ranges a peer thus always sees as they are; its view of others' may be old.
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
	ErrGap        = errors.New("end of the chunk is not known here")
	ErrOurs       = errors.New("changes a range that only this peer may change")
	ErrClash      = errors.New("one version of a token has two owners")
	ErrNotOwner   = errors.New("range is not owned by the giver")
	ErrFragmented = errors.New("ring has too many tokens")
	ErrInvalid    = errors.New("invalid ring")
)

// Peer names an owner. It is opaque here.
type Peer string

// Token is the start of a range. The upper 32 bits of its version are its epoch.
type Token struct {
	Start   netip.Addr `json:"start"`
	Owner   Peer       `json:"owner"`
	Version uint64     `json:"version"`
}

const epochBits = 32

// Inherited says whether the range was ever taken over from a removed peer.
func (t Token) Inherited() bool { return t.epoch() > 0 }

func (t Token) epoch() uint64 { return t.Version >> epochBits }

// first is the first version of a token that is put into the range of t.
func (t Token) first() uint64 { return t.epoch()<<epochBits + 1 }

// newer orders what two peers say of one token.
func (t Token) newer(old Token) bool {
	return cmp.Or(cmp.Compare(t.Version, old.Version), cmp.Compare(t.Owner, old.Owner)) > 0
}

// Ring is the ring of one pool. It is immutable and safe for concurrent use.
type Ring struct {
	pool   netip.Prefix
	seed   SeedID
	tokens []Token // ascending; the first starts the pool

	hashing sync.Once // made when it is first asked for: gossip does so all the time
	hash    [8]byte
}

// New makes the first ring of a pool: owners in the given order get equal
// shares. If they outnumber the addresses, the last ones get none. The same
// arguments make the same ring everywhere.
func New(pool netip.Prefix, seed SeedID, owners []Peer) (*Ring, error) {
	r := &Ring{pool: pool, seed: seed}
	for i, share := range space.Of(pool).Shares(len(owners)) {
		r.tokens = append(r.tokens, Token{Start: share.First, Owner: owners[i], Version: 1})
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
	return &Ring{pool: c.Pool, seed: c.Seed, tokens: slices.Clone(c.Tokens)}, nil
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

// Give hands the addresses of what over from their owner by to another peer.
// It returns the new ring, and the change for those who know the old one.
func (r *Ring) Give(by Peer, what space.Range, to Peer) (*Ring, Chunk, error) {
	if !r.pool.Contains(what.First) || !r.pool.Contains(what.Last) || what.Last.Less(what.First) {
		return nil, Chunk{}, fmt.Errorf("give %s of pool %s: %w", what, r.pool, ErrNotOwner)
	}
	first, last := r.covering(what.First), r.covering(what.Last)
	var tokens []Token // what replaces tokens first to last
	for i, t := range r.tokens[first : last+1] {
		if t.Owner != by {
			return nil, Chunk{}, fmt.Errorf("give %s of pool %s: %s is owned by %s: %w", what, r.pool, t.Start, t.Owner, ErrNotOwner)
		}
		if i == 0 && t.Start != what.First {
			tokens = append(tokens, t, Token{Start: what.First, Owner: to, Version: t.first()})
			continue
		}
		tokens = append(tokens, Token{Start: t.Start, Owner: to, Version: t.Version + 1})
	}
	if what.Last != r.last(last) {
		tokens = append(tokens, Token{Start: what.Last.Next(), Owner: by, Version: r.tokens[last].first()})
	}
	next := &Ring{pool: r.pool, seed: r.seed, tokens: slices.Concat(r.tokens[:first], tokens, r.tokens[last+1:])}
	if err := next.Check(); err != nil {
		return nil, Chunk{}, err
	}
	if len(next.tokens) > giveTokens && len(next.tokens) > len(r.tokens) {
		return nil, Chunk{}, fmt.Errorf("give %s of pool %s: more than %d tokens: %w", what, r.pool, giveTokens, ErrFragmented)
	}
	change := Chunk{Pool: r.pool, Seed: r.seed, Tokens: tokens}
	if last+1 < len(r.tokens) {
		change.End = r.tokens[last+1].Start
	}
	return next, change, nil
}

// Inherit hands all that a removed peer owns to its heir, who does this and
// nobody else. steps is the number of removals between the two: more than one if
// an earlier heir was removed too. It returns r itself if there is nothing.
func (r *Ring) Inherit(from, heir Peer, steps uint64) (*Ring, error) {
	next := &Ring{pool: r.pool, seed: r.seed, tokens: slices.Clone(r.tokens)}
	changed := false
	for i, t := range next.tokens {
		if t.Owner == from {
			next.tokens[i] = Token{Start: t.Start, Owner: heir, Version: t.Version + steps<<epochBits}
			changed = true
		}
	}
	if !changed {
		return r, nil
	}
	return next, next.Check()
}

// Merge takes from c what is newer than r, on behalf of peer self. It returns r
// itself if there is nothing new. It refuses what belongs to another ring
// (ErrSeeds), what cannot be placed yet (ErrGap: fetch the whole ring), and
// what breaks the rules: ErrOurs, ErrClash, ErrInvalid; the former two only
// where no removal had a part.
func (r *Ring) Merge(self Peer, c Chunk) (*Ring, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	switch {
	case c.Pool != r.pool:
		return nil, fmt.Errorf("merge ring %s into %s: %w", c.Pool, r.pool, ErrInvalid)
	case c.Seed != r.seed:
		return nil, fmt.Errorf("pool %s: %w", r.pool, ErrSeeds)
	case c.End.IsValid() && r.tokens[r.covering(c.End)].Start != c.End:
		return nil, fmt.Errorf("ring %s: boundary %s: %w", r.pool, c.End, ErrGap)
	}
	merged := make([]Token, 0, len(r.tokens)+len(c.Tokens))
	rest, changed := r.tokens, false
	for _, theirs := range c.Tokens {
		n := sort.Search(len(rest), func(i int) bool { return !rest[i].Start.Less(theirs.Start) })
		merged = append(merged, rest[:n]...)
		rest = rest[n:]
		newer, err := r.newer(self, theirs)
		if err != nil {
			return nil, err
		}
		if newer {
			merged, changed = append(merged, theirs), true
		}
		if len(rest) > 0 && rest[0].Start == theirs.Start {
			if !newer {
				merged = append(merged, rest[0])
			}
			rest = rest[1:]
		}
	}
	if !changed {
		return r, nil
	}
	next := &Ring{pool: r.pool, seed: r.seed, tokens: append(merged, rest...)}
	return next, next.Check()
}

// newer says whether a token of another peer's ring goes into this one.
func (r *Ring) newer(self Peer, theirs Token) (bool, error) {
	ours := r.tokens[r.covering(theirs.Start)]
	same, strict := ours.Start == theirs.Start, ours.epoch()+theirs.epoch() == 0
	switch {
	case same && theirs.Version < ours.Version:
		return false, nil
	case same && theirs.Version == ours.Version && theirs.Owner != ours.Owner && strict:
		kind := ErrClash
		if self == ours.Owner || self == theirs.Owner {
			kind = ErrOurs
		}
		return false, fmt.Errorf("ring %s: token %s of %s and %s: %w", r.pool, ours.Start, ours.Owner, theirs.Owner, kind)
	case same && !theirs.newer(ours):
		return false, nil
	case ours.Owner == self && strict:
		return false, fmt.Errorf("ring %s: token %s version %d of %s: %w", r.pool, theirs.Start, theirs.Version, theirs.Owner, ErrOurs)
	}
	return true, nil
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
