package lan

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"

	"golang.org/x/crypto/chacha20poly1305"

	"weave/mesh/id"
)

// KeySize is the length of a key, in bytes.
const KeySize = chacha20poly1305.KeySize

// An announcement is sealed with XChaCha20-Poly1305: who does not know the cluster's
// password learns that a host of some cluster is there, and can neither make one up
// nor read which host it is. All have one length:
//
//	 0        3         4         28          44      46       62
//	+--------+---------+---------+-----------+-------+--------+
//	| "wvL"  | version | nonce   | peer ID   | port  | tag    |
//	+--------+---------+---------+-----------+-------+--------+
//
// Nonces are random. The address is that which it comes from.
const (
	prefix     = "wvL\x01"
	peerLen    = len(id.PeerID{})
	bodyLen    = peerLen + 2
	messageLen = len(prefix) + chacha20poly1305.NonceSizeX + bodyLen + chacha20poly1305.Overhead
)

// announcement is what a host says of itself.
type announcement struct {
	peer id.PeerID
	port uint16
}

// sealer makes and reads the announcements of one cluster.
type sealer struct{ aead cipher.AEAD }

func newSealer(key [KeySize]byte) *sealer {
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		panic(err) // only for a key of another length
	}
	return &sealer{aead}
}

func (s *sealer) seal(a announcement) []byte {
	b := make([]byte, len(prefix)+chacha20poly1305.NonceSizeX, messageLen)
	nonce := b[copy(b, prefix):]
	_, _ = rand.Read(nonce) // never fails
	body := binary.BigEndian.AppendUint16(append(make([]byte, 0, bodyLen), a.peer[:]...), a.port)
	return s.aead.Seal(b, nonce, body, []byte(prefix))
}

// open reads what another host sent. It is foreign if it was sealed under another
// key: by another cluster, or in jest.
func (s *sealer) open(b []byte) (a announcement, foreign, ok bool) {
	if len(b) != messageLen || string(b[:len(prefix)]) != prefix {
		return announcement{}, false, false
	}
	nonce, sealed := b[len(prefix):][:chacha20poly1305.NonceSizeX], b[len(prefix)+chacha20poly1305.NonceSizeX:]
	body, err := s.aead.Open(nil, nonce, sealed, []byte(prefix))
	if err != nil {
		return announcement{}, true, false
	}
	a = announcement{id.PeerID(body[:peerLen]), binary.BigEndian.Uint16(body[peerLen:])}
	return a, false, a.port != 0 && !a.peer.IsZero()
}
