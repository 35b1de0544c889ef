// Package session seals and opens datagrams with the keys that a handshake
// agreed on. It is pure and allocates nothing per datagram. It does not know
// addresses, does not start handshakes, and reads no clock: who holds a Session
// asks it whether it is due or over, and retires it.
//
// A sealed datagram is a wire.Header, ciphertext, and a tag. The header is
// authenticated, and its last 12 bytes (the receiver's index, which does not
// change within a session, and the counter, which never repeats) are the
// nonce: so a nonce needs no room of its own and is unique for its key.
package session

import (
	"crypto/cipher"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"weave/mesh/gcm"
	"weave/mesh/wire"
)

// Errors of Seal and Open. They carry no detail, since they occur per datagram.
var (
	// ErrShort: a datagram without room for header and tag.
	ErrShort = errors.New("session: datagram too short")
	// ErrSpent: the session is retired, or its counter used up.
	ErrSpent = errors.New("session: no longer in use")
	// ErrReplay: the datagram was opened before, or is too old to tell.
	ErrReplay = errors.New("session: replayed datagram")
	// ErrForged: the datagram was not sealed by the other side.
	ErrForged = errors.New("session: forged datagram")
)

// Limits say how long a session may be used. A zero Limits is useless: take
// DefaultLimits and change it.
type Limits struct {
	RekeyAge       time.Duration // Due from then on
	RejectAge      time.Duration // Over from then on
	RekeyMessages  uint64        // Due after so many sealed
	RejectMessages uint64        // Seal fails after so many
}

// DefaultLimits are those of the initiator. At full-sized datagrams 2^32 of
// them leave AES-GCM's distinguishing advantage below 2^-50.
func DefaultLimits() Limits {
	return Limits{
		RekeyAge:       2 * time.Minute,
		RejectAge:      3 * time.Minute,
		RekeyMessages:  1 << 32,
		RejectMessages: 1 << 34,
	}
}

// Params make a Session.
type Params struct {
	Send, Receive [32]byte // from handshake.Result; the caller wipes them after New
	AES           bool     // AES-256-GCM, else ChaCha20-Poly1305
	Index         uint32   // the other side's number for the session
	Established   time.Time
	Limits        Limits
}

// Session is safe for concurrent use, but Open has one caller at a time: a lock
// for each datagram costs more than it is worth.
type Session struct {
	// Set once and never changed.
	send, receive cipher.AEAD
	index         uint32
	established   time.Time
	limits        Limits

	counter atomic.Uint64 // of the next datagram to seal

	window window // owned by the caller of Open
}

// New makes a session.
func New(p Params) (*Session, error) {
	send, err := NewAEAD(&p.Send, p.AES)
	if err != nil {
		return nil, err
	}
	receive, err := NewAEAD(&p.Receive, p.AES)
	if err != nil {
		return nil, err
	}
	clear(p.Send[:])
	clear(p.Receive[:])
	return &Session{
		send: send, receive: receive, index: p.Index,
		established: p.Established, limits: p.Limits,
	}, nil
}

// NewAEAD returns AES-256-GCM or ChaCha20-Poly1305, both with a nonce of 12
// bytes and a tag of wire.TagLen.
func NewAEAD(key *[32]byte, useAES bool) (cipher.AEAD, error) {
	if !useAES {
		return chacha20poly1305.New(key[:])
	}
	return gcm.New(key)
}

// Seal turns the datagrams in buf, each size bytes long, the last maybe shorter,
// into sealed ones in place: the caller leaves wire.HeaderLen bytes of room in
// front of each plaintext and wire.TagLen behind it, and Seal fills both. Their
// counters are consecutive, whoever else seals meanwhile. After an error none is
// sealed.
func (s *Session) Seal(buf []byte, size int) error {
	n := 1
	if len(buf) > size {
		if size <= 0 {
			return ErrShort
		}
		n = (len(buf) + size - 1) / size
	}
	if len(buf)-(n-1)*size < minDatagram {
		return ErrShort
	}
	next := s.counter.Add(uint64(n)) // behind those that are ours now
	if next > s.limits.RejectMessages {
		return ErrSpent
	}
	for counter := next - uint64(n); counter < next-1; counter++ {
		s.seal(buf[:size], counter)
		buf = buf[size:]
	}
	s.seal(buf, next-1)
	return nil
}

func (s *Session) seal(datagram []byte, counter uint64) {
	h := wire.Header{Type: wire.TypeSealed, Version: wire.Version, Index: s.index, Counter: counter}
	h.Put(datagram)
	header, text := datagram[:wire.HeaderLen], datagram[wire.HeaderLen:]
	s.send.Seal(text[:0], nonce(header), text[:len(text)-wire.TagLen], header)
}

// minDatagram is the length of a sealed datagram with nothing in it.
const minDatagram = wire.HeaderLen + wire.TagLen

// Open checks and decrypts a sealed datagram in place; plain aliases it. A
// datagram that fails is destroyed too. What is authentic is looked up in the
// window then: to look before as well would only help against those who replay
// and cannot forge, and the one costs us as much as the other. The caller found the session by the
// header's index and has judged type and version.
func (s *Session) Open(datagram []byte) (plain []byte, err error) {
	if len(datagram) < minDatagram {
		return nil, ErrShort
	}
	h, err := wire.ParseHeader(datagram)
	if err != nil {
		return nil, ErrShort
	}
	header, text := datagram[:wire.HeaderLen], datagram[wire.HeaderLen:]
	plain, err = s.receive.Open(text[:0], nonce(header), text, header)
	if err != nil {
		return nil, ErrForged
	}
	if !s.window.commit(h.Counter) {
		return nil, ErrReplay
	}
	return plain, nil
}

// nonce is a part of the datagram itself, so nothing escapes to the heap.
func nonce(header []byte) []byte { return header[4:wire.HeaderLen] }

// Established returns when the session was made.
func (s *Session) Established() time.Time { return s.established }

// Due reports whether new keys should be agreed on.
func (s *Session) Due(now time.Time) bool {
	return now.Sub(s.established) >= s.limits.RekeyAge || s.counter.Load() >= s.limits.RekeyMessages
}

// Over reports whether the session must not be used any more.
func (s *Session) Over(now time.Time) bool {
	return now.Sub(s.established) >= s.limits.RejectAge || s.counter.Load() >= s.limits.RejectMessages
}

// Retire makes every later Seal fail with ErrSpent. Who retires a session also
// drops it, and the keys are gone with the memory.
func (s *Session) Retire() {
	for {
		c := s.counter.Load()
		if c >= s.limits.RejectMessages || s.counter.CompareAndSwap(c, s.limits.RejectMessages) {
			return
		}
	}
}
