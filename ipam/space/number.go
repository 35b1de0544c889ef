package space

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
)

// uint128 is an address as a number.
type uint128 struct{ hi, lo uint64 }

var one = uint128{lo: 1}

func number(a netip.Addr) uint128 {
	if a.Is4() {
		b := a.As4()
		return uint128{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return uint128{hi: binary.BigEndian.Uint64(b[:8]), lo: binary.BigEndian.Uint64(b[8:])}
}

func (u uint128) addr(is4 bool) netip.Addr {
	if is4 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(u.lo))))
	}
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16), u.hi)
	return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(b, u.lo)))
}

// ones is the number whose lowest n bits are set.
func ones(n int) uint128 {
	if n >= 64 {
		return uint128{hi: 1<<(n-64) - 1, lo: math.MaxUint64}
	}
	return uint128{lo: 1<<n - 1}
}

func (u uint128) isZero() bool { return u == uint128{} }

func (u uint128) or(v uint128) uint128 { return uint128{u.hi | v.hi, u.lo | v.lo} }

func (u uint128) add(v uint128) uint128 {
	lo, carry := bits.Add64(u.lo, v.lo, 0)
	hi, _ := bits.Add64(u.hi, v.hi, carry)
	return uint128{hi, lo}
}

func (u uint128) sub(v uint128) uint128 {
	lo, borrow := bits.Sub64(u.lo, v.lo, 0)
	hi, _ := bits.Sub64(u.hi, v.hi, borrow)
	return uint128{hi, lo}
}

func (u uint128) half() uint128 { return uint128{u.hi >> 1, u.hi<<63 | u.lo>>1} }

func (u uint128) divide(n uint64) (quotient uint128, rest uint64) {
	quotient.hi, rest = u.hi/n, u.hi%n
	quotient.lo, rest = bits.Div64(rest, u.lo, n)
	return quotient, rest
}

// saturated is u plus more, at most the largest uint64.
func (u uint128) saturated(more uint64) uint64 {
	sum, carry := bits.Add64(u.lo, more, 0)
	if u.hi != 0 || carry != 0 {
		return math.MaxUint64
	}
	return sum
}
