package host

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// setHost gives the host the addresses on a bridge that it should have, and
// takes away others.
func (b Bridge) setHost(h *netlink.Handle, br netlink.Link) error {
	has, err := addressesOf(h, br)
	if err != nil {
		return fmt.Errorf("list the host's addresses: %w", err)
	}
	for prefix, addr := range has {
		if slices.Contains(b.Addrs, prefix) {
			continue
		}
		if err := h.AddrDel(br, &addr); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take away the host's address %s: %w", prefix, err)
		}
	}
	v4, v6 := slices.ContainsFunc(b.Addrs, is4), slices.ContainsFunc(b.Addrs, is6)
	if err := errors.Join(setIPv4(br, v4), setIPv6(h, br, v6)); err != nil {
		return fmt.Errorf("keep the host's IP off the bridge, or let it on: %w", err)
	}
	for _, prefix := range b.Addrs {
		if _, there := has[prefix]; there {
			continue
		}
		if err := h.AddrReplace(br, hostAddr(prefix)); err != nil {
			return fmt.Errorf("give the host address %s: %w", prefix, err)
		}
	}
	return nil
}

// hostAddr is an address that is used at once: nobody has to be asked whether it
// is free, since it is leased.
func hostAddr(prefix netip.Prefix) *netlink.Addr {
	addr := prefix.Addr()
	a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(prefix.Bits(), addr.BitLen())}}
	if addr.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// addressesOf lists the addresses that were set on a bridge, but for those that
// the kernel gave itself.
func addressesOf(h *netlink.Handle, br netlink.Link) (map[netip.Prefix]netlink.Addr, error) {
	all, err := h.AddrList(br, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	has := map[netip.Prefix]netlink.Addr{}
	for _, a := range all {
		addr, ok := netip.AddrFromSlice(a.IP)
		if bits, _ := a.Mask.Size(); ok && !addr.IsLinkLocalUnicast() {
			has[netip.PrefixFrom(addr.Unmap(), bits)] = a
		}
	}
	return has, nil
}

func is4(p netip.Prefix) bool { return p.Addr().Is4() }
func is6(p netip.Prefix) bool { return p.Addr().Is6() }

// setIPv4 lets the host answer for its IPv4 addresses on a bridge; what it
// forwards is the firewall's to say. Or it sees to it that the host neither speaks
// nor answers there: no ARP for its addresses or as a proxy, no forwarding. The
// settings go by netlink, because /proc/sys may be read-only.
func setIPv4(br netlink.Link, on bool) error {
	settings := map[int]uint32{devconfForwarding: 0, devconfARPIgnore: arpIgnoreAll}
	if on {
		settings = map[int]uint32{
			devconfForwarding: 1, devconfARPIgnore: arpIgnoreOthers, devconfARPAnnounce: arpAnnounceOwn,
			devconfAcceptRedirects: 0, devconfPromoteSecondaries: 1,
		}
	}
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(unix.IFLA_INET_CONF, nil)
	for _, index := range slices.Sorted(maps.Keys(settings)) {
		conf.AddRtAttr(index, nl.Uint32Attr(settings[index]))
	}
	return setLink(br, unix.RTM_SETLINK, spec)
}

// setIPv6 is the same for IPv6. Nothing that others say on the bridge sets up the
// host's addresses or routes.
func setIPv6(h *netlink.Handle, br netlink.Link, on bool) error {
	if err := quietIPv6(h, br); err != nil {
		return err
	}
	if !on {
		// Without an IPv6 address the bridge is silent already; this is the second
		// lock on the same door, so a /proc/sys that is read-only does no harm.
		err := writeIPv6(br, "disable_ipv6", "1")
		if errors.Is(err, unix.EROFS) || errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, s := range []struct{ name, value string }{{"accept_ra", "0"}, {"accept_redirects", "0"}, {"disable_ipv6", "0"}} {
		if err := writeIPv6(br, s.name, s.value); err != nil {
			return err
		}
	}
	return nil
}

func writeIPv6(link netlink.Link, setting, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", link.Attrs().Name, setting), []byte(value), 0)
}
