package udp

import (
	"encoding/binary"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxSegments is the most datagrams that one call may hold: UDP_MAX_SEGMENTS
// of the older kernels.
const maxSegments = 64

// sender is the state of one Write. Senders are pooled so that calls run in
// parallel and none allocates.
type sender struct {
	call  sendFunc
	try   func(fd uintptr)      // sends once
	retry func(fd uintptr) bool // sends, until there was room
	addr  sockaddr
	ctl   controlMessage
	msgs  [maxSegments]mmsghdr
	iovs  [maxSegments]unix.Iovec
	count int // how many of msgs are to be sent
	done  int // how many were
	errno unix.Errno
}

// sendFunc is sendmmsg(2); tests have others.
type sendFunc func(fd uintptr, msgs []mmsghdr) (int, unix.Errno)

func newSender(call sendFunc) *sender {
	s := &sender{call: call}
	s.try = func(fd uintptr) { s.send(fd) }
	s.retry = func(fd uintptr) bool { s.send(fd); return s.errno != unix.EAGAIN }
	s.ctl.hdr.Level, s.ctl.hdr.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	s.ctl.hdr.SetLen(unix.CmsgLen(2))
	for i := range s.msgs {
		h := &s.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&s.addr))
		h.Iov = &s.iovs[i]
		h.SetIovlen(1)
	}
	return s
}

// Write sends the datagrams in buf, each size bytes long, the last maybe
// shorter, with as few calls as can be. It waits while the socket's buffer is
// full. An error, of the network for example, leaves the rest unsent and the
// socket usable; after Close it is net.ErrClosed. It is EMSGSIZE if the datagrams
// are longer than the link takes that they are to leave by. buf is not kept.
func (c *Conn) Write(buf []byte, size int, to netip.AddrPort) error {
	if len(buf) == 0 {
		return nil
	}
	if size <= 0 || size > MaxDatagram {
		return os.NewSyscallError("sendmsg", unix.EMSGSIZE)
	}
	s := c.senders.Get().(*sender)
	err := c.write(s, buf, size, to)
	if err != nil {
		c.sent.errors.Add(1)
	}
	s.forget()
	c.senders.Put(s)
	return err
}

func (c *Conn) write(s *sender, buf []byte, size int, to netip.AddrPort) error {
	namelen, err := putAddr(&s.addr, to, c.v6)
	if err != nil {
		return os.NewSyscallError("sendmsg", err)
	}
	whole := size * min(maxSegments, MaxDatagram/size)
	for len(buf) > 0 {
		train := buf[:min(whole, len(buf))]
		if err := c.writeTrain(s, train, size, namelen); err != nil {
			return err
		}
		c.sent.datagrams.Add(uint64((len(train) + size - 1) / size))
		c.sent.bytes.Add(uint64(len(train)))
		buf = buf[len(train):]
	}
	return nil
}

// writeTrain sends at most as much as one call can hold.
func (c *Conn) writeTrain(s *sender, train []byte, size int, namelen uint32) error {
	if len(train) > size && c.gso.Load() {
		s.loadTrain(train, size, namelen)
		err := c.flush(s)
		switch s.errno {
		case unix.EIO, unix.ENOPROTOOPT:
			// The way out cannot compute checksums, or the kernel knows no
			// UDP_SEGMENT: it will not learn it.
			c.gso.Store(false)
		case unix.EINVAL, unix.EMSGSIZE:
			// These datagrams are above the MTU, or their checksums cannot be left
			// to the link; one by one they go, or are refused with EMSGSIZE.
		default:
			return err
		}
	}
	s.loadSingles(train, size, namelen)
	return c.flush(s)
}

// loadTrain prepares one message that the kernel cuts into datagrams.
func (s *sender) loadTrain(train []byte, size int, namelen uint32) {
	binary.NativeEndian.PutUint16(s.ctl.data[:], uint16(size))
	s.load(0, train, namelen)
	s.msgs[0].hdr.Control = (*byte)(unsafe.Pointer(&s.ctl))
	s.msgs[0].hdr.SetControllen(unix.CmsgSpace(2))
	s.count = 1
}

// loadSingles prepares a message for each datagram.
func (s *sender) loadSingles(train []byte, size int, namelen uint32) {
	s.msgs[0].hdr.Control = nil
	s.msgs[0].hdr.SetControllen(0)
	s.count = 0
	for len(train) > 0 {
		n := min(size, len(train))
		s.load(s.count, train[:n], namelen)
		s.count++
		train = train[n:]
	}
}

func (s *sender) load(i int, b []byte, namelen uint32) {
	s.msgs[i].hdr.Namelen = namelen
	s.iovs[i].Base = unsafe.SliceData(b)
	s.iovs[i].SetLen(len(b))
}

// forget drops the references to the caller's buffer.
func (s *sender) forget() {
	for i := range s.count {
		s.iovs[i].Base = nil
	}
	s.count = 0
}

// flush sends the prepared messages. It fails with the first that fails.
func (c *Conn) flush(s *sender) error {
	s.done, s.errno = 0, 0
	for s.done < s.count {
		if err := c.raw.Control(s.try); err != nil {
			return err
		}
		if s.errno == unix.EAGAIN {
			if err := c.raw.Write(s.retry); err != nil {
				return err
			}
		}
		c.sent.calls.Add(1)
		if s.errno != 0 {
			return os.NewSyscallError("sendmmsg", s.errno)
		}
	}
	return nil
}

// send hands the messages that are left to the kernel, which may take fewer.
func (s *sender) send(fd uintptr) {
	for {
		n, errno := s.call(fd, s.msgs[s.done:s.count])
		if errno == unix.EINTR {
			continue
		}
		if errno == 0 {
			s.done += n
		}
		s.errno = errno
		return
	}
}

func sendmmsg(fd uintptr, msgs []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd,
		uintptr(unsafe.Pointer(unsafe.SliceData(msgs))), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}
