package state

import (
	"encoding/binary"
	"fmt"
	"time"

	"weave/mesh/id"
)

// format is the first byte of deltas and digests.
const format = 1

// What a change did, its first byte.
const (
	whatSet     = 0
	whatDeleted = 1
)

// Least lengths in bytes of what is counted, so that a false count is seen
// before anything is allocated for it.
const (
	idLen        = len(id.PeerID{})
	minBlock     = idLen + 5
	minChange    = 4
	minKnowledge = idLen + 2
)

// maxChanges bounds the changes of one delta: what a page holds at most, and
// the owner that ends it. It keeps a delta of many tiny changes from taking
// far more memory than its own length.
const maxChanges = pageSize/recordOverhead + MaxRecords

// deltaHeader is what a delta takes besides its blocks, at most.
const deltaHeader = 1 + binary.MaxVarintLen64

// block is one owner's part of a delta: its latest changes with versions in
// (base, version], in the order of versions.
type block struct {
	owner                             id.PeerID
	incarnation, base, version, floor uint64
	changes                           []change
}

// size estimates the length of the encoded block from above.
func (b *block) size() int {
	size := idLen + 5*binary.MaxVarintLen64
	for _, c := range b.changes {
		size += c.name.size(c.value)
	}
	return size
}

// change is a record and its name. In a decoded delta its value aliases the
// input.
type change struct {
	name
	record
}

// stored returns the record to keep for a decoded change.
func (c change) stored(now time.Time) record {
	if c.deleted() {
		return record{version: c.version, died: now.UnixNano()}
	}
	return record{version: c.version, value: copyValue(c.value)}
}

func encodeDelta(blocks []block) []byte {
	size := deltaHeader
	for i := range blocks {
		size += blocks[i].size()
	}
	out := append(make([]byte, 0, size), format)
	out = binary.AppendUvarint(out, uint64(len(blocks)))
	for i := range blocks {
		out = blocks[i].append(out)
	}
	return out
}

func (b *block) append(out []byte) []byte {
	out = append(out, b.owner[:]...)
	for _, v := range [...]uint64{b.incarnation, b.base, b.version, b.floor, uint64(len(b.changes))} {
		out = binary.AppendUvarint(out, v)
	}
	last := b.base
	for _, c := range b.changes {
		what := byte(whatSet)
		if c.deleted() {
			what = whatDeleted
		}
		out = append(out, what)
		out = binary.AppendUvarint(out, c.version-last)
		last = c.version
		out = appendBytes(out, c.kind)
		out = appendBytes(out, c.key)
		if what == whatSet {
			out = appendBytes(out, c.value)
		}
	}
	return out
}

func appendBytes[T ~string | ~[]byte](out []byte, v T) []byte {
	return append(binary.AppendUvarint(out, uint64(len(v))), v...)
}

func decodeDelta(in []byte) ([]block, error) {
	if len(in) > MaxDelta {
		return nil, fmt.Errorf("delta of %d bytes: %w", len(in), ErrTooLarge)
	}
	r := reader{rest: in}
	r.format()
	n := r.count(minBlock, MaxOwners)
	blocks := make([]block, 0, n)
	for range n {
		blocks = append(blocks, r.block())
	}
	if !r.done() {
		return nil, fmt.Errorf("delta: %w", ErrMalformed)
	}
	return blocks, nil
}

// knowledge is one entry of a digest.
type knowledge struct {
	owner                id.PeerID
	incarnation, version uint64
}

func encodeDigest(d []knowledge) []byte {
	out := append(make([]byte, 0, 8+len(d)*(idLen+8)), format)
	out = binary.AppendUvarint(out, uint64(len(d)))
	for _, k := range d {
		out = append(out, k.owner[:]...)
		out = binary.AppendUvarint(out, k.incarnation)
		out = binary.AppendUvarint(out, k.version)
	}
	return out
}

func decodeDigest(in []byte) (map[id.PeerID]knowledge, error) {
	if len(in) > MaxDigest {
		return nil, fmt.Errorf("digest of %d bytes: %w", len(in), ErrTooLarge)
	}
	r := reader{rest: in}
	r.format()
	n := r.count(minKnowledge, MaxOwners)
	out := make(map[id.PeerID]knowledge, n)
	var last id.PeerID
	for i := range n {
		k := knowledge{owner: r.owner(), incarnation: r.incarnation(), version: r.uint()}
		if i > 0 && last.Compare(k.owner) >= 0 {
			r.bad = true
		}
		last = k.owner
		out[k.owner] = k
	}
	if !r.done() {
		return nil, fmt.Errorf("digest: %w", ErrMalformed)
	}
	return out, nil
}

// reader takes values off hostile bytes. After the first thing that is wrong
// it is bad and returns zeros.
type reader struct {
	rest    []byte
	bad     bool
	changes int // read so far
	kind    string
}

// done tells whether all went well and nothing is left.
func (r *reader) done() bool { return !r.bad && len(r.rest) == 0 }

func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.rest)) {
		r.bad = true
		return nil
	}
	v := r.rest[:n:n]
	r.rest = r.rest[n:]
	return v
}

func (r *reader) byte() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if r.bad || n <= 0 {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) format() { r.bad = r.byte() != format || r.bad }

// count reads how many things of at least a given length follow.
func (r *reader) count(least, limit int) int {
	n := r.uint()
	if n > uint64(limit) || n > uint64(len(r.rest)/least) {
		r.bad = true
		return 0
	}
	return int(n)
}

// bytes reads a length up to a limit, and as many bytes, which alias the input
// and are not nil if all went well.
func (r *reader) bytes(limit int) []byte {
	n := r.uint()
	if n > uint64(limit) {
		r.bad = true
		return nil
	}
	return r.take(n)
}

func (r *reader) owner() (p id.PeerID) {
	copy(p[:], r.take(uint64(idLen)))
	r.bad = r.bad || p.IsZero()
	return p
}

func (r *reader) incarnation() uint64 {
	v := r.uint()
	r.bad = r.bad || v >= MaxIncarnation
	return v
}

func (r *reader) block() block {
	b := block{
		owner: r.owner(), incarnation: r.incarnation(),
		base: r.uint(), version: r.uint(), floor: r.uint(),
	}
	r.bad = r.bad || b.base > b.version || b.floor > b.version || b.base > 0 && b.floor > 0
	n := r.count(minChange, min(MaxRecords, maxChanges-r.changes))
	r.changes += n
	b.changes = make([]change, 0, n)
	last := b.base
	for range n {
		c := r.change(last)
		r.bad = r.bad || c.version <= last || c.version > b.version
		last = c.version
		b.changes = append(b.changes, c)
	}
	return b
}

// change reads a change that follows the one of version last.
func (r *reader) change(last uint64) change {
	what := r.byte()
	var c change
	c.version = last + r.uint() // an overflow shows as a version not above last
	if kind := r.bytes(MaxKind); string(kind) != r.kind {
		r.kind = string(kind)
	}
	c.kind = r.kind // records of one kind mostly stand together: they share it
	c.key = string(r.bytes(MaxKey))
	switch what {
	case whatSet:
		c.value = r.bytes(MaxValue)
	case whatDeleted:
	default:
		r.bad = true
	}
	return c
}
