package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const netnsDir = "/run/netns"

func addNamespace(name string) error {
	return onOwnThread(func() error {
		ns, err := netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("add namespace %s: %w", name, err)
		}
		return ns.Close()
	})
}

// deleteNamespace removes a name that may be half made: a file on which nothing
// is mounted.
func deleteNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err == nil || errors.Is(err, unix.EINVAL) {
		err = os.Remove(path)
	}
	if errors.Is(err, unix.EBUSY) {
		err = onOwnThread(func() error { return removeCovered(path) })
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete namespace %s: %w", name, err)
	}
	return nil
}

// removeCovered removes a name on which something is mounted below what can be
// seen: the first `ip netns add` after us has mounted the whole directory upon
// itself, with all names in it. In a mount namespace of our own the layers can be
// taken off; to remove a name there is to remove it everywhere.
func removeCovered(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for {
		if err := unix.Unmount(netnsDir, unix.MNT_DETACH); err != nil {
			return err
		}
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
		if err := os.Remove(path); !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
}

func inNamespace(name string, f func() error) error {
	return Inside(filepath.Join(netnsDir, name), f)
}

// Inside runs f on a thread of its own inside the network namespace at a path. The
// goroutines that f starts are not in it.
func Inside(path string, f func() error) error {
	return onOwnThread(func() error {
		ns, err := netns.GetFromPath(path)
		if err != nil {
			return fmt.Errorf("open namespace %s: %w", path, err)
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter namespace %s: %w", path, err)
		}
		return f()
	})
}

// onOwnThread runs f on a thread that is thrown away afterwards: a goroutine
// that ends while locked takes its thread, in whatever namespace, with it. Only
// the main thread would stay, and by it others judge where the process is.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := onOwnThread(f) // elsewhere, while this thread is held
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// writeSysctl writes below /proc/sys for the calling thread's namespace.
func writeSysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}
