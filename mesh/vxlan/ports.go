package vxlan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weave/mesh/beat"
	"weave/mesh/id"
)

// port is a link as a bridge sees it.
type port struct {
	index    int
	master   int // 0: in no bridge
	up       bool
	isolated bool
}

// Plug implements Kernel.
func (l *Links) Plug(name, tap string) (plugged, fresh bool, err error) {
	err = l.do("plug in VXLAN device", name, func(h *netlink.Handle) error {
		dev, err := l.port(name)
		if err != nil {
			return err
		}
		if tap == "" {
			return bringUp(h, name)
		}
		other, err := l.port(tap)
		if err != nil {
			return fmt.Errorf("%s: %w", tap, err)
		}
		if plugged = other.master != 0; !plugged {
			return nil
		}
		if dev.master != other.master || !dev.up {
			fresh = true
			return l.join(h, name, dev, other)
		}
		if l.known[name] && dev.isolated && other.isolated {
			return nil
		}
		return l.part(h, name, dev, other)
	})
	if errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("%w: another program uses the UDP port", err)
	}
	return plugged, fresh, err
}

// join makes dev a port of the bridge that other is in. It is down until the two
// are apart.
func (l *Links) join(h *netlink.Handle, name string, dev, other port) error {
	link := byIndex(dev.index)
	if err := h.LinkSetDown(link); err != nil {
		return err
	}
	if err := h.LinkSetMasterByIndex(link, other.master); err != nil {
		return err
	}
	if err := l.part(h, name, dev, other); err != nil {
		return err
	}
	return bringUp(h, name)
}

// part sets the flags of both ports. Kernels skip flags that they do not know,
// so those that count are read again.
func (l *Links) part(h *netlink.Handle, name string, ports ...port) error {
	for i, p := range ports {
		if err := l.setFlags(p.index, i == 0); err != nil {
			return fmt.Errorf("set flags of port %d: %w", p.index, err)
		}
	}
	dev, err := l.port(name)
	if err != nil {
		return err
	}
	if !dev.isolated {
		return fmt.Errorf("%w: it does not isolate ports of a bridge", ErrOldKernel)
	}
	if err := l.trySticky(h, dev.index); err != nil {
		return err
	}
	l.known[name] = true
	return nil
}

// trySticky finds out, once, whether the kernel keeps entries of a bridge where
// they are set. Else any frame from afar would move an address to VXLAN.
func (l *Links) trySticky(h *netlink.Handle, index int) error {
	if l.sticky {
		return nil
	}
	e := Entry{Kind: Port, MAC: beat.MAC(id.PeerID{}), Fast: true} // no host's
	n := e.port(index)
	if err := h.NeighSet(n); err != nil {
		return fmt.Errorf("try a sticky entry: %w", err)
	}
	table, err := h.NeighList(index, unix.AF_BRIDGE)
	if err := errors.Join(err, h.NeighDel(n)); err != nil {
		return fmt.Errorf("try a sticky entry: %w", err)
	}
	if err := e.keptIn(table); err != nil {
		return err
	}
	l.sticky = true
	return nil
}

// keptIn reports whether a bridge's table has an entry as it was set.
func (e Entry) keptIn(table []netlink.Neigh) error {
	for _, n := range table {
		if is, ok := ownEntry(n, e.Fast); ok && is == e {
			return nil
		}
	}
	return fmt.Errorf("%w: it has no sticky entries in bridges", ErrOldKernel)
}

// setFlags sets what a port of a bridge does with frames. Both of ours are
// isolated from each other, and the bridge answers ARP requests for what lives
// behind them. Into VXLAN goes only what has an entry there, and multicast.
func (l *Links) setFlags(index int, isVXLAN bool) error {
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	flag := func(attr int, on byte) { info.AddRtAttr(attr, []byte{on}) }
	flag(nl.IFLA_BRPORT_ISOLATED, 1)
	flag(nl.IFLA_BRPORT_PROXYARP_WIFI, 1)
	flag(nl.IFLA_BRPORT_LEARNING, 1)
	flag(nl.IFLA_BRPORT_MODE, 0) // no hairpin
	if isVXLAN {
		flag(nl.IFLA_BRPORT_UNICAST_FLOOD, 0)
		flag(nl.IFLA_BRPORT_BCAST_FLOOD, 0)
		flag(nl.IFLA_BRPORT_MCAST_FLOOD, 1)
	}
	req := l.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (l *Links) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = l.raw
	return req
}

// port reads a link. The netlink package does not tell a port's flags without
// listing those of all bridges.
func (l *Links) port(name string) (port, error) {
	req := l.request(unix.RTM_GETLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return port{}, err
	}
	if len(msgs) == 0 || len(msgs[0]) < unix.SizeofIfInfomsg {
		return port{}, unix.ENODEV
	}
	msg := nl.DeserializeIfInfomsg(msgs[0])
	p := port{index: int(msg.Index), up: msg.Flags&unix.IFF_UP != 0}
	attrs, err := nl.ParseRouteAttr(msgs[0][msg.Len():])
	if err != nil {
		return port{}, err
	}
	if v := find(attrs, unix.IFLA_MASTER); len(v) == 4 {
		p.master = int(binary.NativeEndian.Uint32(v))
	}
	if inner, err := nl.ParseRouteAttr(find(attrs, unix.IFLA_LINKINFO)); err == nil {
		if flags, err := nl.ParseRouteAttr(find(inner, nl.IFLA_INFO_SLAVE_DATA)); err == nil {
			v := find(flags, nl.IFLA_BRPORT_ISOLATED)
			p.isolated = len(v) > 0 && v[0] == 1
		}
	}
	return p, nil
}

// portsOf returns the names of the ports of the bridge that has an address of
// this host; none if it is not a bridge's.
func (l *Links) portsOf(a netip.Addr) (names []string, err error) {
	err = l.do("look for the link of", a.String(), func(h *netlink.Handle) error {
		names = nil
		addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(addrs, func(x netlink.Addr) bool {
			has, ok := netip.AddrFromSlice(x.IP)
			return ok && has.Unmap() == a
		})
		if i < 0 {
			return nil
		}
		link, err := h.LinkByIndex(addrs[i].LinkIndex)
		if err != nil || link.Type() != "bridge" {
			return err
		}
		all, err := h.LinkList()
		for _, port := range all {
			if port.Attrs().MasterIndex == link.Attrs().Index {
				names = append(names, port.Attrs().Name)
			}
		}
		return err
	})
	return names, err
}

// find returns the value of an attribute, nil if there is none.
func find(attrs []syscall.NetlinkRouteAttr, kind uint16) []byte {
	for _, a := range attrs {
		if a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == kind {
			return a.Value
		}
	}
	return nil
}

// byIndex is a link for calls that look at nothing but its index.
func byIndex(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

func bringUp(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if link.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	err = h.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) { // no IPv6 here, or an MTU below its least
		return err
	}
	return h.LinkSetUp(link)
}
