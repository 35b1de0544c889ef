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
	if len(b.Addrs) == 0 {
		if err := keepHostOff(h, br); err != nil {
			return fmt.Errorf("keep the host's IP off the bridge: %w", err)
		}
		return nil
	}
	if err := letHostOn(h, br, slices.ContainsFunc(b.Addrs, is6)); err != nil {
		return fmt.Errorf("let the host's IP on the bridge: %w", err)
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

func is6(p netip.Prefix) bool { return p.Addr().Is6() }

// keepHostOff sees to it that the host neither speaks nor answers on a bridge:
// no ARP for its addresses or as a proxy, no forwarding, no IPv6. The settings
// go by netlink where they can, because /proc/sys may be read-only.
func keepHostOff(h *netlink.Handle, br netlink.Link) error {
	if err := setIPv4(br, map[int]uint32{devconfForwarding: 0, devconfARPIgnore: arpIgnoreAll}); err != nil {
		return err
	}
	if err := quietIPv6(h, br); err != nil {
		return err
	}
	// Without an IPv6 address the bridge is silent already; this is the second
	// lock on the same door, so a /proc/sys that is read-only does no harm.
	err := setIPv6(br.Attrs().Name, "disable_ipv6", "1")
	if errors.Is(err, unix.EROFS) || errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// letHostOn is the reverse: the host answers for its addresses on the bridge, and
// nothing that others say there sets up its IPv6 or its routes. What it forwards
// is the firewall's to say.
func letHostOn(h *netlink.Handle, br netlink.Link, v6 bool) error {
	err := setIPv4(br, map[int]uint32{
		devconfForwarding: 1, devconfARPIgnore: arpIgnoreOthers, devconfARPAnnounce: arpAnnounceOwn,
		devconfAcceptRedirects: 0, devconfPromoteSecondaries: 1,
	})
	if err != nil || !v6 {
		return err
	}
	if err := quietIPv6(h, br); err != nil {
		return err
	}
	for _, s := range []struct{ name, value string }{
		{"accept_ra", "0"}, {"accept_redirects", "0"}, {"disable_ipv6", "0"},
	} {
		if err := setIPv6(br.Attrs().Name, s.name, s.value); err != nil {
			return err
		}
	}
	return nil
}

// setIPv4 changes IPv4 settings of a link, by their indexes.
func setIPv4(link netlink.Link, settings map[int]uint32) error {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(unix.IFLA_INET_CONF, nil)
	for _, index := range slices.Sorted(maps.Keys(settings)) {
		conf.AddRtAttr(index, nl.Uint32Attr(settings[index]))
	}
	return setLink(link, unix.RTM_SETLINK, spec)
}

func setIPv6(link, name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", link, name), []byte(value), 0)
}
