package host

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Indexes into a link's IPv4 settings, from linux/ip.h.
const (
	devconfForwarding         = 1
	devconfAcceptRedirects    = 4
	devconfARPAnnounce        = 18
	devconfARPIgnore          = 19
	devconfPromoteSecondaries = 20
)

// forwardLLDP has a bridge pass on the one kind of link-local frames that it
// would hand to the host without asking the firewall.
const forwardLLDP = 1 << 0xe

// How the kernel answers ARP on a bridge, and which of its addresses it asks
// with.
const (
	arpIgnoreOthers = 1 // it answers for the bridge's own addresses
	arpIgnoreAll    = 8 // it answers for none
	arpAnnounceOwn  = 2 // it asks with an address of the bridge
)

// Bridge is what a bridge is to be like.
type Bridge struct {
	Name string
	MTU  int
	// MAC is that of the host on the bridge. Without addresses the host has no
	// part in the bridge's traffic, and MAC may be nil: one follows from the name,
	// on all hosts the same.
	MAC   net.HardwareAddr
	Addrs []netip.Prefix // of the host
}

// EnsureBridge makes a bridge, or puts one that exists into the state it
// should have: up, with this MTU, a MAC address of its own that does not
// follow its ports, no spanning tree, no multicast snooping (nothing queries
// on an overlay, so snooping would cut groups off), with these addresses of the
// host and no others, and without any no part of the host's own traffic.
func (k *Kernel) EnsureBridge(b Bridge) error {
	err := withNetlink(func(h *netlink.Handle) error {
		br, err := findOrAddBridge(h, b.Name)
		if err != nil {
			return err
		}
		if br.Attrs().MTU != b.MTU {
			if err := h.LinkSetMTU(br, b.MTU); err != nil {
				return fmt.Errorf("set MTU %d: %w", b.MTU, err)
			}
		}
		if mac := b.mac(); !bytes.Equal(br.Attrs().HardwareAddr, mac) {
			if err := h.LinkSetHardwareAddr(br, mac); err != nil {
				return fmt.Errorf("set MAC address: %w", err)
			}
		}
		if err := setBridgeOptions(br); err != nil {
			return fmt.Errorf("set bridge options: %w", err)
		}
		if err := b.setHost(h, br); err != nil {
			return err
		}
		return h.LinkSetUp(br)
	})
	if err != nil {
		return fmt.Errorf("make bridge %s: %w", b.Name, err)
	}
	return nil
}

func (b Bridge) mac() net.HardwareAddr {
	if len(b.Addrs) == 0 || b.MAC == nil {
		return bridgeMAC(b.Name)
	}
	return b.MAC
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
