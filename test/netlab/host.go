package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const readyPatience = 10 * time.Second

// Host is a network namespace with one uplink, eth0.
type Host struct {
	net    *Network
	name   string
	port   string   // the other end of its uplink, in the network's namespace
	inside *Network // nil if it is not a router

	addresses sync.Mutex
	ip4, ip6  netip.Addr // guarded by addresses; not valid for a family that Only took away

	mu    sync.Mutex
	cable cable                 // guarded by mu
	delay atomic.Pointer[Delay] // nil: none; changes under mu
}

// Name returns the short name, such as h1, or h3-1 for one behind router h3.
func (h *Host) Name() string { return h.name }

// Namespace returns the name of the host's network namespace, as `ip netns` knows it.
func (h *Host) Namespace() string { return h.net.lab + "-" + h.name }

// NamespacePath returns the file to enter the host's network namespace by.
func (h *Host) NamespacePath() string { return filepath.Join(netnsDir, h.Namespace()) }

// IP4 returns the underlay's IPv4 address, 10.99.N.n; not valid if there is none.
func (h *Host) IP4() netip.Addr {
	h.addresses.Lock()
	defer h.addresses.Unlock()
	return h.ip4
}

// IP6 returns the underlay's IPv6 address, fd99:0:0:N::n; not valid if there is none.
func (h *Host) IP6() netip.Addr {
	h.addresses.Lock()
	defer h.addresses.Unlock()
	return h.ip6
}

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

// Family is a version of the Internet Protocol.
type Family int

// The families of addresses. Hosts begin with both.
const (
	IPv4 Family = unix.AF_INET
	IPv6 Family = unix.AF_INET6
)

// Only takes the host's uplink the addresses, and with them the routes, of the
// other family, for good: Renumber will not work. Of IPv6 not even the link-local
// address stays. Hosts of both kinds, and of neither, may share a network.
func (h *Host) Only(f Family) error {
	lost := &h.ip6
	if f == IPv6 {
		lost = &h.ip4
	}
	err := h.Do(func() error {
		if f == IPv4 {
			return writeSysctl("net/ipv6/conf/"+uplink+"/disable_ipv6", "1")
		}
		link, err := netlink.LinkByName(uplink)
		if err != nil {
			return err
		}
		return netlink.AddrDel(link, parsed(h.IP4()))
	})
	if err != nil {
		return fmt.Errorf("one family of %s: %w", h.name, err)
	}
	h.addresses.Lock()
	defer h.addresses.Unlock()
	*lost = netip.Addr{}
	return nil
}

// Renumber gives the host the addresses of another number, as a host gets that
// roams: connections from the old ones break, and nobody is told. Its name stays,
// and no other host may have the number.
func (h *Host) Renumber(number int) error {
	ip4, ip6 := h.net.address(number)
	err := h.Do(func() error {
		link, err := netlink.LinkByName(uplink)
		if err != nil {
			return err
		}
		for _, old := range []netip.Addr{h.IP4(), h.IP6()} {
			if err := netlink.AddrDel(link, parsed(old)); err != nil {
				return fmt.Errorf("delete address %s: %w", old, err)
			}
		}
		return bringUp(uplink, ip4, ip6)
	})
	if err == nil {
		h.addresses.Lock()
		h.ip4, h.ip6 = ip4, ip6
		h.addresses.Unlock()
		h.net.mu.Lock()
		err = errors.Join(h.addRoutes(), h.addWays())
		h.net.mu.Unlock()
		err = errors.Join(err, h.awaitReady())
	}
	if err != nil {
		return fmt.Errorf("renumber %s: %w", h.name, err)
	}
	return nil
}

