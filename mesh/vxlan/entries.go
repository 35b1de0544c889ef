package vxlan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weave/mesh/fdb"
)

// Set implements Kernel.
func (l *Links) Set(name, tap string, e Entry) error {
	return l.do("set entry at", e.link(name, tap), func(h *netlink.Handle) error {
		n, err := l.neigh(name, tap, e)
		if err != nil {
			return err
		}
		if e.Kind == Flood { // one of several
			return h.NeighAppend(n)
		}
		return h.NeighSet(n)
	})
}

// Delete implements Kernel.
func (l *Links) Delete(name, tap string, e Entry) error {
	return l.do("delete entry at", e.link(name, tap), func(h *netlink.Handle) error {
		n, err := l.neigh(name, tap, e)
		if err == nil {
			err = h.NeighDel(n)
		}
		if missing(err) || errors.Is(err, unix.ENOENT) || errors.Is(err, errLoose) {
			return nil
		}
		return err
	})
}

// link names the link that an entry is kept at, for errors.
func (e Entry) link(name, tap string) string {
	if e.Kind == Neighbour || e.Kind == Port && !e.Fast {
		return tap
	}
	return name
}

var errLoose = errors.New("the TAP is in no bridge")

// neigh is an entry in the words of netlink.
func (l *Links) neigh(name, tap string, e Entry) (*netlink.Neigh, error) {
	p, err := l.port(e.link(name, tap))
	if err != nil {
		return nil, err
	}
	n := &netlink.Neigh{LinkIndex: p.index, Family: unix.AF_BRIDGE, HardwareAddr: net.HardwareAddr(e.MAC[:])}
	switch e.Kind {
	case Remote, Flood: // the zero MAC stands for what no other entry is for
		n.State, n.Flags, n.IP = netlink.NUD_PERMANENT, netlink.NTF_SELF, net.IP(e.Addr.AsSlice())
	case Port:
		return e.port(p.index), nil
	case Neighbour:
		if p.master == 0 {
			return nil, errLoose
		}
		n.LinkIndex, n.Family, n.State, n.IP = p.master, unix.AF_INET, netlink.NUD_PERMANENT, net.IP(e.Addr.AsSlice())
	default:
		return nil, fmt.Errorf("entry of kind %d", e.Kind)
	}
	return n, nil
}

// port is an entry for a port of a bridge, in the words of netlink. It is sticky:
// no frame moves it.
func (e Entry) port(index int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, HardwareAddr: net.HardwareAddr(e.MAC[:]),
		State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER | netlink.NTF_STICKY,
	}
}

// Entries implements Kernel.
func (l *Links) Entries(name, tap string) (all []Entry, err error) {
	err = l.do("list entries of", name, func(h *netlink.Handle) error {
		dev, err := l.port(name)
		if err != nil {
			return err
		}
		all = nil
		if tap != "" {
			if all, err = l.atTAP(h, tap); err != nil {
				return err
			}
		}
		table, err := h.NeighList(dev.index, unix.AF_BRIDGE)
		for _, n := range table {
			if e, ok := ownEntry(n, true); ok {
				all = append(all, e)
			}
		}
		return err
	})
	return all, err
}

// atTAP lists the entries of the TAP and its bridge.
func (l *Links) atTAP(h *netlink.Handle, tap string) (all []Entry, err error) {
	p, err := l.port(tap)
	if err != nil || p.master == 0 {
		return nil, err
	}
	table, err := h.NeighList(p.index, unix.AF_BRIDGE)
	if err != nil {
		return nil, err
	}
	for _, n := range table {
		if e, ok := ownEntry(n, false); ok {
			all = append(all, e)
		}
	}
	if table, err = h.NeighList(p.master, unix.AF_INET); err != nil {
		return nil, err
	}
	for _, n := range table {
		addr, ok := netip.AddrFromSlice(n.IP)
		if ok && n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == len(fdb.MAC{}) {
			all = append(all, Entry{Kind: Neighbour, MAC: fdb.MAC(n.HardwareAddr), Addr: addr.Unmap()})
		}
	}
	return all, nil
}

// ownEntry reads a line of a bridge's or a VXLAN device's table; false if it is
// not one that Set put in.
func ownEntry(n netlink.Neigh, isVXLAN bool) (Entry, bool) {
	if len(n.HardwareAddr) != len(fdb.MAC{}) {
		return Entry{}, false
	}
	mac := fdb.MAC(n.HardwareAddr)
	addr, _ := netip.AddrFromSlice(n.IP)
	addr = addr.Unmap()
	switch {
	case n.Flags&netlink.NTF_STICKY != 0:
		return Entry{Kind: Port, MAC: mac, Fast: isVXLAN}, true
	case n.Flags&netlink.NTF_SELF == 0 || n.State&netlink.NUD_PERMANENT == 0 || !isVXLAN || !addr.IsValid():
		return Entry{}, false
	case mac == fdb.MAC{}:
		return Entry{Kind: Flood, Addr: addr}, true
	}
	return Entry{Kind: Remote, MAC: mac, Addr: addr}, true
}

// Clear implements Kernel.
func (l *Links) Clear(tap string) error {
	return l.do("clear entries at", tap, func(h *netlink.Handle) error {
		all, err := l.atTAP(h, tap)
		if missing(err) {
			return nil
		}
		errs := []error{err}
		for _, e := range all {
			errs = append(errs, l.Delete("", tap, e))
		}
		return errors.Join(errs...)
	})
}

// TakeLearned implements Kernel. The address is taken out of the bridge's table
// first, so that no frame is sent to where the device has none.
func (l *Links) TakeLearned(name string, at netip.Addr) (macs []fdb.MAC, err error) {
	err = l.do("take learned entries of", name, func(h *netlink.Handle) error {
		dev, err := l.port(name)
		if err != nil {
			return err
		}
		table, err := h.NeighList(dev.index, unix.AF_BRIDGE)
		if err != nil {
			return err
		}
		for _, n := range table {
			addr, _ := netip.AddrFromSlice(n.IP)
			learned := n.Flags&netlink.NTF_SELF != 0 && n.State&netlink.NUD_PERMANENT == 0
			if !learned || addr.Unmap() != at || len(n.HardwareAddr) != len(fdb.MAC{}) {
				continue
			}
			macs = append(macs, fdb.MAC(n.HardwareAddr))
			inBridge := n
			inBridge.Flags, inBridge.State, inBridge.IP = netlink.NTF_MASTER, netlink.NUD_NOARP, nil
			for _, x := range []netlink.Neigh{inBridge, n} {
				if err := h.NeighDel(&x); err != nil && !errors.Is(err, unix.ENOENT) && !missing(err) {
					return err
				}
			}
		}
		return nil
	})
	return macs, err
}
