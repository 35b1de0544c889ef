package daemon

import (
	"context"
	"errors"

	"weave/ipam"
	"weave/plugin/control"
)

// Prime implements control.Daemon.
func (d *daemon) Prime(ctx context.Context) (control.Primed, error) {
	p := d.parts.Load()
	if p == nil {
		return control.Primed{}, d.notReady()
	}
	primed := control.Primed{Subnet: ipam.DefaultSubnet(d.cfg.IPAllocRange)}
	free, err := p.allocator.Prime(ctx, primed.Subnet)
	switch {
	case errors.Is(err, ipam.ErrNoAgreement), errors.Is(err, ipam.ErrNoAnswer):
		primed.Waiting = err.Error() // for hosts, which may come
	case err != nil:
		return control.Primed{}, err
	}
	primed.Free = free
	return primed, nil
}
