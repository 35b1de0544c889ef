// Package state holds the records that peers publish about themselves, and
// keeps the copies of them on all peers the same.
//
// A record is named by its owner, a kind and a key. Only its owner writes it,
// so two writers never meet. An owner numbers its changes: one version counter
// for all its records, which grows by one with each change. A copy that knows
// an owner up to version v holds, of every record whose latest change is not
// above v, exactly that change. A restart of the owner begins a new
// incarnation, which replaces all that the incarnations before it published.
// It is told piece by piece, so what it has not repeated yet is stale, and counts
// until DropStale, as routes do in a graceful restart of BGP (RFC 4724): that a
// host's agent starts anew is no reason to forget its containers for a moment.
// Stale records are in no delta and no digest.
//
// What moves between tables is a delta: of some owners, all latest changes
// with versions in (base, version]. A delta whose base is above what a copy
// knows leaves a gap; it changes nothing, and its receiver must pull: send its
// Digest to somebody and merge the Missing that comes back. Deltas may be
// lost, repeated and reordered at will: tables that have exchanged all are
// equal.
//
// A deleted record leaves a tombstone until Prune. The floor of an owner is
// the highest version of a tombstone that was pruned: a copy below the floor
// could miss a deletion, so it is sent the whole set, which is a delta with
// base 0.
//
// A Table believes each delta, whoever brought it: all peers share a password
// and pass on each other's records. Nothing from outside ever changes the
// table's own records, though. The package has no lock, clock, goroutine or IO:
// who holds a Table guards it and tells it the time.
//
// # Encoding
//
// Integers are unsigned varints (encoding/binary) unless a width is given.
//
//	delta  = format(1 byte: 1) count block*
//	block  = owner(16 bytes) incarnation base version floor count change*
//	change = what(1 byte: 0 set, 1 deleted) step
//	         length kind length key [length value, only if set]
//	digest = format(1 byte: 1) count entry*
//	entry  = owner(16 bytes) incarnation version
//
// The changes of a block stand in the order of their versions; a step is the
// distance from the version before, at first from the base. The entries of a
// digest stand in the order of their owners, so equal tables have equal
// digests; an owner that never published anything has none, so a peer that only
// just came is no difference. The floor counts only if the base is 0, and is 0 otherwise.
package state

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"weave/mesh/id"
)

// Limits of what a Table holds or a decoder accepts. Sizes are in bytes.
const (
	MaxKind    = 16
	MaxKey     = 256
	MaxValue   = 4 << 10
	MaxOwners  = 10_000
	MaxRecords = 100_000 // per owner, with tombstones
	// MaxOwnerSize bounds kinds, keys and values of one owner, with
	// recordOverhead for each record, so that its whole set fits a delta.
	MaxOwnerSize = 32 << 20
	// MaxDelta is the longest delta that Missing makes or Merge accepts.
	MaxDelta = 64 << 20
	// MaxDigest is the longest digest that Missing accepts.
	MaxDigest = 1 << 20
	// MaxIncarnation is above all valid incarnations.
	MaxIncarnation = 1 << 62
)

// recordOverhead is counted for each record on top of its strings.
const recordOverhead = 32

// pageSize ends a delta made by Missing at the first owner beyond it.
const pageSize = 16 << 20

var (
	// ErrMalformed is returned for bytes that are no delta or no digest.
	ErrMalformed = errors.New("state: malformed input")
	// ErrTooLarge is returned for a kind, key, value, delta or digest above
	// its limit.
	ErrTooLarge = errors.New("state: larger than the limit")
	// ErrFull is returned when an owner has too many records, or when there
	// are too many owners.
	ErrFull = errors.New("state: table is full")
)

// Record is one record as it stands. Its value belongs to the Table: read only.
type Record struct {
	Owner     id.PeerID
	Kind, Key string
	Version   uint64
	Value     []byte
	Stale     bool // of a run before the owner's current one
}

// Change is what became of one record by a Merge. Old and New are the values,
// nil where the record does not exist. They belong to the Table: read only.
type Change struct {
	Owner     id.PeerID
	Kind, Key string
	Old, New  []byte
}

// Result is what came of a Merge.
type Result struct {
	// Changes of values, in the order of owners and versions. A record that
	// came again with its old value is none.
	Changes []Change
	// Gap says that a delta did not join on to what is known: pull.
	Gap bool
	// Raised says that records came back to us that this run of ours did not
	// write, from a run that the caller has forgotten. Our incarnation was
	// raised above theirs: persist Incarnation and broadcast Announce.
	Raised bool
}

