// Package handshake agrees on the keys of a session between two peers that
// share a password. It is pure: bytes in, bytes and results out. It does not
// send or resend anything, keeps no time and no table of handshakes, and does
// not carry data: that is the session's task.
//
// The pattern is Noise_XXpsk0+psk3_25519_ChaChaPoly_BLAKE2s:
//
//	initiator                                  responder
//	  -> psk, e, padding                  Len1     |
//	  |        e, ee, s, es, Hello <-     Len2     |
//	  -> s, se, psk, Hello                Len3     |
//
// Both PSK modifiers carry the key derived from the password. With psk0 it is
// mixed in before the first byte of payload, so nothing of message 2, where
// the responder gives its static key and its Hello, can be read or made by
// who does not know the password, even were it to choose the ephemeral key;
// psk3 binds the final keys to it once more, after the last Diffie-Hellman.
//
// A message is a wire.Header, the Noise message, and a MAC of MACLen bytes:
// BLAKE2s-128 over all before it, keyed from the password. Header.Index is the
// receiver's number (Keys.Mark in message 1, where it is not known yet) and
// Header.Counter is the sender's. The MAC lets a responder drop strangers
// before any Diffie-Hellman, and protects the numbers. All messages have fixed
// lengths, which tell nothing about names and addresses within, and each is
// shorter than the one it answers, so that a forged sender address gains an
// attacker nothing.
//
// The protocol version and the medium (datagrams or stream) are in the Noise
// prologue: a handshake begun on one cannot be completed on the other.
//
// An eavesdropper can test guesses of the password against a recorded message
// at the price of one Argon2id each, so a password must not be guessable.
package handshake

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"runtime"

	"github.com/flynn/noise"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/blake2s"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// Lengths in bytes of whole messages and their parts.
const (
	MACLen = 16

	Len1 = Len2 + 16
	Len2 = wire.HeaderLen + keyLen + keyLen + tagLen + helloLen + tagLen + MACLen
	Len3 = wire.HeaderLen + keyLen + tagLen + helloLen + tagLen + MACLen

	keyLen  = id.KeySize
	tagLen  = 16
	padding = Len1 - wire.HeaderLen - keyLen - tagLen - MACLen
)

// Keys are what the password is turned into.
type Keys struct {
	PSK [32]byte // mixed into the session keys
	MAC [32]byte // keys the MAC of each message
	// Mark is in the clear in message 1, so that a packet filter can tell strangers,
	// who do not know it until they have seen such a message.
	Mark uint32
}

// Derive turns a password, which may be empty, into keys with Argon2id: about
// a tenth of a second and 64 MiB of memory.
func Derive(password []byte) Keys {
	const passes, memoryKiB, lanes = 2, 64 << 10, 2
	touch(memoryKiB << 10)
	out := argon2.IDKey(password, []byte("weave psk v1"), passes, memoryKiB, lanes, 64)
	var k Keys
	copy(k.PSK[:], out[:32])
	copy(k.MAC[:], out[32:])
	clear(out)
	k.Mark = binary.BigEndian.Uint32(sum(k, []byte("mark of message 1")))
	return k
}

// touch writes to each page of what the next large allocation will get. Argon2 reads
// pages before it writes them: of fresh memory the kernel shows it the one page of
// zeros then, and takes that back from all processors at the write, page by page,
// which takes several times as long as the hash.
func touch(size int) {
	fresh := make([]byte, size)
	for i := 0; i < size; i += 4096 {
		fresh[i] = 1
	}
	runtime.KeepAlive(fresh)
	runtime.GC()
}

// Subkey makes a key for another purpose, which tells nothing about the others.
func (k Keys) Subkey(purpose string) (sub [32]byte) {
	b, err := hkdf.Expand(sha256.New, k.PSK[:], "weave "+purpose, len(sub))
	if err != nil {
		panic(err) // only for much longer ones
	}
	copy(sub[:], b)
	return sub
}

// Medium is what carries the messages.
type Medium byte

// The two media.
const (
	Datagrams Medium = 1
	Stream    Medium = 2
)

// Config is one side of one handshake. The Machine keeps no reference to it
// beyond the keys.
type Config struct {
	Identity id.Identity
	Keys     Keys
	Medium   Medium
	Index    uint32    // this side's number for the session, chosen by the caller
	Want     id.PeerID // initiator: who must answer; zero: whoever does
	Random   io.Reader // nil: crypto/rand
}

