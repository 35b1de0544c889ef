package vxlan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	requestTimeout = 10 * time.Second // for the answer to one netlink request
	maxAttempts    = 20               // for dumps that other changes interrupt

	// maxEntries bounds a device's table, so that nobody fills the kernel's
	// memory with addresses that it learns.
	maxEntries = 64 << 10
)

// Errors of Links.
var (
	// ErrNotVXLAN: a link of another kind has the name.
	ErrNotVXLAN = errors.New("vxlan: link of that name is not a VXLAN device")
	// ErrOldKernel: the kernel lacks what the fast path needs of a bridge.
	ErrOldKernel = errors.New("vxlan: the kernel is older than 4.20")
)

// Links is the kernel by netlink, in the network namespace of the thread that
// makes the first call, after New or Close. One goroutine at a time may use it.
type Links struct {
	h   *netlink.Handle
	raw map[int]*nl.SocketHandle // for what the handle has no call for
	// known are the devices whose ports have their flags from this run.
	known map[string]bool
	// sticky: the kernel has been seen to keep sticky entries.
	sticky bool
}

// NewLinks returns Links; it touches nothing yet.
func NewLinks() *Links { return &Links{known: map[string]bool{}} }

// Close gives the sockets back. Later calls open others.
func (l *Links) Close() error {
	if l.h != nil {
		l.h.Close()
		for _, s := range l.raw {
			s.Close()
		}
		l.h, l.raw = nil, nil
	}
	return nil
}

func (l *Links) open() error {
	if l.h != nil {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	l.h, l.raw = h, map[int]*nl.SocketHandle{}
	limit := unix.NsecToTimeval(int64(requestTimeout))
	err = h.SetSocketTimeout(requestTimeout)
	for _, protocol := range []int{unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER} {
		s, openErr := nl.GetNetlinkSocketAt(netns.None(), netns.None(), protocol)
		if openErr != nil {
			return errors.Join(fmt.Errorf("open netlink socket: %w", openErr), l.Close())
		}
		l.raw[protocol] = &nl.SocketHandle{Socket: s}
		err = errors.Join(err, s.SetReceiveTimeout(&limit))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("set netlink timeout: %w", err), l.Close())
	}
	return nil
}

// do runs f, again if it was interrupted, so it must be idempotent.
func (l *Links) do(what, link string, f func(h *netlink.Handle) error) error {
	err := l.open()
	if err != nil {
		return err
	}
	for range maxAttempts {
		err = f(l.h)
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, link, err)
	}
	return nil
}

func missing(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

// device returns the device of that name, nil if there is none.
func device(h *netlink.Handle, name string) (*netlink.Vxlan, error) {
	link, err := h.LinkByName(name)
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	dev, ok := link.(*netlink.Vxlan)
	if !ok {
		return nil, ErrNotVXLAN
	}
	return dev, nil
}

// Find implements Kernel.
func (l *Links) Find(name string) (n uint32, err error) {
	err = l.do("find VXLAN device", name, func(h *netlink.Handle) error {
		dev, err := device(h, name)
		if dev != nil {
			n = uint32(dev.VxlanId)
		}
		return err
	})
	return n, err
}

// Make implements Kernel. A device with other settings is replaced.
func (l *Links) Make(d Device) (fresh bool, err error) {
	err = l.do("make VXLAN device", d.Name, func(h *netlink.Handle) error {
		dev, err := device(h, d.Name)
		if err != nil {
			return err
		}
		if dev != nil && !d.like(dev) {
			if err := h.LinkDel(dev); err != nil && !missing(err) {
				return err
			}
			dev = nil
		}
		if dev == nil {
			fresh = true
			return h.LinkAdd(d.link())
		}
		if dev.Attrs().MTU == d.MTU {
			return nil
		}
		return h.LinkSetMTU(dev, d.MTU)
	})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		err = fmt.Errorf("%w: the kernel has no VXLAN", err)
	case errors.Is(err, unix.EEXIST):
		err = fmt.Errorf("%w: another program has a VXLAN device with VNI %d on port %d", err, d.VNI, d.Port)
	}
	return fresh, err
}

// link describes the device to netlink. It learns what no static entry is for.
// Its packets have UDP checksums, as the kernel does by itself: without them
// nothing is faster.
func (d Device) link() *netlink.Vxlan {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = d.Name, d.MTU
	return &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: int(d.VNI), SrcAddr: net.IP(d.Local.AsSlice()), Port: int(d.Port),
		Learning: true, Limit: maxEntries,
	}
}

func (d Device) like(dev *netlink.Vxlan) bool {
	local, ok := netip.AddrFromSlice(dev.SrcAddr)
	return ok && local.Unmap() == d.Local && dev.VxlanId == int(d.VNI) && dev.Port == int(d.Port) &&
		dev.Learning && dev.Limit == maxEntries
}

// Remove implements Kernel.
func (l *Links) Remove(name string) error {
	delete(l.known, name)
	return l.do("remove VXLAN device", name, func(h *netlink.Handle) error {
		dev, err := device(h, name)
		if err != nil || dev == nil {
			return err
		}
		if err := h.LinkDel(dev); !missing(err) {
			return err
		}
		return nil
	})
}
