package daemon

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"weave/driver"
	"weave/ipam"
	"weave/plugin/dockerapi"
)

// oneLease is an allocator that holds a single lease, or none.
type oneLease struct {
	leaser
	held     *ipam.Lease
	released int
}

func (o *oneLease) Leases() []ipam.Lease {
	if o.held == nil {
		return nil
	}
	return []ipam.Lease{*o.held}
}

func (o *oneLease) RequestAddress(_ context.Context, r ipam.AddressRequest) (netip.Prefix, error) {
	if o.held != nil && o.held.Addr == r.Address {
		return netip.Prefix{}, ipam.ErrInUse
	}
	pool := netip.MustParsePrefix(r.PoolID)
	o.held = &ipam.Lease{PoolID: r.PoolID, Pool: pool, Addr: r.Address, Kind: r.Kind, Since: time.Now()}
	return netip.PrefixFrom(r.Address, pool.Bits()), nil
}

func (o *oneLease) ReleaseAddress(context.Context, string, netip.Addr) error {
	o.held = nil
	o.released++
	return nil
}

// oneNetwork is a driver with one network and perhaps an endpoint.
type oneNetwork struct{ endpoints []driver.EndpointStatus }

func (oneNetwork) HasSubnet(netip.Prefix) bool          { return true }
func (o oneNetwork) Endpoints() []driver.EndpointStatus { return o.endpoints }

// TestReclaim: dockerd was killed after it had leased an address for a
// container and before it made the endpoint. Its next run asks for the address
// again, and must get it; but never while somebody may have it.
func TestReclaim(t *testing.T) {
	const pool = "10.40.0.0/16"
	addr := netip.MustParseAddr("10.40.0.9")
	endpoint := driver.EndpointStatus{ID: "e", Addrs: []netip.Prefix{netip.PrefixFrom(addr, 16)}}
	tests := []struct {
		name      string
		since     time.Duration // of the lease, from the start of the run
		endpoints []driver.EndpointStatus
		want      bool
	}{
		{"left over", -time.Minute, nil, true},
		{"an endpoint has it", -time.Minute, []driver.EndpointStatus{endpoint}, false},
		{"its endpoint is being made", time.Minute, nil, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			allocator := &oneLease{}
			p := newPools(allocator, oneNetwork{test.endpoints})
			allocator.held = &ipam.Lease{
				PoolID: pool, Pool: netip.MustParsePrefix(pool), Addr: addr,
				Kind: ipam.KindLease, Since: p.started.Add(test.since),
			}
			req := dockerapi.RequestAddress{PoolID: pool, Address: addr}
			_, err := p.RequestAddress(t.Context(), req)
			if got := err == nil; got != test.want {
				t.Errorf("error %v, want success: %v", err, test.want)
			}
			if !test.want && (!errors.Is(err, ipam.ErrInUse) || allocator.released != 0) {
				t.Errorf("error %v, %d leases released", err, allocator.released)
			}
			// A second container must not get it as well.
			if _, err := p.RequestAddress(t.Context(), req); !errors.Is(err, ipam.ErrInUse) {
				t.Errorf("second request: %v", err)
			}
		})
	}
}
