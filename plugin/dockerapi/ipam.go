package dockerapi

import (
	"context"
	"net/http"
	"net/netip"

	"github.com/docker/go-plugins-helpers/ipam"
)

func requestPool(ctx context.Context, d Drivers, body []byte) (any, error) {
	var raw ipam.RequestPoolRequest
	if err := decode(body, &raw); err != nil {
		return nil, err
	}
	req, err := parsePool(raw)
	if err != nil {
		return nil, err
	}
	pool, err := d.IPAM.RequestPool(ctx, req)
	if err != nil {
		return nil, err
	}
	return ipam.RequestPoolResponse{
		PoolID: pool.ID,
		Pool:   pool.Prefix.String(),
		Data:   map[string]string{gatewayLabel: noGateway(pool.Prefix.Addr()).String()},
	}, nil
}

func releasePool(ctx context.Context, d Drivers, body []byte) (any, error) {
	var req ipam.ReleasePoolRequest
	if err := decode(body, &req); err != nil {
		return nil, err
	}
	if err := checkPoolID(req.PoolID); err != nil {
		return nil, err
	}
	return empty{}, d.IPAM.ReleasePool(ctx, req.PoolID)
}

func requestAddress(ctx context.Context, d Drivers, body []byte) (any, error) {
	var raw ipam.RequestAddressRequest
	if err := decode(body, &raw); err != nil {
		return nil, err
	}
	addr, err := parseAddress(raw.PoolID, raw.Address)
	if err != nil {
		return nil, err
	}
	req := RequestAddress{
		PoolID:  raw.PoolID,
		Address: addr,
		Gateway: raw.Options[addressTypeOption] == gatewayLabel,
		Options: raw.Options,
	}
	if addr.IsValid() && addr.IsUnspecified() {
		if !req.Gateway {
			return nil, fail(http.StatusBadRequest, "address %s cannot be given to a container", addr)
		}
		return ipam.RequestAddressResponse{Address: noGateway(addr).String()}, nil
	}
	got, err := d.IPAM.RequestAddress(ctx, req)
	if err != nil {
		return nil, err
	}
	return ipam.RequestAddressResponse{Address: got.String()}, nil
}

func releaseAddress(ctx context.Context, d Drivers, body []byte) (any, error) {
	var req ipam.ReleaseAddressRequest
	if err := decode(body, &req); err != nil {
		return nil, err
	}
	addr, err := parseAddress(req.PoolID, req.Address)
	switch {
	case err != nil:
		return nil, err
	case addr == netip.Addr{}:
		return nil, fail(http.StatusBadRequest, "malformed request: no address to release")
	case addr.IsUnspecified(): // the gateway that there never was
		return empty{}, nil
	}
	return empty{}, d.IPAM.ReleaseAddress(ctx, req.PoolID, addr)
}
