package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"weave/driver"
	"weave/ipam"
	"weave/plugin/engine"
)

// world is a host on which all agree: network n with endpoint e, which has
// 10.1.0.5; the gateway is 10.1.0.1.
type world struct {
	*reconciler
	engine *fakeEngine
	driver *fakeDriver
	leases *fakeLeases
}

const pool1 = "10.1.0.0/16"

func lease(a string, kind ipam.Kind) ipam.Lease {
	return ipam.Lease{PoolID: pool1, Pool: netip.MustParsePrefix(pool1), Addr: addr(a), Kind: kind, Since: time.Unix(1, 0)}
}

func endpointOf(network, id, a string) driver.EndpointStatus {
	return driver.EndpointStatus{ID: id, Network: network, Addrs: []netip.Prefix{netip.MustParsePrefix(a + "/16")}, Joined: true}
}

// listed is a network of pool1 as the Engine has it.
func listed(id, ipamDriver string, endpoints ...engine.Endpoint) engine.Network {
	pools := []engine.Pool{{Subnet: netip.MustParsePrefix(pool1)}}
	return engine.Network{ID: id, Name: "net", IPAM: engine.IPAM{Driver: ipamDriver, Pools: pools}, Endpoints: endpoints}
}

func newWorld() *world {
	subnets := []netip.Prefix{netip.MustParsePrefix(pool1)}
	w := &world{
		engine: &fakeEngine{networks: map[string]engine.Network{
			"n": listed("n", "weave", engine.Endpoint{
				ID: "e", ContainerName: "web", Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.5/16")},
			}),
		}},
		driver: &fakeDriver{
			networks:  []driver.NetworkStatus{{ID: "n", Subnets: subnets}},
			endpoints: []driver.EndpointStatus{endpointOf("n", "e", "10.1.0.5")},
			stuck:     map[string]bool{}, told: map[string]string{},
		},
		leases: &fakeLeases{
			leases: []ipam.Lease{lease("10.1.0.1", ipam.KindGateway), lease("10.1.0.5", ipam.KindLease)},
			refs:   map[string]int{pool1: 1},
		},
	}
	w.reconciler = &reconciler{engine: w.engine, driver: w.driver, allocator: w.leases, names: noNames(nameDisk{}), log: quiet()}
	return w
}

// has describes what is left, as "n/e 10.1.0.1 10.1.0.5 1": networks,
// endpoints, addresses, references of pools.
func (w *world) has() string {
	out := ""
	for _, n := range w.driver.networks {
		out += n.ID
	}
	out += "/"
	for _, e := range w.driver.endpoints {
		out += e.ID
	}
	for _, l := range w.leases.leases {
		out += " " + l.Addr.String()
	}
	for _, id := range slices.Sorted(maps.Keys(w.leases.refs)) {
		out += fmt.Sprint(" ", w.leases.refs[id])
	}
	return out
}

func (w *world) gone() { w.engine.networks["n"] = listed("n", "weave") }

// leak adds a lease that nobody has.
func (w *world) leak() { w.leases.leases = append(w.leases.leases, lease("10.1.0.9", ipam.KindLease)) }

// keepFree has network n keep addresses free.
func (w *world) keepFree(addrs ...string) {
	pool := &w.engine.networks["n"].IPAM.Pools[0]
	pool.Auxiliary = map[string]netip.Addr{}
	for _, a := range addrs {
		pool.Auxiliary["aux"+a] = addr(a)
	}
}

// other adds another driver's network of pool1.
func (w *world) other(ipamDriver string) { w.engine.networks["o"] = listed("o", ipamDriver) }

