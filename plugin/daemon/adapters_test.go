package daemon

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"weave/driver"
	"weave/ipam"
	"weave/mesh"
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

// slowLease answers late: as late as the allocator may, while peers are silent.
type slowLease struct{ oneLease }

func (s *slowLease) RequestAddress(ctx context.Context, r ipam.AddressRequest) (netip.Prefix, error) {
	select {
	case <-time.After(8 * time.Second):
		return s.oneLease.RequestAddress(ctx, r)
	case <-ctx.Done():
		return netip.Prefix{}, ctx.Err()
	}
}

// TestReclaimInTime holds that a call which asks twice ends within ten seconds.
func TestReclaimInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pool = "10.40.0.0/16"
		addr := netip.MustParseAddr("10.40.0.9")
		allocator := &slowLease{}
		p := newPools(allocator, oneNetwork{})
		allocator.held = &ipam.Lease{PoolID: pool, Pool: netip.MustParsePrefix(pool), Addr: addr, Kind: ipam.KindLease, Since: p.started.Add(-time.Minute)}
		start := time.Now()
		_, err := p.RequestAddress(t.Context(), dockerapi.RequestAddress{PoolID: pool, Address: addr})
		if took := time.Since(start); took > 10*time.Second || !errors.Is(err, context.DeadlineExceeded) || allocator.released != 1 {
			t.Errorf("%v after %s", err, took)
		}
	})
}

// airing is a mesh with what is announced; during is called in between.
type airing struct {
	up     map[string]bool
	list   []ipam.Clash
	during func(*airing)
}

func (a *airing) Announce(e mesh.Endpoint) error {
	a.during(a)
	a.up[e.ID] = true
	return nil
}
func (a *airing) Withdraw(endpointID string) { delete(a.up, endpointID) }
func (a *airing) Clashes() []ipam.Clash      { return a.list }

// TestAnnounceUnderAClash: an endpoint is not announced if it has an address of
// another host's container, even if that is found out at the same time.
func TestAnnounceUnderAClash(t *testing.T) {
	clash := ipam.Clash{Pool: netip.MustParsePrefix("10.40.0.0/16"), Addr: netip.MustParseAddr("10.40.0.9"), Kind: ipam.KindLease}
	found := func(a *airing) { a.list = []ipam.Clash{clash} }
	ended := func(a *airing) { a.list = nil }
	nothing := func(*airing) {}
	gateway := clash
	gateway.Kind = ipam.KindGateway
	for name, test := range map[string]struct {
		list   []ipam.Clash
		during func(*airing)
		addr   string
		want   bool
	}{
		"none":         {nil, nothing, "10.40.0.9/16", true},
		"known":        {[]ipam.Clash{clash}, nothing, "10.40.0.9/16", false},
		"known, ended": {[]ipam.Clash{clash}, ended, "10.40.0.9/16", false},
		"found":        {nil, found, "10.40.0.9/16", false},
		"other":        {[]ipam.Clash{clash}, nothing, "10.40.0.8/16", true},
		"other pool":   {[]ipam.Clash{clash}, nothing, "10.40.0.9/24", true},
		"gateway":      {[]ipam.Clash{gateway}, nothing, "10.40.0.9/16", true},
	} {
		a := &airing{up: map[string]bool{}, list: test.list, during: test.during}
		e := driver.Endpoint{ID: "e", Segment: "name:blue", Addrs: []netip.Prefix{netip.MustParsePrefix(test.addr)}}
		if err := announce(a, a, announced(e)); err != nil || a.up["e"] != test.want {
			t.Errorf("%s: announced %v, %v", name, a.up["e"], err)
		}
	}
}
