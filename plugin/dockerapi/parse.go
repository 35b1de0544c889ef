package dockerapi

import (
	"net/http"
	"net/netip"

	"github.com/docker/go-plugins-helpers/ipam"
)

const (
	// gatewayLabel names the gateway in the answer to RequestPool, and marks a
	// RequestAddress for one under addressTypeOption.
	gatewayLabel      = "com.docker.network.gateway"
	addressTypeOption = "RequestAddressType"

	maxPoolID = 256
)

// noGateway is the gateway of a network that has none. dockerd allocates one for
// each network, on each host, unless the pool comes with a gateway; it accepts
// the unspecified address, hands it to CreateNetwork, and releases it with the
// network. All three are handled here, so that no driver ever sees it.
func noGateway(family netip.Addr) netip.Prefix {
	if family.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func isNoGateway(s string) bool {
	p, err := netip.ParsePrefix(s)
	return err == nil && p.Addr().IsUnspecified()
}

func checkPoolID(id string) error {
	if id == "" || len(id) > maxPoolID {
		return fail(http.StatusBadRequest, "malformed request: pool ID of %d characters", len(id))
	}
	return nil
}

func parsePool(raw ipam.RequestPoolRequest) (RequestPool, error) {
	req := RequestPool{AddressSpace: raw.AddressSpace, Options: raw.Options, V6: raw.V6}
	var err error
	if req.Pool, err = parseSubnet("subnet", raw.Pool, raw.V6); err != nil {
		return RequestPool{}, err
	}
	if req.SubPool, err = parseSubnet("--ip-range", raw.SubPool, raw.V6); err != nil {
		return RequestPool{}, err
	}
	switch {
	case !req.SubPool.IsValid():
		return req, nil
	case !req.Pool.IsValid():
		return RequestPool{}, fail(http.StatusBadRequest, "--ip-range %s: name the --subnet that it is part of", req.SubPool)
	case req.SubPool.Bits() < req.Pool.Bits() || !req.Pool.Contains(req.SubPool.Addr()):
		return RequestPool{}, fail(http.StatusBadRequest, "--ip-range %s is not part of subnet %s", req.SubPool, req.Pool)
	}
	return req, nil
}

// parseSubnet returns the zero Prefix for an empty s.
func parseSubnet(what, s string, v6 bool) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fail(http.StatusBadRequest, "%s %q is not of the form 10.32.0.0/16", what, s)
	case p.Addr().Is4In6() || p.Addr().Is6() != v6:
		return netip.Prefix{}, fail(http.StatusBadRequest, "%s %s is not of the address family of the network's pool", what, s)
	case p.Addr().IsUnspecified():
		return netip.Prefix{}, fail(http.StatusBadRequest, "%s %s names no subnet; name one, or leave it out to get a free one", what, s)
	case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast():
		return netip.Prefix{}, fail(http.StatusBadRequest, "%s %s is loopback, multicast or link-local: no addresses for containers; use one like 10.32.0.0/16", what, s)
	case p != p.Masked():
		return netip.Prefix{}, fail(http.StatusBadRequest, "%s %s has host bits set; did you mean %s?", what, s, p.Masked())
	}
	return p, nil
}

// parseAddress returns the zero Addr for an empty s.
func parseAddress(poolID, s string) (netip.Addr, error) {
	if err := checkPoolID(poolID); err != nil {
		return netip.Addr{}, err
	}
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fail(http.StatusBadRequest, "%q is not an IP address", s)
	}
	return a.Unmap(), nil
}
