package gcm

import (
	"crypto/cipher"
	"encoding/binary"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/cpu"
)

// vectors tells whether CPU and kernel have what gcm_amd64.s uses.
var vectors = cpu.X86.HasAES && cpu.X86.HasBMI2 &&
	cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VL && cpu.X86.HasAVX512DQ &&
	cpu.X86.HasAVX512VAES && cpu.X86.HasAVX512VPCLMULQDQ

// tables is what the assembly needs of a key; it knows the offsets.
type tables struct {
	rounds [15][16]byte
	// powers[17-n] is H to the n, as an element; behind H itself are zeros, so
	// that loads of four at a time may run over.
	powers [33][16]byte
}

// seal encrypts n bytes of text in place and computes the tag; open decrypts,
// and computes the tag that there should be.
//
//go:noescape
func seal(t *tables, nonce, header, text *byte, n int, tag *[tagLen]byte)

//go:noescape
func open(t *tables, nonce, header, text *byte, n int, tag *[tagLen]byte)

// subWord is AES's S-box on each byte of a word.
func subWord(w uint32) uint32

// vector is the faster path, in front of the standard library's.
type vector struct {
	standard cipher.AEAD
	tables   tables
}

func newVector(standard cipher.AEAD, block cipher.Block, key *[32]byte) cipher.AEAD {
	v := &vector{standard: standard}
	v.tables.expand(key)
	var h [16]byte
	block.Encrypt(h[:], h[:])
	v.tables.raise(h)
	return v
}

// NonceSize implements cipher.AEAD.
func (*vector) NonceSize() int { return nonceLen }

// Overhead implements cipher.AEAD.
func (*vector) Overhead() int { return tagLen }

// Seal implements cipher.AEAD.
func (v *vector) Seal(dst, nonce, text, header []byte) []byte {
	n := len(text)
	if !fits(dst, nonce, text, header, n) || cap(dst) < n+tagLen {
		return v.standard.Seal(dst, nonce, text, header)
	}
	out := dst[:n+tagLen]
	seal(&v.tables, &nonce[0], &header[0], &out[0], n, (*[tagLen]byte)(out[n:]))
	return out
}

// Open implements cipher.AEAD.
func (v *vector) Open(dst, nonce, text, header []byte) ([]byte, error) {
	n := len(text) - tagLen
	if !fits(dst, nonce, text, header, n) {
		return v.standard.Open(dst, nonce, text, header)
	}
	var tag [tagLen]byte
	open(&v.tables, &nonce[0], &header[0], &text[0], n, &tag)
	if !equal(&tag, (*[tagLen]byte)(text[n:])) {
		clear(text[:n])
		return nil, errForged
	}
	return text[:n], nil
}

// equal compares in constant time, as subtle.ConstantTimeCompare does a byte at
// a time.
func equal(a, b *[tagLen]byte) bool {
	lo := binary.NativeEndian.Uint64(a[:]) ^ binary.NativeEndian.Uint64(b[:])
	hi := binary.NativeEndian.Uint64(a[8:]) ^ binary.NativeEndian.Uint64(b[8:])
	return lo|hi == 0
}

// fits tells whether this is the form of a datagram: text of n bytes, to be
// changed where it is.
func fits(dst, nonce, text, header []byte, n int) bool {
	return n > 0 && n <= maxText && len(dst) == 0 && unsafe.SliceData(dst) == unsafe.SliceData(text) &&
		len(header) == headerLen && len(nonce) == nonceLen
}

// expand makes the round keys (FIPS 197, section 5.2), words in the order of
// their bytes.
func (t *tables) expand(key *[32]byte) {
	var w [60]uint32
	for i := range 8 {
		w[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	constant := uint32(1)
	for i := 8; i < len(w); i++ {
		x := w[i-1]
		switch i % 8 {
		case 0:
			x = bits.RotateLeft32(subWord(x), -8) ^ constant
			constant <<= 1
		case 4:
			x = subWord(x)
		}
		w[i] = w[i-8] ^ x
	}
	for i, x := range w {
		binary.LittleEndian.PutUint32(t.rounds[i/4][i%4*4:], x)
	}
}

// element is a polynomial over GF(2) in GCM's order of bits, so that the bytes
// of a block only have to be reversed. One of two factors has to be multiplied
// by x, which makes up for the bit that a carry-less product of reversed
// factors lacks: all powers of H are.
type element struct{ hi, lo uint64 }

// reduction is the field's polynomial, x^128+x^7+x^2+x+1, in that order; its
// lowest bit, in lo, is implied.
const reduction = 0xc200000000000000

// raise makes the powers of H.
func (t *tables) raise(key [16]byte) {
	h := element{binary.BigEndian.Uint64(key[:]), binary.BigEndian.Uint64(key[8:])}.timesX()
	p := h
	for n := 1; n <= 17; n++ {
		binary.LittleEndian.PutUint64(t.powers[17-n][:], p.lo)
		binary.LittleEndian.PutUint64(t.powers[17-n][8:], p.hi)
		p = p.times(h)
	}
}

func (a element) timesX() element {
	carry := a.hi >> 63
	return element{a.hi<<1 ^ a.lo>>63 ^ -carry&reduction, a.lo<<1 ^ carry}
}

// times multiplies by an element that was multiplied by x.
func (a element) times(b element) element {
	topHi, topLo := carryless(a.hi, b.hi)
	endHi, endLo := carryless(a.lo, b.lo)
	m1, m0 := carryless(a.hi, b.lo)
	n1, n0 := carryless(a.lo, b.hi)
	midHi, midLo := m1^n1, m0^n0
	foldHi, foldLo := carryless(endLo, reduction)
	midHi, midLo = midHi^endLo^foldHi, midLo^endHi^foldLo
	foldHi, foldLo = carryless(midLo, reduction)
	return element{topHi ^ midLo ^ foldHi, topLo ^ midHi ^ foldLo}
}

// carryless is a product without carries, in constant time.
func carryless(a, b uint64) (hi, lo uint64) {
	for i := range 64 {
		mask := -(b >> i & 1)
		lo ^= a << i & mask
		hi ^= a >> (63 - i) >> 1 & mask
	}
	return hi, lo
}