// TestCompare says what each round leaves of the world, round by round.
func TestCompare(t *testing.T) {
	const (
		all    = "n/e 10.1.0.1 10.1.0.5 1"
		twice  = "n/e 10.1.0.1 10.1.0.5 2"
		leaked = "n/e 10.1.0.1 10.1.0.5 10.1.0.9 1"
		both   = "n/e 10.1.0.1 10.1.0.5 10.1.0.9 2"
	)
	errEngine := errors.New("the engine is starting")
	fail := func(w *world) { w.engine.err = errEngine }
	hide := func(w *world) { w.engine.noList = errEngine }
	heal := func(w *world) { w.engine.err, w.engine.noList = nil, nil }
	request := func(w *world) { w.leases.refs[pool1]++ }
	same := func(*world) {}
	type step struct {
		change func(*world)
		want   string
	}
	for name, steps := range map[string][]step{
		"all is well": {{same, all}, {same, all}, {same, all}},
		"endpoint gone": {
			{(*world).gone, all},
			{same, "n/ 10.1.0.1 1"},
		},
		"kept free by a network": {
			{func(w *world) { w.leak(); w.keepFree("10.1.0.9") }, leaked},
			{same, leaked},
			{same, leaked},
			{func(w *world) { w.keepFree() }, leaked},
			{same, all},
		},
		"endpoint on its way": {
			{(*world).gone, all},
			{func(w *world) { w.engine.networks["n"] = newWorld().engine.networks["n"] }, all},
			{(*world).gone, all},
		},
		"engine fails": {{fail, all}, {same, all}, {same, all}},
		"engine fails between": { // what was missing before must be missing twice anew
			{(*world).gone, all},
			{fail, all},
			{heal, all},
			{same, "n/ 10.1.0.1 1"},
		},
		"network gone": {
			{func(w *world) { clear(w.engine.networks) }, all},
			{same, "/ 10.1.0.1"}, // the fake does not give up the gateway with the pool
		},
		"network gone, pool of another driver": {
			{func(w *world) { request(w); clear(w.engine.networks); w.other("weave") }, twice},
			{same, "/ 10.1.0.1 1"},
			{same, "/ 10.1.0.1 1"},
		},
		"answer to a request of a pool lost": {{request, twice}, {same, all}, {same, all}},
		"many answers lost": {
			{func(w *world) { w.leases.refs[pool1] = 4 }, all[:len(all)-1] + "4"},
			{request, twice}, // and one on its way
			{func(w *world) { w.other("weave") }, twice},
			{request, twice[:len(twice)-1] + "3"},
			{func(w *world) { w.leases.refs[pool1]-- }, twice},
		},
		"create just after answers lost": {
			{func(w *world) { w.leases.refs[pool1] = 4 }, all[:len(all)-1] + "4"},
			{same, all},
			{request, twice},
		},
		"answer lost, pool without a network": {
			{func(w *world) { w.leases.refs["10.2.0.0/16"] = 1 }, all + " 1"},
			{same, all},
		},
		"answer lost, with another range": {
			{func(w *world) { w.leases.refs[pool1+",10.1.4.0/24"] = 1 }, all + " 1"},
			{same, all},
		},
		"answer lost, engine fails between": {
			{request, twice},
			{hide, twice},
			{heal, twice},
			{same, all},
		},
		"create on its way": {
			{request, twice},
			{func(w *world) { w.other("weavenet:latest") }, twice},
			{same, twice},
		},
		"create on its way, again and again": {
			{request, twice},
			{func(w *world) { w.leases.refs[pool1]-- }, all},
			{request, twice},
			{func(w *world) { w.other("weave") }, twice},
		},
		"pool of a network that is stuck": {
			{func(w *world) {
				request(w)
				w.driver.networks = append(w.driver.networks, driver.NetworkStatus{ID: "m", Subnets: w.driver.networks[0].Subnets})
			}, "nm/e 10.1.0.1 10.1.0.5 2"},
			{func(w *world) { w.driver.stuck["m"] = true }, "nm/e 10.1.0.1 10.1.0.5 2"},
			{func(w *world) { clear(w.driver.stuck) }, all},
		},
		"network with docker's own addresses": {
			{func(w *world) { request(w); w.other("default") }, twice},
			{same, all},
		},
		"requests of one pool by two IDs": { // too few of the one: who knows what the other is for
			{func(w *world) {
				w.leases.refs[pool1+",10.1.4.0/24"] = 1
				w.other("weave")
			}, all + " 1"},
			{same, all + " 1"},
		},
		"too few requests": {
			{func(w *world) { w.other("weave") }, all},
			{same, all},
			{same, all},
		},
		"what is stuck stays, with its lease": {
			{func(w *world) { w.driver.stuck["e"] = true; w.gone() }, all},
			{same, all},
			{func(w *world) { clear(w.driver.stuck) }, "n/ 10.1.0.1 1"},
		},
		"stuck network": {
			{func(w *world) { w.driver.stuck["n"] = true; clear(w.engine.networks) }, all},
			{same, "n/ 10.1.0.1 1"},
			{func(w *world) { clear(w.driver.stuck) }, "/ 10.1.0.1"},
		},
		"address of another network with the subnet": {
			{func(w *world) {
				w.driver.networks = append(w.driver.networks, driver.NetworkStatus{ID: "m", Subnets: w.driver.networks[0].Subnets})
				w.driver.endpoints = append(w.driver.endpoints, endpointOf("m", "f", "10.1.0.5"))
				w.engine.networks["m"] = listed("m", "weave", engine.Endpoint{ID: "f"})
				w.gone()
			}, "nm/ef 10.1.0.1 10.1.0.5 1"},
			{same, "nm/f 10.1.0.1 10.1.0.5 1"},
		},
		"lease without an endpoint": {{(*world).leak, leaked}, {same, all}},
		"lease without an endpoint, answer lost": {
			{func(w *world) { w.leak(); request(w) }, both},
			{same, all},
		},
		"lease of an endpoint that the engine has": {
			{func(w *world) { w.driver.endpoints = nil }, "n/ 10.1.0.1 10.1.0.5 1"},
			{same, "n/ 10.1.0.1 10.1.0.5 1"},
		},
		"lease taken anew": {
			{(*world).leak, leaked},
			{func(w *world) { w.leases.leases[2].Since = time.Unix(2, 0) }, leaked},
			{same, all},
		},
		"lease, engine fails": {
			{func(w *world) { fail(w); w.leak() }, leaked},
			{same, leaked},
			{heal, leaked},
			{same, all},
		},
		"no list": { // all that could be given back stays
			{func(w *world) { hide(w); w.leak(); request(w); w.gone() }, both},
			{same, both},
			{heal, both},
			{hide, both},
			{heal, both},
			{same, "n/ 10.1.0.1 1"},
		},
		"lease for another driver": {
			{func(w *world) { w.leak(); request(w); w.other("weave") }, both},
			{same, both},
			{same, both},
			{func(w *world) { delete(w.engine.networks, "o") }, both},
			{same, all},
		},
		"lease, network is stuck": {
			{func(w *world) { w.leak(); w.driver.stuck["n"] = true; clear(w.engine.networks) }, leaked},
			{same, "n/ 10.1.0.1 10.1.0.9 1"},
			{func(w *world) { clear(w.driver.stuck) }, "/ 10.1.0.1 10.1.0.9"},
			{same, "/ 10.1.0.1 10.1.0.9"},
			{same, "/ 10.1.0.1"},
		},
		"lease of a pool that nobody holds": {
			{func(w *world) {
				w.driver.networks, w.driver.endpoints, w.leases.refs = nil, nil, nil
				clear(w.engine.networks)
			}, "/ 10.1.0.1 10.1.0.5"},
			{same, "/ 10.1.0.1"},
		},
	} {
		w := newWorld()
		for i, s := range steps {
			s.change(w)
			w.compareAll(t.Context())
			if got := w.has(); got != s.want {
				t.Errorf("%s, round %d: %q is left, want %q", name, i+1, got, s.want)
			}
		}
	}
}

