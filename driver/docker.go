package driver

import (
	"context"
	"errors"

	api "github.com/docker/go-plugins-helpers/network"
)

// errLocalScope answers the calls that are for drivers of Swarm networks.
var errLocalScope = errors.New("weave networks are local to each Docker host: create them without --scope swarm")

// GetCapabilities says that Docker keeps each host's networks by itself, and
// connects containers to them itself.
func (d *Driver) GetCapabilities(context.Context) (*api.CapabilitiesResponse, error) {
	return &api.CapabilitiesResponse{Scope: api.LocalScope, ConnectivityScope: api.LocalScope}, nil
}

// AllocateNetwork is for Swarm's managers.
func (d *Driver) AllocateNetwork(context.Context, *api.AllocateNetworkRequest) (*api.AllocateNetworkResponse, error) {
	return nil, errLocalScope
}

// FreeNetwork is for Swarm's managers.
func (d *Driver) FreeNetwork(context.Context, *api.FreeNetworkRequest) error { return errLocalScope }

// DiscoverNew has nothing to do: the mesh finds its peers itself.
func (d *Driver) DiscoverNew(context.Context, *api.DiscoveryNotification) error { return nil }

// DiscoverDelete has nothing to do: the mesh finds its peers itself.
func (d *Driver) DiscoverDelete(context.Context, *api.DiscoveryNotification) error { return nil }

// ProgramExternalConnectivity has nothing to do: Docker publishes ports on
// docker_gwbridge.
func (d *Driver) ProgramExternalConnectivity(context.Context, *api.ProgramExternalConnectivityRequest) error {
	return nil
}

// RevokeExternalConnectivity has nothing to do, see
// ProgramExternalConnectivity.
func (d *Driver) RevokeExternalConnectivity(context.Context, *api.RevokeExternalConnectivityRequest) error {
	return nil
}
