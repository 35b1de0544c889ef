package dns

import (
	"encoding/hex"
	"net/netip"
	"strings"
)

const (
	maxName  = 253 // RFC 1035, 2.3.4, without the dot at the end
	maxLabel = 63
)

// validName tells whether a name can be asked for: labels in lower case, of
// characters that can be printed and are no blanks.
func validName(s string) bool {
	if len(s) == 0 || len(s) > maxName {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > maxLabel {
			return false
		}
		for i := range len(label) {
			if c := label[i]; c <= ' ' || c >= 0x7f || 'A' <= c && c <= 'Z' {
				return false
			}
		}
	}
	return true
}

const (
	reverse4 = ".in-addr.arpa"
	reverse6 = ".ip6.arpa"
)

// reversed returns the address that a name of the reverse zones stands for (RFC
// 1035, 3.5; RFC 3596, 2.5). The name is in lower case, without the dot at the end.
func reversed(name string) (addr netip.Addr, ok bool) {
	if rest, is4 := strings.CutSuffix(name, reverse4); is4 {
		labels := strings.Split(rest, ".")
		if len(labels) != 4 {
			return addr, false
		}
		for i, j := 0, 3; i < j; i, j = i+1, j-1 {
			labels[i], labels[j] = labels[j], labels[i]
		}
		addr, err := netip.ParseAddr(strings.Join(labels, "."))
		return addr, err == nil && addr.Is4()
	}
	rest, is6 := strings.CutSuffix(name, reverse6)
	if !is6 || len(rest) != 63 {
		return addr, false
	}
	digits := make([]byte, 0, 32)
	for i := len(rest) - 1; i >= 0; i -= 2 {
		if i > 0 && rest[i-1] != '.' {
			return addr, false
		}
		digits = append(digits, rest[i])
	}
	var a [16]byte
	if _, err := hex.Decode(a[:], digits); err != nil {
		return addr, false
	}
	addr = netip.AddrFrom16(a)
	return addr, !addr.Is4In6()
}
