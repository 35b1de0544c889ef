package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Restore brings everything that is stored back to life: bridges and segments
// of the networks, and the endpoints whose links have survived. An endpoint
// whose link is gone, as after a reboot, is kept for Docker to delete or to
// join again. Calls of Docker's may come meanwhile. What could not be restored
// is named in the error; Restore can be repeated, and does only what is left
// to do.
func (d *Driver) Restore(ctx context.Context) error {
	d.mu.Lock()
	networks := slices.Collect(maps.Values(d.networks))
	d.mu.Unlock()
	var errs []error
	for _, n := range networks {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, d.restore(ctx, n))
	}
	return errors.Join(errs...)
}

// restore brings one network up, with its endpoints. An endpoint's trouble is
// logged and not an error, because the network serves the others.
func (d *Driver) restore(ctx context.Context, n *network) error {
	n.op.Lock()
	defer n.op.Unlock()
	if n.gone {
		return nil
	}
	if !n.up {
		if err := d.revive(ctx, n); err != nil {
			return fmt.Errorf("restore network %s: %w", d.describe(n.rec.ID), err)
		}
	}
	if err := d.announceExposed(n); err != nil {
		d.log.WithError(err).WithField("network", n.rec.ID).Warn("exposed address not announced")
	}
	for _, e := range d.endpointsOf(n) {
		if err := d.restoreEndpoint(n, e); err != nil {
			d.log.WithError(err).WithField("network", n.rec.ID).WithField("endpoint", e.rec.ID).
				Warn("endpoint not restored")
		}
	}
	return nil
}

// revive brings a stored network up, and stores the MTU if it has changed.
func (d *Driver) revive(ctx context.Context, n *network) error {
	mtu := n.rec.MTU
	if err := d.bringUp(ctx, n); err != nil {
		return err
	}
	if n.rec.MTU == mtu {
		return nil
	}
	return save(d.store, networkBucket, n.rec.ID, n.rec)
}

func (d *Driver) restoreEndpoint(n *network, e *endpoint) error {
	e.op.Lock()
	defer e.op.Unlock()
	if e.gone || !e.rec.Joined || e.announced {
		return nil
	}
	alive, err := d.kernel.HasLink(e.rec.hostLink())
	if err != nil || !alive {
		return err
	}
	if err := d.kernel.AttachPort(n.rec.Bridge, e.rec.hostLink()); err != nil {
		return err
	}
	return d.announce(n, e)
}
