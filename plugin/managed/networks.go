package managed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/moby/moby/client"

	"weave/plugin/engine"
)

// Network is one of the engine's that needs the plugin.
type Network struct {
	ID, Name   string
	Containers []string // names of those that run on it
}

// Networks lists the networks that need the plugin, by name.
func (p *Plugin) Networks(ctx context.Context) ([]Network, error) {
	listed, err := p.networks.Networks(ctx)
	if err != nil {
		return nil, err
	}
	var all []Network
	for _, n := range listed {
		if !engine.IsWeave(n.Driver) && !engine.IsWeave(n.IPAM.Driver) {
			continue
		}
		full, err := p.networks.NetworkByID(ctx, n.ID)
		if errors.Is(err, engine.ErrNotFound) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		x := Network{ID: n.ID, Name: n.Name}
		for _, e := range full.Endpoints {
			if e.ContainerID != "" {
				x.Containers = append(x.Containers, e.ContainerName)
			}
		}
		slices.Sort(x.Containers)
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b Network) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

// RemoveNetwork takes a network's containers off it, and removes it.
func (p *Plugin) RemoveNetwork(ctx context.Context, n Network) error {
	for _, c := range n.Containers {
		_, err := p.engine.NetworkDisconnect(ctx, n.ID, client.NetworkDisconnectOptions{Container: c, Force: true})
		if err != nil && !isNotFound(err) {
			return fmt.Errorf("take container %s off network %s: %w", c, n.Name, err)
		}
	}
	if _, err := p.engine.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{}); err != nil && !isNotFound(err) {
		return fmt.Errorf("remove network %s: %w", n.Name, err)
	}
	return nil
}
