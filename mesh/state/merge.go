package state

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"weave/mesh/id"
)

// Merge takes in a delta. An error says that the delta, or the part of it that
// belongs to one owner, was refused; the Result holds for the other parts. The
// delta stays the caller's.
func (t *Table) Merge(delta []byte, now time.Time) (Result, error) {
	var res Result
	blocks, err := decodeDelta(delta)
	if err != nil {
		return res, err
	}
	for i := range blocks {
		if refused := t.apply(&blocks[i], now, &res); refused != nil && err == nil {
			err = refused
		}
	}
	return res, err
}

// apply takes in one owner's part of a delta.
func (t *Table) apply(b *block, now time.Time, res *Result) error {
	if b.owner == t.self {
		res.Raised = t.outbid(b) || res.Raised
		return nil
	}
	o := t.owners[b.owner]
	var known uint64
	switch {
	case o == nil || b.incarnation > o.incarnation:
		// A new run: nothing of it is known.
	case b.incarnation < o.incarnation || b.version <= o.version:
		return nil
	default:
		known = o.version
	}
	if b.base > known {
		res.Gap = true
		return nil
	}
	if o == nil && len(t.owners) >= MaxOwners {
		return fmt.Errorf("merge records of peer %s: %w", b.owner.Short(), ErrFull)
	}
	if b.base == 0 {
		return t.replace(b, now, res)
	}
	if err := o.extend(b, known, now, res); err != nil {
		return err
	}
	t.digest = nil
	return nil
}

// outbid answers a claim that we are further than we are: records of a run of
// ours that we have forgotten. It reports whether our incarnation was raised.
// A claim that cannot be outbid is ignored.
func (t *Table) outbid(b *block) bool {
	own := t.owners[t.self]
	behind := b.incarnation > own.incarnation ||
		b.incarnation == own.incarnation && b.version > own.version
	if !behind || b.incarnation+1 >= MaxIncarnation {
		return false
	}
	own.incarnation = b.incarnation + 1
	t.digest = nil
	return true
}

// replace puts a whole set in the place of what was known of an owner.
func (t *Table) replace(b *block, now time.Time, res *Result) error {
	o := &owner{
		incarnation: b.incarnation, version: b.version, floor: b.floor,
		records: make(map[name]record, len(b.changes)),
	}
	for _, c := range b.changes {
		o.put(c.name, c.stored(now))
	}
	if o.size > MaxOwnerSize {
		return fmt.Errorf("merge records of peer %s: %w", b.owner.Short(), ErrFull)
	}
	old := t.owners[b.owner]
	if old == nil {
		old = &owner{}
	}
	before := old.all()
	if b.incarnation > old.incarnation {
		o.stale, o.restart = without(before, o.records), now
	} else {
		o.stale, o.restart = without(old.stale, o.records), old.restart
	}
	if len(o.stale) > MaxRecords { // of many short runs
		o.stale = nil
	}
	t.owners[b.owner] = o
	t.digest = nil
	res.Changes = append(res.Changes, compare(b.owner, before, o.all())...)
	res.Stale = res.Stale || len(o.stale) > 0
	return nil
}

// all returns all records, stale ones too. It is not to be changed.
func (o *owner) all() map[name]record {
	if len(o.stale) == 0 {
		return o.records
	}
	all := maps.Clone(o.records)
	maps.Copy(all, o.stale)
	return all
}

// without returns the records of a set that exist and that another set does not
// know, nil if there are none.
func without(set, other map[name]record) (rest map[name]record) {
	for n, r := range set {
		if _, known := other[n]; known || r.deleted() {
			continue
		}
		if rest == nil {
			rest = map[name]record{}
		}
		rest[n] = r
	}
	return rest
}

// compare returns the differences between two sets of one owner: first what has
// gone, by its old version, then what has come, by its new one.
func compare(p id.PeerID, before, after map[name]record) (changes []Change) {
	var gone, come []change
	for n, r := range before {
		if now, kept := after[n]; !r.deleted() && (!kept || now.deleted()) {
			gone = append(gone, change{n, r})
		}
	}
	for n, r := range after {
		if old := before[n]; !r.deleted() && (old.deleted() || !bytes.Equal(old.value, r.value)) {
			come = append(come, change{n, r})
		}
	}
	byVersion := func(x, y change) int { return cmp.Compare(x.version, y.version) }
	slices.SortFunc(gone, byVersion)
	slices.SortFunc(come, byVersion)
	for _, c := range gone {
		changes = append(changes, Change{p, c.kind, c.key, c.value, nil})
	}
	for _, c := range come {
		changes = append(changes, Change{p, c.kind, c.key, before[c.name].value, c.value})
	}
	return changes
}

// extend adds the changes above the known version.
func (o *owner) extend(b *block, known uint64, now time.Time, res *Result) error {
	changes := b.changes
	for len(changes) > 0 && changes[0].version <= known {
		changes = changes[1:]
	}
	if !o.fits(changes) {
		return fmt.Errorf("merge records of peer %s: %w", b.owner.Short(), ErrFull)
	}
	for _, c := range changes {
		old, known := o.records[c.name]
		if !known {
			old = o.stale[c.name]
			delete(o.stale, c.name)
		}
		r := c.stored(now)
		o.put(c.name, r)
		same := old.deleted() == r.deleted() && bytes.Equal(old.value, r.value)
		if !same {
			res.Changes = append(res.Changes, Change{b.owner, c.kind, c.key, old.value, r.value})
		}
	}
	o.version = b.version
	return nil
}

// fits tells whether the changes can be taken in without passing a limit.
func (o *owner) fits(changes []change) bool {
	size, count := o.size, len(o.records)
	last := make(map[name]int, len(changes)) // size of what came so far
	for _, c := range changes {
		if held, again := last[c.name]; again {
			size -= held
		} else if old, known := o.records[c.name]; known {
			size -= c.name.size(old.value)
		} else {
			count++
		}
		last[c.name] = c.name.size(c.value)
		size += last[c.name]
	}
	return size <= MaxOwnerSize && count <= MaxRecords
}
