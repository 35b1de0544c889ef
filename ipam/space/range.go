// Package space does arithmetic on addresses: ranges of them, and sets of
// addresses held as disjoint ranges, for IPv4 and IPv6 by the same code.
//
// A set costs memory by its number of gaps, never by its number of addresses,
// so a /64 is as cheap as a /24.
//
// It does not know pools' owners, leases or peers, keeps nothing on disk and is
// not safe for concurrent use: see packages ring and ipam.
package space

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrTooSmall says that a prefix leaves no address for a container.
var ErrTooSmall = errors.New("too small")

// Range is the run of addresses from First to Last, both included. Both are of
// one family and First is not after Last.
type Range struct {
	First, Last netip.Addr
}

// Of is the range of all addresses of p.
func Of(p netip.Prefix) Range {
	first := p.Masked().Addr()
	hostBits := first.BitLen() - p.Bits()
	return Range{First: first, Last: number(first).or(ones(hostBits)).addr(first.Is4())}
}

// Single is the range of one address.
func Single(a netip.Addr) Range { return Range{First: a, Last: a} }

// Usable is what of p may be given to containers: all but the network and
// broadcast addresses of IPv4 and the subnet-router anycast address of IPv6
// (RFC 4291, 2.6.1). Prefixes of one or two addresses have none to spare and
// are refused with ErrTooSmall.
func Usable(p netip.Prefix) (Range, error) {
	r := Of(p)
	if p.Addr().BitLen()-p.Bits() < 2 {
		return Range{}, fmt.Errorf("prefix %s: %w", p, ErrTooSmall)
	}
	r.First = r.First.Next()
	if r.First.Is4() {
		r.Last = r.Last.Prev()
	}
	return r, nil
}

// Contains says whether a lies in r.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && !a.Less(r.First) && !r.Last.Less(a)
}

// Size is the number of addresses, at most the largest uint64.
func (r Range) Size() uint64 { return number(r.Last).sub(number(r.First)).saturated(1) }

// Intersect is the part common to r and o; ok is false if there is none.
func (r Range) Intersect(o Range) (common Range, ok bool) {
	if o.First.BitLen() != r.First.BitLen() {
		return Range{}, false
	}
	if r.First.Less(o.First) {
		r.First = o.First
	}
	if o.Last.Less(r.Last) {
		r.Last = o.Last
	}
	return r, !r.Last.Less(r.First)
}

// UpperHalf is the upper half of r, rounded down, but at least one address.
func (r Range) UpperHalf() Range {
	span := number(r.Last).sub(number(r.First))
	if span.isZero() {
		return r
	}
	lower := span.half().add(one) // of span+1 addresses, rounded up
	return Range{First: number(r.First).add(lower).addr(r.First.Is4()), Last: r.Last}
}

// Shares cuts r into n parts in order whose sizes differ by one address at
// most. There are fewer parts if r has fewer addresses, and none if n < 1.
func (r Range) Shares(n int) []Range {
	if size := r.Size(); n > 1 && uint64(n) > size {
		n = int(size)
	}
	if n < 2 {
		return []Range{r}[:max(0, min(n, 1))]
	}
	// span+1 addresses are n*quotient+rest; the first rest parts get one more.
	quotient, rest := number(r.Last).sub(number(r.First)).divide(uint64(n))
	if rest++; rest == uint64(n) {
		quotient, rest = quotient.add(one), 0
	}
	shares := make([]Range, n)
	start := number(r.First)
	for i := range shares {
		next := start.add(quotient)
		if uint64(i) < rest {
			next = next.add(one)
		}
		shares[i] = Range{First: start.addr(r.First.Is4()), Last: next.sub(one).addr(r.First.Is4())}
		start = next
	}
	return shares
}

// String is "first-last".
func (r Range) String() string { return r.First.String() + "-" + r.Last.String() }
