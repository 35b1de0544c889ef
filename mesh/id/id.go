// Package id names peers. A peer is known by the hash of its static public
// key, so a name can be neither chosen nor stolen. The package does no IO:
// keeping the private key is its caller's task.
package id

import (
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"io"
)

// KeySize is the length of X25519 keys, in bytes.
const KeySize = 32

// PeerID is the truncated SHA-256 of a peer's static X25519 public key. It is
// comparable, so it serves as a map key.
type PeerID [16]byte

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String returns the full ID: 26 characters of lower-case base32.
func (p PeerID) String() string { return encoding.EncodeToString(p[:]) }

// Short returns the first ten characters, enough to tell peers apart in logs
// and tables.
func (p PeerID) Short() string { return p.String()[:10] }

// IsZero reports whether p names nobody.
func (p PeerID) IsZero() bool { return p == PeerID{} }

// Compare orders peers by their bytes: -1, 0 or 1.
func (p PeerID) Compare(q PeerID) int {
	for i := range p {
		switch {
		case p[i] < q[i]:
			return -1
		case p[i] > q[i]:
			return 1
		}
	}
	return 0
}

// MarshalText writes the form of String.
func (p PeerID) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the form of String.
func (p *PeerID) UnmarshalText(b []byte) error {
	q, err := Parse(string(b))
	if err != nil {
		return err
	}
	*p = q
	return nil
}

// Parse reads the form that String writes.
func Parse(s string) (PeerID, error) {
	var p PeerID
	b, err := encoding.DecodeString(s)
	if err != nil || len(b) != len(p) {
		return p, fmt.Errorf("peer ID %q: want 26 characters of lower-case base32", s)
	}
	copy(p[:], b)
	if p.String() != s { // trailing bits: one ID has one spelling
		return PeerID{}, fmt.Errorf("peer ID %q: not in canonical form", s)
	}
	return p, nil
}

// FromPublic returns the ID that belongs to a static public key.
func FromPublic(public []byte) PeerID {
	sum := sha256.Sum256(public)
	var p PeerID
	copy(p[:], sum[:])
	return p
}

// Identity is a peer's static key pair and the ID that follows from it. The
// private key never leaves the process but for the state folder.
type Identity struct {
	Private []byte
	Public  []byte
	ID      PeerID
}

// Generate makes a new identity from a source of randomness.
func Generate(random io.Reader) (Identity, error) {
	key := make([]byte, KeySize)
	if _, err := io.ReadFull(random, key); err != nil {
		return Identity{}, fmt.Errorf("make identity: %w", err)
	}
	return FromPrivate(key)
}

// FromPrivate restores an identity from its private key, which it copies.
func FromPrivate(private []byte) (Identity, error) {
	key, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil {
		return Identity{}, fmt.Errorf("identity key: %w", err)
	}
	public := key.PublicKey().Bytes()
	return Identity{Private: key.Bytes(), Public: public, ID: FromPublic(public)}, nil
}
