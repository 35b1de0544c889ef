// Package gen is the load generator, the same for all systems: an agent in each
// network namespace swallows and echoes, and sends when it is told to.
//
// Calls block in the kernel, one thread each: waits that go through Go's poller
// would cost more than some of the systems that are measured.
//
// It measures rates and round trips. It does not know what is between two
// agents, and does not judge.
package gen

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/rpc"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Ports that each agent listens on.
const (
	tcpPort  = 5201 // swallows
	udpPort  = 5202 // counts
	echoPort = 5203 // UDP, sends back
)

// Counts are what an agent has received since its start.
type Counts struct {
	Nanos      int64 // when, on the machine's monotonic clock
	TCPBytes   uint64
	UDPPackets uint64
}

// Agent serves the calls of a Client. Its methods may run concurrently.
type Agent struct {
	tcpBytes   atomic.Uint64
	udpPackets atomic.Uint64
}

// Serve listens on the agent's ports in the process's network namespace and
// serves calls on c until it ends.
func Serve(c io.ReadWriteCloser) error {
	a := &Agent{}
	for _, listen := range []func() error{a.listenTCP, a.listenUDP, a.listenEcho} {
		if err := listen(); err != nil {
			return err
		}
	}
	server := rpc.NewServer()
	if err := server.Register(a); err != nil {
		return err
	}
	server.ServeConn(c)
	return nil
}

// Counts returns the counters and the time at which they were read.
func (a *Agent) Counts(_ int, out *Counts) error {
	*out = Counts{TCPBytes: a.tcpBytes.Load(), UDPPackets: a.udpPackets.Load(), Nanos: monotonic()}
	return nil
}

func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // only for a clock that does not exist
	}
	return ts.Nano()
}

// sockaddr is for the IPv4 sockets that the generator uses.
func sockaddr(to netip.Addr, port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: to.As4(), Port: port}
}

// bound returns a socket on a port of all addresses.
func bound(kind, port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: port})
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("bind port %d: %w", port, err), unix.Close(fd))
	}
	return fd, nil
}

// timeout sets an option such as SO_RCVTIMEO.
func timeout(fd, option int, d time.Duration) error {
	tv := unix.NsecToTimeval(int64(d))
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &tv)
}

// again repeats a call that a signal interrupted; Go's runtime sends some.
func again[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}