func (h *Host) onPort(f func(netlink.Link) error) error {
	return inNamespace(h.net.space, func() error {
		port, err := netlink.LinkByName(h.port)
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
	err := h.onPort(func(port netlink.Link) error {
		return errors.Join(plugIn(port), netlink.LinkSetUp(port))
	})
	if err != nil {
		return err
	}
	err = h.Do(func() error {
		for _, family := range []string{"ip", "ip6"} {
			// As on a host where Docker runs: bridged frames meet the packet filter.
			if err := writeSysctl("net/bridge/bridge-nf-call-"+family+"tables", "1"); err != nil {
				return err
			}
		}
		return bringUp(uplink, h.ip4, h.ip6)
	})
	if err != nil {
		return err
	}
	return errors.Join(h.addRoutes(), h.awaitReady())
}

// awaitReady waits until the kernel has noticed, in its own time, that the
// uplink's two ends are there, and with its first port the bridge. Until then
// nobody answers ARP or neighbour discovery, and who asks waits a second before
// he asks again.
func (h *Host) awaitReady() error {
	_, gateway6 := h.net.address(gateway)
	return errors.Join(
		inNamespace(h.net.space, func() error {
			return errors.Join(await(h.port, func(l netlink.Link) (bool, error) { return isUp(l), nil }), await(bridge, answersTo(gateway6)))
		}),
		h.Do(func() error { return await(uplink, answersTo(h.IP6())) }))
}

// await asks again and again whether a link is in a state.
func await(name string, ready func(netlink.Link) (bool, error)) error {
	deadline := time.Now().Add(readyPatience)
	for {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		yes, err := ready(link)
		if yes || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("link %s is not ready after %s", name, readyPatience)
		}
		time.Sleep(time.Millisecond)
	}
}

func isUp(link netlink.Link) bool { return link.Attrs().OperState == netlink.OperUp }

// answersTo is whether the link is ready: it hears who looks for an address,
// having joined the group for that, and can look for others.
func answersTo(ip6 netip.Addr) func(netlink.Link) (bool, error) {
	last := ip6.As16()
	group := fmt.Sprintf("ff0200000000000000000001ff%x", last[13:])
	return func(link netlink.Link) (bool, error) {
		all, err := os.ReadFile("/proc/thread-self/net/igmp6")
		for line := range strings.Lines(string(all)) {
			if f := strings.Fields(line); len(f) > 2 && f[1] == link.Attrs().Name && f[2] == group {
				return canAsk(link)
			}
		}
		return false, err
	}
}

// canAsk is whether the link is up and has its link-local address, without which
// a router looks for nobody.
func canAsk(link netlink.Link) (bool, error) {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
	return len(addrs) > 1 && !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 }) && isUp(link), err
}

// plugIn makes a link a port of the bridge in the same namespace.
func plugIn(port netlink.Link) error {
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	return netlink.LinkSetMaster(port, br)
}

// addRoutes adds the default routes.
func (h *Host) addRoutes() error {
	ip4, ip6 := h.net.address(gateway)
	return errors.Join(
		h.setRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), ip4),
		h.setRoute(netip.PrefixFrom(netip.IPv6Unspecified(), 0), ip6))
}

// addWays adds the routes that the network has; under its mu.
func (h *Host) addWays() error {
	var errs []error
	for to, w := range h.net.routes {
		if !h.isInside(to) {
			errs = append(errs, h.setRoute(to, w.via))
		}
	}
	return errors.Join(errs...)
}

// isInside is whether the host is a router to a network of that prefix itself.
func (h *Host) isInside(to netip.Prefix) bool {
	return h.inside != nil && slices.Contains(h.inside.prefixes(), to)
}

// setRoute adds a route, or changes it, if the host has addresses of that family.
func (h *Host) setRoute(to netip.Prefix, via netip.Addr) error {
	if via.Is4() && !h.IP4().IsValid() || via.Is6() && !h.IP6().IsValid() {
		return nil
	}
	err := h.Do(func() error { return netlink.RouteReplace(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()}) })
	if err != nil {
		return fmt.Errorf("route to %s via %s: %w", to, via, err)
	}
	return nil
}

// deleteWay deletes what addWays added.
func (h *Host) deleteWay(to netip.Prefix) error {
	if h.isInside(to) {
		return nil
	}
	err := h.Do(func() error { return netlink.RouteDel(&netlink.Route{Dst: ipNet(to)}) })
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("delete route to %s: %w", to, err)
	}
	return nil
}

// addCable makes the veth pair with one end in the wires namespace, named
// after the host, and the other in the host.
func (h *Host) addCable() error {
	ns, err := netns.GetFromName(h.Namespace())
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	defer ns.Close()
	return inNamespace(h.net.space, func() error {
		cable := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: h.port, MTU: mtu},
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
