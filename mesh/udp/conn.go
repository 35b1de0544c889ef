// Package udp moves trains of datagrams through one UDP socket: many equal
// datagrams with one system call, by UDP_SEGMENT on the way out and UDP_GRO on
// the way in, where the kernel has them.
//
// Calls into the kernel never block; a wait for the socket is one that the
// runtime's poller knows of. Reading and writing allocate nothing.
//
// Datagrams are never fragmented by IP: what is longer than the MTU of the link that
// it is to leave by is refused, with EMSGSIZE, and what is too long further on is
// dropped there. How long they may be is for others to find out (RFC 8899).
//
// It does not look into datagrams, does not pace or order them, does not
// retry lost ones, and knows nothing of peers.
package udp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// MaxDatagram is the largest UDP payload in bytes that IPv4 carries, and the
// most that one call hands to the kernel.
const MaxDatagram = 65507

// defaultBuffer holds some milliseconds of traffic at 10 Gbit/s, so that a
// reader that was not scheduled for a moment loses nothing.
const defaultBuffer = 8 << 20

// Options are the settings of a socket. The zero value is good.
type Options struct {
	// Buffer is the size in bytes asked for the socket's receive and send
	// buffers; 0 means 8 MiB. Without CAP_NET_ADMIN the kernel caps it.
	Buffer int
}

// Conn is a UDP socket. Its methods may be called concurrently.
type Conn struct {
	// Set once by Listen.
	sock  *net.UDPConn
	raw   syscall.RawConn
	local netip.AddrPort
	v6    bool // the socket is AF_INET6: IPv4 addresses go as mapped ones
	gro   bool

	gso     atomic.Bool // cleared for good when the kernel cannot do it
	senders sync.Pool   // of *sender
	sent    sendCounters

	scoutMu sync.Mutex // guards scout
	scout   int        // a socket that sends nothing: see RouteMTU; -1: none

	readMu sync.Mutex // guards reader
	reader reader
	recvd  recvCounters
}

// Listen opens a socket on addr, which may have port 0. An unspecified
// address, of either family, listens on IPv4 and IPv6.
func Listen(addr netip.AddrPort, opt Options) (*Conn, error) {
	if opt.Buffer == 0 {
		opt.Buffer = defaultBuffer
	}
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		return control(rc, func(fd int) error { return setup(fd, opt) })
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("listen on udp %s: %w", addr, err)
	}
	c := &Conn{sock: pc.(*net.UDPConn), scout: -1}
	if err := c.init(); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on udp %s: %w", addr, err), pc.Close())
	}
	c.openScout()
	return c, nil
}

func (c *Conn) init() error {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return err
	}
	c.raw = raw
	local := c.sock.LocalAddr().(*net.UDPAddr).AddrPort()
	c.local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	err = control(raw, func(fd int) error {
		family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			return err
		}
		c.v6 = family == unix.AF_INET6
		_, err = unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		c.gso.Store(err == nil)
		c.gro = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
		return nil
	})
	if err != nil {
		return err
	}
	c.reader.recv = c.reader.receive
	c.senders.New = func() any { return newSender(sendmmsg) }
	return nil
}

// setup sets the options that a socket must have before it is bound.
func setup(fd int, opt Options) error {
	if err := setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, opt.Buffer); err != nil {
		return fmt.Errorf("set receive buffer: %w", err)
	}
	if err := setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, opt.Buffer); err != nil {
		return fmt.Errorf("set send buffer: %w", err)
	}
	// All are sent with DF, whatever the kernel believes of the path's MTU: it knows
	// it from ICMP, which anybody can forge and firewalls drop.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
		return fmt.Errorf("set IP_MTU_DISCOVER: %w", err)
	}
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("get SO_DOMAIN: %w", err)
	}
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE); err != nil {
			return fmt.Errorf("set IPV6_MTU_DISCOVER: %w", err)
		}
	}
	return nil
}

// setBuffer passes over the system's limit where it may.
func setBuffer(fd, force, plain, size int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
}

// control runs f on the descriptor behind rc.
func control(rc syscall.RawConn, f func(fd int) error) error {
	var inner error
	err := rc.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}

// LocalAddr returns the address that the socket is bound to.
func (c *Conn) LocalAddr() netip.AddrPort { return c.local }

// Close closes the socket. Calls that wait return an error that is
// net.ErrClosed, and so does every later one.
func (c *Conn) Close() error {
	c.closeScout()
	return c.sock.Close()
}
