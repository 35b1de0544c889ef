package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoSuchAddr says that no link of the host has an address.
var ErrNoSuchAddr = errors.New("not an address of this host")

// ErrNoDefaultRoute says that the host has no default route, so that its
// underlay address must be given to us.
var ErrNoDefaultRoute = errors.New("the host has no default route")

// Route is an entry of the host's main routing table.
type Route struct {
	Prefix netip.Prefix
	Link   string // name; empty for a route through no link, such as a blackhole
}

// Routes returns the routes of both families in the main table, default routes
// included.
func (k *Kernel) Routes() ([]Route, error) {
	var routes []Route
	err := withNetlink(func(h *netlink.Handle) error {
		names, err := linkNames(h)
		if err != nil {
			return err
		}
		found, err := mainTable(h)
		if err != nil {
			return err
		}
		routes = make([]Route, 0, len(found))
		for _, r := range found {
			routes = append(routes, Route{Prefix: destination(r), Link: names[outgoing(r)]})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

// UnderlayMTU returns the MTU of the link that has the address, or, when addr
// is the zero Addr, of the default route.
func (k *Kernel) UnderlayMTU(addr netip.Addr) (int, error) {
	mtu := 0
	err := withNetlink(func(h *netlink.Handle) error {
		var err error
		if addr.IsValid() {
			mtu, err = mtuOfAddr(h, addr)
		} else {
			mtu, err = mtuOfDefault(h)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("find the underlay's MTU: %w", err)
	}
	return mtu, nil
}

// DefaultAddrs returns the addresses with which the host speaks over its default
// routes: one of IPv4 and one of IPv6, in this order, or one of them. There is an
// error only if there is none.
func (k *Kernel) DefaultAddrs() ([]netip.Addr, error) {
	var addrs []netip.Addr
	err := withNetlink(func(h *netlink.Handle) error {
		routes, err := mainTable(h)
		if err != nil {
			return err
		}
		var errs []error
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			addr, err := sourceAddr(h, routes, family)
			if err == nil {
				addrs = append(addrs, addr)
			} else if !errors.Is(err, ErrNoDefaultRoute) || len(errs) == 0 { // said once is enough
				errs = append(errs, err)
			}
		}
		if len(addrs) > 0 {
			return nil
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return nil, fmt.Errorf("find the underlay address: %w", err)
	}
	return addrs, nil
}

// sourceAddr is the one of a family's default route.
func sourceAddr(h *netlink.Handle, routes []netlink.Route, family int) (netip.Addr, error) {
	route, err := bestDefault(slices.DeleteFunc(slices.Clone(routes), func(r netlink.Route) bool { return r.Family != family }))
	if err != nil {
		return netip.Addr{}, err
	}
	if src, ok := netip.AddrFromSlice(route.Src); ok {
		return src.Unmap(), nil
	}
	return firstAddr(h, outgoing(route), family)
}

func mainTable(h *netlink.Handle) ([]netlink.Route, error) {
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteList(nil, family)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			r.Family = family
			all = append(all, r)
		}
	}
	return all, nil
}

// bestDefault returns the default route that the kernel prefers, IPv4 before
// IPv6, of routes in that order.
func bestDefault(routes []netlink.Route) (netlink.Route, error) {
	best, found := netlink.Route{}, false
	for _, r := range routes {
		if destination(r).Bits() != 0 || outgoing(r) == 0 {
			continue
		}
		if !found || r.Family == best.Family && r.Priority < best.Priority {
			best, found = r, true
		}
	}
	if !found {
		return netlink.Route{}, ErrNoDefaultRoute
	}
	return best, nil
}

// destination returns a route's destination; the default route may come
// without one.
func destination(r netlink.Route) netip.Prefix {
	if r.Dst == nil {
		if r.Family == netlink.FAMILY_V6 {
			return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	addr, _ := netip.AddrFromSlice(r.Dst.IP)
	ones, bits := r.Dst.Mask.Size()
	if bits == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, ones)
}

// outgoing returns the index of a route's link: the first one of a route with
// several next hops, 0 for a route that leads nowhere.
func outgoing(r netlink.Route) int {
	if r.LinkIndex == 0 && len(r.MultiPath) > 0 {
		return r.MultiPath[0].LinkIndex
	}
	return r.LinkIndex
}

func mtuOfDefault(h *netlink.Handle) (int, error) {
	routes, err := mainTable(h)
	if err != nil {
		return 0, err
	}
	route, err := bestDefault(routes)
	if err != nil {
		return 0, err
	}
	link, err := h.LinkByIndex(outgoing(route))
	if err != nil {
		return 0, err
	}
	if route.MTU > 0 {
		return min(route.MTU, link.Attrs().MTU), nil
	}
	return link.Attrs().MTU, nil
}

func mtuOfAddr(h *netlink.Handle, addr netip.Addr) (int, error) {
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, err
	}
	for _, a := range addrs {
		if !a.IP.Equal(net.IP(addr.AsSlice())) {
			continue
		}
		link, err := h.LinkByIndex(a.LinkIndex)
		if err != nil {
			return 0, err
		}
		return link.Attrs().MTU, nil
	}
	return 0, fmt.Errorf("%w: %s", ErrNoSuchAddr, addr)
}

func firstAddr(h *netlink.Handle, index, family int) (netip.Addr, error) {
	link, err := h.LinkByIndex(index)
	if err != nil {
		return netip.Addr{}, err
	}
	addrs, err := h.AddrList(link, family)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		if ok && addr.IsGlobalUnicast() && a.Flags&unix.IFA_F_DEPRECATED == 0 {
			return addr.Unmap(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("the link of the default route, %s, has no address", link.Attrs().Name)
}

func linkNames(h *netlink.Handle) (map[int]string, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, err
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}
