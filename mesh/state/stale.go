package state

import (
	"time"

	"weave/mesh/id"
)

// DropStale drops the stale records of the owners that are alive and whose restart
// was heard of at least an age ago, and returns what changes by that. Of others
// they stay: an owner that has ended again may not have had the time to repeat them.
func (t *Table) DropStale(now time.Time, age time.Duration, alive func(id.PeerID) bool) []Change {
	var res Result
	for _, p := range t.order() {
		if o := t.owners[p]; len(o.stale.records) > 0 && now.Sub(o.restart) >= age && alive(p) {
			res.add(p, o.stale.drop())
		}
	}
	return res.Changes
}

// stale are the records of runs before that the current one has not written yet.
type stale struct {
	records map[name]record
	size    int // see MaxOwnerSize
}

func (s *stale) put(n name, r record) {
	if s.records == nil {
		s.records = map[name]record{}
	}
	s.take(n)
	s.records[n] = r
	s.size += n.size(r.value)
}

// take takes a record out; one that is deleted if there is none.
func (s *stale) take(n name) record {
	r, known := s.records[n]
	if known {
		delete(s.records, n)
		s.size -= n.size(r.value)
	}
	return r
}

// drop takes all out.
func (s *stale) drop() (all []difference) {
	for n, r := range s.records {
		all = append(all, gone(n, r))
	}
	*s = stale{}
	return all
}
