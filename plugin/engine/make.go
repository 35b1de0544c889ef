package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// makeTimeout is for what has the engine ask its plugins.
const makeTimeout = time.Minute

// Create makes a network with the settings of n, and returns its ID.
func (c *Client) Create(ctx context.Context, n Network) (id string, err error) {
	ipam := &network.IPAM{Driver: n.IPAM.Driver, Options: n.IPAM.Options}
	for _, p := range n.IPAM.Pools {
		ipam.Config = append(ipam.Config, network.IPAMConfig{Subnet: p.Subnet, IPRange: p.Range, Gateway: p.Gateway, AuxAddress: p.Auxiliary})
	}
	err = c.change(ctx, func(ctx context.Context, docker *client.Client) error {
		made, err := docker.NetworkCreate(ctx, n.Name, client.NetworkCreateOptions{
			Driver: n.Driver, Internal: n.Internal, EnableIPv6: &n.IPv6, IPAM: ipam, Options: n.Options, Labels: n.Labels,
		})
		id = made.ID
		return err
	})
	if err != nil {
		return "", fmt.Errorf("create network %s: %w", n.Name, err)
	}
	return id, nil
}

// Remove removes a network that no container is on.
func (c *Client) Remove(ctx context.Context, id string) error {
	err := c.change(ctx, func(ctx context.Context, docker *client.Client) error {
		_, err := docker.NetworkRemove(ctx, id, client.NetworkRemoveOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("remove network %s: %w", id, err)
	}
	return nil
}

// change does something with moby's client.
func (c *Client) change(ctx context.Context, do func(context.Context, *client.Client) error) error {
	docker, err := client.New(client.WithHost("unix://" + c.path))
	if err != nil {
		return err
	}
	defer func() { _ = docker.Close() }() // it only holds idle connections
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	return do(ctx, docker)
}
