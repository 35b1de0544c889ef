package dns

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// The table tells what a plain list of all records would.
func TestTableLikeAList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table Table
		model := map[string][]Record{}
		segments := []string{"s0", "s1"}
		record := rapid.Custom(func(t *rapid.T) Record {
			return Record{
				Segment: rapid.SampledFrom(segments).Draw(t, "segment"), Name: rapid.SampledFrom([]string{"a", "b", "a.b"}).Draw(t, "name"),
				Addr: netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "address") % 4}), Local: rapid.Bool().Draw(t, "local"),
			}
		})
		for range rapid.IntRange(1, 20).Draw(t, "changes") {
			source := fmt.Sprint("h", rapid.IntRange(0, 3).Draw(t, "source"))
			model[source] = rapid.SliceOfN(record, 0, 6).Draw(t, "records")
			table.Set(source, slices.Clone(model[source]))
			for _, scopes := range [][]Scope{nil, {{Segment: "s0"}}, {{Segment: "s1"}, {Segment: "s0"}}} {
				for _, name := range []string{"a", "b", "a.b", "c"} {
					if got, want := addresses(table.Lookup(scopes, name)), modelled(model, scopes, func(r Record) (netip.Addr, bool) { return r.Addr, r.Name == name }); !maps.Equal(got, want) {
						t.Fatalf("%s in %v: %v, want %v", name, scopes, got, want)
					}
				}
				for i := range byte(4) {
					a := netip.AddrFrom4([4]byte{10, 0, 0, i})
					got, want := table.Names(scopes, a), slices.Sorted(maps.Keys(modelled(model, scopes, func(r Record) (string, bool) { return r.Name, r.Addr == a })))
					if !slices.Equal(got, want) {
						t.Fatalf("%s in %v: %v, want %v", a, scopes, got, want)
					}
				}
			}
		}
		for source := range model {
			table.Set(source, nil)
		}
		if len(table.names)+len(table.addrs)+len(table.sources) > 0 {
			t.Fatalf("left: %+v", &table)
		}
	})
}

func addresses(all []Record) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, r := range all {
		out[r.Addr] = true
	}
	return out
}

func modelled[K comparable](model map[string][]Record, scopes []Scope, of func(Record) (K, bool)) map[K]bool {
	out := map[K]bool{}
	for _, all := range model {
		for _, r := range all {
			k, ok := of(r)
			if ok && slices.ContainsFunc(scopes, func(s Scope) bool { return s.Segment == r.Segment }) {
				out[k] = true
			}
		}
	}
	return out
}

func TestTableRefuses(t *testing.T) {
	var table Table
	table.Set("h", []Record{
		{"s", "", addr("10.0.0.1"), false}, {"s", "Web", addr("10.0.0.1"), false}, {"s", "a..b", addr("10.0.0.1"), false},
		{"s", "a b", addr("10.0.0.1"), false}, {"s", "web", netip.Addr{}, false}, {"s", "web", addr("fe80::1%eth0"), false},
		{"s", "é", addr("10.0.0.1"), false}, {"s", "mapped", addr("::ffff:10.0.0.7"), false},
	})
	if len(table.sources["h"]) != 1 || table.Lookup([]Scope{{Segment: "s"}}, "mapped")[0].Addr != addr("10.0.0.7") {
		t.Errorf("%+v", table.sources)
	}
}

// What a name with very many addresses costs, and an address with very many names, is
// in proportion: one host can make as many as it likes, and all wait for it.
func TestVeryMany(t *testing.T) {
	const count, limit = 20_000, 10 * time.Second // it is some 50 ms, or a second under the race detector
	var table Table
	var all []Record
	for i := range count {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		all = append(all, Record{"s", "one", a, false}, Record{"s", fmt.Sprint("n", i), addr("10.1.0.1"), false})
	}
	s, scopes := server(&table), []Scope{{Segment: "s"}, {Segment: "t"}}
	one, _, _ := parse(query(t, "one.", dnsmessage.TypeA, 0))
	many, _, _ := parse(query(t, "1.0.1.10.in-addr.arpa.", dnsmessage.TypePTR, 0))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := threadTime(t)
	table.Set("h", all)
	if a, _ := s.find(one, scopes); len(a.addresses) != count {
		t.Errorf("%d addresses", len(a.addresses))
	}
	if a, _ := s.find(many, scopes); len(a.names) != count {
		t.Errorf("%d names", len(a.names))
	}
	table.Set("h", nil)
	if took := threadTime(t) - began; took > limit {
		t.Errorf("took %s, want %s", took, limit)
	}
}

// threadTime is the CPU time of this thread: others may keep it from the CPU.
func threadTime(t *testing.T) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
