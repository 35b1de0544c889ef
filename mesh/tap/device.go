// Package tap opens TAP devices and moves frames through them, runs included:
// in front of every frame stands a virtio-net header of run.VnetHdrLen bytes,
// as package run reads and writes it.
//
// Calls into the kernel never block; a wait for the device is one that the
// runtime's poller knows of. Reading and writing allocate nothing.
//
// A device has one queue or several. The kernel puts all frames of a flow, both
// directions of it, into one of them: so readers of different queues need not
// care about each other, and a flow's frames keep their order.
//
// It does not look into frames and does not attach devices to bridges.
package tap

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"

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
	Name   string
	MTU    int              // of the link, in bytes
	MAC    net.HardwareAddr // of the link; nil leaves the kernel's choice
	Queues int              // how many are wanted; below 2: one
}

// Device is an open TAP device. Its methods may be called concurrently.
type Device struct {
	// Set once by Open.
	name   string
	multi  bool     // the link can have several queues
	opened []*queue // all
	queues []*queue // of them, those to read from
	out    *queue   // to write to
	uso    bool

	closed  atomic.Bool
	writers sync.Pool // of *writer
}

// Open creates the device in the calling thread's network namespace, or
// attaches to one that an earlier process left, brings it up and without IPv6
// addresses of its own. The link outlives the process; Remove deletes it.
//
// A link remembers whether it was made for one queue or for several. One that
// was made for one has one, whatever is wanted, until it is made anew: what is
// plugged into it stays connected.
//
// The error is ErrBusy while another process has the device open, ErrNotTAP if
// a link of another kind has the name, ErrName if no link can have it.
func Open(opt Options) (*Device, error) {
	if err := checkName(opt.Name); err != nil {
		return nil, err
	}
	multi := opt.Queues > 1
	d, err := attach(opt, multi)
	if errors.Is(err, ErrNotTAP) { // or made by a process that wanted otherwise
		d, err = attach(opt, !multi)
	}
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

// attach makes the link, or takes the existing one, which must have been made
// in the same way: for several queues or for one.
func attach(opt Options, multi bool) (*Device, error) {
	d := &Device{name: opt.Name, multi: multi}
	d.writers.New = func() any { return newWriter() }
	if err := d.openQueues(max(opt.Queues, 1)); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// openQueues opens the queues to read from, and decides which to write to.
//
// The kernel gives a flow's frames to the queue that frames of the flow were
// last written to, either direction. With several queues we write to one that
// is detached: it is never read from, its writes do not count, and flows are
// spread by their hash. It goes first, since frames that arrive before it is
// detached are lost, and since it keeps its number, which must be one of those
// that are read from.
func (d *Device) openQueues(n int) error {
	first, err := d.openQueue()
	if err != nil {
		return err
	}
	d.out = first
	if d.uso, err = first.enableRuns(); err != nil {
		return err
	}
	if !d.multi {
		d.queues = d.opened
		return nil
	}
	if err := first.detach(); err != nil {
		return err
	}
	for range n {
		q, err := d.openQueue()
		if err != nil {
			return err
		}
		d.queues = append(d.queues, q)
	}
	return nil
}

// configure sets up the link and, once all is well, makes it stay.
func (d *Device) configure(opt Options) error {
	if err := setupLink(opt, d.held()); err != nil {
		return err
	}
	return d.out.ioctl("TUNSETPERSIST", func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1) })
}

// Name returns the name of the link.
func (d *Device) Name() string { return d.name }

// USO tells whether the device takes and gives runs of UDP. Where it does not,
// run.Joiner is to be told.
func (d *Device) USO() bool { return d.uso }

// Queues returns how many queues are to be read from.
func (d *Device) Queues() int { return len(d.queues) }

// held is how many queues the kernel counts as ours.
func (d *Device) held() int {
	if d.multi {
		return len(d.queues) + 1
	}
	return 0 // counted for links with several only
}

// Close gives the device up and leaves the link as it is. Calls that wait
// return an error that is os.ErrClosed, and so does every later one.
func (d *Device) Close() error {
	d.closed.Store(true)
	var errs []error
	for _, q := range d.opened {
		errs = append(errs, q.file.Close())
	}
	return errors.Join(errs...)
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
