// Package dns answers the questions of containers for the names of containers on
// all hosts (RFC 1035, 3596, 6891), and passes all others on as they are. It knows
// neither Docker nor the mesh, nor where its sockets are.
package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
)

// Record is a name of one address, on one segment.
type Record struct {
	Segment string
	Name    string // lower case, one or more labels, without the domain
	Addr    netip.Addr
	Local   bool // on this host
}

// Table is all records, each from a source, which is the host that has it. The
// zero Table is empty. Its methods are safe for concurrent use.
type Table struct {
	mu      sync.RWMutex
	sources map[string]map[Record]bool
	names   map[nameKey][]owned
	addrs   map[addrKey][]owned
}

type nameKey struct{ segment, name string }

type addrKey struct {
	segment string
	addr    netip.Addr
}

// owned is a record and who has it: two may have the same.
type owned struct {
	Record
	source string
}

// Set puts records in place of all that came from a source. Only what differs
// costs more than a look. Records that no question can be for are left out.
func (t *Table) Set(source string, records []Record) {
	now := make(map[Record]bool, len(records))
	for _, r := range records {
		r.Addr = r.Addr.Unmap()
		if r.Addr.IsValid() && r.Addr.Zone() == "" && validName(r.Name) {
			now[r] = true
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.names == nil {
		t.sources, t.names, t.addrs = map[string]map[Record]bool{}, map[nameKey][]owned{}, map[addrKey][]owned{}
	}
	old := t.sources[source]
	stays := func(o owned) bool { return o.source != source || now[o.Record] }
	names, addrs := map[nameKey][]owned{}, map[addrKey][]owned{} // what comes, by all that changes
	for r := range old {
		if !now[r] {
			names[nameKey{r.Segment, r.Name}] = nil
			addrs[addrKey{r.Segment, r.Addr}] = nil
		}
	}
	for r := range now {
		if !old[r] {
			n, a := nameKey{r.Segment, r.Name}, addrKey{r.Segment, r.Addr}
			names[n] = append(names[n], owned{r, source})
			addrs[a] = append(addrs[a], owned{r, source})
		}
	}
	change(t.names, names, stays)
	change(t.addrs, addrs, stays)
	if t.sources[source] = now; len(now) == 0 {
		delete(t.sources, source)
	}
}

// change makes new slices, each once, however long they are: readers keep the old
// ones without the lock.
func change[K comparable](m, come map[K][]owned, stays func(owned) bool) {
	for k, more := range come {
		all := slices.Grow(more, len(m[k]))
		for _, o := range m[k] {
			if stays(o) {
				all = append(all, o)
			}
		}
		slices.SortFunc(all, compare)
		if m[k] = all; len(all) == 0 {
			delete(m, k)
		}
	}
}

func compare(a, b owned) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Name, b.Name), cmp.Compare(a.source, b.source))
}

// Scope is a segment whose names an asker may see.
type Scope struct {
	Segment    string
	LocalFirst bool // its containers on this host come before those on others
}

// Lookup returns the records of a name, each address once, in the order of addresses.
func (t *Table) Lookup(scopes []Scope, name string) []Record {
	var out []Record
	for _, f := range t.find(scopes, name) {
		out = append(out, f.Record)
	}
	return out
}

// found is a record that answers a question.
type found struct {
	Record
	first bool
}

// find has as much to do as there are records: one host can give many to one name.
func (t *Table) find(scopes []Scope, name string) (out []found) {
	t.mu.RLock()
	for _, s := range scopes {
		all := t.names[nameKey{s.Segment, name}]
		out = slices.Grow(out, len(all))
		for _, o := range all {
			out = append(out, found{o.Record, o.Local && s.LocalFirst})
		}
	}
	t.mu.RUnlock()
	slices.SortStableFunc(out, func(a, b found) int { return a.Addr.Compare(b.Addr) })
	return slices.CompactFunc(out, func(a, b found) bool { return a.Addr == b.Addr })
}

// Names returns the names of an address, each once, in alphabetical order.
func (t *Table) Names(scopes []Scope, addr netip.Addr) (out []string) {
	t.mu.RLock()
	for _, s := range scopes {
		for _, o := range t.addrs[addrKey{s.Segment, addr}] {
			out = append(out, o.Name)
		}
	}
	t.mu.RUnlock()
	slices.Sort(out)
	return slices.Compact(out)
}
