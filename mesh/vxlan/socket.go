package vxlan

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"weave/mesh/beat"
)

// Socket sends and receives heart-beats, in the network namespace of the thread
// that calls Bind first. Its methods may be called concurrently.
type Socket struct {
	mu     sync.Mutex
	fd     int // of file
	file   *os.File
	link   int // index; 0 before Bind
	closed bool

	opened chan struct{} // closed when there is a file, or Close was called
	once   sync.Once     // of that
}

// NewSocket returns a Socket that opens nothing before Bind.
func NewSocket() *Socket { return &Socket{opened: make(chan struct{})} }

// protocol is the heart-beats' EtherType in network byte order.
const protocol = beat.EtherType&0xff<<8 | beat.EtherType>>8

// Bind implements Probes.
func (s *Socket) Bind(link string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.bind(link); err != nil {
		return fmt.Errorf("open socket on %s: %w", link, err)
	}
	return nil
}

func (s *Socket) bind(link string) error {
	if s.closed {
		return os.ErrClosed
	}
	if s.file == nil {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		s.fd, s.file = fd, os.NewFile(uintptr(fd), "heart-beats")
	}
	index, err := linkIndex(s.fd, link)
	if err != nil {
		return err
	}
	if err := unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	s.link = index
	s.once.Do(func() { close(s.opened) })
	return nil
}

// linkIndex asks in the socket's namespace.
func linkIndex(fd int, link string) (int, error) {
	ifr, err := unix.NewIfreq(link)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, os.NewSyscallError("SIOCGIFINDEX", err)
	}
	return int(ifr.Uint32()), nil
}

// Send implements Probes.
func (s *Socket) Send(frame []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == 0 || s.closed {
		return net.ErrClosed
	}
	to := &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: s.link}
	return os.NewSyscallError("sendto", unix.Sendto(s.fd, frame, unix.MSG_DONTWAIT, to))
}

// Receive implements Probes.
func (s *Socket) Receive(buf []byte) (int, error) {
	<-s.opened
	s.mu.Lock()
	file, closed := s.file, s.closed
	s.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	for {
		n, err := file.Read(buf)
		if errors.Is(err, unix.ENETDOWN) { // the link went; another may come
			continue
		}
		return n, err
	}
}

// Close implements Probes.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.once.Do(func() { close(s.opened) })
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