// TestWarnsOfPools holds that a network whose pool was not requested is named
// once, and again if it comes back.
func TestWarnsOfPools(t *testing.T) {
	w := newWorld()
	logger, logged := logtest.NewNullLogger()
	w.log = logrus.NewEntry(logger)
	refs := []int{0, 0, 0, 1, 0, 1, 0, 0}
	var warned []int
	for i, n := range refs {
		w.leases.refs[pool1] = n
		w.compareAll(t.Context())
		for _, e := range logged.AllEntries() {
			if e.Level == logrus.WarnLevel && e.Data["network"] == "n" && e.Data["pool"] == pool1 {
				warned = append(warned, i)
			}
		}
		logged.Reset()
	}
	if !slices.Equal(warned, []int{1, 7}) {
		t.Errorf("warned in rounds %v", warned)
	}
}

// TestPoolID holds that the allocator's IDs are told from the Engine's words.
func TestPoolID(t *testing.T) {
	a := newDiskLeaser(t, 0).allocator
	for _, p := range []engine.Pool{
		{Subnet: netip.MustParsePrefix("10.1.0.0/16")},
		{Subnet: netip.MustParsePrefix("10.1.0.0/16"), Range: netip.MustParsePrefix("10.1.4.0/24")},
		{Subnet: netip.MustParsePrefix("fd97:0::/64"), Range: netip.MustParsePrefix("fd97::/80")},
	} {
		got, err := a.RequestPool(t.Context(), ipam.PoolRequest{Pool: p.Subnet, SubPool: p.Range})
		if err != nil || got.ID != poolID(p) {
			t.Errorf("%v: allocator says %q, %v; want %q", p, got.ID, err, poolID(p))
		}
	}
}

