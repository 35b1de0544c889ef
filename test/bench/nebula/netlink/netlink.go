// Package netlink stands in for nebula's fork of vishvananda/netlink, with the
// original. nebula configures its TUN with it; no packet passes it. What nebula
// does not use on Linux is left out.
package netlink

import upstream "github.com/vishvananda/netlink"

// Types of the original.
type (
	Addr                  = upstream.Addr
	Destination           = upstream.Destination
	Link                  = upstream.Link
	Route                 = upstream.Route
	RouteSubscribeOptions = upstream.RouteSubscribeOptions
	RouteUpdate           = upstream.RouteUpdate
	Via                   = upstream.Via
)

// FAMILY_ALL is every address family.
const FAMILY_ALL = upstream.FAMILY_ALL

// ErrDumpInterrupted: a list may be incomplete.
var ErrDumpInterrupted = upstream.ErrDumpInterrupted

// LinkByName finds a link.
func LinkByName(name string) (Link, error) { return upstream.LinkByName(name) }

// LinkSetIP6AddrGenMode sets how the kernel makes IPv6 addresses.
func LinkSetIP6AddrGenMode(l Link, mode int) error { return upstream.LinkSetIP6AddrGenMode(l, mode) }

// AddrList lists the addresses of a link.
func AddrList(l Link, family int) ([]Addr, error) { return upstream.AddrList(l, family) }

// AddrReplace adds an address.
func AddrReplace(l Link, a *Addr) error { return upstream.AddrReplace(l, a) }

// AddrDel removes an address.
func AddrDel(l Link, a *Addr) error { return upstream.AddrDel(l, a) }

// RouteReplace adds a route.
func RouteReplace(r *Route) error { return upstream.RouteReplace(r) }

// RouteDel removes a route.
func RouteDel(r *Route) error { return upstream.RouteDel(r) }

// RouteSubscribeWithOptions tells of changes until done is closed.
func RouteSubscribeWithOptions(to chan<- RouteUpdate, done <-chan struct{}, o RouteSubscribeOptions) error {
	return upstream.RouteSubscribeWithOptions(to, done, o)
}
