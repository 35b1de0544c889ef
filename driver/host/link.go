package host

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h: the link gets no
// IPv6 address by itself, so it sends neither router solicitations nor probes
// into the segment.
const addrGenNone = 1

// AttachPort makes link a port of a bridge, and takes it up.
func (k *Kernel) AttachPort(bridge, link string) error {
	err := withNetlink(func(h *netlink.Handle) error {
		br, err := h.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", bridge, err)
		}
		port, err := h.LinkByName(link)
		if err != nil {
			return err
		}
		if err := quietIPv6(h, port); err != nil {
			return err
		}
		if port.Attrs().MasterIndex != br.Attrs().Index {
			if err := h.LinkSetMaster(port, br); err != nil {
				return err
			}
		}
		if err := h.LinkSetHairpin(port, false); err != nil {
			return err
		}
		return h.LinkSetUp(port)
	})
	if err != nil {
		return fmt.Errorf("attach link %s to bridge %s: %w", link, bridge, err)
	}
	return nil
}

// CreateVeth makes a pair of links: name stays on the host, peer, which gets
// the MAC address, is for a container. What was called name before is
// replaced.
func (k *Kernel) CreateVeth(name, peer string, mtu int, mac net.HardwareAddr) error {
	err := withNetlink(func(h *netlink.Handle) error {
		for _, stale := range []string{name, peer} {
			if err := deleteLink(h, stale); err != nil {
				return fmt.Errorf("remove the old %s: %w", stale, err)
			}
		}
		// The address is given with the request, not after it: systemd would
		// think it random and put its own in place.
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, mtu
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerMTU, veth.PeerHardwareAddr = peer, uint32(mtu), mac
		return h.LinkAdd(veth)
	})
	if err != nil {
		return fmt.Errorf("create link pair %s, %s: %w", name, peer, err)
	}
	return nil
}

// DeleteLink removes a link. That it is not there is success.
func (k *Kernel) DeleteLink(name string) error {
	err := withNetlink(func(h *netlink.Handle) error { return deleteLink(h, name) })
	if err != nil {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

func deleteLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkDel(link)
	}
	if missing(err) {
		return nil
	}
	return err
}

// HasLink tells whether there is a link of that name.
func (k *Kernel) HasLink(name string) (bool, error) {
	err := withNetlink(func(h *netlink.Handle) error {
		_, err := h.LinkByName(name)
		return err
	})
	switch {
	case missing(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look up link %s: %w", name, err)
	}
	return true, nil
}

// ListLinks returns the names of all links whose names start with prefix.
func (k *Kernel) ListLinks(prefix string) ([]string, error) {
	var names []string
	err := withNetlink(func(h *netlink.Handle) error {
		links, err := h.LinkList()
		if err != nil {
			return err
		}
		names = names[:0]
		for _, l := range links {
			if name := l.Attrs().Name; strings.HasPrefix(name, prefix) {
				names = append(names, name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return names, nil
}

// quietIPv6 keeps a link from giving itself an IPv6 address.
func quietIPv6(h *netlink.Handle, link netlink.Link) error {
	err := h.LinkSetIP6AddrGenMode(link, addrGenNone)
	if errors.Is(err, unix.EAFNOSUPPORT) { // no IPv6 here, or an MTU below its least
		return nil
	}
	if err != nil {
		return fmt.Errorf("turn IPv6 addresses off: %w", err)
	}
	return nil
}

// setLink sends a request to change a link with attributes that the netlink
// package has no call for. It uses a socket of its own, with that package's
// limit of a minute.
func setLink(link netlink.Link, requestType int, attrs ...*nl.RtAttr) error {
	req := nl.NewNetlinkRequest(requestType, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	for _, a := range attrs {
		req.AddData(a)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
