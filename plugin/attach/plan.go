package attach

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"weave/plugin/engine"
)

// known is what matters of a container.
type known struct {
	id, name, mode string
	running        bool
	networks       map[string]*network.EndpointSettings // by name
}

func (d *Docker) container(ctx context.Context, ref string) (known, error) {
	got, err := d.api.ContainerInspect(ctx, ref, client.ContainerInspectOptions{})
	if isNotFound(err) {
		return known{}, fmt.Errorf("no container %.80q on this host: docker ps lists those that run", ref)
	}
	if err != nil {
		return known{}, d.explain(err)
	}
	return knownOf(got), nil
}

func knownOf(got client.ContainerInspectResult) known {
	c := known{id: got.Container.ID, name: strings.TrimPrefix(got.Container.Name, "/")}
	if got.Container.HostConfig != nil {
		c.mode = string(got.Container.HostConfig.NetworkMode)
	}
	if got.Container.State != nil {
		c.running = got.Container.State.Running
	}
	if got.Container.NetworkSettings != nil {
		c.networks = got.Container.NetworkSettings.Networks
	}
	return c
}

func (c known) mayAttach(fresh bool) error {
	if err := CheckMode(c.mode); err != nil {
		return fmt.Errorf("container %s: %w", c.name, err)
	}
	if !c.running && !fresh {
		return fmt.Errorf("container %s does not run: docker start %s", c.name, c.name)
	}
	return nil
}

// CheckMode refuses the values of docker run's --network which leave a container
// no network namespace of its own, or none that Docker puts anything into.
func CheckMode(mode string) error {
	kind, _, _ := strings.Cut(mode, ":")
	switch kind {
	case "host":
		return fmt.Errorf("it has the host's own network (--network %s): to give the host an address, weave expose", mode)
	case "none":
		return fmt.Errorf("it has no network (--network none), and Docker gives it none later: make it anew without that")
	case "container":
		return fmt.Errorf("it has the network of another container (--network %s): attach that one", mode)
	}
	return nil
}

// on returns a container's endpoint on a network. The network's ID is not there
// before the container was started; in one that runs, that is a connection that
// failed.
func (c known) on(n engine.Network) (*network.EndpointSettings, bool) {
	e := c.networks[n.Name]
	return e, e != nil && (e.NetworkID == n.ID && n.ID != "" || e.NetworkID == "" && !c.running)
}

// isStale tells whether a container that runs has only tried to connect to a
// network.
func (c known) isStale(n engine.Network) bool {
	e := c.networks[n.Name]
	return e != nil && c.running && e.NetworkID == ""
}

// address is the container's of one subnet of a network: that which it has, or
// will have by name.
func (c known) address(n engine.Network, subnet netip.Prefix) (netip.Addr, bool) {
	e, ok := c.on(n)
	if !ok {
		return netip.Addr{}, false
	}
	candidates := []netip.Addr{e.IPAddress, e.GlobalIPv6Address}
	if e.IPAMConfig != nil {
		candidates = append(candidates, e.IPAMConfig.IPv4Address, e.IPAMConfig.IPv6Address)
	}
	i := slices.IndexFunc(candidates, subnet.Contains)
	if i < 0 {
		return netip.Addr{}, false
	}
	return candidates[i], true
}

// leaving lists the networks that a container is to be taken off.
func (c known) leaving(all []engine.Network, wants []Want) ([]engine.Network, error) {
	mine := slices.DeleteFunc(slices.Clone(all), func(n engine.Network) bool {
		_, on := c.on(n)
		return !engine.IsWeave(n.Driver) || !on
	})
	if len(mine) == 0 {
		return nil, fmt.Errorf("container %s is on no weave network", c.name)
	}
	if len(wants) == 0 {
		return mine, nil
	}
	var leave []engine.Network
	for _, w := range wants {
		n, ok, err := find(mine, w.Subnet)
		switch {
		case err != nil:
			return nil, err
		case !ok:
			return nil, fmt.Errorf("container %s is not on subnet %s", c.name, w.Subnet)
		}
		if addr, has := c.address(n, w.Subnet); w.Addr.IsValid() && has && addr != w.Addr {
			return nil, fmt.Errorf("container %s has %s of subnet %s, not %s", c.name, addr, w.Subnet, w.Addr)
		}
		if !slices.ContainsFunc(leave, func(x engine.Network) bool { return x.ID == n.ID }) {
			leave = append(leave, n)
		}
	}
	return leave, nil
}

