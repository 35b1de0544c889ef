package fdb

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"weave/mesh/id"
)

var (
	peerP, peerQ = id.PeerID{1}, id.PeerID{2}
	macA, macB   = MAC{2, 0, 0, 0, 0, 0xa}, MAC{2, 0, 0, 0, 0, 0xb}
	ip1, ip2     = netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00::2")
	start        = time.Unix(1_700_000_000, 0)
)

func endpoint(at Place, name string, mac MAC, ips ...netip.Addr) Endpoint {
	return Endpoint{At: at, ID: name, MAC: mac, IPs: ips}
}

func wantPlace(t *testing.T, table *Table, mac MAC, now time.Time, want Place) {
	t.Helper()
	if got, ok := table.Lookup(mac, now); !ok || got != want {
		t.Fatalf("Lookup(%v) = %v, %v, want %v", mac, got, ok, want)
	}
}

func wantNowhere(t *testing.T, table *Table, mac MAC, now time.Time) {
	t.Helper()
	if got, ok := table.Lookup(mac, now); ok {
		t.Fatalf("Lookup(%v) = %v, want nothing", mac, got)
	}
}

func TestStaticEntries(t *testing.T) {
	table := New()
	table.Set(endpoint(At(peerP), "a", macA, ip1, ip2))
	wantPlace(t, table, macA, start, At(peerP))
	for _, ip := range []netip.Addr{ip1, ip2} {
		if mac, at, ok := table.LookupIP(ip); !ok || mac != macA || at != At(peerP) {
			t.Fatalf("LookupIP(%v) = %v, %v, %v", ip, mac, at, ok)
		}
	}
	table.Set(endpoint(At(peerP), "a", macB, ip2)) // replaced whole
	wantNowhere(t, table, macA, start)
	wantPlace(t, table, macB, start, At(peerP))
	if _, _, ok := table.LookupIP(ip1); ok {
		t.Fatal("the address that was given up is still found")
	}
	table.Remove(At(peerQ), "a") // another's endpoint of the same ID
	wantPlace(t, table, macB, start, At(peerP))
	table.Remove(At(peerP), "a")
	table.Remove(At(peerP), "a")
	wantNowhere(t, table, macB, start)
	if table.Static() != 0 || len(table.byMAC) != 0 || len(table.byIP) != 0 {
		t.Fatal("something is left of a removed endpoint")
	}
}

func TestClaimsOnOneAddress(t *testing.T) {
	table := New()
	table.Set(endpoint(At(peerP), "p", macA, ip1))
	table.Set(endpoint(At(peerQ), "q", macA, ip1))
	wantPlace(t, table, macA, start, At(peerQ)) // the last one moved there
	table.Set(endpoint(Here(), "h", macA, ip1))
	table.Set(endpoint(At(peerP), "p2", macA, ip1))
	wantPlace(t, table, macA, start, Here()) // nothing beats a local one
	table.Remove(Here(), "h")
	wantPlace(t, table, macA, start, At(peerP))
	table.Remove(At(peerP), "p2")
	wantPlace(t, table, macA, start, At(peerQ))
}

func TestIPv4InIPv6IsOneAddress(t *testing.T) {
	table := New()
	mapped := netip.AddrFrom16(ip1.As16())
	table.Set(endpoint(At(peerP), "a", macA, mapped, ip1))
	if _, _, ok := table.LookupIP(ip1); !ok {
		t.Fatal("not found in its own form")
	}
	if _, _, ok := table.LookupIP(mapped); ok {
		t.Fatal("found in the form of IPv6")
	}
}

func TestChangedBindings(t *testing.T) {
	binding := []Binding{{Addr: ip1, MAC: macB}}
	tests := []struct {
		name string
		prep func(*Table)
		set  Endpoint
		want []Binding
	}{
		{"first", func(*Table) {}, endpoint(At(peerP), "a", macB, ip1), nil},
		{"same", func(tb *Table) { tb.Set(endpoint(At(peerP), "a", macB, ip1)) }, endpoint(At(peerP), "a", macB, ip1), nil},
		{"other MAC", func(tb *Table) { tb.Set(endpoint(At(peerP), "a", macA, ip1)) }, endpoint(At(peerP), "a", macB, ip1), binding},
		{"other endpoint", func(tb *Table) { tb.Set(endpoint(At(peerP), "a", macA, ip1)) }, endpoint(At(peerQ), "b", macB, ip1), binding},
		{"moved with its MAC", func(tb *Table) { tb.Set(endpoint(At(peerP), "a", macB, ip1)) }, endpoint(At(peerQ), "b", macB, ip1), nil},
		{"after removal", func(tb *Table) {
			tb.Set(endpoint(Here(), "a", macA, ip1))
			tb.Remove(Here(), "a")
		}, endpoint(At(peerP), "b", macB, ip1), binding},
		{"to this host", func(tb *Table) { tb.Set(endpoint(At(peerP), "a", macA, ip1)) }, endpoint(Here(), "b", macB, ip1), nil},
		{"hidden by a local one", func(tb *Table) { tb.Set(endpoint(Here(), "a", macA, ip1)) }, endpoint(At(peerP), "b", macB, ip1), nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			table := New()
			test.prep(table)
			if got := table.Set(test.set); !slices.Equal(got, test.want) {
				t.Fatalf("Set = %v, want %v", got, test.want)
			}
		})
	}
}

