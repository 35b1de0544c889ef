// Package fragment cuts sealed datagrams that are longer than a path takes, and
// joins them again. A datagram is cut as a whole, after it was sealed, and opened
// after it was joined: so fragments need no seal of their own, and what is forged
// costs a copy and fails with the whole. It is pure, does no cryptography, and
// does not know addresses: who may send fragments is its caller's to judge.
//
// A datagram's fragments are equally long, and those of equal datagrams too, so
// that they are one train to the kernel. Hence they cannot overlap: a fragment's
// place follows from its number.
package fragment

import (
	"encoding/binary"
	"errors"

	"weave/mesh/wire"
)

const (
	// Max is how many fragments a datagram may have.
	Max = 128
	// MinSize is the least length of a fragment by which any datagram can be cut.
	MinSize = wire.HeaderLen + (maxDatagram+Max-1)/Max
	// Room holds the fragments of any datagram.
	Room = maxDatagram + Max*(wire.HeaderLen+1)

	maxDatagram = 65507 // what UDP carries
	minDatagram = wire.HeaderLen + wire.TagLen
)

// ErrMalformed is returned for a fragment that is part of no datagram.
var ErrMalformed = errors.New("fragment: malformed")

// Layout tells how many fragments of which length a datagram of n bytes is cut
// into, none of them longer than limit, which is at least MinSize.
func Layout(n, limit int) (count, size int) {
	count = max(1, (n+limit-wire.HeaderLen-1)/(limit-wire.HeaderLen))
	return count, wire.HeaderLen + (n+count-1)/count
}

// Append appends to dst the fragments of a sealed datagram, as Layout says.
func Append(dst, datagram []byte, count, size int) []byte {
	h := wire.FragmentHeader{
		Version: wire.Version,
		Count:   uint8(count),
		Index:   binary.BigEndian.Uint32(datagram[4:]),
		ID:      binary.BigEndian.Uint32(datagram[len(datagram)-4:]), // of the tag: as good as random
		Total:   uint16(len(datagram)),
	}
	for i := range count {
		h.Number = uint8(i)
		var header [wire.HeaderLen]byte
		h.Put(header[:])
		dst = append(dst, header[:]...)
		n := min(size-wire.HeaderLen, len(datagram))
		dst = append(dst, datagram[:n]...)
		datagram = datagram[n:]
		for ; n < size-wire.HeaderLen; n++ {
			dst = append(dst, 0)
		}
	}
	return dst
}
