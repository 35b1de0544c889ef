package sandbox

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hiddenPrefix and its index are the name of a hidden device.
const hiddenPrefix = "wvr"

// Hide takes a veth device of the namespace at a path out of the way of those who
// look for it by its name: it is down, has no addresses, and another one.
// The device is known by its index and by that of its peer, which is in another
// namespace. Hidden already is success.
func Hide(path string, link, peer int) error {
	n, err := openNamespace(path)
	if err != nil {
		return err
	}
	defer n.close()
	return n.do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		found, err := h.LinkByIndex(link)
		if err != nil {
			return err
		}
		if found.Type() != "veth" || found.Attrs().ParentIndex != peer {
			return fmt.Errorf("device %d, %s, is not a peer of device %d", link, found.Attrs().Name, peer)
		}
		if err := h.LinkSetDown(found); err != nil { // takes those of IPv6 with it
			return err
		}
		addrs, err := h.AddrList(found, netlink.FAMILY_V4)
		for _, a := range addrs {
			err = errors.Join(err, h.AddrDel(found, &a))
		}
		return errors.Join(err, h.LinkSetName(found, fmt.Sprintf("%s%08x", hiddenPrefix, link)))
	})
}
