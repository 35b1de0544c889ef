package dockerapi

import (
	"context"

	"github.com/docker/go-plugins-helpers/ipam"
	"github.com/docker/go-plugins-helpers/network"
)

// route is one path: either a fixed answer, which needs neither a body nor the
// drivers, or a call.
type route struct {
	static any
	call   callFunc
}

type callFunc func(ctx context.Context, d Drivers, body []byte) (any, error)

type empty struct{}

// implements answers /Plugin.Activate.
type implements struct{ Implements []string }

// networkCapabilities is that of go-plugins-helpers and what it lacks.
type networkCapabilities struct {
	network.CapabilitiesResponse
	GwAllocChecker bool
}

// ipamCapabilities says that requests for pools and addresses need not be sent
// again when dockerd starts: the plugin keeps them.
type ipamCapabilities struct {
	RequiresMACAddress    bool
	RequiresRequestReplay bool
}

// gwAllocAnswer tells engines that ask (28 and later) to allocate no gateway
// that nobody named.
type gwAllocAnswer struct{ SkipIPv4, SkipIPv6 bool }

// routes is the whole protocol. AllocateNetwork and FreeNetwork are left out:
// dockerd sends them to drivers of global scope only.
func routes() map[string]route {
	return map[string]route{
		"/Plugin.Activate": {static: implements{[]string{"NetworkDriver", "IpamDriver"}}},

		"/NetworkDriver.GetCapabilities": {static: networkCapabilities{
			network.CapabilitiesResponse{Scope: network.LocalScope, ConnectivityScope: network.GlobalScope}, true,
		}},
		"/NetworkDriver.GwAllocCheck":                {static: gwAllocAnswer{SkipIPv4: true, SkipIPv6: true}},
		"/NetworkDriver.DiscoverNew":                 {static: empty{}},
		"/NetworkDriver.DiscoverDelete":              {static: empty{}},
		"/NetworkDriver.ProgramExternalConnectivity": {static: empty{}},
		"/NetworkDriver.RevokeExternalConnectivity":  {static: empty{}},

		"/NetworkDriver.CreateNetwork":    {call: ofNetwork(createNetwork)},
		"/NetworkDriver.DeleteNetwork":    {call: ofNetwork(silent(NetworkDriver.DeleteNetwork))},
		"/NetworkDriver.CreateEndpoint":   {call: ofEndpoint(createEndpoint)},
		"/NetworkDriver.DeleteEndpoint":   {call: ofEndpoint(silent(NetworkDriver.DeleteEndpoint))},
		"/NetworkDriver.EndpointOperInfo": {call: ofEndpoint(NetworkDriver.EndpointInfo)},
		"/NetworkDriver.Join":             {call: ofEndpoint(NetworkDriver.Join)},
		"/NetworkDriver.Leave":            {call: ofEndpoint(silent(NetworkDriver.Leave))},

		"/IpamDriver.GetCapabilities":         {static: ipamCapabilities{}},
		"/IpamDriver.GetDefaultAddressSpaces": {static: ipam.AddressSpacesResponse{LocalDefaultAddressSpace: LocalAddressSpace, GlobalDefaultAddressSpace: GlobalAddressSpace}},

		"/IpamDriver.RequestPool":    {call: requestPool},
		"/IpamDriver.ReleasePool":    {call: releasePool},
		"/IpamDriver.RequestAddress": {call: requestAddress},
		"/IpamDriver.ReleaseAddress": {call: releaseAddress},
	}
}
