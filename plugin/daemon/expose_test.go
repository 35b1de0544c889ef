package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"weave/driver"
	"weave/driver/host"
	"weave/ipam"
	"weave/plugin/control"
	"weave/plugin/engine"
)

// Expose keeps an address on a network unless it is told to fail.
func (f *fakeDriver) Expose(_ context.Context, networkID string, e driver.Exposure) error {
	if f.stuck[e.Addr.String()] {
		return errors.New("bridge is busy")
	}
	f.exposed = slices.DeleteFunc(f.exposed, func(x driver.ExposedStatus) bool { return x.Addr == e.Addr })
	f.exposed = append(f.exposed, driver.ExposedStatus{Exposure: e, Network: networkID, Announced: true})
	return nil
}

func (f *fakeDriver) Hide(addr netip.Prefix) (driver.Exposure, error) {
	if f.stuck["hide"] {
		return driver.Exposure{}, errors.New("bridge is busy")
	}
	f.exposed = slices.DeleteFunc(f.exposed, func(x driver.ExposedStatus) bool { return x.Addr == addr })
	return driver.Exposure{}, nil
}

const exposedNet = "net1"

var (
	exposedPool = netip.MustParsePrefix("10.40.0.0/16")
	exposedAddr = netip.MustParsePrefix("10.40.0.1/16")
)

// newExposing is on a real allocator that holds the pool.
func newExposing(t *testing.T) (*exposing, *fakeDriver, diskLeaser) {
	t.Helper()
	l := newDiskLeaser(t, 0)
	d := &fakeDriver{stuck: map[string]bool{}, networks: []driver.NetworkStatus{
		{ID: exposedNet, Name: "app", Segment: exposedPool.String(), Subnets: []netip.Prefix{exposedPool}},
		{ID: "net2", Name: "plain", Segment: "10.41.0.0/16", Subnets: []netip.Prefix{netip.MustParsePrefix("10.41.0.0/16")}},
		{ID: "net3", Name: "a", Segment: "10.42.0.0/16", Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}},
		{ID: "net4", Name: "b", Segment: "name:b", Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}},
	}}
	log, _ := test.NewNullLogger()
	nobody := func(string, netip.Addr) (driver.Holder, bool) { return driver.Holder{}, false }
	return &exposing{allocator: l.allocator, driver: d, holder: nobody, names: noNames(nameDisk{}), engine: &fakeEngine{}, log: logrus.NewEntry(log)}, d, l
}

func target(addr string) control.Target {
	if subnet, ok := strings.CutPrefix(addr, "net:"); ok {
		return control.Target{Subnet: netip.MustParsePrefix(subnet)}
	}
	p := netip.MustParsePrefix(addr)
	return control.Target{Subnet: p.Masked(), Address: p.Addr()}
}

func request(addrs ...string) (r control.ExposeRequest) {
	for _, a := range addrs {
		r.Targets = append(r.Targets, target(a))
	}
	return r
}

// leased lists the addresses that are leased.
func leased(l diskLeaser) (all []string) {
	for _, x := range l.allocator.Leases() {
		all = append(all, x.Addr.String())
	}
	return all
}

