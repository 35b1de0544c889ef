// Package sock listens on unix sockets that survive restarts: a path left over
// by a dead process is taken over, one that is served is not. It says nothing
// about what is spoken on them.
package sock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// ErrInUse says that somebody answers on the socket already.
var ErrInUse = errors.New("another process serves this socket")

const (
	dialTimeout = time.Second
	// drainTimeout is how long Serve lets requests under way finish.
	drainTimeout = 5 * time.Second
)

// Listen listens on a unix socket at path that only root may use. It makes the
// folder if need be. Closing the listener removes the path, unless another
// process has taken it over meanwhile.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := checkFree(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := bind(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// checkFree returns nil if path does not exist or is a socket that nobody serves.
func checkFree(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is something that is not a socket; remove it")
	}
	c, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		return errors.Join(ErrInUse, c.Close())
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("%w (%w)", ErrInUse, err) // busy rather than dead
}

// bind listens under another name first, so that the socket has its mode before
// it has its name, and a stale one is replaced in one step.
func bind(path string) (net.Listener, error) {
	aside := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: aside, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	info, err := publish(aside, path)
	if err != nil {
		_ = os.Remove(aside) // the first error counts
		return nil, errors.Join(err, l.Close())
	}
	return &listener{Listener: l, path: path, info: info}, nil
}

func publish(aside, path string) (fs.FileInfo, error) {
	if err := os.Chmod(aside, 0o600); err != nil {
		return nil, err
	}
	info, err := os.Lstat(aside)
	if err != nil {
		return nil, err
	}
	return info, os.Rename(aside, path)
}

// listener removes its own socket on Close.
type listener struct {
	net.Listener
	path string
	info fs.FileInfo
	once sync.Once
}

// Addr returns the path, where the socket itself knows its first name only.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close stops listening and removes the path if it is still ours.
func (l *listener) Close() error {
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.info) {
			_ = os.Remove(l.path) // the next Listen copes with a stale one
		}
	})
	return l.Listener.Close()
}

// Serve runs an HTTP server on all listeners until ctx ends, and closes them.
// Then it lets the requests under way finish for some seconds. It returns nil
// if it ended because of ctx.
func Serve(ctx context.Context, srv *http.Server, listeners ...net.Listener) error {
	group, stop := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	group.Go(func() error {
		<-stop.Done()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		if srv.Shutdown(drain) != nil {
			return srv.Close()
		}
		return nil
	})
	return group.Wait()
}
