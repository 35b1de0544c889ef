package space

import (
	"net/netip"
	"slices"
	"sort"
)

// Set is a set of addresses of one family. The zero Set is empty and ready to
// use. Looking up costs the logarithm of the number of runs.
type Set struct {
	runs []Range // ascending; no two overlap or touch
	span uint128 // sum of Last-First over runs: the count is span+len(runs), which ::/0 does not overflow
}

// Add puts all addresses of r into s, whether or not some are there already.
func (s *Set) Add(r Range) {
	// Runs i to j-1 overlap or touch r and melt into it.
	i := sort.Search(len(s.runs), func(i int) bool {
		last := s.runs[i].Last
		return !last.Less(r.First) || last.Next() == r.First
	})
	j := i
	for ; j < len(s.runs); j++ {
		if first := s.runs[j].First; r.Last.Less(first) && r.Last.Next() != first {
			break
		}
	}
	if i < j {
		r = Range{First: lesser(r.First, s.runs[i].First), Last: greater(r.Last, s.runs[j-1].Last)}
	}
	s.replace(i, j, r)
}

// Remove takes all addresses of r out of s, whether or not they are there.
func (s *Set) Remove(r Range) {
	i := s.search(r.First)
	j := i
	var rest [2]Range
	kept := rest[:0]
	for ; j < len(s.runs) && !r.Last.Less(s.runs[j].First); j++ {
		if run := s.runs[j]; run.First.Less(r.First) {
			kept = append(kept, Range{First: run.First, Last: r.First.Prev()})
		}
		if run := s.runs[j]; r.Last.Less(run.Last) {
			kept = append(kept, Range{First: r.Last.Next(), Last: run.Last})
		}
	}
	s.replace(i, j, kept...)
}

// Contains says whether a is in s.
func (s *Set) Contains(a netip.Addr) bool {
	i := s.search(a)
	return i < len(s.runs) && s.runs[i].Contains(a)
}

// Overlaps says whether any address of r is in s.
func (s *Set) Overlaps(r Range) bool {
	i := s.search(r.First)
	return i < len(s.runs) && !r.Last.Less(s.runs[i].First)
}

// Count is the number of addresses, at most the largest uint64.
func (s *Set) Count() uint64 { return s.span.saturated(uint64(len(s.runs))) }

// Next is the first address of s in within, seen from the cursor from onwards
// and round the end of within. A cursor outside within stands for its start.
func (s *Set) Next(within Range, from netip.Addr) (netip.Addr, bool) {
	if !within.Contains(from) {
		from = within.First
	}
	if a, ok := s.first(Range{First: from, Last: within.Last}); ok {
		return a, true
	}
	return s.first(within)
}

// Largest is the longest run of addresses of s in within, the first of equals.
func (s *Set) Largest(within Range) (largest Range, ok bool) {
	for _, run := range s.runs[s.search(within.First):] {
		common, some := run.Intersect(within)
		if !some {
			break
		}
		if !ok || largest.Size() < common.Size() {
			largest, ok = common, true
		}
	}
	return largest, ok
}

// Clone is a copy that may be changed.
func (s *Set) Clone() Set { return Set{runs: s.Runs(), span: s.span} }

// Runs is a copy of the runs of s, ascending.
func (s *Set) Runs() []Range { return slices.Clone(s.runs) }

func (s *Set) first(within Range) (netip.Addr, bool) {
	i := s.search(within.First)
	if i == len(s.runs) {
		return netip.Addr{}, false
	}
	common, ok := s.runs[i].Intersect(within)
	return common.First, ok
}

// search is the index of the first run that does not end before a.
func (s *Set) search(a netip.Addr) int {
	return sort.Search(len(s.runs), func(i int) bool { return !s.runs[i].Last.Less(a) })
}

func (s *Set) replace(i, j int, with ...Range) {
	for _, run := range s.runs[i:j] {
		s.span = s.span.sub(number(run.Last).sub(number(run.First)))
	}
	for _, run := range with {
		s.span = s.span.add(number(run.Last).sub(number(run.First)))
	}
	s.runs = slices.Replace(s.runs, i, j, with...)
}

func lesser(a, b netip.Addr) netip.Addr {
	if b.Less(a) {
		return b
	}
	return a
}

func greater(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}
