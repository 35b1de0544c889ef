package netlab

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Host is a network namespace with one uplink, eth0.
type Host struct {
	lab      *Lab
	name     string
	ip4, ip6 netip.Addr
}

// Name returns the short name, such as h1.
func (h *Host) Name() string { return h.name }

// Namespace returns the name of the host's network namespace, as `ip netns` knows it.
func (h *Host) Namespace() string { return h.lab.name + "-" + h.name }

// NamespacePath returns the file to enter the host's network namespace by.
func (h *Host) NamespacePath() string { return filepath.Join(netnsDir, h.Namespace()) }

// IP4 returns the underlay's IPv4 address, 10.99.0.n.
func (h *Host) IP4() netip.Addr { return h.ip4 }

// IP6 returns the underlay's IPv6 address, fd99::n.
func (h *Host) IP6() netip.Addr { return h.ip6 }

// Do runs f on a thread of its own inside the host's network namespace. The
// goroutines that f starts are not in it.
func (h *Host) Do(f func() error) error { return inNamespace(h.Namespace(), f) }

// Links returns the names of the host's links, without lo and the uplink.
func (h *Host) Links() ([]string, error) {
	var names []string
	err := h.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("links of %s: %w", h.name, err)
		}
		for _, link := range links {
			if name := link.Attrs().Name; name != "lo" && name != uplink {
				names = append(names, name)
			}
		}
		return nil
	})
	return names, err
}

// Cut takes the host off the wire without telling it: its uplink keeps its
// carrier, and frames vanish both ways.
func (h *Host) Cut() error {
	return h.onPort(netlink.LinkSetNoMaster)
}

// Heal undoes Cut.
func (h *Host) Heal() error {
	return h.onPort(func(port netlink.Link) error {
		br, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(port, br)
	})
}

func (h *Host) onPort(f func(netlink.Link) error) error {
	return inNamespace(h.lab.wires(), func() error {
		port, err := netlink.LinkByName(h.name)
		if err == nil {
			err = f(port)
		}
		if err != nil {
			return fmt.Errorf("port of %s: %w", h.name, err)
		}
		return nil
	})
}

func (h *Host) setUp() error {
	if err := h.addCable(); err != nil {
		return err
	}
	if err := h.onPort(netlink.LinkSetUp); err != nil {
		return err
	}
	if err := h.Heal(); err != nil {
		return err
	}
	return h.Do(func() error {
		for _, family := range []string{"ip", "ip6"} {
			// As on a host where Docker runs: bridged frames meet the packet filter.
			if err := writeSysctl("net/bridge/bridge-nf-call-"+family+"tables", "1"); err != nil {
				return err
			}
		}
		if err := bringUp(uplink, h.ip4, h.ip6); err != nil {
			return err
		}
		for _, gateway := range []netip.Addr{Outside4, outside6} {
			if err := netlink.RouteAdd(&netlink.Route{Gw: net.IP(gateway.AsSlice())}); err != nil {
				return fmt.Errorf("default route via %s: %w", gateway, err)
			}
		}
		return nil
	})
}

// addCable makes the veth pair with one end in the wires namespace, named
// after the host, and the other in the host.
func (h *Host) addCable() error {
	ns, err := netns.GetFromName(h.Namespace())
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	defer ns.Close()
	return inNamespace(h.lab.wires(), func() error {
		cable := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: h.name, MTU: mtu},
			PeerName:      uplink,
			PeerMTU:       mtu,
			PeerNamespace: netlink.NsFd(ns),
		}
		if err := netlink.LinkAdd(cable); err != nil {
			return fmt.Errorf("add uplink: %w", err)
		}
		return nil
	})
}
