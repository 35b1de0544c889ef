package run

import (
	"encoding/binary"
	"fmt"
)

// sum adds the 16-bit big-endian words of b to acc. An odd last byte counts as
// if a zero followed (RFC 1071). It folds late: 2^16 and 2^32 are 1 modulo
// 65535, and 64 KiB of 32-bit words do not overflow.
func sum(acc uint64, b []byte) uint64 {
	for len(b) >= 8 {
		v := binary.BigEndian.Uint64(b)
		acc += v>>32 + v&0xffffffff
		b = b[8:]
	}
	for len(b) >= 2 {
		acc += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		acc += uint64(b[0]) << 8
	}
	return acc
}

// fold brings a sum down to 16 bits. It is zero only if acc is.
func fold(acc uint64) uint16 {
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}

// less returns acc without v: adding the one's complement subtracts.
func less(acc uint64, v uint16) uint64 { return acc + uint64(^v) }

// checkCsum tells whether m's checksum lies within a frame of n bytes, behind
// the Ethernet header.
func checkCsum(m Meta, n int) error {
	start, end := int(m.CsumStart), int(m.CsumStart)+int(m.CsumOffset)+2
	if start < ethLen || end > n {
		return fmt.Errorf("%w: checksum of bytes %d on at %d in a frame of %d", ErrMalformed, start, end-2, n)
	}
	return nil
}

// FinishChecksum computes the checksum that m says is unfinished and writes it
// to frame; m no longer describes frame then. Without NeedsCsum it does nothing.
func FinishChecksum(frame []byte, m Meta) error {
	if !m.NeedsCsum {
		return nil
	}
	if err := checkCsum(m, len(frame)); err != nil {
		return err
	}
	csum := ^fold(sum(0, frame[m.CsumStart:]))
	if csum == 0 {
		csum = 0xffff // the same sum; zero means "none" in UDP
	}
	binary.BigEndian.PutUint16(frame[int(m.CsumStart)+int(m.CsumOffset):], csum)
	return nil
}
