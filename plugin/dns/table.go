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
	for r := range old {
		if !now[r] {
			take(t.names, nameKey{r.Segment, r.Name}, owned{r, source})
			take(t.addrs, addrKey{r.Segment, r.Addr}, owned{r, source})
		}
	}
	for r := range now {
		if !old[r] {
			give(t.names, nameKey{r.Segment, r.Name}, owned{r, source})
			give(t.addrs, addrKey{r.Segment, r.Addr}, owned{r, source})
		}
	}
	if t.sources[source] = now; len(now) == 0 {
		delete(t.sources, source)
	}
}

// give and take make new slices: readers keep the old ones without the lock.
func give[K comparable](m map[K][]owned, k K, o owned) {
	at, _ := slices.BinarySearchFunc(m[k], o, compare)
	m[k] = slices.Insert(slices.Clone(m[k]), at, o)
}

func take[K comparable](m map[K][]owned, k K, o owned) {
	if m[k] = slices.DeleteFunc(slices.Clone(m[k]), func(x owned) bool { return x == o }); len(m[k]) == 0 {
		delete(m, k)
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

func (t *Table) find(scopes []Scope, name string) (out []found) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, s := range scopes {
		for _, o := range t.names[nameKey{s.Segment, name}] {
			same := func(f found) bool { return f.Addr == o.Addr }
			if !slices.ContainsFunc(out, same) {
				out = append(out, found{o.Record, o.Local && s.LocalFirst})
			}
		}
	}
	return out
}

// Names returns the names of an address, each once, in alphabetical order.
func (t *Table) Names(scopes []Scope, addr netip.Addr) (out []string) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, s := range scopes {
		for _, o := range t.addrs[addrKey{s.Segment, addr}] {
			if !slices.Contains(out, o.Name) {
				out = append(out, o.Name)
			}
		}
	}
	slices.Sort(out)
	return out
}
