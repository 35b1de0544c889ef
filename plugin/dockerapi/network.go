package dockerapi

import (
	"context"
	"net/http"

	"github.com/docker/go-plugins-helpers/network"
)

// ofNetwork makes a route of a driver's method whose request names a network.
func ofNetwork[Req, Answer any](do func(NetworkDriver, context.Context, *Req) (Answer, error)) callFunc {
	return ofDriver(do, false)
}

// ofEndpoint is ofNetwork for a request that names an endpoint as well.
func ofEndpoint[Req, Answer any](do func(NetworkDriver, context.Context, *Req) (Answer, error)) callFunc {
	return ofDriver(do, true)
}

func ofDriver[Req, Answer any](do func(NetworkDriver, context.Context, *Req) (Answer, error), endpoint bool) callFunc {
	return func(ctx context.Context, d Drivers, body []byte) (any, error) {
		var req Req
		if err := decode(body, &req); err != nil {
			return nil, err
		}
		var ids struct{ NetworkID, EndpointID string }
		if err := decode(body, &ids); err != nil {
			return nil, err
		}
		if err := checkID("network", ids.NetworkID); err != nil {
			return nil, err
		}
		if endpoint {
			if err := checkID("endpoint", ids.EndpointID); err != nil {
				return nil, err
			}
		}
		return do(d.Network, ctx, &req)
	}
}

// silent gives a method without an answer the empty one.
func silent[Req any](do func(NetworkDriver, context.Context, *Req) error) func(NetworkDriver, context.Context, *Req) (empty, error) {
	return func(d NetworkDriver, ctx context.Context, req *Req) (empty, error) {
		return empty{}, do(d, ctx, req)
	}
}

// checkID refuses IDs that dockerd never makes, before they become part of a
// link's name or of a path.
func checkID(what, id string) error {
	if len(id) == 0 || len(id) > 64 {
		return fail(http.StatusBadRequest, "malformed request: %s ID of %d characters", what, len(id))
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return fail(http.StatusBadRequest, "malformed request: %s ID %q", what, id)
		}
	}
	return nil
}

func createNetwork(d NetworkDriver, ctx context.Context, req *network.CreateNetworkRequest) (empty, error) {
	for _, list := range [][]*network.IPAMData{req.IPv4Data, req.IPv6Data} {
		for _, data := range list {
			if data == nil {
				return empty{}, fail(http.StatusBadRequest, "malformed request: a pool is null")
			}
			if isNoGateway(data.Gateway) {
				data.Gateway = ""
			}
		}
	}
	return empty{}, d.CreateNetwork(ctx, req)
}

func createEndpoint(d NetworkDriver, ctx context.Context, req *network.CreateEndpointRequest) (*network.CreateEndpointResponse, error) {
	if req.Interface == nil {
		req.Interface = &network.EndpointInterface{}
	}
	return d.CreateEndpoint(ctx, req)
}
