package ring

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
)

// Bounds on what a peer or the disk may hand in.
const (
	MaxTokens  = 1 << 14
	MaxEncoded = 4 << 20       // bytes of an encoded chunk
	GiveTokens = MaxTokens / 2 // gifts stop here, so that gifts made at once elsewhere still fit
	maxPeer    = 128           // bytes of a peer's name
	maxVersion = 1 << 62       // leaves room to raise it
)

// SeedID tells apart rings of one pool that were made independently: 128
// random bits, drawn by whoever proposed the first owners.
type SeedID [16]byte

// String is the ID in hexadecimal.
func (s SeedID) String() string { return hex.EncodeToString(s[:]) }

// Compare orders seeds: -1, 0 or 1.
func (s SeedID) Compare(o SeedID) int { return bytes.Compare(s[:], o[:]) }

// MarshalText writes the form of String.
func (s SeedID) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the form of String.
func (s *SeedID) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(s)) {
		return fmt.Errorf("seed of %d characters: %w", len(b), ErrInvalid)
	}
	_, err := hex.Decode(s[:], b)
	return err
}

// Chunk is part of a ring: all that its sender knows from the first token up to
// the address End, or up to the end of the pool if End is the zero address.
type Chunk struct {
	Pool   netip.Prefix `json:"pool"`
	Seed   SeedID       `json:"seed"`
	Tokens []Token      `json:"tokens"`
	End    netip.Addr   `json:"end,omitzero"`
}

// Whole says whether c covers its pool.
func (c Chunk) Whole() bool {
	return len(c.Tokens) > 0 && c.Tokens[0].Start == c.Pool.Addr() && !c.End.IsValid()
}

// Check verifies what can be verified without a ring, with ErrInvalid or
// ErrFragmented.
func (c Chunk) Check() error {
	if !c.Pool.IsValid() || c.Pool != c.Pool.Masked() {
		return fmt.Errorf("ring of pool %s: not a prefix: %w", c.Pool, ErrInvalid)
	}
	if len(c.Tokens) == 0 {
		return fmt.Errorf("ring %s: no tokens: %w", c.Pool, ErrInvalid)
	}
	if len(c.Tokens) > MaxTokens {
		return fmt.Errorf("ring %s: more than %d tokens: %w", c.Pool, MaxTokens, ErrFragmented)
	}
	for i, t := range c.Tokens {
		switch {
		case !c.Pool.Contains(t.Start):
			return fmt.Errorf("ring %s: token %s outside the pool: %w", c.Pool, t.Start, ErrInvalid)
		case i > 0 && !c.Tokens[i-1].Start.Less(t.Start):
			return fmt.Errorf("ring %s: token %s out of order: %w", c.Pool, t.Start, ErrInvalid)
		case t.Owner == "" || len(t.Owner) > maxPeer:
			return fmt.Errorf("ring %s: owner of token %s: %w", c.Pool, t.Start, ErrInvalid)
		case t.Version == 0 || t.Version > maxVersion:
			return fmt.Errorf("ring %s: version %d of token %s: %w", c.Pool, t.Version, t.Start, ErrInvalid)
		}
	}
	if c.End.IsValid() && (!c.Pool.Contains(c.End) || !c.Tokens[len(c.Tokens)-1].Start.Less(c.End)) {
		return fmt.Errorf("ring %s: boundary %s: %w", c.Pool, c.End, ErrInvalid)
	}
	return nil
}

// Decode reads a chunk in JSON and checks it.
func Decode(b []byte) (Chunk, error) {
	var c Chunk
	if len(b) > MaxEncoded {
		return c, fmt.Errorf("ring of %d bytes: %w", len(b), ErrInvalid)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("ring: %w: %w", ErrInvalid, err)
	}
	return c, c.Check()
}

// Digest is equal for equal rings, and for no others that one will ever meet.
func (r *Ring) Digest() [8]byte {
	r.hashing.Do(func() {
		h := sha256.New()
		h.Write(r.seed[:])
		b := make([]byte, 0, 64)
		for _, t := range r.tokens {
			b = t.Start.AppendTo(b[:0])
			b = append(append(append(b, ' '), t.Owner...), 0)
			h.Write(binary.BigEndian.AppendUint64(b, t.Version))
		}
		r.hash = [8]byte(h.Sum(nil))
	})
	return r.hash
}