// Table is one peer's copy of the records of all peers. It is not safe for
// concurrent use.
type Table struct {
	self   id.PeerID
	owners map[id.PeerID]*owner // always has self

	// Made by order and Digest when they are asked for: comparing tables is
	// what is done most often, and mostly nothing has changed. nil after a
	// change of what they say.
	sorted []id.PeerID
	digest []byte
}

// owner is what is known of one peer's records.
type owner struct {
	incarnation uint64
	version     uint64 // all changes up to here are known
	floor       uint64 // tombstones up to here may have been pruned
	records     map[name]record
	size        int // of the records, see MaxOwnerSize

	stale   stale
	restart time.Time // when the current run was first heard of
}

type name struct{ kind, key string }

// size is what a record of this name and value counts for.
func (n name) size(value []byte) int {
	return len(n.kind) + len(n.key) + len(value) + recordOverhead
}

type record struct {
	version uint64
	value   []byte // never nil but for a tombstone
	died    int64  // of a tombstone: when, in nanoseconds of Unix time
}

func (r record) deleted() bool { return r.value == nil }

// New returns the table of a peer that starts its run number incarnation,
// which must be above those of all its runs before and below MaxIncarnation.
func New(self id.PeerID, incarnation uint64) *Table {
	own := &owner{incarnation: incarnation, records: map[name]record{}}
	return &Table{self: self, owners: map[id.PeerID]*owner{self: own}}
}

// Incarnation returns the number of our own run: that given to New, unless a
// Merge raised it.
func (t *Table) Incarnation() uint64 { return t.owners[t.self].incarnation }

// Set writes a record of our own and returns the delta to broadcast, which is
// nil if the record had that value already. It copies the value.
func (t *Table) Set(kind, key string, value []byte) ([]byte, error) {
	if len(kind) > MaxKind || len(key) > MaxKey || len(value) > MaxValue {
		return nil, fmt.Errorf("set record %.16q %.64q: %w", kind, key, ErrTooLarge)
	}
	own, n := t.owners[t.self], name{kind, key}
	old, known := own.records[n]
	if known && !old.deleted() && bytes.Equal(old.value, value) {
		return nil, nil
	}
	grown, count := own.size+n.size(value), len(own.records)
	if known {
		grown -= n.size(old.value)
	} else {
		count++
	}
	if grown > MaxOwnerSize || count > MaxRecords {
		return nil, fmt.Errorf("set record %q %q: %w", kind, key, ErrFull)
	}
	return t.write(n, record{value: copyValue(value)}), nil
}

// Delete removes a record of our own and returns the delta to broadcast, which
// is nil if there was no such record.
func (t *Table) Delete(kind, key string, now time.Time) []byte {
	n := name{kind, key}
	if old, known := t.owners[t.self].records[n]; !known || old.deleted() {
		return nil
	}
	return t.write(n, record{died: now.UnixNano()})
}

// write makes the next change of our own and encodes it.
func (t *Table) write(n name, r record) []byte {
	own := t.owners[t.self]
	r.version = own.version + 1
	b := block{
		owner: t.self, incarnation: own.incarnation,
		base: own.version, version: r.version,
		changes: []change{{name: n, record: r}},
	}
	if b.base == 0 {
		b.floor = own.floor
	}
	own.put(n, r)
	own.version = r.version
	t.digest = nil
	return encodeDelta([]block{b})
}

// put stores a record and keeps the size right.
func (o *owner) put(n name, r record) {
	if old, known := o.records[n]; known {
		o.size -= n.size(old.value)
	}
	o.records[n] = r
	o.size += n.size(r.value)
}

// Announce returns a delta with all records of our own.
func (t *Table) Announce() []byte {
	return encodeDelta([]block{t.since(t.self, 0)})
}

// AnnounceIn returns what Announce does, as up to count deltas of at most size
// bytes, which join on to each other in their order. It returns nil if there is
// nothing to announce, if that takes more, or once a tombstone was pruned: it
// is for those who just came.
func (t *Table) AnnounceIn(size, count int) [][]byte {
	rest := t.since(t.self, 0)
	if rest.version == 0 || rest.floor > 0 {
		return nil
	}
	var out [][]byte
	for {
		piece, n := rest, 0
		piece.changes = nil
		for length := deltaHeader + piece.size(); n < len(rest.changes); n++ {
			c := rest.changes[n]
			if length += c.name.size(c.value); length > size {
				break
			}
		}
		if len(out) == count || n == 0 {
			return nil
		}
		piece.changes, rest.changes = rest.changes[:n], rest.changes[n:]
		if len(rest.changes) == 0 {
			return append(out, encodeDelta([]block{piece}))
		}
		piece.version = piece.changes[n-1].version
		rest.base = piece.version
		out = append(out, encodeDelta([]block{piece}))
	}
}

