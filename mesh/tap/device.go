// Package tap opens TAP devices and moves frames through them, runs included:
// in front of every frame stands a virtio-net header of run.VnetHdrLen bytes,
// as package run reads and writes it.
//
// Calls into the kernel never block; a wait for the device is one that the
// runtime's poller knows of. Reading and writing allocate nothing.
//
// It does not look into frames, does not attach devices to bridges, and has
// one queue per device.
package tap

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weave/mesh/run"
)

// clonePath is where the kernel gives out TAP devices.
const clonePath = "/dev/net/tun"

// minBuffer is the least length of a buffer to read into: the kernel cuts off
// what does not fit, without a word.
const minBuffer = run.VnetHdrLen + run.MaxFrame

// Errors that callers tell apart.
var (
	ErrBusy   = errors.New("tap: device is in use by another process")
	ErrName   = errors.New("tap: bad device name")
	ErrNotTAP = errors.New("tap: link of that name is not a TAP device")
	ErrGone   = errors.New("tap: link was deleted")
)

// Options describe a device.
type Options struct {
	Name string
	MTU  int              // of the link, in bytes
	MAC  net.HardwareAddr // of the link; nil leaves the kernel's choice
}

// Device is an open TAP device. Its methods may be called concurrently.
type Device struct {
	// Set once by Open.
	name string
	file *os.File
	raw  syscall.RawConn
	uso  bool

	closed  atomic.Bool
	writers sync.Pool // of *writer

	readMu sync.Mutex // guards reader
	reader reader
}

// Open creates the device in the calling thread's network namespace, or
// attaches to one that an earlier process left, brings it up and without IPv6
// addresses of its own. The link outlives the process; Remove deletes it.
//
// The error is ErrBusy while another process has the device open, ErrNotTAP if
// a link of another kind has the name, ErrName if no link can have it.
func Open(opt Options) (*Device, error) {
	if err := checkName(opt.Name); err != nil {
		return nil, err
	}
	d, err := attach(opt.Name)
	if err != nil {
		return nil, fmt.Errorf("open tap %s: %w", opt.Name, err)
	}
	if err := d.configure(opt); err != nil {
		return nil, errors.Join(fmt.Errorf("open tap %s: %w", opt.Name, err), d.Close())
	}
	return d, nil
}

// checkName holds the kernel's rules for names of links. '%' would make the
// kernel choose a name of its own.
func checkName(name string) error {
	switch {
	case name == "", name == ".", name == "..", len(name) >= unix.IFNAMSIZ,
		strings.ContainsAny(name, "/:% \t\n\v\f\r\x00"):
		return fmt.Errorf("%w %q", ErrName, name)
	}
	return nil
}

// attach makes the link, or takes the existing one, and hands its descriptor
// to the runtime's poller, which must not see it before it has a link.
func attach(name string) (*Device, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: clonePath, Err: err}
	}
	uso, err := setup(fd, name)
	if err != nil {
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
	d := &Device{name: name, file: file, raw: raw, uso: uso}
	d.reader.recv = d.reader.receive
	d.writers.New = func() any { return newWriter() }
	return d, nil
}

// setup binds fd to the link of that name and asks for runs with unfinished
// checksums. uso tells whether runs of UDP are among them.
func setup(fd int, name string) (uso bool, err error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return false, err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); {
	case errors.Is(err, unix.EBUSY):
		return false, ErrBusy
	case errors.Is(err, unix.EINVAL):
		return false, ErrNotTAP
	case err != nil:
		return false, os.NewSyscallError("TUNSETIFF", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, run.VnetHdrLen); err != nil {
		return false, os.NewSyscallError("TUNSETVNETHDRSZ", err)
	}
	const (
		tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		all = tso | unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, all) == nil {
		return true, nil
	}
	// Kernels before 6.2 have no runs of UDP.
	return false, os.NewSyscallError("TUNSETOFFLOAD", unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso))
}

// configure sets up the link and, once all is well, makes it stay.
func (d *Device) configure(opt Options) error {
	if err := setupLink(opt); err != nil {
		return err
	}
	var persist error
	err := d.raw.Control(func(fd uintptr) {
		persist = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1)
	})
	return errors.Join(err, os.NewSyscallError("TUNSETPERSIST", persist))
}

// Name returns the name of the link.
func (d *Device) Name() string { return d.name }

// USO tells whether the device takes and gives runs of UDP. Where it does not,
// run.Joiner is to be told.
func (d *Device) USO() bool { return d.uso }

// Close gives the device up and leaves the link as it is. Calls that wait
// return an error that is os.ErrClosed, and so does every later one.
func (d *Device) Close() error {
	d.closed.Store(true)
	return d.file.Close()
}

// pollError names the error of a call of the poller. No deadlines are set, so
// there are two: the device was closed, or the link went and the poller with it.
func (d *Device) pollError() error {
	if d.closed.Load() {
		return fmt.Errorf("tap %s: %w", d.name, os.ErrClosed)
	}
	return fmt.Errorf("tap %s: %w", d.name, ErrGone)
}

// callError names the error of a system call.
func (d *Device) callError(call string, errno unix.Errno) error {
	if errno == unix.EBADFD {
		return fmt.Errorf("tap %s: %w", d.name, ErrGone)
	}
	return fmt.Errorf("%s tap %s: %w", call, d.name, errno)
}
