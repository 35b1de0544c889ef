package space

import (
	"errors"
	"math"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func span(first, last string) Range {
	return Range{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
}

func TestUsable(t *testing.T) {
	tests := []struct {
		prefix string
		want   Range
		size   uint64
	}{
		{"10.32.0.0/24", span("10.32.0.1", "10.32.0.254"), 254},
		{"10.32.0.0/30", span("10.32.0.1", "10.32.0.2"), 2},
		{"0.0.0.0/0", span("0.0.0.1", "255.255.255.254"), 1<<32 - 2},
		{"fd00::/126", span("fd00::1", "fd00::3"), 3},
		{"fd00::/64", span("fd00::1", "fd00::ffff:ffff:ffff:ffff"), math.MaxUint64},
		{"::/0", span("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), math.MaxUint64},
	}
	for _, test := range tests {
		got, err := Usable(prefix(test.prefix))
		if err != nil || got != test.want || got.Size() != test.size {
			t.Errorf("Usable(%s) = %s of %d, %v; want %s of %d", test.prefix, got, got.Size(), err, test.want, test.size)
		}
	}
	for _, small := range []string{"10.32.0.0/31", "10.32.0.0/32", "fd00::/127", "fd00::/128"} {
		if _, err := Usable(prefix(small)); !errors.Is(err, ErrTooSmall) {
			t.Errorf("Usable(%s): %v, want ErrTooSmall", small, err)
		}
	}
}

func TestUpperHalf(t *testing.T) {
	tests := []struct{ in, want Range }{
		{span("10.0.0.5", "10.0.0.5"), span("10.0.0.5", "10.0.0.5")},
		{span("10.0.0.5", "10.0.0.6"), span("10.0.0.6", "10.0.0.6")},
		{span("10.0.0.5", "10.0.0.7"), span("10.0.0.7", "10.0.0.7")},
		{span("10.0.0.0", "10.0.0.255"), span("10.0.0.128", "10.0.0.255")},
		{span("fd00::", "fd00::ffff:ffff:ffff:ffff"), span("fd00::8000:0:0:0", "fd00::ffff:ffff:ffff:ffff")},
		{Of(prefix("::/0")), Of(prefix("8000::/1"))},
	}
	for _, test := range tests {
		if got := test.in.UpperHalf(); got != test.want {
			t.Errorf("UpperHalf(%s) = %s, want %s", test.in, got, test.want)
		}
	}
}

func TestShares(t *testing.T) {
	got := Of(prefix("10.0.0.0/28")).Shares(3)
	want := []Range{span("10.0.0.0", "10.0.0.5"), span("10.0.0.6", "10.0.0.10"), span("10.0.0.11", "10.0.0.15")}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	if n := len(Of(prefix("10.0.0.0/30")).Shares(9)); n != 4 {
		t.Errorf("four addresses in %d parts", n)
	}
	if n := len(Of(prefix("10.0.0.0/30")).Shares(0)); n != 0 {
		t.Errorf("no shares asked, %d made", n)
	}
}

func TestSharesCoverTheRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		whole := Of(netip.PrefixFrom(netip.MustParseAddr("fd00:1:2:3::"), rapid.IntRange(0, 126).Draw(t, "bits")))
		shares := whole.Shares(rapid.IntRange(1, 40).Draw(t, "n"))
		if shares[0].First != whole.First || shares[len(shares)-1].Last != whole.Last {
			t.Fatalf("ends: %v", shares)
		}
		smallest, largest := shares[0].Size(), shares[0].Size()
		for i, share := range shares {
			if i > 0 && shares[i-1].Last.Next() != share.First {
				t.Fatalf("gap before %s", share)
			}
			smallest, largest = min(smallest, share.Size()), max(largest, share.Size())
		}
		if largest-smallest > 1 {
			t.Fatalf("sizes from %d to %d", smallest, largest)
		}
	})
}

// TestSetAgainstMap compares Set with a map of single addresses, at both ends
// of the families' address space, where Next and Prev run out.
func TestSetAgainstMap(t *testing.T) {
	for _, p := range []string{"0.0.0.0/26", "255.255.255.192/26", "10.1.0.0/26", "::/122", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffc0/122"} {
		whole := Of(prefix(p))
		all := addresses(whole)
		t.Run(p, rapid.MakeCheck(func(t *rapid.T) {
			var set Set
			model := map[netip.Addr]bool{}
			draw := func(name string) Range {
				i := rapid.IntRange(0, len(all)-1).Draw(t, name)
				return Range{First: all[i], Last: all[rapid.IntRange(i, min(i+9, len(all)-1)).Draw(t, name+" end")]}
			}
			for range rapid.IntRange(1, 40).Draw(t, "steps") {
				r, add := draw("range"), rapid.Bool().Draw(t, "add")
				if add {
					set.Add(r)
				} else {
					set.Remove(r)
				}
				for _, a := range addresses(r) {
					model[a] = add
				}
			}
			compare(t, &set, model, all)
			within := draw("within")
			compareNext(t, &set, model, within, all[rapid.IntRange(0, len(all)-1).Draw(t, "from")])
			compareLargest(t, &set, model, within)
		}))
	}
}

func compare(t *rapid.T, set *Set, model map[netip.Addr]bool, all []netip.Addr) {
	var count uint64
	for _, a := range all {
		if model[a] {
			count++
		}
		if set.Contains(a) != model[a] || set.Overlaps(Single(a)) != model[a] {
			t.Fatalf("Contains(%s) = %v", a, set.Contains(a))
		}
	}
	if set.Count() != count {
		t.Fatalf("Count() = %d, want %d", set.Count(), count)
	}
	for i, run := range set.Runs() {
		if i > 0 && !set.runs[i-1].Last.Next().Less(run.First) {
			t.Fatalf("runs touch: %v", set.runs)
		}
	}
}

func compareNext(t *rapid.T, set *Set, model map[netip.Addr]bool, within Range, from netip.Addr) {
	if !within.Contains(from) {
		from = within.First
	}
	var before, after []netip.Addr
	for _, a := range addresses(within) {
		if model[a] && a.Less(from) {
			before = append(before, a)
		} else if model[a] {
			after = append(after, a)
		}
	}
	want := append(after, before...)
	got, ok := set.Next(within, from)
	if ok != (len(want) > 0) || ok && got != want[0] {
		t.Fatalf("Next(%s, %s) = %s, %v; want %v", within, from, got, ok, want)
	}
}

func compareLargest(t *rapid.T, set *Set, model map[netip.Addr]bool, within Range) {
	var longest, current uint64
	for _, a := range addresses(within) {
		if current++; !model[a] {
			current = 0
		}
		longest = max(longest, current)
	}
	got, ok := set.Largest(within)
	if ok != (longest > 0) || ok && got.Size() != longest {
		t.Fatalf("Largest(%s) = %s, %v; want a run of %d", within, got, ok, longest)
	}
}

func addresses(r Range) []netip.Addr {
	var all []netip.Addr
	for a := r.First; ; a = a.Next() {
		if all = append(all, a); a == r.Last {
			return all
		}
	}
}

func TestWholeFamily(t *testing.T) {
	var set Set
	set.Add(Of(prefix("::/0")))
	if set.Count() != math.MaxUint64 || len(set.Runs()) != 1 {
		t.Fatalf("%d addresses in %v", set.Count(), set.Runs())
	}
	set.Remove(Of(prefix("::/0")))
	if set.Count() != 0 {
		t.Fatalf("%d addresses left", set.Count())
	}
}
