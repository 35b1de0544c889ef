package attach

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// Want is an address that a container is to have.
type Want struct {
	Subnet netip.Prefix
	Addr   netip.Addr // zero: any of the subnet
}

// String returns the form that Parse reads.
func (w Want) String() string {
	if w.Addr.IsValid() {
		return netip.PrefixFrom(w.Addr, w.Subnet.Bits()).String()
	}
	return anyOf + w.Subnet.String()
}

// How a Want is written, besides 192.168.0.2/24.
const (
	anyOf      = "net:" // and a subnet, or standard
	standard   = "default"
	fixed      = "ip:" // and the usual form
	AnyDefault = anyOf + standard
)

// Bounds of subnets: the plugin makes no others.
const (
	minBits4, maxBits4 = 8, 30
	minBits6, maxBits6 = 16, 126
)

var addressForm = regexp.MustCompile(`^[0-9A-Fa-f.:]*[.:][0-9A-Fa-f.:]*/[0-9]+$`)

// IsWant tells whether a word is meant as a Want, whether or not it is a good
// one: the images of docker run look different.
func IsWant(word string) bool {
	return strings.HasPrefix(word, anyOf) || strings.HasPrefix(word, fixed) || addressForm.MatchString(word)
}

// Parse reads 192.168.0.2/24, ip:192.168.0.2/24, net:192.168.0.0/24 or
// net:default, which stands for any address of the default subnet.
func Parse(word string, byDefault netip.Prefix) (Want, error) {
	if word == AnyDefault {
		return Want{Subnet: byDefault}, nil
	}
	text, any := strings.CutPrefix(word, anyOf)
	text = strings.TrimPrefix(text, fixed)
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil && !strings.Contains(text, "/"):
		return Want{}, fmt.Errorf("address %.80q: want an address with the length of its subnet, like 192.168.0.2/24, or net:192.168.0.0/24, or net:default", word)
	case err != nil:
		return Want{}, fmt.Errorf("address %.80q: no address with the length of its subnet, like 192.168.0.2/24", word)
	}
	if err := checkSubnet(prefix); err != nil {
		return Want{}, fmt.Errorf("address %s: %w", word, err)
	}
	subnet := prefix.Masked()
	if any {
		if prefix != subnet {
			return Want{}, fmt.Errorf("%s: %s is an address of that subnet: write net:%s for any, or %s for that one", word, prefix.Addr(), subnet, prefix)
		}
		return Want{Subnet: subnet}, nil
	}
	if err := checkHost(prefix); err != nil {
		return Want{}, err
	}
	return Want{Subnet: subnet, Addr: prefix.Addr()}, nil
}

func checkSubnet(p netip.Prefix) error {
	least, most := minBits4, maxBits4
	if p.Addr().Is6() {
		least, most = minBits6, maxBits6
	}
	addr := p.Masked().Addr()
	switch {
	case p.Bits() < least || p.Bits() > most:
		return fmt.Errorf("the length of a subnet is from /%d to /%d", least, most)
	case addr.Is4In6() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() || addr.IsUnspecified():
		return fmt.Errorf("%s is no subnet for containers", p.Masked())
	}
	return nil
}

// checkHost refuses the network's own address and, of IPv4, the broadcast
// address.
func checkHost(p netip.Prefix) error {
	first, last := p.Masked().Addr().Next(), lastOf(p)
	switch addr := p.Addr(); {
	case addr == p.Masked().Addr():
		return fmt.Errorf("address %s is the network's own: use one from %s on, or net:%s for any", p, first, p.Masked())
	case addr == last && addr.Is4():
		return fmt.Errorf("address %s is the network's broadcast address: use one from %s to %s, or net:%s for any", p, first, last.Prev(), p.Masked())
	}
	return nil
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	bytes := p.Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(bytes); bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}
