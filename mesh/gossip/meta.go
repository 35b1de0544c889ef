package gossip

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/memberlist"
)

// Limits of what a member tells about itself; all of it fits
// memberlist.MetaMaxSize.
const (
	maxNickname   = 64 // bytes
	maxCandidates = 16
)

const metaFormat = 1

var errMeta = errors.New("gossip: malformed member data")

// meta is what each member tells about itself:
//
//	format(1 byte: 1) length(1) nickname count(1) candidate*
//	candidate = length(1: 4 or 16) address port(2, big-endian)
type meta struct {
	nickname   string
	candidates []netip.AddrPort
}

func (m meta) encode() []byte {
	nickname := cut(cleanName(m.nickname), maxNickname)
	out := append(make([]byte, 0, memberlist.MetaMaxSize), metaFormat, byte(len(nickname)))
	out = append(out, nickname...)
	count := len(out)
	out = append(out, 0)
	for _, c := range m.candidates {
		if !usable(c) || out[count] == maxCandidates {
			continue
		}
		addr := c.Addr().Unmap().AsSlice()
		out = append(append(out, byte(len(addr))), addr...)
		out = binary.BigEndian.AppendUint16(out, c.Port())
		out[count]++
	}
	return out
}

// parseMeta reads what another member tells. Addresses that nobody can be
// reached at are left out, and the nickname is made fit to print.
func parseMeta(b []byte) (meta, error) {
	var m meta
	if len(b) < 3 || len(b) > memberlist.MetaMaxSize || b[0] != metaFormat {
		return m, errMeta
	}
	n := int(b[1])
	if n > maxNickname || len(b) < 3+n {
		return m, errMeta
	}
	m.nickname = cleanName(string(b[2 : 2+n]))
	count, b := int(b[2+n]), b[3+n:]
	if count > maxCandidates {
		return m, errMeta
	}
	for range count {
		if len(b) < 1 || (b[0] != 4 && b[0] != 16) || len(b) < 3+int(b[0]) {
			return m, errMeta
		}
		addr, _ := netip.AddrFromSlice(b[1 : 1+b[0]])
		b = b[1+b[0]:]
		c := netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(b))
		b = b[2:]
		if usable(c) {
			m.candidates = append(m.candidates, c)
		}
	}
	if len(b) != 0 {
		return m, errMeta
	}
	return m, nil
}

// usable tells whether a candidate means something to another host.
func usable(c netip.AddrPort) bool {
	a := c.Addr()
	return c.IsValid() && c.Port() != 0 && a.Zone() == "" && !(a.Is6() && a.IsLinkLocalUnicast()) && !a.IsUnspecified() && !a.IsMulticast()
}

// cleanName keeps what can be printed on one line: nicknames end up in tables
// and logs.
func cleanName(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

// cut shortens a string to at most n bytes without breaking a rune.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
