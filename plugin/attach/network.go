package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"weave/plugin/engine"
)

// The label of networks that weave made, and its value for those of this
// package's Attach.
const (
	MadeLabel    = "org.weave.made"
	MadeByAttach = "attach"
)

const (
	driverName    = "weave"
	segmentOption = "weave.segment"
	namePrefix    = "weave-"
	onSegment     = "this host is on segment" // the plugin's refusal of a second network
)

// Network returns the name of the weave network with that subnet, which it makes
// if there is none; made is its label's value then.
func (d *Docker) Network(ctx context.Context, subnet netip.Prefix, made string) (name string, created bool, err error) {
	n, created, err := d.ensure(ctx, subnet, made)
	return n.Name, created, err
}

// Remove removes a network that no container is on.
func (d *Docker) Remove(ctx context.Context, name string) error {
	if _, err := d.api.NetworkRemove(ctx, name, client.NetworkRemoveOptions{}); err != nil {
		return fmt.Errorf("remove network %s: %w", name, d.explain(err))
	}
	return nil
}

func (d *Docker) ensure(ctx context.Context, subnet netip.Prefix, made string) (n engine.Network, created bool, err error) {
	all, err := d.list(ctx)
	if err != nil {
		return n, false, err
	}
	n, ok, err := find(all, subnet)
	if ok || err != nil {
		return n, false, err
	}
	if n, err = planned(all, subnet); err != nil {
		return n, false, err
	}
	result, err := d.api.NetworkCreate(ctx, n.Name, creation(n, made))
	if err == nil {
		n.ID = result.ID
		return n, true, nil
	}
	if other, ok := d.madeMeanwhile(ctx, subnet, err); ok {
		return other, false, nil
	}
	return n, false, fmt.Errorf("make network %s: %w", n.Name, d.explain(err))
}

// How long a network that the plugin knows of may take until Docker lists it, and
// how often Docker is asked.
const (
	listLimit = 5 * time.Second
	listEvery = 50 * time.Millisecond
)

// madeMeanwhile finds the network that another command has made since this one
// looked for it. The plugin knows of one before Docker lists it.
func (d *Docker) madeMeanwhile(ctx context.Context, subnet netip.Prefix, refusal error) (engine.Network, bool) {
	ctx, cancel := context.WithTimeout(ctx, listLimit)
	defer cancel()
	for {
		all, err := d.list(ctx)
		if err != nil {
			return engine.Network{}, false
		}
		if other, ok, _ := find(all, subnet); ok {
			return other, true
		}
		if !strings.Contains(refusal.Error(), onSegment) {
			return engine.Network{}, false
		}
		select {
		case <-ctx.Done():
			return engine.Network{}, false
		case <-time.After(listEvery):
		}
	}
}

func (d *Docker) list(ctx context.Context) ([]engine.Network, error) {
	all, err := d.networks.Networks(ctx)
	return all, d.explain(err)
}

// planned is the network that is made for a subnet. An engine that has an IPv4
// subnet besides takes another one on each host, so that an IPv6 segment needs a
// name.
func planned(all []engine.Network, subnet netip.Prefix) (engine.Network, error) {
	form := strings.NewReplacer("/", "-", ":", "-").Replace(subnet.String())
	n := engine.Network{Name: namePrefix + form, Driver: driverName, IPAM: engine.IPAM{Driver: driverName, Pools: []engine.Pool{{Subnet: subnet}}}}
	if subnet.Addr().Is6() {
		n.Options = map[string]string{segmentOption: form}
	}
	if other, of, ok := overlapping(all, subnet); ok {
		return n, fmt.Errorf("subnet %s overlaps %s of network %s on this host: an address there has the length /%d; or choose another subnet", subnet, of, other, of.Bits())
	}
	if slices.ContainsFunc(all, func(x engine.Network) bool { return x.Name == n.Name }) {
		return n, fmt.Errorf("network %s exists already, but not as a weave network with subnet %s: remove it, or make that one by another name", n.Name, subnet)
	}
	return n, nil
}

