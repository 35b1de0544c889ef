package gen

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tcpBuffer   = 256 << 10
	connectTime = 10 * time.Second
)

// congestion is that of all streams: some kernels' own choice is BBR, which
// halves the fast rows.
const congestion = "cubic"

// TCPArgs ask for streams to another agent.
type TCPArgs struct {
	To      netip.Addr
	Streams int
	For     time.Duration // from the moment when all are connected
}

func (a *Agent) listenTCP() error {
	fd, err := bound(unix.SOCK_STREAM, tcpPort)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion); err != nil {
		return fmt.Errorf("congestion control %s: %w", congestion, err)
	}
	if err := unix.Listen(fd, 64); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	go func() {
		for {
			conn, err := again(func() (int, error) {
				conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
				return conn, err
			})
			if err != nil {
				return
			}
			go a.swallow(conn)
		}
	}()
	return nil
}

// swallow counts what comes until the other side ends.
func (a *Agent) swallow(fd int) {
	defer unix.Close(fd)
	buf := make([]byte, tcpBuffer)
	for {
		n, err := again(func() (int, error) { return unix.Read(fd, buf) })
		if err != nil || n == 0 {
			return
		}
		a.tcpBytes.Add(uint64(n))
	}
}

// TCP sends as fast as it goes. What is still queued at the end is dropped, so
// that it does not run into what is measured next.
func (a *Agent) TCP(args TCPArgs, _ *int) error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for range args.Streams {
		fd, err := connect(args.To)
		if err != nil {
			return fmt.Errorf("connect to %s: %w", args.To, err)
		}
		fds = append(fds, fd)
	}
	var over atomic.Bool
	end := time.AfterFunc(args.For, func() {
		over.Store(true)
		for _, fd := range fds {
			_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		}
	})
	defer end.Stop()
	start, errs := time.Now(), make([]error, len(fds))
	var all sync.WaitGroup
	for i, fd := range fds {
		all.Go(func() {
			if err := fill(fd); !over.Load() {
				errs[i] = fmt.Errorf("stream to %s ended after %s: %w", args.To, time.Since(start), err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func connect(to netip.Addr) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, err
	}
	err = errors.Join(
		unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion),
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		timeout(fd, unix.SO_SNDTIMEO, connectTime), // bounds connect too
	)
	if err == nil {
		err = unix.Connect(fd, sockaddr(to, tcpPort))
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EISCONN) { // it goes on meanwhile
			err = nil
		}
	}
	if err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func fill(fd int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf := make([]byte, tcpBuffer)
	for {
		if _, err := again(func() (int, error) { return unix.Write(fd, buf) }); err != nil {
			return err
		}
	}
}
