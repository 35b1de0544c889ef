package handshake

import (
	"errors"
	"fmt"

	"weave/mesh/wire"
)

// What can be wrong with a handshake. See Machine for which of them end it.
var (
	// ErrPassword: the MAC does not fit, so the message was made under another
	// password (or damaged on the way: the two cannot be told apart).
	ErrPassword = errors.New("password differs")
	// ErrVersion is what every VersionError matches.
	ErrVersion = errors.New("other protocol version")
	// ErrMalformed: not a message that this side of the handshake expects.
	ErrMalformed = errors.New("malformed handshake message")
	// ErrSelf: the peer talks to itself.
	ErrSelf = errors.New("that address is this peer itself")
	// ErrPeer: somebody else answered than the peer that was wanted.
	ErrPeer = errors.New("another peer answered")
	// ErrFailed: a message with a right MAC did not fit the handshake.
	ErrFailed = errors.New("handshake failed")
)

// VersionError says which protocol version the other side speaks.
type VersionError struct{ Theirs uint8 }

func (e VersionError) Error() string {
	return fmt.Sprintf("protocol version %d, ours is %d", e.Theirs, wire.Version)
}

// Is makes every VersionError match ErrVersion.
func (e VersionError) Is(target error) bool { return target == ErrVersion }

// RejectLen is the length of a rejection, in bytes. Its form is the same in
// all protocol versions: a header whose Version is the rejecting side's and
// whose Index is the number from message 1, and one byte for the reason.
const RejectLen = wire.HeaderLen + 1

const (
	rejectPassword byte = 1
	rejectVersion  byte = 2
)

// Reject returns the datagram that tells the sender of message 1, whose header
// is h, why it is refused; nil if reason is nothing to tell a stranger.
func Reject(h wire.Header, reason error) []byte {
	var code byte
	switch {
	case h.Type != wire.TypeHandshake1:
		return nil
	case errors.Is(reason, ErrPassword):
		code = rejectPassword
	case errors.Is(reason, ErrVersion):
		code = rejectVersion
	default:
		return nil
	}
	b := make([]byte, RejectLen)
	wire.Header{Type: wire.TypeReject, Version: wire.Version, Index: uint32(h.Counter)}.Put(b)
	b[wire.HeaderLen] = code
	return b
}

// ParseReject reads a rejection: the number it is for, and why: ErrPassword or
// a VersionError. It cannot be authentic, so it is a hint for people and
// never a reason to give up a handshake that may yet succeed.
func ParseReject(b []byte) (index uint32, reason, err error) {
	h, err := wire.ParseHeader(b)
	if err != nil || h.Type != wire.TypeReject || len(b) < RejectLen {
		return 0, nil, ErrMalformed
	}
	switch code := b[wire.HeaderLen]; {
	case code == rejectPassword && h.Version == wire.Version:
		return h.Index, ErrPassword, nil
	case code == rejectVersion && h.Version != wire.Version:
		return h.Index, VersionError{Theirs: h.Version}, nil
	}
	return 0, nil, ErrMalformed
}
