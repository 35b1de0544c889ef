package handshake

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unicode"
	"unicode/utf8"
)

// MaxNickname is the longest nickname, in bytes.
const MaxNickname = 128

// Hello is what a peer says of itself in a handshake. It is encrypted, and
// padded to one length.
//
// Layout: flags (1: AES), incarnation (8), port (2), advertised address (16),
// address and port the other side was seen at (16+2), length of the nickname (1),
// nickname, zeros. Addresses are in their IPv6 form, all zeros if absent.
type Hello struct {
	Nickname    string
	AES         bool           // AES in hardware
	Incarnation uint64         // rises with each start of the peer
	Port        uint16         // where the peer listens, UDP and TCP
	Advertise   netip.Addr     // underlay address it wants to be reached at; may be zero
	Seen        netip.AddrPort // where it sees the receiver of this Hello; may be zero
}

const (
	helloLen    = 256
	helloPrefix = 1 + 8 + 2 + 16 + 16 + 2 + 1
	flagAES     = 1
)

// Check reports what is wrong with h, if anything.
func (h Hello) Check() error {
	if len(h.Nickname) > MaxNickname {
		return fmt.Errorf("nickname of %d bytes: at most %d", len(h.Nickname), MaxNickname)
	}
	if !utf8.ValidString(h.Nickname) {
		return fmt.Errorf("nickname %q: not UTF-8", h.Nickname)
	}
	for _, r := range h.Nickname {
		if !unicode.IsPrint(r) { // it ends up in logs and on terminals
			return fmt.Errorf("nickname %q: %q cannot be printed", h.Nickname, r)
		}
	}
	return nil
}

func (h Hello) marshal() ([]byte, error) {
	if err := h.Check(); err != nil {
		return nil, err
	}
	b := make([]byte, 0, helloLen)
	var flags byte
	if h.AES {
		flags |= flagAES
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint64(b, h.Incarnation)
	b = binary.BigEndian.AppendUint16(b, h.Port)
	b = appendAddr(b, h.Advertise)
	b = appendAddr(b, h.Seen.Addr())
	b = binary.BigEndian.AppendUint16(b, h.Seen.Port())
	b = append(b, byte(len(h.Nickname)))
	b = append(b, h.Nickname...)
	return b[:helloLen], nil
}

func unmarshalHello(b []byte) (Hello, error) {
	if len(b) != helloLen || int(b[helloPrefix-1]) > MaxNickname {
		return Hello{}, ErrMalformed
	}
	h := Hello{
		AES:         b[0]&flagAES != 0,
		Incarnation: binary.BigEndian.Uint64(b[1:]),
		Port:        binary.BigEndian.Uint16(b[9:]),
		Advertise:   readAddr(b[11:27]),
		Nickname:    string(b[helloPrefix : helloPrefix+int(b[helloPrefix-1])]),
	}
	if seen := readAddr(b[27:43]); seen.IsValid() {
		h.Seen = netip.AddrPortFrom(seen, binary.BigEndian.Uint16(b[43:]))
	}
	return h, h.Check()
}

// appendAddr leaves out the zone, which means nothing to another host.
func appendAddr(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return append(b, make([]byte, 16)...)
	}
	a16 := a.As16()
	return append(b, a16[:]...)
}

func readAddr(b []byte) netip.Addr {
	a := netip.AddrFrom16([16]byte(b)).Unmap()
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
