package gen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batch      = 32 // datagrams a call
	maxPayload = 2048
	udpQueue   = 4 << 20 // bytes of a socket's queue
)

// UDPArgs ask for a flood of datagrams to another agent.
type UDPArgs struct {
	To   netip.Addr
	Size int // of the payload
	For  time.Duration
}

// PingArgs ask for round trips, one at a time.
type PingArgs struct {
	To    netip.Addr
	Pause time.Duration // between an answer and the next question
	For   time.Duration
}

// PingReply holds the round trips in nanoseconds, in their order. One without
// an answer counts as PingTimeout.
type PingReply struct {
	Nanos []int64
	Lost  int // how many of them are such
}

// PingTimeout is how long an answer is waited for.
const PingTimeout = 200 * time.Millisecond

const pingSize = 64

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// messages are a batch for sendmmsg and recvmmsg, each with a payload of its own.
type messages struct {
	list     [batch]message
	iov      [batch]unix.Iovec
	payloads [batch][maxPayload]byte
}

func newMessages(size int) *messages {
	m := &messages{}
	for i := range m.list {
		m.iov[i].Base = &m.payloads[i][0]
		m.iov[i].SetLen(size)
		m.list[i].header.Iov = &m.iov[i]
		m.list[i].header.SetIovlen(1)
	}
	return m
}

// call runs sendmmsg or recvmmsg and returns how many datagrams passed.
func (m *messages) call(number uintptr, fd int, flags uintptr) (int, error) {
	n, _, errno := unix.Syscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&m.list[0])), batch, flags, 0, 0)
	runtime.KeepAlive(m)
	if errno != 0 {
		return 0, os.NewSyscallError("sendmmsg or recvmmsg", errno)
	}
	return int(n), nil
}

func (a *Agent) listenUDP() error {
	fd, err := bound(unix.SOCK_DGRAM, udpPort)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpQueue); err != nil {
		return fmt.Errorf("size queue: %w", err)
	}
	go func() {
		runtime.LockOSThread()
		m := newMessages(maxPayload)
		for {
			n, err := again(func() (int, error) { return m.call(unix.SYS_RECVMMSG, fd, unix.MSG_WAITFORONE) })
			if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return
			}
			a.udpPackets.Add(uint64(n))
		}
	}()
	return nil
}

// UDP sends as fast as it goes, and returns how many datagrams it sent.
func (a *Agent) UDP(args UDPArgs, sent *uint64) error {
	if args.Size < 1 || args.Size > maxPayload {
		return fmt.Errorf("size %d is not in 1..%d", args.Size, maxPayload)
	}
	fd, err := dialUDP(args.To, udpPort)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	m := newMessages(args.Size)
	for start := time.Now(); time.Since(start) < args.For; {
		n, err := again(func() (int, error) { return m.call(unix.SYS_SENDMMSG, fd, 0) })
		switch {
		case err == nil:
			*sent += uint64(n)
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EAGAIN): // full, or the other side says so
		default:
			return fmt.Errorf("flood %s: %w", args.To, err)
		}
	}
	return nil
}

func dialUDP(to netip.Addr, port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	err = errors.Join(
		timeout(fd, unix.SO_SNDTIMEO, PingTimeout),
		timeout(fd, unix.SO_RCVTIMEO, PingTimeout),
		unix.Connect(fd, sockaddr(to, port)),
	)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("connect to %s: %w", to, err), unix.Close(fd))
	}
	return fd, nil
}

func (a *Agent) listenEcho() error {
	fd, err := bound(unix.SOCK_DGRAM, echoPort)
	if err != nil {
		return err
	}
	go func() {
		runtime.LockOSThread()
		buf := make([]byte, maxPayload)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err == nil {
				err = unix.Sendto(fd, buf[:n], 0, from)
			}
			if errors.Is(err, unix.EBADF) {
				return
			}
		}
	}()
	return nil
}

// Ping measures round trips.
func (a *Agent) Ping(args PingArgs, reply *PingReply) error {
	fd, err := dialUDP(args.To, echoPort)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pause := unix.NsecToTimespec(int64(args.Pause))
	buf := make([]byte, pingSize)
	end := monotonic() + int64(args.For)
	for sequence := uint64(1); monotonic() < end; sequence++ {
		sent := monotonic()
		binary.BigEndian.PutUint64(buf, sequence)
		if _, err := unix.Write(fd, buf); err == nil && answered(fd, buf, sequence, sent) {
			reply.Nanos = append(reply.Nanos, monotonic()-sent)
		} else {
			reply.Nanos = append(reply.Nanos, int64(PingTimeout))
			reply.Lost++
		}
		_ = unix.Nanosleep(&pause, nil)
	}
	return nil
}

// answered waits for the answer to one question and passes over late ones.
func answered(fd int, buf []byte, sequence uint64, sent int64) bool {
	for monotonic()-sent < int64(PingTimeout) {
		n, err := unix.Read(fd, buf)
		if err == nil && n == len(buf) && binary.BigEndian.Uint64(buf) == sequence {
			return true
		}
	}
	return false
}
