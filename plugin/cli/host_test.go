package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"weave/plugin/control"
)

// fakeNetworks tells what it is asked; those of 10.99 cannot be made.
type fakeNetworks struct{}

func (fakeNetworks) Network(_ context.Context, subnet netip.Prefix, made string) (string, bool, error) {
	if subnet == netip.MustParsePrefix("10.99.0.0/16") {
		return "", false, errors.New("there is no Docker")
	}
	fmt.Fprintf(os.Stderr, "made %s for %s\n", subnet, made)
	return "weave-of-" + subnet.String(), true, nil
}

func (fakeNetworks) Remove(_ context.Context, name string) error {
	fmt.Fprintf(os.Stderr, "removed %s\n", name)
	return nil
}

func (fakeNetworks) RemoveUnused(_ context.Context, subnets, keep []netip.Prefix) error {
	fmt.Fprintf(os.Stderr, "unused of %s, keep %s\n", subnets, keep)
	return nil
}

// Expose gives what is asked for, but for masquerading.
func (d fakeDaemon) Expose(_ context.Context, r control.ExposeRequest) (all []control.Exposed, err error) {
	if r.Masquerade {
		return nil, errors.New("this host forwards no packets")
	}
	for _, t := range r.Targets {
		addr := t.Address
		if !addr.IsValid() {
			addr = t.Subnet.Addr().Next()
		}
		all = append(all, control.Exposed{Address: netip.PrefixFrom(addr, t.Subnet.Bits()), Exports: r.Exports, Imports: r.Imports})
	}
	return all, nil
}

func (d fakeDaemon) Hide(_ context.Context, targets []control.Target) ([]control.Exposed, error) {
	if len(targets) > 0 && targets[0].String() != "10.32.0.7/16" {
		return nil, fmt.Errorf("hide %s: this host does not have it", targets[0])
	}
	if len(targets) > 0 {
		return d.status.Exposed[:1], nil
	}
	return d.status.Exposed, nil
}
