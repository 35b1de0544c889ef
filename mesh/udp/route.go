package udp

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// RouteMTU returns the MTU in bytes that the kernel's route to an address has: that
// of the link, unless the route says less, or somebody on the way did. It is a
// guess, and proves nothing; 0 if there is none.
func (c *Conn) RouteMTU(to netip.AddrPort) int {
	c.scoutMu.Lock()
	defer c.scoutMu.Unlock()
	var sa sockaddr
	n, err := putAddr(&sa, to, c.v6)
	if c.scout < 0 || err != nil || connect(c.scout, &sa, n) != nil {
		return 0
	}
	level, name := unix.IPPROTO_IP, unix.IP_MTU
	if to.Addr().Unmap().Is6() {
		level, name = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	mtu, err := unix.GetsockoptInt(c.scout, level, name)
	_ = connect(c.scout, &sockaddr{Family: unix.AF_UNSPEC}, n) // gives its port back
	if err != nil {
		return 0
	}
	return mtu
}

// openScout makes the socket for RouteMTU, in the network namespace that the other
// one is in. Without it there are no guesses.
func (c *Conn) openScout() {
	family := unix.AF_INET
	if c.v6 {
		family = unix.AF_INET6
	}
	if fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		c.scout = fd
	}
}

func (c *Conn) closeScout() {
	c.scoutMu.Lock()
	defer c.scoutMu.Unlock()
	if c.scout >= 0 {
		_ = unix.Close(c.scout)
		c.scout = -1
	}
}

func connect(fd int, sa *sockaddr, n uint32) error {
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(sa)), uintptr(n)); errno != 0 {
		return errno
	}
	return nil
}