// isOrdered tells whether an address is to be told of: it was named, or nothing
// was.
func (c known) isOrdered(n engine.Network, subnet netip.Prefix, wants []Want) bool {
	return len(wants) == 0 || slices.ContainsFunc(wants, func(w Want) bool { return w.Subnet == subnet })
}

// step is one network to connect to, with the addresses that are wanted there.
type step struct {
	network  engine.Network // without an ID if it is still to be made
	subnet   netip.Prefix   // by which it is found or made
	ip4, ip6 netip.Addr     // zero: any
	old      bool           // the container is on it already
}

// plan checks all wants, and makes one step for each network; c may be nil.
func (d *Docker) plan(ctx context.Context, wants []Want, holder Holder, c *known) ([]step, error) {
	all, err := d.list(ctx)
	if err != nil {
		return nil, err
	}
	var steps []step
	for _, w := range wants {
		n, ok, err := find(all, w.Subnet)
		if err == nil && !ok {
			n, err = planned(all, w.Subnet)
		}
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(steps, func(s step) bool { return s.network.Name == n.Name })
		if i < 0 {
			if err := checkOverlap(steps, w.Subnet); err != nil {
				return nil, err
			}
			i = len(steps)
			steps = append(steps, step{network: n, subnet: w.Subnet})
		}
		if err := steps[i].add(w); err != nil {
			return nil, err
		}
		if err := steps[i].checkHolder(w, holder, c); err != nil {
			return nil, err
		}
	}
	return steps, nil
}

// checkOverlap tells before the first network is made that the second cannot be.
func checkOverlap(steps []step, subnet netip.Prefix) error {
	for _, s := range steps {
		if s.subnet.Overlaps(subnet) {
			return fmt.Errorf("subnets %s and %s overlap: a host cannot have both", s.subnet, subnet)
		}
	}
	return nil
}

// add notes the address that is wanted. Docker gives one of each family.
func (s *step) add(w Want) error {
	addr := &s.ip4
	if w.Subnet.Addr().Is6() {
		addr = &s.ip6
	}
	if addr.IsValid() && w.Addr.IsValid() && *addr != w.Addr {
		return fmt.Errorf("%s and %s are both of subnet %s: a container has one address there", *addr, w.Addr, w.Subnet)
	}
	if w.Addr.IsValid() {
		*addr = w.Addr
	}
	return nil
}

// checkHolder refuses an address that somebody else has, and another one than the
// container has already.
func (s *step) checkHolder(w Want, holder Holder, c *known) error {
	if c != nil {
		if _, on := c.on(s.network); on {
			s.old = true
			has, known := c.address(s.network, w.Subnet)
			switch {
			case !w.Addr.IsValid() || has == w.Addr:
				return nil
			case !known:
				return fmt.Errorf("container %s is on network %s already: give the address there with --ip", c.name, s.network.Name)
			}
			return fmt.Errorf("container %s is on subnet %s already, with %s: weave detach net:%s %s takes it off", c.name, w.Subnet, has, w.Subnet, c.name)
		}
	}
	if !w.Addr.IsValid() {
		return nil
	}
	if who, held := holder(segment(s.network), w.Addr); held {
		return fmt.Errorf("address %s is in use by %s: choose another, or net:%s for any that is free", w.Addr, who, w.Subnet)
	}
	return nil
}
