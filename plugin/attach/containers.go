package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"weave/plugin/engine"
)

// Holder names who has an address of a segment, as "web on host h2".
type Holder func(segment string, addr netip.Addr) (holder string, ok bool)

// Request asks for addresses for a container.
type Request struct {
	Container string // name or ID
	Wants     []Want
	Holder    Holder
	Fresh     bool // it has not been started yet, and gets its addresses when it is
}

// Address is one that a container has.
type Address struct {
	netip.Prefix
	Network string
	Old     bool // it had it before
}

// Attached is what Attach did.
type Attached struct {
	Addresses []Address // in the order of the wants; none of a fresh container
	container string
	joined    []engine.Network
	refused   []engine.Network
	made      []engine.Network
}

// Attach connects a container to the networks of the subnets that are wanted,
// which it makes where there are none. All is checked before the first change,
// and if one step fails, those before it are taken back.
func (d *Docker) Attach(ctx context.Context, r Request) (*Attached, error) {
	c, err := d.container(ctx, r.Container)
	if err != nil {
		return nil, err
	}
	if err := c.mayAttach(r.Fresh); err != nil {
		return nil, err
	}
	steps, err := d.plan(ctx, r.Wants, r.Holder, &c)
	if err != nil {
		return nil, err
	}
	done := &Attached{container: c.id}
	for i := range steps {
		if err := d.take(ctx, &steps[i], done); err != nil {
			return nil, errors.Join(err, d.Undo(ctx, done))
		}
	}
	if !r.Fresh {
		if done.Addresses, err = d.given(ctx, c.id, r.Wants, steps); err != nil {
			return nil, errors.Join(err, d.Undo(ctx, done))
		}
	}
	return done, nil
}

// Check finds what is wrong with wants whatever the container.
func (d *Docker) Check(ctx context.Context, wants []Want, holder Holder) error {
	_, err := d.plan(ctx, wants, holder, nil)
	return err
}

// take makes one step, and none once ctx is done.
func (d *Docker) take(ctx context.Context, s *step, done *Attached) error {
	if s.old || ctx.Err() != nil {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepLimit)
	defer cancel()
	n, created, err := d.ensure(ctx, s.subnet, MadeByAttach)
	if err != nil {
		return err
	}
	s.network = n
	if created {
		n.Labels = map[string]string{MadeLabel: MadeByAttach}
		done.made = append(done.made, n)
	}
	_, err = d.api.NetworkConnect(ctx, n.ID, client.NetworkConnectOptions{Container: done.container, EndpointConfig: &network.EndpointSettings{
		IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: s.ip4, IPv6Address: s.ip6},
	}})
	switch {
	case err == nil:
		done.joined = append(done.joined, n)
		return nil
	case d.joinedMeanwhile(ctx, done.container, s):
		s.old = true
		return nil
	}
	done.refused = append(done.refused, n)
	return fmt.Errorf("connect to network %s: %w", n.Name, d.explain(err))
}

// joinedMeanwhile tells whether another command has done what a step was to do.
func (d *Docker) joinedMeanwhile(ctx context.Context, container string, s *step) bool {
	c, err := d.container(ctx, container)
	if err != nil {
		return false
	}
	e, on := c.on(s.network)
	return on && e.NetworkID != "" && (!s.ip4.IsValid() || s.ip4 == e.IPAddress) && (!s.ip6.IsValid() || s.ip6 == e.GlobalIPv6Address)
}

// forgetRefused has Docker forget a connection that failed: some versions keep it
// in mind, and later do not start the container for want of the network. There it
// goes with one that succeeds.
func (d *Docker) forgetRefused(ctx context.Context, container string, n engine.Network) error {
	c, err := d.container(ctx, container)
	if err != nil || !c.isStale(n) {
		return nil //nolint:nilerr // who cannot be asked, or is gone, has been told of
	}
	_, err = d.api.NetworkConnect(ctx, n.ID, client.NetworkConnectOptions{Container: c.id, EndpointConfig: &network.EndpointSettings{}})
	if err == nil {
		_, err = d.api.NetworkDisconnect(ctx, n.ID, client.NetworkDisconnectOptions{Container: c.id})
	}
	if err != nil {
		return fmt.Errorf("network %s stays: Docker would not restart container %[2]s without it, until docker network connect %[1]s %[2]s and the same with disconnect have succeeded: %w", n.Name, c.name, d.explain(err))
	}
	return nil
}