// since collects the changes of an owner above a version. The whole set is
// returned for a base of 0 or below the floor.
func (t *Table) since(p id.PeerID, base uint64) block {
	o := t.owners[p]
	b := block{owner: p, incarnation: o.incarnation, base: base, version: o.version}
	if base < o.floor {
		b.base = 0
	}
	if b.base == 0 {
		b.floor = o.floor
	}
	for n, r := range o.records {
		if r.version > b.base {
			b.changes = append(b.changes, change{name: n, record: r})
		}
	}
	slices.SortFunc(b.changes, func(x, y change) int { return cmp.Compare(x.version, y.version) })
	return b
}

// Digest says how much this table knows of each owner. Equal tables have equal
// digests. It must not be changed, and stays as it is when the table changes.
func (t *Table) Digest() []byte {
	if t.digest != nil {
		return t.digest
	}
	d := make([]knowledge, 0, len(t.owners))
	for _, p := range t.order() {
		if o := t.owners[p]; o.version > 0 {
			d = append(d, knowledge{p, o.incarnation, o.version})
		}
	}
	t.digest = encodeDigest(d)
	return t.digest
}

// order lists the owners in the order of their IDs. Owners only ever come.
func (t *Table) order() []id.PeerID {
	if len(t.sorted) == len(t.owners) {
		return t.sorted
	}
	t.sorted = make([]id.PeerID, 0, len(t.owners))
	for p := range t.owners {
		t.sorted = append(t.sorted, p)
	}
	slices.SortFunc(t.sorted, id.PeerID.Compare)
	return t.sorted
}

// Missing returns a delta of what the sender of a digest lacks, or nil if it
// lacks nothing. A very large answer is cut: who merges it and asks again with
// its new digest gets the next part, until the answer is nil or changes nothing.
func (t *Table) Missing(digest []byte) ([]byte, error) {
	theirs, err := decodeDigest(digest)
	if err != nil {
		return nil, err
	}
	var blocks []block
	size := 0
	for _, p := range t.order() {
		ours, their := t.owners[p], theirs[p]
		var base uint64
		switch {
		case their.owner.IsZero() && ours.version == 0:
			continue
		case their.owner.IsZero() || their.incarnation < ours.incarnation:
		case their.incarnation == ours.incarnation && their.version < ours.version:
			base = their.version
		default:
			continue
		}
		b := t.since(p, base)
		blocks = append(blocks, b)
		if size += b.size(); size >= pageSize {
			break
		}
	}
	if blocks == nil {
		return nil, nil
	}
	return encodeDelta(blocks), nil
}

// Prune drops tombstones of at least the given age.
func (t *Table) Prune(now time.Time, age time.Duration) {
	for _, o := range t.owners {
		for n, r := range o.records {
			if r.deleted() && now.UnixNano()-r.died >= int64(age) {
				o.floor = max(o.floor, r.version)
				o.size -= n.size(nil)
				delete(o.records, n)
			}
		}
	}
}

// Get returns one record.
func (t *Table) Get(owner id.PeerID, kind, key string) (Record, bool) {
	o, known := t.owners[owner]
	if !known {
		return Record{}, false
	}
	r, current := o.records[name{kind, key}]
	if !current {
		r = o.stale.records[name{kind, key}]
	}
	if r.deleted() {
		return Record{}, false
	}
	return Record{Owner: owner, Kind: kind, Key: key, Version: r.version, Value: r.value, Stale: !current}, true
}

// ForEach calls fn for each record of a kind, of all owners, in no order. fn
// must not change the Table.
func (t *Table) ForEach(kind string, fn func(Record)) {
	for p, o := range t.owners {
		for n, r := range o.records {
			if n.kind == kind && !r.deleted() {
				fn(Record{Owner: p, Kind: kind, Key: n.key, Version: r.version, Value: r.value})
			}
		}
		for n, r := range o.stale.records {
			if n.kind == kind {
				fn(Record{Owner: p, Kind: kind, Key: n.key, Version: r.version, Value: r.value, Stale: true})
			}
		}
	}
}

// All returns the records of a kind, in the order of owners and keys, those that
// are stale after the others of their owner.
func (t *Table) All(kind string) []Record {
	var out []Record
	t.ForEach(kind, func(r Record) { out = append(out, r) })
	slices.SortFunc(out, func(x, y Record) int {
		return cmp.Or(x.Owner.Compare(y.Owner), compareBool(x.Stale, y.Stale), cmp.Compare(x.Key, y.Key))
	})
	return out
}

// compareBool has false before true.
func compareBool(x, y bool) int {
	switch {
	case x == y:
		return 0
	case y:
		return -1
	}
	return 1
}

// copyValue copies a value; the copy is not nil, which would mean a tombstone.
func copyValue(v []byte) []byte { return append(make([]byte, 0, len(v)), v...) }
