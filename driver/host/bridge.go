package host

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Indexes into a link's IPv4 settings, from linux/ip.h.
const (
	devconfForwarding = 1
	devconfARPIgnore  = 19
)

// forwardLLDP has a bridge pass on the one kind of link-local frames that it
// would hand to the host without asking the firewall.
const forwardLLDP = 1 << 0xe

// arpIgnoreAll makes the kernel answer ARP for none of its addresses.
const arpIgnoreAll = 8

// EnsureBridge makes a bridge, or puts one that exists into the state it
// should have: up, with this MTU, a MAC address of its own that does not
// follow its ports, no spanning tree, no multicast snooping (nothing queries
// on an overlay, so snooping would cut groups off), and no part of the host's
// own traffic.
func (k *Kernel) EnsureBridge(name string, mtu int) error {
	err := withNetlink(func(h *netlink.Handle) error {
		br, err := findOrAddBridge(h, name)
		if err != nil {
			return err
		}
		if br.Attrs().MTU != mtu {
			if err := h.LinkSetMTU(br, mtu); err != nil {
				return fmt.Errorf("set MTU %d: %w", mtu, err)
			}
		}
		if mac := bridgeMAC(name); !bytes.Equal(br.Attrs().HardwareAddr, mac) {
			if err := h.LinkSetHardwareAddr(br, mac); err != nil {
				return fmt.Errorf("set MAC address: %w", err)
			}
		}
		if err := setBridgeOptions(br); err != nil {
			return fmt.Errorf("set bridge options: %w", err)
		}
		if err := keepHostOff(h, br); err != nil {
			return fmt.Errorf("keep the host's IP off the bridge: %w", err)
		}
		return h.LinkSetUp(br)
	})
	if err != nil {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	return nil
}

// RemoveBridge removes a bridge; its ports stay, without a bridge. That it is
// not there is success.
func (k *Kernel) RemoveBridge(name string) error {
	if err := k.DeleteLink(name); err != nil {
		return fmt.Errorf("remove bridge %s: %w", name, err)
	}
	return nil
}

func findOrAddBridge(h *netlink.Handle, name string) (netlink.Link, error) {
	br, err := h.LinkByName(name)
	if missing(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = name, bridgeMAC(name)
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return nil, err
		}
		br, err = h.LinkByName(name)
	}
	if err != nil {
		return nil, err
	}
	if br.Type() != "bridge" {
		return nil, fmt.Errorf("a link of that name exists and is a %s", br.Type())
	}
	return br, nil
}

// bridgeMAC derives a locally administered MAC address from a bridge's name.
// Containers' addresses start with 02:57, so the two never meet.
func bridgeMAC(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(name))
	return net.HardwareAddr{0x06, 0x57, sum[0], sum[1], sum[2], sum[3]}
}

func setBridgeOptions(br netlink.Link) error {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0))
	data.AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0))
	data.AddRtAttr(nl.IFLA_BR_MCAST_SNOOPING, []byte{0})
	data.AddRtAttr(nl.IFLA_BR_GROUP_FWD_MASK, nl.Uint16Attr(forwardLLDP))
	return setLink(br, unix.RTM_NEWLINK, info)
}

// keepHostOff sees to it that the host neither speaks nor answers on a bridge:
// no ARP for its addresses or as a proxy, no forwarding, no IPv6. The settings
// go by netlink where they can, because /proc/sys may be read-only.
func keepHostOff(h *netlink.Handle, br netlink.Link) error {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(unix.IFLA_INET_CONF, nil)
	conf.AddRtAttr(devconfForwarding, nl.Uint32Attr(0))
	conf.AddRtAttr(devconfARPIgnore, nl.Uint32Attr(arpIgnoreAll))
	if err := setLink(br, unix.RTM_SETLINK, spec); err != nil {
		return err
	}
	if err := quietIPv6(h, br); err != nil {
		return err
	}
	// Without an IPv6 address the bridge is silent already; this is the second
	// lock on the same door, so a /proc/sys that is read-only does no harm.
	err := disableIPv6(br.Attrs().Name)
	if errors.Is(err, unix.EROFS) || errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func disableIPv6(link string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", link, "disable_ipv6"), []byte("1"), 0)
}
