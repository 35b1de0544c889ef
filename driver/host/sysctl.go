package host

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// EnsureSysctls makes /proc/sys writable where it is not: Docker mounts it
// read-only into a managed plugin. The mount belongs to the plugin's own mount
// namespace, so nothing changes for the host. Everything that must hold works
// without it too, so an error is a warning.
func (k *Kernel) EnsureSysctls() error {
	const probe = "/proc/sys/net/ipv4/ip_forward"
	f, err := os.OpenFile(probe, os.O_WRONLY, 0) // opening writes nothing
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("make /proc/sys writable: %w", err)
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("", "/proc/sys", "", flags, ""); err != nil {
		return fmt.Errorf("make /proc/sys writable: remount: %w", err)
	}
	return nil
}

// readSwitch reads a sysctl that is on or off; one that is absent is off.
func readSwitch(path string) (bool, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return strings.TrimSpace(string(b)) != "0", nil
}