// given are the addresses that the container has of the subnets.
func (d *Docker) given(ctx context.Context, id string, wants []Want, steps []step) ([]Address, error) {
	c, err := d.container(ctx, id)
	if err != nil {
		return nil, err
	}
	var all []Address
	for _, w := range wants {
		i := slices.IndexFunc(steps, func(s step) bool { return hasSubnet(s.network, w.Subnet) })
		n := steps[i].network
		addr, ok := c.address(n, w.Subnet)
		if !ok {
			return nil, fmt.Errorf("container %s has got no address of %s", c.name, w.Subnet)
		}
		all = append(all, Address{netip.PrefixFrom(addr, w.Subnet.Bits()), n.Name, steps[i].old})
	}
	return all, nil
}

// Addresses returns those that a container has of the subnets that are wanted, or
// will have by name: none is no error, nor is a container that is gone.
func (d *Docker) Addresses(ctx context.Context, ref string, wants []Want) ([]Address, error) {
	got, err := d.api.ContainerInspect(ctx, ref, client.ContainerInspectOptions{})
	if err != nil {
		if isNotFound(err) {
			err = nil
		}
		return nil, d.explain(err)
	}
	all, err := d.list(ctx)
	if err != nil {
		return nil, err
	}
	var out []Address
	for _, w := range wants {
		n, _, err := find(all, w.Subnet)
		if err != nil {
			return out, err
		}
		if addr, ok := knownOf(got).address(n, w.Subnet); ok {
			out = append(out, Address{netip.PrefixFrom(addr, w.Subnet.Bits()), n.Name, false})
		}
	}
	return out, nil
}

// Undo takes back all that Attach did. A container that is gone by then is no
// error.
func (d *Docker) Undo(ctx context.Context, a *Attached) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	var errs []error
	for _, n := range slices.Backward(a.joined) {
		_, err := d.api.NetworkDisconnect(ctx, n.ID, client.NetworkDisconnectOptions{Container: a.container})
		if err != nil && !isNotFound(err) {
			errs = append(errs, fmt.Errorf("take container %s off network %s again: %w", a.container, n.Name, d.explain(err)))
		}
	}
	made := slices.Clone(a.made)
	for _, n := range a.refused {
		if err := d.forgetRefused(ctx, a.container, n); err != nil {
			errs = append(errs, err)
			made = slices.DeleteFunc(made, func(m engine.Network) bool { return m.ID == n.ID })
		}
	}
	return errors.Join(append(errs, d.removeUnused(ctx, made, nil))...)
}

// Detach takes a container off the networks of subnets, or off all weave networks
// if no subnet is named. Networks that weave made are removed with the last
// container, but for those of the subnets to keep.
func (d *Docker) Detach(ctx context.Context, ref string, wants []Want, keep []netip.Prefix) ([]Address, error) {
	c, err := d.container(ctx, ref)
	if err != nil {
		return nil, err
	}
	all, err := d.list(ctx)
	if err != nil {
		return nil, err
	}
	leave, err := c.leaving(all, wants)
	if err != nil {
		return nil, err
	}
	var done []Address
	var left []engine.Network
	var errs []error
	for _, n := range leave {
		_, err := d.api.NetworkDisconnect(ctx, n.ID, client.NetworkDisconnectOptions{Container: c.id})
		if err != nil {
			errs = append(errs, fmt.Errorf("take container %s off network %s: %w", c.name, n.Name, d.explain(err)))
			continue
		}
		left = append(left, n)
		for _, p := range n.IPAM.Pools {
			if addr, ok := c.address(n, p.Subnet); ok && c.isOrdered(n, p.Subnet, wants) {
				done = append(done, Address{netip.PrefixFrom(addr, p.Subnet.Bits()), n.Name, true})
			}
		}
	}
	return done, errors.Join(append(errs, d.removeUnused(ctx, left, keep))...)
}

// Containers lists the names of the running containers.
func (d *Docker) Containers(ctx context.Context) ([]string, error) {
	list, err := d.api.ContainerList(ctx, client.ContainerListOptions{})
	if err != nil {
		return nil, d.explain(err)
	}
	var names []string
	for _, c := range list.Items {
		if len(c.Names) > 0 {
			names = append(names, strings.TrimPrefix(c.Names[0], "/"))
		}
	}
	slices.Sort(names)
	return names, nil
}

// Discard removes a container that was never of use, whatever became of ctx.
func (d *Docker) Discard(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	_, err := d.api.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	if isNotFound(err) {
		return nil
	}
	return d.explain(err)
}
