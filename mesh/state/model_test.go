package state

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weave/mesh/id"
)

// machine runs a few peers' tables against a model that only knows what each
// owner wrote last. Deltas lie in a bag from which they are delivered in any
// order, any number of times, or never.
type machine struct {
	tables []*Table
	model  []map[string]string // per owner: what it publishes
	top    uint64              // highest incarnation of all runs
	bag    [][]byte
	now    time.Time
	// views are what watchers believe who follow the changes and nothing else.
	views []map[string]string
}

func (m *machine) peer(i int) id.PeerID { return id.PeerID{byte(i + 1)} }

func newMachine(n int) *machine {
	m := &machine{now: noon, top: 1}
	for i := range n {
		m.tables = append(m.tables, New(m.peer(i), 1))
		m.model = append(m.model, map[string]string{})
		m.views = append(m.views, map[string]string{})
	}
	return m
}

func (m *machine) pick(t *rapid.T, label string) int {
	return rapid.IntRange(0, len(m.tables)-1).Draw(t, label)
}

// follow checks the changes against what the watcher believed, and applies
// them to it.
func (m *machine) follow(t *rapid.T, i int, changes []Change) {
	for _, c := range changes {
		key := fmt.Sprintf("%x/%s", c.Owner[0], c.Key)
		old, had := m.views[i][key]
		if had != (c.Old != nil) || old != string(c.Old) {
			t.Fatalf("change of %s says it was %q, watcher knows %q", key, c.Old, old)
		}
		if delete(m.views[i], key); c.New != nil {
			m.views[i][key] = string(c.New)
		}
	}
}

func (m *machine) merge(t *rapid.T, i int, delta []byte) Result {
	res, err := m.tables[i].Merge(delta, m.now)
	if err != nil {
		t.Fatalf("Merge: %v", err)
	}
	m.follow(t, i, res.Changes)
	if res.Raised {
		m.top = max(m.top, m.tables[i].Incarnation())
		m.bag = append(m.bag, m.tables[i].Announce())
	}
	return res
}

// pull brings one table up to date with another.
func (m *machine) pull(t *rapid.T, to, from int) {
	delta, err := m.tables[from].Missing(m.tables[to].Digest())
	if err != nil {
		t.Fatalf("Missing: %v", err)
	}
	if delta != nil && m.merge(t, to, delta).Gap {
		t.Fatal("the answer to a pull leaves a gap")
	}
}

func (m *machine) restart(i int, incarnation uint64) {
	m.tables[i] = New(m.peer(i), incarnation)
	m.model[i] = map[string]string{}
	m.views[i] = map[string]string{}
}

func (m *machine) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"set": func(t *rapid.T) {
			i := m.pick(t, "owner")
			key := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "key")
			value := rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "value")
			if delta := set(t, m.tables[i], key, value); delta != nil {
				m.bag = append(m.bag, delta)
			}
			m.model[i][key] = value
		},
		"delete": func(t *rapid.T) {
			i := m.pick(t, "owner")
			key := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "key")
			if delta := m.tables[i].Delete("k", key, m.now); delta != nil {
				m.bag = append(m.bag, delta)
			}
			delete(m.model[i], key)
		},
		"deliver": func(t *rapid.T) {
			if len(m.bag) > 0 {
				delta := rapid.SampledFrom(m.bag).Draw(t, "delta")
				m.merge(t, m.pick(t, "to"), delta)
			}
		},
		"pull": func(t *rapid.T) { m.pull(t, m.pick(t, "to"), m.pick(t, "from")) },
		"prune": func(t *rapid.T) {
			m.now = m.now.Add(time.Minute)
			m.tables[m.pick(t, "table")].Prune(m.now, 2*time.Minute)
		},
		"drop stale": func(t *rapid.T) {
			i := m.pick(t, "table")
			dead := m.peer(m.pick(t, "dead"))
			m.follow(t, i, m.tables[i].DropStale(m.now, time.Minute, func(p id.PeerID) bool { return p != dead }))
			for p, o := range m.tables[i].owners {
				if len(o.stale.records) > 0 && m.now.Sub(o.restart) >= time.Minute && p != dead {
					t.Fatalf("stale records of %x stay", p[0])
				}
			}
		},
		"restart": func(t *rapid.T) {
			m.top += 10
			m.restart(m.pick(t, "who"), m.top)
		},
		// An incarnation restored from an old backup: lower than that of an
		// earlier run, but not the same as one.
		"restore": func(t *rapid.T) {
			i := m.pick(t, "who")
			if old := m.tables[i].Incarnation(); old%10 == 1 && old > 1 {
				m.restart(i, old-5)
			}
		},
		"": m.check,
	}
}

// check holds after each step: a table has its own records as written, and its
// watcher knows the others' as the table has them.
func (m *machine) check(t *rapid.T) {
	for i, table := range m.tables {
		own, others := map[string]string{}, map[string]string{}
		table.ForEach("k", func(r Record) {
			if r.Owner == m.peer(i) {
				own[r.Key] = string(r.Value)
			} else {
				others[fmt.Sprintf("%x/%s", r.Owner[0], r.Key)] = string(r.Value)
			}
		})
		if !maps.Equal(own, m.model[i]) {
			t.Fatalf("table %d has %v of its own, was told %v", i, own, m.model[i])
		}
		if !maps.Equal(others, m.views[i]) {
			t.Fatalf("table %d has %v, its watcher knows %v", i, others, m.views[i])
		}
		for p, o := range table.owners {
			size := 0
			for n, r := range o.records {
				size += n.size(r.value)
			}
			left := 0
			for n, r := range o.stale.records {
				left += n.size(r.value)
				if _, known := o.records[n]; known || p == table.self {
					t.Fatalf("table %d: %s of %x is stale", i, n.key, p[0])
				}
			}
			if size != o.size || left != o.stale.size {
				t.Fatalf("table %d counts %d and %d stale bytes for %x, has %d and %d", i, o.size, o.stale.size, p[0], size, left)
			}
		}
		if now := (&Table{self: table.self, owners: table.owners}).Digest(); !bytes.Equal(table.Digest(), now) {
			t.Fatalf("table %d gives a digest of the past", i)
		}
	}
}

// settle lets all exchange all, twice: an incarnation raised in the first round
// must reach everybody.
func (m *machine) settle(t *rapid.T) {
	for range 3 {
		for i := range m.tables {
			for j := range m.tables {
				m.pull(t, i, j)
				m.pull(t, j, i)
			}
		}
	}
}

func TestTablesConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(rapid.IntRange(2, 5).Draw(t, "tables"))
		t.Repeat(m.actions())
		m.settle(t)
		for i, table := range m.tables {
			m.follow(t, i, table.DropStale(m.now, 0, anybody))
		}
		m.check(t)
		var truth []string
		for i, records := range m.model {
			for _, key := range slices.Sorted(maps.Keys(records)) {
				truth = append(truth, fmt.Sprintf("%x/%s=%s", m.peer(i)[0], key, records[key]))
			}
		}
		for i, table := range m.tables {
			if !bytes.Equal(table.Digest(), m.tables[0].Digest()) {
				t.Fatalf("digests of 0 and %d differ", i)
			}
			if got, want := show(table), strings.Join(truth, " "); got != want {
				t.Fatalf("table %d has %q, want %q", i, got, want)
			}
		}
	})
}
