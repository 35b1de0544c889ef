package udp

import (
	"encoding/binary"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxBatch is how many trains one call of ReadBatch takes at most.
const maxBatch = 64

// Train is what one receive took from the socket: datagrams of one sender.
type Train struct {
	// Buf holds the datagrams one after the other, each Size bytes long; the
	// last may be shorter.
	Buf  []byte
	Size int
	From netip.AddrPort // IPv4 addresses are never mapped ones
}

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// controlMessage is a control message with room for the int of UDP_GRO or the uint16 of
// UDP_SEGMENT.
type controlMessage struct {
	hdr  unix.Cmsghdr
	data [8]byte
}

// slot is what one datagram or train needs besides its mmsghdr.
type slot struct {
	iov  unix.Iovec
	addr sockaddr
	ctl  controlMessage
}

// reader is the state of one ReadBatch. It lives in the Conn so that no call
// allocates.
type reader struct {
	recv  func(fd uintptr) bool // receive, bound once
	msgs  []mmsghdr
	slots []slot
	armed int // how many of msgs may be filled
	n     int // how many were
	errno unix.Errno
}

// ReadBatch waits for a datagram, takes what else is queued, and returns how
// many of trains it filled; at most 64. The whole capacity of each Buf is
// used; 64 KiB holds any train, and what does not fit its Buf is dropped and
// counted. The buffers remain the caller's. One call runs at a time, others
// wait for it.
//
// Errors that the network reports on the socket are passed over: an error
// means that the socket is of no more use. After Close it is net.ErrClosed.
func (c *Conn) ReadBatch(trains []Train) (int, error) {
	if len(trains) == 0 {
		return 0, nil
	}
	c.readMu.Lock()
	defer c.readMu.Unlock()
	r := &c.reader
	for {
		r.arm(trains)
		if err := c.raw.Read(r.recv); err != nil {
			return 0, err
		}
		c.recvd.calls.Add(1)
		if r.errno != 0 {
			if isNetworkError(r.errno) {
				continue
			}
			return 0, os.NewSyscallError("recvmmsg", r.errno)
		}
		if n := c.collect(trains); n > 0 {
			return n, nil
		}
	}
}

// arm points the message headers to the buffers of trains.
func (r *reader) arm(trains []Train) {
	r.armed = min(len(trains), maxBatch)
	if len(r.msgs) < r.armed {
		r.msgs = make([]mmsghdr, r.armed)
		r.slots = make([]slot, r.armed)
		for i := range r.msgs {
			h, s := &r.msgs[i].hdr, &r.slots[i]
			h.Name = (*byte)(unsafe.Pointer(&s.addr))
			h.Iov = &s.iov
			h.SetIovlen(1)
			h.Control = (*byte)(unsafe.Pointer(&s.ctl))
		}
	}
	for i := range trains[:r.armed] {
		h, s := &r.msgs[i].hdr, &r.slots[i]
		buf := trains[i].Buf
		s.iov.Base = unsafe.SliceData(buf)
		s.iov.SetLen(cap(buf))
		h.Namelen = uint32(unsafe.Sizeof(s.addr))
		h.SetControllen(int(unsafe.Sizeof(s.ctl)))
	}
}

// receive is called by the poller until it returns true.
func (r *reader) receive(fd uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd,
			uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(r.armed), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		r.n, r.errno = int(n), errno
		return true
	}
}

// collect describes what was received in trains, leaving out truncated
// datagrams, and returns how many are good.
func (c *Conn) collect(trains []Train) int {
	r, good := &c.reader, 0
	var datagrams, bytes, dropped uint64
	for i := range r.n {
		h := &r.msgs[i].hdr
		if h.Flags&unix.MSG_TRUNC != 0 {
			dropped++
			continue
		}
		size := int(r.msgs[i].len)
		trains[good], trains[i] = trains[i], trains[good]
		t := &trains[good]
		t.Buf = t.Buf[:size]
		t.Size = trainSize(h, &r.slots[i].ctl, size)
		t.From = getAddr(&r.slots[i].addr)
		bytes += uint64(size)
		datagrams += uint64(max(1, (size+t.Size-1)/max(1, t.Size)))
		good++
	}
	c.recvd.trains.Add(uint64(good))
	c.recvd.datagrams.Add(datagrams)
	c.recvd.bytes.Add(bytes)
	c.recvd.truncated.Add(dropped)
	return good
}

// trainSize returns the size of the datagrams in a train of n bytes.
func trainSize(h *unix.Msghdr, ctl *controlMessage, n int) int {
	if int(h.Controllen) < unix.CmsgLen(4) ||
		ctl.hdr.Level != unix.IPPROTO_UDP || ctl.hdr.Type != unix.UDP_GRO {
		return n
	}
	size := int(int32(binary.NativeEndian.Uint32(ctl.data[:])))
	if size <= 0 || size > n {
		return n
	}
	return size
}

// isNetworkError tells errors that the network caused, by an ICMP message or
// a link that went down, from those of the socket.
func isNetworkError(errno unix.Errno) bool {
	switch errno {
	case unix.ECONNREFUSED, unix.ECONNRESET, unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.ENETUNREACH, unix.ENETDOWN,
		unix.EMSGSIZE, unix.EPERM, unix.EACCES, unix.EPROTO, unix.ENOPROTOOPT, unix.ETIMEDOUT:
		return true
	}
	return false
}