// overlapping finds a weave network with part of a subnet: most often it is that one
// which is meant, and the length that is wrong.
func overlapping(all []engine.Network, subnet netip.Prefix) (name string, of netip.Prefix, ok bool) {
	for _, n := range all {
		for _, p := range n.IPAM.Pools {
			if engine.IsWeave(n.Driver) && p.Subnet.Overlaps(subnet) {
				return n.Name, p.Subnet, true
			}
		}
	}
	return "", netip.Prefix{}, false
}

func creation(n engine.Network, made string) client.NetworkCreateOptions {
	subnet := n.IPAM.Pools[0].Subnet
	o := client.NetworkCreateOptions{
		Driver: n.Driver, Options: n.Options, Labels: map[string]string{MadeLabel: made},
		IPAM: &network.IPAM{Driver: n.IPAM.Driver, Config: []network.IPAMConfig{{Subnet: subnet}}},
	}
	if subnet.Addr().Is6() {
		o.EnableIPv6 = new(true)
	}
	return o
}

// find returns the weave network with that subnet. With two it cannot know which
// one is meant.
func find(all []engine.Network, subnet netip.Prefix) (n engine.Network, ok bool, err error) {
	var found []engine.Network
	for _, n := range all {
		if engine.IsWeave(n.Driver) && hasSubnet(n, subnet) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return n, false, nil
	case 1:
		return found[0], true, nil
	}
	return n, false, fmt.Errorf("subnet %s is that of networks %s and %s on this host: name the one that you mean, with docker network connect --ip ADDRESS NETWORK CONTAINER",
		subnet, found[0].Name, found[1].Name)
}

func hasSubnet(n engine.Network, subnet netip.Prefix) bool {
	return slices.ContainsFunc(n.IPAM.Pools, func(p engine.Pool) bool { return p.Subnet == subnet })
}

// segment is the key of the segment that a network is on: the plugin's rule.
func segment(n engine.Network) string {
	if name := n.Options[segmentOption]; name != "" {
		return "name:" + name
	}
	subnets := n.IPAM.Pools
	if i := slices.IndexFunc(subnets, func(p engine.Pool) bool { return p.Subnet.Addr().Is4() }); i > 0 {
		subnets = subnets[i:]
	}
	if len(subnets) == 0 {
		return ""
	}
	return subnets[0].Subnet.String()
}

// RemoveUnused removes the networks of subnets if weave made them and no container,
// running or not, is on them, but for those of the subnets to keep.
func (d *Docker) RemoveUnused(ctx context.Context, subnets, keep []netip.Prefix) error {
	all, err := d.list(ctx)
	if err != nil {
		return err
	}
	of := func(n engine.Network) bool {
		return engine.IsWeave(n.Driver) && slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return hasSubnet(n, s) })
	}
	return d.removeUnused(ctx, slices.DeleteFunc(all, func(n engine.Network) bool { return !of(n) }), keep)
}

// removeUnused removes those networks that weave made, for whatever, and no
// container, running or not, is on, but for those of the subnets to keep. One that
// somebody connects to meanwhile stays, too.
func (d *Docker) removeUnused(ctx context.Context, networks []engine.Network, keep []netip.Prefix) error {
	var errs []error
	for _, n := range networks {
		kept := slices.ContainsFunc(keep, func(s netip.Prefix) bool { return hasSubnet(n, s) })
		if kept || n.Labels[MadeLabel] == "" {
			continue
		}
		used, err := d.api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("network", n.ID, n.Name)})
		if err == nil && len(used.Items) == 0 {
			_, err = d.api.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{})
		}
		inUse := errdefs.IsPermissionDenied(err) || errdefs.IsConflict(err) // engines differ
		if err != nil && !isNotFound(err) && !inUse {
			errs = append(errs, fmt.Errorf("remove network %s: %w", n.Name, d.explain(err)))
		}
	}
	return errors.Join(errs...)
}
