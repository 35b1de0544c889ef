package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"weave/driver/host"
)

// Links are called by a prefix and eight hexadecimal digits.
const (
	bridgePrefix        = host.Prefix
	hostLinkPrefix      = host.Prefix + "l"
	containerLinkPrefix = host.Prefix + "c"
	nameDigits          = 8
)

// pickDigits derives digits that are not taken from an ID: its own first ones,
// so that people can see what belongs together, or, on a clash or where the ID
// is no hexadecimal number, those of a hash.
func pickDigits(id string, taken func(digits string) bool) string {
	if len(id) >= nameDigits {
		if own := id[:nameDigits]; isDigits(own) && !taken(own) {
			return own
		}
	}
	for i := 0; ; i++ {
		sum := sha256.Sum256([]byte(id + "#" + strconv.Itoa(i)))
		if digits := hex.EncodeToString(sum[:nameDigits/2]); !taken(digits) {
			return digits
		}
	}
}

func isDigits(s string) bool {
	return len(s) == nameDigits && strings.Trim(s, "0123456789abcdef") == ""
}

func isLinkName(prefix, name string) bool {
	digits, ok := strings.CutPrefix(name, prefix)
	return ok && isDigits(digits)
}

// hostMAC returns the MAC address of a host on a segment: the same after a
// restart, and on no other host. Containers' begin with 02.
func hostMAC(self, segment string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(self + " " + segment))
	return net.HardwareAddr{0x06, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

// deriveMAC returns the MAC address of a container that was given none. It
// follows from the IP address, so that a container that comes back with its
// address is found at once by those who remember it.
func deriveMAC(addr netip.Addr) hardwareAddr {
	tail := [4]byte{}
	if addr.Is4() {
		tail = addr.As4()
	} else {
		sum := sha256.Sum256(addr.AsSlice())
		copy(tail[:], sum[:])
	}
	return hardwareAddr{0x02, 0x57, tail[0], tail[1], tail[2], tail[3]}
}
