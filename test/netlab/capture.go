package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	captureBuffer = 64 << 20 // kernel's queue, so that a busy machine loses nothing
	captureLimit  = 512 << 20
	maxFrame      = 128 << 10
)

// Capture records whole frames on all ports of the wire. A frame from host to
// host shows twice, once on each port.
type Capture struct {
	socket *os.File
	fd     int
	done   chan struct{}

	// Owned by the reading goroutine until done is closed.
	frames [][]byte
	size   int
	err    error
}

// Capture starts recording. The caller must Stop it.
func (l *Lab) Capture() (*Capture, error) {
	c := &Capture{done: make(chan struct{})}
	if err := inNamespace(l.wires(), c.open); err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	go c.record()
	return c, nil
}

func (c *Capture) open() error {
	const protocol = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
		return errors.Join(os.NewSyscallError("setsockopt", err), unix.Close(fd))
	}
	c.fd, c.socket = fd, os.NewFile(uintptr(fd), "capture")
	return nil
}

func (c *Capture) record() {
	defer close(c.done)
	buf := make([]byte, maxFrame)
	for c.err == nil {
		n, err := c.socket.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		case errors.Is(err, unix.ENETDOWN): // a port went down; the others go on
		case err != nil:
			c.err = err
		default:
			c.keep(buf[:n])
		}
	}
}

func (c *Capture) keep(frame []byte) {
	if c.size += len(frame); c.size > captureLimit {
		c.err = fmt.Errorf("more than %d bytes", captureLimit)
		return
	}
	c.frames = append(c.frames, bytes.Clone(frame))
}

// drain takes what the kernel still has queued.
func (c *Capture) drain() error {
	buf := make([]byte, maxFrame)
	for c.err == nil {
		n, _, err := unix.Recvfrom(c.fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		c.keep(buf[:n])
	}
	return c.err
}

// Stop ends the recording and returns the frames, those included that passed
// just before. It fails if the kernel had to drop a frame: a proof that nothing
// passed must have seen everything.
func (c *Capture) Stop() ([][]byte, error) {
	err := c.socket.SetReadDeadline(time.Unix(1, 0))
	<-c.done
	err = errors.Join(err, c.drain())
	stats, statsErr := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err = errors.Join(err, statsErr, c.socket.Close()); err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	if stats.Drops > 0 {
		return nil, fmt.Errorf("capture: %d frames lost", stats.Drops)
	}
	return c.frames, nil
}