func TestExposeLeases(t *testing.T) {
	x, d, l := newExposing(t)
	ctx := t.Context()
	got, err := x.expose(ctx, request("10.40.0.1/16"))
	if err != nil || len(got) != 1 || got[0].Address != exposedAddr || got[0].Network != "app" || fmt.Sprint(leased(l)) != "[10.40.0.1]" {
		t.Fatalf("got %+v, %v; leased %v", got, err, leased(l))
	}
	// Docker's containers do not get it.
	p := newPools(l.allocator, d, &fakeEngine{})
	p.started = time.Now().Add(time.Hour) // the lease is from before this run
	ask := ipam.AddressRequest{PoolID: l.pool, Address: exposedAddr.Addr(), Kind: ipam.KindLease}
	if _, err := l.allocator.RequestAddress(ctx, ask); !errors.Is(err, ipam.ErrInUse) {
		t.Errorf("the address was leased twice: %v", err)
	}
	d.networks = d.networks[:1]
	if _, err := p.reclaim(ctx, ask, ipam.ErrInUse); !errors.Is(err, ipam.ErrInUse) {
		t.Errorf("a container got the host's address: %v", err)
	}
	// Again, by the address or any of the subnet: it is the same one, for more.
	again := request("net:10.40.0.0/16")
	again.Masquerade = true
	again.Exports = []control.Forward{{Protocol: "tcp", Port: 80, To: netip.MustParseAddrPort("10.40.0.5:8080")}}
	for range 2 {
		if got, err = x.expose(ctx, again); err != nil || got[0].Address != exposedAddr || !got[0].Masquerade || len(got[0].Exports) != 1 {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	if got, err = x.hide(ctx, []control.Target{target("10.40.0.1/16")}); err != nil || len(got) != 1 || len(leased(l)) > 0 || len(d.exposed) > 0 {
		t.Errorf("got %+v, %v; leased %v, exposed %v", got, err, leased(l), d.exposed)
	}
	if got, err = x.expose(ctx, request("net:10.40.0.0/16")); err != nil || len(leased(l)) != 1 || got[0].Address.Masked() != exposedPool {
		t.Errorf("from the pool: %+v, %v; leased %v", got, err, leased(l))
	}
	if _, err = x.hide(ctx, nil); err != nil || len(leased(l)) > 0 {
		t.Errorf("hide all: %v; leased %v", err, leased(l))
	}
}

func TestExposeIsAllOrNothing(t *testing.T) {
	x, d, l := newExposing(t)
	if _, err := x.expose(t.Context(), request("10.40.0.1/16")); err != nil {
		t.Fatal(err)
	}
	d.stuck["10.40.0.3/16"] = true
	r := request("10.40.0.1/16", "10.40.0.2/16", "10.40.0.3/16")
	r.Masquerade = true
	if _, err := x.expose(t.Context(), r); err == nil {
		t.Error("no error")
	}
	if len(d.exposed) != 1 || d.exposed[0].Masquerade || fmt.Sprint(leased(l)) != "[10.40.0.1]" {
		t.Errorf("exposed %+v, leased %v", d.exposed, leased(l))
	}
	d.stuck["hide"] = true // what cannot be hidden keeps its lease
	if _, err := x.hide(t.Context(), nil); err == nil || len(leased(l)) != 1 {
		t.Errorf("%v; leased %v", err, leased(l))
	}
}

func TestExposeRefuses(t *testing.T) {
	x, d, l := newExposing(t)
	if _, err := l.allocator.RequestAddress(t.Context(), ipam.AddressRequest{PoolID: l.pool, Address: netip.MustParseAddr("10.40.0.5"), Kind: ipam.KindLease}); err != nil {
		t.Fatal(err)
	}
	d.endpoints = []driver.EndpointStatus{{ID: "e1", Network: exposedNet, Container: "web", Addrs: []netip.Prefix{netip.MustParsePrefix("10.40.0.5/16")}}}
	for addr, want := range map[string]string{
		"10.50.0.1/16":     "docker network create -d weave",
		"10.41.0.1/16":     "network plain has its addresses from elsewhere",
		"10.42.0.1/16":     "networks a, b all have subnet",
		"10.40.0.0/16":     "network or broadcast address",
		"10.40.255.255/16": "network or broadcast address",
		"10.40.0.5/16":     `it is in use by container "web" on this host`,
	} {
		if _, err := x.expose(t.Context(), request(addr)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", addr, err, want)
		}
	}
	place := place{Target: target("10.40.0.7/16"), network: d.networks[0]}
	for want, h := range map[string]driver.Holder{
		`by host "h2" itself`:         {Host: "h2", OfHost: true},
		`by container "db" on host "`: {Host: "h2", Container: "db"},
		"in use already":              {Host: "h2"},
	} {
		x.holder = func(string, netip.Addr) (driver.Holder, bool) { return h, true }
		if err := x.nameHolder(fmt.Errorf("in use already: %w", ipam.ErrInUse), place); !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if _, err := x.hide(t.Context(), []control.Target{target("10.40.0.9/16")}); err == nil || !strings.Contains(err.Error(), "nothing is exposed") {
		t.Errorf("hide: %v", err)
	}
	if len(d.exposed) > 0 || len(leased(l)) != 1 {
		t.Errorf("exposed %v, leased %v", d.exposed, leased(l))
	}
}

// TestExposeLearnsName: of a network that was made for it a moment ago.
func TestExposeLearnsName(t *testing.T) {
	x, _, _ := newExposing(t)
	x.engine = &fakeEngine{networks: map[string]engine.Network{exposedNet: {ID: exposedNet, Name: "app"}}}
	if _, err := x.expose(t.Context(), request("10.40.0.1/16")); err != nil || x.names.network(exposedNet) != "app" {
		t.Errorf("%v, the name is %q", err, x.names.network(exposedNet))
	}
}

// TestExposedNetworkIsRemoved: the lease goes with it, and people hear of it.
func TestExposedNetworkIsRemoved(t *testing.T) {
	x, d, l := newExposing(t)
	if _, err := x.expose(t.Context(), request("10.40.0.1/16")); err != nil {
		t.Fatal(err)
	}
	x.names.set(exposedNet, "app")
	gone := d.exposed[0].Exposure
	d.exposed = nil
	x.lose(exposedNet, gone)
	if len(leased(l)) > 0 {
		t.Errorf("leased: %v", leased(l))
	}
	told := func() string {
		return fmt.Sprint(findings{status: &control.Status{}, lost: x.lost()}.problems())
	}
	if got := told(); !strings.Contains(got, "10.40.0.1/16: network app was removed") || !strings.Contains(got, "weave expose 10.40.0.1/16") {
		t.Errorf("told: %s", got)
	}
	if _, err := x.hide(t.Context(), []control.Target{target("10.40.0.1/16")}); err != nil || strings.Contains(told(), "removed") {
		t.Errorf("%v, told: %s", err, told())
	}
	x.lose(exposedNet, gone)
	if _, err := x.expose(t.Context(), request("10.40.0.1/16")); err != nil || strings.Contains(told(), "removed") {
		t.Errorf("%v, told: %s", err, told())
	}
}

// TestExposedLeaseIsKept: Docker does not know who has the lease of an exposed
// address.
func TestExposedLeaseIsKept(t *testing.T) {
	lease := ipam.Lease{Addr: exposedAddr.Addr(), Pool: exposedPool, PoolID: exposedPool.String(), Kind: ipam.KindLease}
	leases := &fakeLeases{leases: []ipam.Lease{lease}, refs: map[string]int{exposedPool.String(): 1}}
	d := &fakeDriver{
		networks: []driver.NetworkStatus{{ID: exposedNet, Subnets: []netip.Prefix{exposedPool}}},
		exposed:  []driver.ExposedStatus{{Exposure: driver.Exposure{Addr: exposedAddr}, Network: exposedNet}},
	}
	e := &fakeEngine{networks: map[string]engine.Network{exposedNet: {
		ID: exposedNet, Name: "app", IPAM: engine.IPAM{Driver: ipamDriver, Pools: []engine.Pool{{Subnet: exposedPool}}},
	}}}
	log, _ := test.NewNullLogger()
	r := &reconciler{engine: e, driver: d, allocator: leases, names: noNames(nameDisk{}), log: logrus.NewEntry(log)}
	for range 3 {
		r.compareAll(t.Context())
	}
	if len(leases.leases) != 1 {
		t.Fatal("the lease was given back")
	}
	d.exposed = nil
	for range 2 {
		r.compareAll(t.Context())
	}
	if len(leases.leases) != 0 {
		t.Error("the lease of an address that is exposed no more was kept")
	}
}

// The route that follows from an exposed address is no reason to refuse its
// subnet.
func TestOwnRoutesAreInNobodysWay(t *testing.T) {
	routes := []host.Route{
		{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Link: "eth0"}, {Prefix: exposedPool, Link: "wv0a1b2c3d"},
		{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Link: "eth0"}, {Prefix: netip.MustParsePrefix("10.9.0.0/16")},
	}
	if got := fmt.Sprint(inTheWay(routes)); got != "[192.0.2.0/24 10.9.0.0/16]" {
		t.Error(got)
	}
}

// TestExposedClash: an address that a container elsewhere has, too, since two
// clusters met, is no container's here, and restarting one would not help.
func TestExposedClash(t *testing.T) {
	s := ipam.PoolStatus{Pool: exposedPool, Conflicts: []ipam.Clash{{Pool: exposedPool, Addr: exposedAddr.Addr(), Kind: ipam.KindLease, Host: "h2"}}}
	got := poolStatus(s, "self", map[netip.Prefix]string{exposedAddr: thisHost}).Conflicts
	if len(got) != 1 || !strings.Contains(got[0], "10.40.0.1 of this host itself") || !strings.Contains(got[0], "until it is hidden") {
		t.Errorf("told: %q", got)
	}
}