// Result is what a completed handshake gives. The caller wipes the keys once
// they are in a cipher.
type Result struct {
	Peer          id.PeerID // hash of the static key that the other side proved to hold
	Hello         Hello     // what the other side said of itself
	Index         uint32    // the other side's number for the session
	Send, Receive [32]byte
	AES           bool // both sides have AES in hardware
}

// Machine is one handshake, which goes through these states once:
//
//	Initiate -> (sent 1) -> Answer   -> (sent 3, has keys)
//	Respond  -> (sent 2) -> Conclude -> (has keys)
//
// It is not safe for concurrent use. The errors of its methods:
//   - ErrPassword, ErrMalformed, VersionError: the message was not made by the
//     other side of this handshake; the Machine is unharmed and the right
//     message may still come.
//   - any other (ErrSelf, ErrPeer, ErrFailed): the handshake is over and the
//     Machine must be thrown away.
type Machine struct {
	cfg   Config
	noise *noise.HandshakeState
	own   Hello  // responder: what message 2 said
	peer  uint32 // responder: the initiator's number
}

// Initiate begins a handshake and returns message 1.
func Initiate(cfg Config) (*Machine, []byte, error) {
	m, err := newMachine(cfg, true)
	if err != nil {
		return nil, nil, err
	}
	h := wire.Header{Type: wire.TypeHandshake1, Version: wire.Version, Index: cfg.Keys.Mark, Counter: uint64(cfg.Index)}
	msg, _, err := m.write(h, make([]byte, padding))
	return m, msg, err
}

// Respond takes message 1 and returns message 2, which carries hello.
func Respond(cfg Config, msg1 []byte, hello Hello) (*Machine, []byte, error) {
	h, err := Verify(cfg.Keys, msg1)
	if err != nil {
		return nil, nil, err
	}
	payload, err := hello.marshal()
	if err != nil {
		return nil, nil, err
	}
	m, err := newMachine(cfg, false)
	if err != nil {
		return nil, nil, err
	}
	if _, _, err := m.read(h, wire.TypeHandshake1, msg1); err != nil {
		return nil, nil, err
	}
	m.own, m.peer = hello, uint32(h.Counter)
	reply := wire.Header{
		Type: wire.TypeHandshake2, Version: wire.Version,
		Index: m.peer, Counter: uint64(cfg.Index),
	}
	msg, _, err := m.write(reply, payload)
	return m, msg, err
}

// Answer takes message 2 and returns message 3, which carries hello.
func (m *Machine) Answer(msg2 []byte, hello Hello) ([]byte, Result, error) {
	h, err := Verify(m.cfg.Keys, msg2)
	if err != nil {
		return nil, Result{}, err
	}
	payload, err := hello.marshal()
	if err != nil {
		return nil, Result{}, err
	}
	plain, _, err := m.read(h, wire.TypeHandshake2, msg2)
	if err != nil {
		return nil, Result{}, err
	}
	res, err := m.result(plain, hello, uint32(h.Counter))
	if err != nil {
		return nil, Result{}, err
	}
	reply := wire.Header{
		Type: wire.TypeHandshake3, Version: wire.Version,
		Index: res.Index, Counter: uint64(m.cfg.Index),
	}
	msg, keys, err := m.write(reply, payload)
	if err != nil {
		return nil, Result{}, err
	}
	res.Send, res.Receive = keys[0], keys[1]
	return msg, res, nil
}

// Conclude takes message 3.
func (m *Machine) Conclude(msg3 []byte) (Result, error) {
	h, err := Verify(m.cfg.Keys, msg3)
	if err != nil {
		return Result{}, err
	}
	if h.Counter != uint64(m.peer) {
		return Result{}, ErrMalformed
	}
	plain, keys, err := m.read(h, wire.TypeHandshake3, msg3)
	if err != nil {
		return Result{}, err
	}
	res, err := m.result(plain, m.own, m.peer)
	if err != nil {
		return Result{}, err
	}
	res.Send, res.Receive = keys[1], keys[0]
	return res, nil
}

// Verify judges a handshake message by all that costs no Diffie-Hellman:
// version, length, MAC. Its errors are VersionError, ErrMalformed and
// ErrPassword; the header is set with a VersionError and with ErrPassword too,
// so that the caller can reject the message.
func Verify(keys Keys, msg []byte) (wire.Header, error) {
	h, err := wire.ParseHeader(msg)
	if err != nil {
		return h, ErrMalformed
	}
	want := length(h.Type)
	switch {
	case want == 0:
		return h, ErrMalformed
	case h.Version != wire.Version:
		return h, VersionError{Theirs: h.Version}
	case len(msg) != want || h.Counter > math.MaxUint32:
		return h, ErrMalformed
	}
	body, mac := msg[:want-MACLen], msg[want-MACLen:]
	if h.Type == wire.TypeHandshake1 && h.Index != keys.Mark {
		return h, ErrPassword
	}
	if subtle.ConstantTimeCompare(sum(keys, body), mac) != 1 {
		return h, ErrPassword
	}
	return h, nil
}

