package state

import (
	"bytes"
	"cmp"
	"fmt"
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
	res.add(b.owner, o.succeed(old, now))
	t.owners[b.owner] = o
	t.digest = nil
	return nil
}

// succeed takes over from what was known of the same owner before, which must not
// be used any more, and returns what changes. It does not look at what stays
// stale: who starts anew again and again must not keep us busy.
func (o *owner) succeed(old *owner, now time.Time) (all []difference) {
	o.stale, o.restart = old.stale, old.restart
	restarted := o.incarnation > old.incarnation
	if restarted {
		o.restart = now
	}
	for n, r := range old.records {
		switch next, kept := o.records[n]; {
		case r.deleted():
		case kept && next.deleted(), !kept && !restarted:
			all = append(all, gone(n, r))
		case !kept:
			o.stale.put(n, r)
		}
	}
	for n, r := range o.records {
		before, known := old.records[n]
		if !known {
			before = o.stale.take(n)
		}
		switch {
		case !r.deleted() && (before.deleted() || !bytes.Equal(before.value, r.value)):
			all = append(all, difference{n, r.version, before.value, r.value})
		case r.deleted() && !known && !before.deleted():
			all = append(all, gone(n, before))
		}
	}
	if o.stale.size > MaxOwnerSize || len(o.stale.records) > MaxRecords { // of many short runs
		all = append(all, o.stale.drop()...)
	}
	return all
}

// difference is what became of one record of an owner.
type difference struct {
	name
	version  uint64 // of what has come, or has gone
	old, now []byte // nil where there is none
}

func gone(n name, r record) difference { return difference{n, r.version, r.value, nil} }

// add adds the differences of one owner: first what has gone, then what has come.
func (res *Result) add(p id.PeerID, all []difference) {
	slices.SortFunc(all, func(x, y difference) int {
		return cmp.Or(compareBool(x.now != nil, y.now != nil), cmp.Compare(x.version, y.version))
	})
	for _, d := range all {
		res.Changes = append(res.Changes, Change{p, d.kind, d.key, d.old, d.now})
	}
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
			old = o.stale.take(c.name)
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
