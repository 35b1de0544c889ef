package managed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockFile  = "/run/weave/launch.lock"
	lockEvery = 100 * time.Millisecond
)

// Lock waits until no other command changes the plugin of this host, and keeps
// others from it until release is called, or the process ends. Two that did it at
// once would take the plugin from each other half made. The file stays: who waits
// for it has it open.
func (p *Plugin) Lock(ctx context.Context) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(p.lock), 0o700); err != nil {
		return nil, fmt.Errorf("lock the plugin: %w", err)
	}
	f, err := os.OpenFile(p.lock, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the plugin: %w", err)
	}
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // the lock goes with it
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			select {
			case <-tick.C:
				continue
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		return nil, errors.Join(fmt.Errorf("another weave command changes the plugin of this host (%s is locked): %w", p.lock, err), f.Close())
	}
}