func length(t wire.Type) int {
	switch t {
	case wire.TypeHandshake1:
		return Len1
	case wire.TypeHandshake2:
		return Len2
	case wire.TypeHandshake3:
		return Len3
	}
	return 0
}

func sum(keys Keys, b []byte) []byte {
	mac, err := blake2s.New128(keys.MAC[:])
	if err != nil {
		panic(err) // only for a key longer than 32 bytes
	}
	mac.Write(b)
	return mac.Sum(nil)
}

func newMachine(cfg Config, initiator bool) (*Machine, error) {
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	hs, err := noise.NewHandshakeState(noise.Config{
		CipherSuite:           noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s),
		Random:                cfg.Random,
		Pattern:               pattern(),
		Initiator:             initiator,
		Prologue:              []byte{'w', 'e', 'a', 'v', 'e', wire.Version, byte(cfg.Medium)},
		PresharedKey:          cfg.Keys.PSK[:],
		PresharedKeyPlacement: 3,
		StaticKeypair:         noise.DHKey{Private: cfg.Identity.Private, Public: cfg.Identity.Public},
	})
	if err != nil {
		return nil, fmt.Errorf("begin handshake: %w", err)
	}
	return &Machine{cfg: cfg, noise: hs}, nil
}

// pattern is XX with psk0; the library appends "psk3" to the name and to the
// third message.
func pattern() noise.HandshakePattern {
	return noise.HandshakePattern{
		Name: "XXpsk0+",
		Messages: [][]noise.MessagePattern{
			{noise.MessagePatternPSK, noise.MessagePatternE},
			{noise.MessagePatternE, noise.MessagePatternDHEE, noise.MessagePatternS, noise.MessagePatternDHES},
			{noise.MessagePatternS, noise.MessagePatternDHSE},
		},
	}
}

// write makes a whole message; the keys, initiator's first, are set when it
// was the last one.
func (m *Machine) write(h wire.Header, payload []byte) (msg []byte, keys [2][32]byte, err error) {
	msg = make([]byte, wire.HeaderLen, Len1)
	h.Put(msg)
	msg, first, second, err := m.noise.WriteMessage(msg, payload)
	if err != nil {
		return nil, keys, fmt.Errorf("%w: %w", ErrFailed, err)
	}
	if first != nil {
		keys = [2][32]byte{first.UnsafeKey(), second.UnsafeKey()}
	}
	return append(msg, sum(m.cfg.Keys, msg)...), keys, nil
}

// read takes the payload out of a verified message that must be of type want.
func (m *Machine) read(h wire.Header, want wire.Type, msg []byte) (payload []byte, keys [2][32]byte, err error) {
	receiver := m.cfg.Index
	if want == wire.TypeHandshake1 {
		receiver = m.cfg.Keys.Mark
	}
	if h.Type != want || h.Index != receiver {
		return nil, keys, ErrMalformed
	}
	payload, first, second, err := m.noise.ReadMessage(nil, msg[wire.HeaderLen:len(msg)-MACLen])
	if err != nil {
		return nil, keys, fmt.Errorf("%w: %w", ErrFailed, err)
	}
	if first != nil {
		keys = [2][32]byte{first.UnsafeKey(), second.UnsafeKey()}
	}
	return payload, keys, nil
}

// result judges who the other side proved to be and what it said.
func (m *Machine) result(payload []byte, own Hello, index uint32) (Result, error) {
	peer := id.FromPublic(m.noise.PeerStatic())
	switch {
	case peer == m.cfg.Identity.ID:
		return Result{}, ErrSelf
	case !m.cfg.Want.IsZero() && peer != m.cfg.Want:
		return Result{}, fmt.Errorf("%w: %s", ErrPeer, peer.Short())
	}
	hello, err := unmarshalHello(payload)
	if err != nil {
		return Result{}, fmt.Errorf("%w: hello of %s: %w", ErrFailed, peer.Short(), err)
	}
	return Result{Peer: peer, Hello: hello, Index: index, AES: own.AES && hello.AES}, nil
}
