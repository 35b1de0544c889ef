// Package host changes and reads the kernel of the Docker host: bridges and
// links, routes, sysctls and the firewall.
//
// It is the one place that speaks netlink for the driver, so that its pitfalls
// are handled once: dumps that were interrupted are repeated, every request
// has a time limit, and every error names the operation and the link. All
// operations are idempotent and safe for concurrent use; each works in the
// network namespace of the calling thread.
//
// The package knows nothing of Docker's networks and endpoints, keeps no
// state but of links that are about to be deleted, and never enters the
// namespace of a container.
package host

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Prefix starts the name of every link that Weave makes on the host. The
// firewall knows Weave's bridges by it.
const Prefix = "wv"

const (
	requestTimeout = 10 * time.Second // for the answer to one netlink request
	maxAttempts    = 20               // for dumps that other changes interrupt
)

// Kernel is the kernel of the calling thread's network namespace.
type Kernel struct {
	firewall sync.Mutex // held from reading the rules to changing them

	waiting chan struct{}  // an element for each link of retired
	retired sync.WaitGroup // links that are to be deleted
	closing chan struct{}  // closed by Close
}

// New returns a Kernel; it touches nothing yet. Who retires links has to close it.
func New() *Kernel {
	return &Kernel{waiting: make(chan struct{}, maxRetired), closing: make(chan struct{})}
}

// withNetlink runs op on a socket of its own, so that requests of different
// endpoints do not queue behind each other. op is run again from its start
// after an interruption, so it must be idempotent.
func withNetlink(op func(h *netlink.Handle) error) error {
	h, err := newHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	err = retry(func() error { return op(h) })
	if errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("the kernel gave no answer for %s: %w", requestTimeout, err)
	}
	return err
}

// newHandle opens a socket in the calling thread's namespace.
func newHandle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(requestTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	return h, nil
}

// retry repeats op while it is interrupted.
func retry(op func() error) error {
	var err error
	for range maxAttempts {
		if err = op(); !interrupted(err) {
			return err
		}
	}
	return fmt.Errorf("interrupted %d times: %w", maxAttempts, err)
}

// interrupted tells whether an operation failed only because something else
// happened at the same time.
func interrupted(err error) bool {
	return errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR)
}

// missing tells whether an operation failed because the link is not there.
func missing(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}
