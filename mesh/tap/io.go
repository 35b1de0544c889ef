package tap

import (
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchBytes is how much ReadBatch takes before it lets the caller work: what a
// CPU's second cache keeps until it is sent, and little to wait for behind.
const batchBytes = 256 << 10

// reader is the state of one ReadBatch. It lives in the queue so that no call
// allocates.
type reader struct {
	recv  func(fd uintptr) bool // receive, bound once
	bufs  [][]byte
	sizes []int
	n     int  // how many bufs are filled
	more  bool // the device was not seen empty
	errno unix.Errno
}

// ReadBatch waits for a frame in a queue, which are numbered from 0, takes what
// else is in it, and returns how many of bufs it filled; sizes tells how far,
// virtio-net header and frame. After 256 KiB, or the last of bufs, it stops, and
// more tells that frames may be left. Each buffer must be at least
// run.VnetHdrLen+run.MaxFrame long; the buffers remain the caller's. One call
// for a queue runs at a time, others wait for it.
//
// The error is os.ErrClosed after Close and ErrGone after the link was deleted.
func (d *Device) ReadBatch(queue int, bufs [][]byte, sizes []int) (n int, more bool, err error) {
	bufs = bufs[:min(len(bufs), len(sizes))]
	if len(bufs) == 0 {
		return 0, false, nil
	}
	for _, b := range bufs {
		if len(b) < minBuffer {
			return 0, false, fmt.Errorf("read tap %s: buffer of %d bytes: %w", d.name, len(b), io.ErrShortBuffer)
		}
	}
	q := d.queues[queue]
	q.readMu.Lock()
	defer q.readMu.Unlock()
	r := &q.reader
	r.bufs, r.sizes, r.n, r.more, r.errno = bufs, sizes, 0, false, 0
	err = q.raw.Read(r.recv)
	r.bufs, r.sizes = nil, nil
	switch {
	case err != nil:
		return 0, false, d.pollError()
	case r.errno != 0:
		return 0, false, d.callError("read", r.errno)
	}
	return r.n, r.more, nil
}

// receive is called by the poller until it returns true. An error behind good
// frames is left for the next call to find.
func (r *reader) receive(fd uintptr) bool {
	for total := 0; r.n < len(r.bufs) && total < batchBytes; {
		b := r.bufs[r.n]
		n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch {
		case errno == unix.EINTR:
		case errno == 0:
			r.sizes[r.n] = int(n)
			r.n++
			total += int(n)
		case r.n > 0:
			return true
		case errno == unix.EAGAIN:
			return false
		default:
			r.errno = errno
			return true
		}
	}
	r.more = true
	return true
}

// writer is the state of one Write. Writers are pooled so that calls run in
// parallel and none allocates.
type writer struct {
	try   func(fd uintptr)      // writes once
	retry func(fd uintptr) bool // writes, until there was room
	frame []byte
	errno unix.Errno
}

func newWriter() *writer {
	w := new(writer)
	w.try = func(fd uintptr) { w.write(fd) }
	w.retry = func(fd uintptr) bool { w.write(fd); return w.errno != unix.EAGAIN }
	return w
}

// Write hands a virtio-net header and the frame behind it to the kernel. frame
// is not kept. The error is os.ErrClosed after Close and ErrGone after the link
// was deleted; any other concerns this frame (EINVAL: the kernel does not
// believe the header) or the link's state (EIO: it is down).
func (d *Device) Write(frame []byte) error {
	w := d.writers.Get().(*writer)
	w.frame = frame
	err := d.write(w)
	w.frame = nil
	d.writers.Put(w)
	return err
}

func (d *Device) write(w *writer) error {
	if err := d.out.raw.Control(w.try); err != nil {
		return d.pollError()
	}
	if w.errno == unix.EAGAIN {
		if err := d.out.raw.Write(w.retry); err != nil {
			return d.pollError()
		}
	}
	if w.errno != 0 {
		return d.callError("write", w.errno)
	}
	return nil
}

func (w *writer) write(fd uintptr) {
	for {
		_, _, w.errno = unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(w.frame))), uintptr(len(w.frame)))
		if w.errno != unix.EINTR {
			return
		}
	}
}
