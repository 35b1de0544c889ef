// Package dockerapi speaks Docker's plugin protocol: it turns the HTTP requests
// that dockerd sends to /NetworkDriver.* and /IpamDriver.* into calls of two
// small interfaces, and their results into answers.
//
// It checks the form of what comes in and bounds its size and the time it may
// take. What a network or a pool is, it does not know: that is behind the
// interfaces. It keeps no state.
package dockerapi

import (
	"context"
	"net/netip"

	"github.com/docker/go-plugins-helpers/network"
)

// NetworkDriver does what dockerd asks of a network driver. IDs are checked: 1
// to 64 letters and digits. An unset gateway is the empty string. Each method
// may be called again with the same request and must then give the same answer;
// calls come in parallel. An error's text is shown to the person at the docker
// command.
type NetworkDriver interface {
	CreateNetwork(ctx context.Context, req *network.CreateNetworkRequest) error
	DeleteNetwork(ctx context.Context, req *network.DeleteNetworkRequest) error
	// CreateEndpoint gets a request whose Interface is never nil. The answer's
	// Interface holds only what the request left open.
	CreateEndpoint(ctx context.Context, req *network.CreateEndpointRequest) (*network.CreateEndpointResponse, error)
	DeleteEndpoint(ctx context.Context, req *network.DeleteEndpointRequest) error
	EndpointInfo(ctx context.Context, req *network.InfoRequest) (*network.InfoResponse, error)
	Join(ctx context.Context, req *network.JoinRequest) (*network.JoinResponse, error)
	Leave(ctx context.Context, req *network.LeaveRequest) error
}

// IpamDriver does what dockerd asks of an IPAM driver. As with NetworkDriver
// calls may be repeated and come in parallel, and error texts reach a person.
type IpamDriver interface {
	RequestPool(ctx context.Context, req RequestPool) (Pool, error)
	ReleasePool(ctx context.Context, poolID string) error
	// RequestAddress returns the address with the prefix length of its pool.
	RequestAddress(ctx context.Context, req RequestAddress) (netip.Prefix, error)
	ReleaseAddress(ctx context.Context, poolID string, addr netip.Addr) error
}

// Drivers is the pair that answers dockerd.
type Drivers struct {
	Network NetworkDriver
	IPAM    IpamDriver
}

// Gate tells when there is somebody to answer. dockerd must find the plugin
// listening before that.
type Gate interface {
	// Ready returns the drivers, waiting for them until ctx ends. An error that
	// is not that of ctx says why there will be none, and the way out.
	Ready(ctx context.Context) (Drivers, error)
}

// Address spaces that this plugin's pools belong to. dockerd passes them on to
// the network driver, which can tell pools of this plugin from Docker's own.
const (
	LocalAddressSpace  = "weavelocal"
	GlobalAddressSpace = "weaveglobal"
)

// RequestPool asks for a subnet to give addresses from.
type RequestPool struct {
	AddressSpace string
	Pool         netip.Prefix      // canonical; the zero Prefix asks for any free one
	SubPool      netip.Prefix      // canonical, inside Pool; zero if addresses may come from all of it
	Options      map[string]string // --ipam-opt
	V6           bool              // the family asked for; Pool is of that family
}

// Pool is the answer to RequestPool.
type Pool struct {
	ID     string
	Prefix netip.Prefix
}

// RequestAddress asks for an address of a pool.
type RequestAddress struct {
	PoolID  string
	Address netip.Addr        // the zero Addr asks for any free one
	Gateway bool              // it is for the network's gateway
	Options map[string]string // as dockerd sent them
}
