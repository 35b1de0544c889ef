package lan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxLinks bounds the links that this host is announced on. The kernel lets a
// socket be in 20 groups of IPv4.
const maxLinks = 16

// link is one that this host is announced on.
type link struct {
	index int
	name  string
	own   netip.Prefix // our address there, with its subnet
}

// dockers are bridges that Docker makes for the containers of this host.
var dockers = regexp.MustCompile(`^(docker0|docker_gwbridge|br-[0-9a-f]{12})$`)

// leads tells whether a link may lead to other hosts. The rest are containers',
// Docker's, or our own.
func leads(a *netlink.LinkAttrs) bool {
	const want = net.FlagUp | net.FlagMulticast | net.FlagRunning
	return a.Flags&want == want && a.Flags&(net.FlagLoopback|net.FlagPointToPoint) == 0 &&
		!strings.HasPrefix(a.Name, "veth") && !strings.HasPrefix(a.Name, "wv") && !dockers.MatchString(a.Name)
}

// fit tells whether an address is one to choose for others to reach this host at:
// not one that means something on its link only, or that comes and goes.
func fit(a netlink.Addr) (own netip.Prefix, ok bool) {
	const unfit = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED | unix.IFA_F_SECONDARY // or temporary
	ip, _ := netip.AddrFromSlice(a.IP)
	bits, _ := a.Mask.Size()
	ip = ip.Unmap()
	return netip.PrefixFrom(ip, bits), ip.IsGlobalUnicast() && a.Flags&unfit == 0
}

// links lists those that lead to other hosts, each with one address. If this host
// takes connections at one address only, it is that one's.
func links(four bool, listen netip.Addr) ([]link, error) {
	family := netlink.FAMILY_V6
	if four {
		family = netlink.FAMILY_V4
	}
	addrs, err := netlink.AddrList(nil, family)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []link
	seen := map[int]bool{}
	for _, a := range addrs {
		own, ok := fit(a)
		only := listen.IsValid() && !listen.IsUnspecified()
		if only && own.Addr() != listen.Unmap() || !only && !ok || seen[a.LinkIndex] || len(out) == maxLinks {
			continue
		}
		seen[a.LinkIndex] = true
		l, err := netlink.LinkByIndex(a.LinkIndex)
		switch {
		case errors.As(err, &netlink.LinkNotFoundError{}): // it went
		case err != nil:
			return nil, fmt.Errorf("look at link %d: %w", a.LinkIndex, err)
		case leads(l.Attrs()) && !isPort(l.Attrs().MasterIndex):
			out = append(out, link{a.LinkIndex, l.Attrs().Name, own})
		}
	}
	return out, nil
}

// isPort tells whether a link with this master is a part of another, as of a bridge
// or a bond: then that one counts.
func isPort(master int) bool {
	if master == 0 {
		return false
	}
	m, err := netlink.LinkByIndex(master)
	return err != nil || m.Type() != "vrf"
}