func TestRemoveUncoversTheOtherHolder(t *testing.T) {
	table := New()
	table.Set(endpoint(At(peerP), "p", macB, ip1))
	table.Set(endpoint(At(peerQ), "q", macA, ip1))
	if got, want := table.Remove(At(peerQ), "q"), []Binding{{ip1, macB}}; !slices.Equal(got, want) {
		t.Fatalf("Remove = %v, want %v", got, want)
	}
}

func TestFormerBindingsAreBounded(t *testing.T) {
	table := New()
	ip := ip1
	for range 2 * maxFormer {
		table.Set(endpoint(At(peerP), "a", macA, ip))
		table.Remove(At(peerP), "a")
		ip = ip.Next()
	}
	if len(table.former) != maxFormer {
		t.Fatalf("%d former bindings, want %d", len(table.former), maxFormer)
	}
}

func TestSourceOfAnnouncedAddresses(t *testing.T) {
	table := New()
	table.Set(endpoint(At(peerP), "p", macA))
	table.Set(endpoint(Here(), "h", macB))
	tests := []struct {
		mac  MAC
		from Place
		want Verdict
	}{
		{macA, At(peerP), Accept},
		{macA, At(peerQ), Refuse},
		{macA, Here(), Refuse},
		{macB, Here(), Accept},
		{macB, At(peerP), Refuse},
	}
	for _, test := range tests {
		if got := table.Learn(test.mac, test.from, start); got != test.want {
			t.Errorf("Learn(%v, %v) = %v, want %v", test.mac, test.from, got, test.want)
		}
	}
	if table.Learned() != 0 {
		t.Error("an announced address was learned")
	}
	// While a container moves, both hosts announce it, and it may speak from either.
	table.Set(endpoint(At(peerQ), "q", macA))
	for _, p := range []id.PeerID{peerP, peerQ} {
		if got := table.Check(macA, At(p), start); got != Accept {
			t.Errorf("Check from %v = %v, want Accept", p, got)
		}
	}
	// A local one speaks from here only, whatever others say.
	table.Set(endpoint(At(peerQ), "q2", macB))
	if got := table.Check(macB, At(peerQ), start); got != Refuse {
		t.Errorf("a claim from afar took a local address: %v", got)
	}
}

func TestLearning(t *testing.T) {
	table := New()
	if got := table.Check(macA, At(peerP), start); got != Unseen {
		t.Fatalf("Check = %v, want Unseen", got)
	}
	table.Learn(macA, At(peerP), start)
	wantPlace(t, table, macA, start, At(peerP))
	if got := table.Check(macA, At(peerP), start.Add(refreshAfter/2)); got != Accept {
		t.Fatalf("Check soon after = %v, want Accept", got)
	}
	if got := table.Check(macA, At(peerP), start.Add(refreshAfter)); got != Unseen {
		t.Fatalf("Check later = %v, want Unseen", got)
	}
	table.Learn(macA, At(peerQ), start.Add(1)) // moves between peers at once
	wantPlace(t, table, macA, start.Add(1), At(peerQ))
	wantPlace(t, table, macA, start.Add(MaxAge), At(peerQ))
	wantNowhere(t, table, macA, start.Add(MaxAge+1))
	table.Set(endpoint(At(peerP), "a", macA)) // an announcement ends the guess
	if table.Learned() != 0 {
		t.Fatal("still learned")
	}
}

func TestLocalAddressLeavesAfterSilence(t *testing.T) {
	table := New()
	table.Learn(macA, Here(), start)
	if got := table.Learn(macA, At(peerP), start.Add(holdLocal-1)); got != Refuse {
		t.Fatalf("taken from afar while in use: %v", got)
	}
	wantPlace(t, table, macA, start, Here())
	if got := table.Learn(macA, At(peerP), start.Add(holdLocal)); got != Accept {
		t.Fatalf("move refused: %v", got)
	}
	wantPlace(t, table, macA, start.Add(holdLocal), At(peerP))
	if got := table.Learn(macA, Here(), start.Add(holdLocal)); got != Accept {
		t.Fatalf("return refused: %v", got)
	}
}

func numbered(n int) MAC { return MAC{2, 1, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }

func TestLearningIsBounded(t *testing.T) {
	table := New()
	n := 0
	for p := range 8 {
		for range 2 * MaxLearnedPerPlace {
			if got := table.Learn(numbered(n), At(id.PeerID{byte(p + 1)}), start); got != Accept {
				t.Fatalf("a frame does not pass: %v", got)
			}
			n++
		}
		if want := min((p+1)*MaxLearnedPerPlace, MaxLearned); table.Learned() != want {
			t.Fatalf("%d learned after %d peers, want %d", table.Learned(), p+1, want)
		}
	}
	// The old ones make room once their time is over.
	later := start.Add(MaxAge)
	table.Learn(macA, At(peerP), later)
	wantPlace(t, table, macA, later, At(peerP))
	if table.Learned() != 1 || len(table.learned.perPlace) != 1 {
		t.Fatalf("%d entries, %d places, want 1 and 1", table.Learned(), len(table.learned.perPlace))
	}
}

func TestReadersDoNotAllocate(t *testing.T) {
	table := New()
	table.Set(endpoint(At(peerP), "a", macA, ip1))
	table.Learn(macB, At(peerQ), start)
	allocs := testing.AllocsPerRun(100, func() {
		table.Lookup(macA, start)
		table.LookupIP(ip1)
		table.Check(macB, At(peerQ), start)
	})
	if allocs != 0 {
		t.Fatalf("%v allocations", allocs)
	}
}
