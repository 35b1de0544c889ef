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
	"weave/plugin/engine"
)

// oneLease is an allocator that holds a single lease, or none.
type oneLease struct {
	leaser
	held     *ipam.Lease
	requests int // of the pool
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

func (o *oneLease) Status() []ipam.PoolStatus {
	handles := []ipam.HandleStatus{{ID: "10.40.0.0/16", Refs: o.requests}}
	return []ipam.PoolStatus{{Pool: netip.MustParsePrefix("10.40.0.0/16"), Handles: handles}}
}

// poolUser is a network as the Engine knows it.
func poolUser(id string) engine.Network {
	pools := []engine.Pool{{Subnet: netip.MustParsePrefix("10.40.0.0/16")}}
	return engine.Network{ID: id, IPAM: engine.IPAM{Driver: "weave", Pools: pools}}
}

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
		requests  int // of the pool; one is of our network's
		want      bool
	}{
		{"left over", -time.Minute, nil, 1, true},
		{"an endpoint has it", -time.Minute, []driver.EndpointStatus{endpoint}, 1, false},
		{"its endpoint is being made", time.Minute, nil, 1, false},
		{"an endpoint of another driver may have it", -time.Minute, nil, 2, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			allocator := &oneLease{requests: test.requests}
			network := driver.NetworkStatus{ID: "n", Subnets: []netip.Prefix{netip.MustParsePrefix(pool)}}
			both := map[string]engine.Network{"n": poolUser("n"), "o": poolUser("o")}
			p := newPools(allocator, &fakeDriver{networks: []driver.NetworkStatus{network}, endpoints: test.endpoints}, &fakeEngine{networks: both})
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

// TestKindOfAddress: what a network keeps free is reserved, on a host that has
// another network of that subnet already as on the first; what a container asks
// for is leased, whatever the driver of its network is.
func TestKindOfAddress(t *testing.T) {
	subnet := netip.MustParsePrefix("10.40.0.0/16")
	disk := newDiskLeaser(t, 0) // has requested the pool once: a network is being created
	d, e := &fakeDriver{}, &fakeEngine{networks: map[string]engine.Network{}}
	p := newPools(disk.allocator, d, e)
	ask := func(a string, want ipam.Kind, wantErr error) {
		t.Helper()
		_, err := p.RequestAddress(t.Context(), dockerapi.RequestAddress{PoolID: disk.pool, Address: addr(a)})
		if !errors.Is(err, wantErr) {
			t.Errorf("%s: error %v, want %v", a, err, wantErr)
		}
		for _, l := range disk.allocator.Leases() {
			if l.Addr == addr(a) && l.Kind != want {
				t.Errorf("%s is of kind %s, want %s", a, l.Kind, want)
			}
		}
	}
	exists := func(id string, ours bool) {
		e.networks[id] = poolUser(id)
		if ours {
			d.networks = append(d.networks, driver.NetworkStatus{ID: id, Subnets: []netip.Prefix{subnet}})
		}
	}
	create := func() {
		t.Helper()
		if _, err := p.RequestPool(t.Context(), dockerapi.RequestPool{Pool: subnet}); err != nil {
			t.Fatal(err)
		}
	}
	ask("10.40.0.9", ipam.KindReserved, nil)
	exists("first", true)
	e.noList = errors.New("the engine is starting") // nor is it asked
	ask("10.40.0.10", ipam.KindLease, nil)
	ask("10.40.0.10", ipam.KindLease, ipam.ErrInUse)

	create() // a second one of our own, on a segment with a name
	e.noList = nil
	ask("10.40.0.9", ipam.KindReserved, nil)
	ask("10.40.0.11", ipam.KindReserved, nil)
	ask("10.40.0.10", ipam.KindLease, ipam.ErrInUse)
	exists("second", true)

	create() // and one of another driver
	ask("10.40.0.12", ipam.KindReserved, nil)
	exists("other", false)
	ask("10.40.0.13", ipam.KindLease, nil)
	ask("10.40.0.13", ipam.KindLease, ipam.ErrInUse)
	ask("10.40.0.12", ipam.KindReserved, ipam.ErrInUse)
	e.noList = errors.New("the engine is starting")
	ask("10.40.0.14", ipam.KindLease, nil)
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
		allocator := &slowLease{oneLease{requests: 1}}
		network := driver.NetworkStatus{ID: "n", Subnets: []netip.Prefix{netip.MustParsePrefix(pool)}}
		p := newPools(allocator, &fakeDriver{networks: []driver.NetworkStatus{network}}, &fakeEngine{})
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
