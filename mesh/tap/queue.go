package tap

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weave/mesh/run"
)

// queue is one queue of a device: a descriptor that is bound to its link.
type queue struct {
	file *os.File
	raw  syscall.RawConn

	readMu sync.Mutex // guards reader
	reader reader
}

// openQueue adds a queue to the device. The runtime's poller must not see the
// descriptor before it has a link.
func (d *Device) openQueue() (*queue, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: clonePath, Err: err}
	}
	if err := bind(fd, d.name, d.multi); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	file := os.NewFile(uintptr(fd), clonePath)
	// What is not in the poller knows no deadlines.
	if err := file.SetDeadline(time.Time{}); err != nil {
		return nil, errors.Join(fmt.Errorf("register with the poller: %w", err), file.Close())
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	q := &queue{file: file, raw: raw}
	q.reader.recv = q.reader.receive
	d.opened = append(d.opened, q)
	return q, nil
}

// bind binds fd to the link of that name.
func bind(fd int, name string, multi bool) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr.SetUint16(flags)
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); {
	case errors.Is(err, unix.EBUSY):
		return ErrBusy
	case errors.Is(err, unix.EINVAL):
		return ErrNotTAP
	default:
		return os.NewSyscallError("TUNSETIFF", err)
	}
}

// enableRuns asks for runs with unfinished checksums, for all queues of the
// device. uso tells whether runs of UDP are among them.
func (q *queue) enableRuns() (uso bool, err error) {
	err = q.ioctl("TUNSETVNETHDRSZ", func(fd int) error {
		return unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, run.VnetHdrLen)
	})
	if err != nil {
		return false, err
	}
	const (
		tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		all = tso | unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	offload := func(flags int) error {
		return q.ioctl("TUNSETOFFLOAD", func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags) })
	}
	if offload(all) == nil {
		return true, nil
	}
	return false, offload(tso) // kernels before 6.2 have no runs of UDP
}

// detach keeps frames away from a queue of several. It can still be written to.
func (q *queue) detach() error {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_DETACH_QUEUE)
	return q.ioctl("TUNSETQUEUE", func(fd int) error { return unix.IoctlIfreq(fd, unix.TUNSETQUEUE, ifr) })
}

// ioctl makes a call on the descriptor.
func (q *queue) ioctl(name string, call func(fd int) error) error {
	var inner error
	err := q.raw.Control(func(fd uintptr) { inner = call(int(fd)) })
	return errors.Join(err, os.NewSyscallError(name, inner))
}
