package sandbox

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is an open network namespace.
type namespace struct {
	handle netns.NsHandle
	id     identity
}

// identity tells namespaces apart while one of them is open.
type identity struct{ dev, ino uint64 }

// openNamespace opens the namespace at a path. Docker makes a file first, and
// mounts the namespace on it later.
func openNamespace(path string) (*namespace, error) {
	handle, err := netns.GetFromPath(path)
	if errors.Is(err, unix.ENOENT) {
		return nil, ErrNotThere
	}
	if err != nil {
		return nil, err
	}
	n := &namespace{handle: handle}
	if err := n.identify(); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *namespace) identify() error {
	var system unix.Statfs_t
	var file unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(n.handle), &system), unix.Fstat(int(n.handle), &file)); err != nil {
		return err
	}
	if system.Type != unix.NSFS_MAGIC {
		return ErrNotThere
	}
	n.id = identityOf(file)
	return nil
}

func identityOf(file unix.Stat_t) identity { return identity{file.Dev, file.Ino} }

// at tells whether a path leads to the namespace.
func (id identity) at(path string) bool {
	var file unix.Stat_t
	return unix.Stat(path, &file) == nil && identityOf(file) == id
}

func (n *namespace) close() { _ = n.handle.Close() }

// do runs f on a thread inside the namespace. f must not start goroutines that
// count on being there.
func (n *namespace) do(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- n.visit(f) }()
	return <-done
}

// visit takes the goroutine's thread into the namespace and back. If it cannot go
// back, it stays locked, and so ends with the goroutine. That does not end the
// main thread, by which others judge where the process is: it is never taken.
func (n *namespace) visit(f func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread()
		return n.do(f) // elsewhere, while this thread is held
	}
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("look where we are: %w", err)
	}
	defer func() { _ = home.Close() }()
	if home.Equal(n.handle) {
		runtime.UnlockOSThread()
		return ErrOwn
	}
	if err := netns.Set(n.handle); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter: %w", err)
	}
	err = f()
	if netns.Set(home) == nil {
		runtime.UnlockOSThread()
	}
	return err
}