// TestNamesAreKept: after a start of the plugin Docker may be silent for a while.
func TestNamesAreKept(t *testing.T) {
	disk := nameDisk{}
	before := noNames(disk)
	before.set("n", "net")
	before.set("m", "other")
	before.keep(map[string]bool{"n": true})
	after := noNames(disk)
	if after.network("n") != "net" || after.network("m") != "" {
		t.Errorf("after a start: %v", after.networks)
	}
	full := noNames(nil)
	if full.set("n", "net"); full.network("n") != "net" {
		t.Error("a full disk takes the name away")
	}
}

// TestNamesAtOnce: not only once a second is over.
func TestNamesAtOnce(t *testing.T) {
	w := newWorld()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // run ends before its first tick
	if err := w.run(ctx); err != nil || w.names.network("n") != "net" {
		t.Errorf("%v, network %q", err, w.names.network("n"))
	}
}

// TestNames holds that names are asked for until they are known, and not for
// ever.
func TestNames(t *testing.T) {
	w := newWorld()
	w.engine.err = errors.New("starting")
	for range 3 * nameTries {
		w.nameAll(t.Context())
	}
	if w.engine.asked != nameTries {
		t.Errorf("asked %d times", w.engine.asked)
	}
	w.engine.err = nil
	w.compareAll(t.Context())
	if w.names.network("n") != "net" || w.driver.told["e"] != "web" {
		t.Errorf("network %q, containers %v", w.names.network("n"), w.driver.told)
	}

	w = newWorld()
	w.driver.endpoints = append(w.driver.endpoints, endpointOf("n", "new", "10.1.0.6"))
	w.driver.endpoints[0].Joined = false
	w.nameAll(t.Context())
	if w.engine.asked != 1 || w.names.network("n") != "net" {
		t.Errorf("asked %d times, network %q", w.engine.asked, w.names.network("n"))
	}
	w.driver.networks[0].Name = "net"
	known := w.engine.networks["n"]
	known.Endpoints = append(known.Endpoints, engine.Endpoint{ID: "new", ContainerName: "late"}, engine.Endpoint{ID: "other"})
	w.engine.networks["n"] = known
	w.nameAll(t.Context())
	w.driver.endpoints[0].Joined = true // it has its name
	w.nameAll(t.Context())
	if w.engine.asked != 2 || w.driver.told["new"] != "late" || len(w.tries) != 0 {
		t.Errorf("asked %d times, told %v, tries %v", w.engine.asked, w.driver.told, w.tries)
	}
	if _, told := w.driver.told["other"]; told {
		t.Error("an empty name was told")
	}

	w.driver.networks, w.driver.endpoints = nil, nil
	w.compareAll(t.Context())
	if len(w.names.networks) != 0 {
		t.Errorf("names of networks that are gone: %v", w.names.networks)
	}
}

// TestReconcilerRuns holds that a leak is found in the second round of a run.
func TestReconcilerRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, began := newWorld(), time.Now()
		w.gone()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := w.run(ctx); err != nil {
			t.Error(err)
		}
		if took := w.driver.purged.Sub(began); took != firstRound+roundEvery {
			t.Errorf("the leak was found after %s", took)
		}
	})
}

// TestLeaked: only what was to be given back long ago counts, and nothing is
// changed by counting.
func TestLeaked(t *testing.T) {
	w := newWorld()
	count := func(want int) {
		t.Helper()
		if n, err := w.reconciler.leaked(context.Background()); n != want || err != nil {
			t.Errorf("%d leases are leaked, %v; want %d", n, err, want)
		}
	}
	old := func(addr string) {
		l := lease(addr, ipam.KindLease)
		l.Since = time.Now().Add(-time.Hour)
		w.leases.leases = append(w.leases.leases, l)
	}
	count(0)
	l := lease("10.1.0.8", ipam.KindLease)
	l.Since = time.Now()
	w.leases.leases = append(w.leases.leases, l)
	count(0)
	old("10.1.0.9")
	count(1)
	w.keepFree("10.1.0.9")
	count(0)
	w.keepFree()
	w.driver.exposed = []driver.ExposedStatus{{Exposure: driver.Exposure{Addr: netip.MustParsePrefix("10.1.0.9/16")}}}
	count(0)
	w.engine.noList = errors.New("the engine is starting")
	if _, err := w.reconciler.leaked(context.Background()); err == nil {
		t.Error("nobody was asked")
	}
}
