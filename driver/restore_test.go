package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	api "github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"
	"pgregory.net/rapid"
)

// twoEndpoints makes a network with one endpoint that is joined and one that
// is not.
func twoEndpoints(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	r.mustCreateEndpoint(t, "n1", "e1", "10.32.0.5/16")
	r.mustCreateEndpoint(t, "n1", "e2", "10.32.0.6/16")
	r.mustJoin(t, "n1", "e1", sandbox1)
	if err := r.SetContainerName("e1", "web"); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRestoreAfterPluginRestart(t *testing.T) {
	r := twoEndpoints(t)
	r.restart(t)
	if n := r.Networks()[0]; n.Up {
		t.Error("up before it was restored")
	}
	for range 2 {
		if err := r.Restore(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.Networks()[0]; !n.Up || r.kernel.link(n.Port).master != n.Bridge {
		t.Errorf("network: %+v", n)
	}
	if e, ok := r.fabric.endpoint("e1"); !ok || e.Container != "web" {
		t.Errorf("e1: %+v", e)
	}
	if _, ok := r.fabric.endpoint("e2"); ok {
		t.Error("e2 was announced and is in no sandbox")
	}
	if n := r.calls["Announce"]; n != 3 { // by Join, with its name, by Restore
		t.Errorf("announced %d times", n)
	}
}

func TestRestoreAfterReboot(t *testing.T) {
	r := twoEndpoints(t)
	r.fabric.mtu = 1300 // and the underlay's MTU is another
	r.kernel.reboot()
	r.restart(t)
	if err := r.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := r.Networks()[0]; !r.kernel.link(n.Bridge).bridge || n.MTU != 1300 {
		t.Errorf("network: %+v", n)
	}
	if _, ok := r.fabric.endpoint("e1"); ok {
		t.Error("announced without a link")
	}
	if all := r.Endpoints(); len(all) != 2 {
		t.Fatalf("endpoints: %+v", all)
	}
	// What Docker may do now: join again, or delete.
	r.mustJoin(t, "n1", "e1", "/var/run/docker/netns/2")
	if _, ok := r.fabric.endpoint("e1"); !ok {
		t.Error("e1 not announced")
	}
	if err := r.DeleteEndpoint(t.Context(), &api.DeleteEndpointRequest{NetworkID: "n1", EndpointID: "e2"}); err != nil {
		t.Fatal(err)
	}
	r.restart(t)
	if n := r.Networks()[0]; n.MTU != 1300 {
		t.Errorf("the MTU was not stored: %+v", n)
	}
}

func TestRestoreCanBeRepeated(t *testing.T) {
	for _, step := range []string{"JoinSegment", "EnsureBridge", "EnsureFirewall", "AttachPort", "HasLink", "Announce"} {
		t.Run(step, func(t *testing.T) {
			r := twoEndpoints(t)
			r.restart(t)
			r.set(step)
			err := r.Restore(t.Context())
			if ofEndpoint := step == "HasLink" || step == "Announce"; (err == nil) != ofEndpoint {
				t.Errorf("error: %v", err)
			}
			r.set()
			if err := r.Restore(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, ok := r.fabric.endpoint("e1"); !ok || r.kernel.link(r.Endpoints()[0].Link).master == "" {
				t.Error("e1 was not restored")
			}
		})
	}
}

// Docker does not wait for Restore.
func TestCallsBeforeRestore(t *testing.T) {
	r := twoEndpoints(t)
	r.kernel.reboot()
	r.restart(t)
	if err := r.Leave(t.Context(), &api.LeaveRequest{NetworkID: "n1", EndpointID: "e1"}); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteEndpoint(t.Context(), &api.DeleteEndpointRequest{NetworkID: "n1", EndpointID: "e1"}); err != nil {
		t.Fatal(err)
	}
	r.mustCreateEndpoint(t, "n1", "e3", "10.32.0.5/16")
	r.mustJoin(t, "n1", "e3", sandbox1)
	if err := r.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteNetwork(t.Context(), &api.DeleteNetworkRequest{NetworkID: "n1"}); err != nil {
		t.Fatal(err)
	}
	r.mustBeEmpty(t)
}

func TestRestoreCancelled(t *testing.T) {
	r := twoEndpoints(t)
	r.restart(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Restore(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
}

func TestCorruptState(t *testing.T) {
	const (
		network  = `{"id":"n1","segment":"10.32.0.0/16","subnets":["10.32.0.0/16"],"bridge":"wv01234567","mtu":1390}`
		endpoint = `{"id":"e1","network":"n1","addrs":["10.32.0.5/16"],"mac":"02:57:0a:20:00:05","link":"01234567"}`
	)
	tests := map[string]struct{ bucket, key, value string }{
		"no JSON":         {networkBucket, "n1", "\x00\x01"},
		"other ID":        {networkBucket, "n2", network},
		"no segment":      {networkBucket, "n1", strings.Replace(network, `"10.32.0.0/16"`, `""`, 1)},
		"no subnet":       {networkBucket, "n1", strings.Replace(network, `["10.32.0.0/16"]`, `[""]`, 1)},
		"host's bridge":   {networkBucket, "n1", strings.Replace(network, "wv01234567", "docker0", 1)},
		"MTU":             {networkBucket, "n1", strings.Replace(network, "1390", "7", 1)},
		"no network":      {endpointBucket, "e1", strings.Replace(endpoint, "n1", "n9", 1)},
		"no address":      {endpointBucket, "e1", strings.Replace(endpoint, `"10.32.0.5/16"`, "", 1)},
		"empty address":   {endpointBucket, "e1", strings.Replace(endpoint, `10.32.0.5/16`, "", 1)},
		"bad MAC":         {endpointBucket, "e1", strings.Replace(endpoint, "02:57", "01:57", 1)},
		"no MAC":          {endpointBucket, "e1", strings.Replace(endpoint, `"02:57:0a:20:00:05"`, "null", 1)},
		"link":            {endpointBucket, "e1", strings.Replace(endpoint, "01234567", "../../..", 1)},
		"other endpoint":  {endpointBucket, "e2", endpoint},
		"link of another": {endpointBucket, "e3", strings.Replace(endpoint, "e1", "e3", 1)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := &fakeStore{faults: &faults{}, buckets: map[string]map[string][]byte{
				networkBucket: {"n1": []byte(network)}, endpointBucket: {"e1": []byte(endpoint)},
			}}
			cfg := Config{Store: s, Log: logrus.NewEntry(logrus.New())}
			if _, err := New(cfg); err != nil {
				t.Fatal(err)
			}
			s.buckets[tt.bucket][tt.key] = []byte(tt.value)
			_, err := New(cfg)
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.bucket) {
				t.Fatalf("error: %v", err)
			}
			if name != "link of another" && !strings.Contains(err.Error(), tt.key) {
				t.Errorf("%q does not name %s", err, tt.key)
			}
			if string(s.buckets[tt.bucket][tt.key]) != tt.value {
				t.Error("the state was changed")
			}
		})
	}
}

// FuzzLoad starts from any state: it is refused, or stays as it is over the next
// start.
func FuzzLoad(f *testing.F) {
	network := `{"id":"n1","segment":"x","subnets":["10.0.0.0/8"],"bridge":"wv01234567","mtu":1390}`
	f.Add([]byte(network), []byte(`{"id":"e1"}`))
	f.Add([]byte(network), []byte(`{"id":"e1","network":"n1","addrs":["10.0.0.5/8"],"mac":"02:00:00:00:00:01","link":"01234567"}`))
	f.Fuzz(func(t *testing.T, network, endpoint []byte) {
		s := &fakeStore{faults: &faults{}, buckets: map[string]map[string][]byte{
			networkBucket: {"n1": network}, endpointBucket: {"e1": endpoint},
		}}
		d, err := New(Config{Store: s})
		if err != nil {
			return
		}
		for _, n := range d.networks {
			err = errors.Join(err, save(s, networkBucket, n.rec.ID, n.rec))
		}
		for _, e := range d.endpoints {
			err = errors.Join(err, save(s, endpointBucket, e.rec.ID, e.rec))
		}
		if err != nil {
			t.Fatal(err)
		}
		again, err := New(Config{Store: s})
		if err != nil {
			t.Fatalf("cannot start again: %v", err)
		}
		if was, is := fmt.Sprint(d.Networks(), d.Endpoints()), fmt.Sprint(again.Networks(), again.Endpoints()); was != is {
			t.Errorf("%s became %s", was, is)
		}
	})
}

func FuzzParseNetwork(f *testing.F) {
	f.Add("n1", "10.32.0.0/16", "fd00::/64", "weave.mtu", "1400")
	f.Fuzz(func(t *testing.T, id, pool, pool6, key, value string) {
		req := createNetwork(id, pool, map[string]any{key: value})
		req.IPv6Data = []*api.IPAMData{nil, {Pool: pool6}}[1:]
		if r, err := parseNetwork(req); err == nil {
			r.Bridge, r.MTU = "wv01234567", 1400
			if err := r.check(id); err != nil {
				t.Errorf("accepted what cannot be stored: %v", err)
			}
		}
	})
}

func FuzzParseEndpoint(f *testing.F) {
	f.Add("e1", "10.32.0.5/16", "fd00::5/64", "")
	f.Add("e1", "10.32.0.5/16", "", "01:00:5e:00:00:01")
	f.Add("e1", "10.32.0.5/16", "", "02-00-00-00-00-01-02-03")
	f.Add("e1", "10.33.0.5/16", "", "02:00:00:00:00:01")
	f.Add("e1", "::ffff:10.32.0.5/112", "fd00::5%eth0/64", "")
	f.Add("", "10.32.0.5/16", "", "")
	subnets := []netip.Prefix{netip.MustParsePrefix("10.32.0.0/16"), netip.MustParsePrefix("fd00::/64")}
	f.Fuzz(func(t *testing.T, id, addr, addr6, mac string) {
		req := createEndpoint("n1", id, addr)
		req.Interface.AddressIPv6, req.Interface.MacAddress = addr6, mac
		r, err := parseEndpoint(req, subnets)
		if err != nil {
			return
		}
		r.Link = "01234567"
		if err := r.check(id); err != nil {
			t.Errorf("accepted what cannot be stored: %v", err)
		}
		if len(r.MAC) != 6 || r.MAC[0]&1 != 0 || r.GivenMAC != (mac != "") {
			t.Errorf("MAC address %q became %v", mac, r.MAC)
		}
		for _, a := range r.Addrs {
			if !slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Contains(a.Addr()) }) {
				t.Errorf("address %s of %q, %q", a, addr, addr6)
			}
		}
	})
}

// Many containers at once, with calls repeated, beside a Restore.
func TestParallel(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	r.restart(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Restore(t.Context()); err != nil {
			t.Error(err)
		}
	})
	for i := range 200 {
		for range 2 {
			wg.Go(func() {
				if err := r.lifeOf(t.Context(), fmt.Sprintf("%08xaa", i), i); err != nil {
					t.Error(err)
				}
			})
		}
	}
	for range 4 {
		wg.Go(func() {
			r.Networks()
			r.Endpoints()
		})
	}
	wg.Wait()
	if err := r.DeleteNetwork(t.Context(), &api.DeleteNetworkRequest{NetworkID: "n1"}); err != nil {
		t.Fatal(err)
	}
	r.mustBeEmpty(t)
}

// lifeOf takes an endpoint through its life. Another goroutine does the same
// with it, so it may be gone at any time.
func (r *rig) lifeOf(ctx context.Context, id string, i int) error {
	addr := fmt.Sprintf("10.32.%d.%d/16", i/250, i%250+1)
	if _, err := r.CreateEndpoint(ctx, createEndpoint("n1", id, addr)); err != nil {
		return err
	}
	_, err := r.Join(ctx, &api.JoinRequest{NetworkID: "n1", EndpointID: id, SandboxKey: "s" + id})
	if err != nil && !errors.Is(err, ErrUnknown) {
		return err
	}
	if err := r.SetContainerName(id, "c"+id); err != nil {
		return err
	}
	if err := r.Leave(ctx, &api.LeaveRequest{NetworkID: "n1", EndpointID: id}); err != nil {
		return err
	}
	return r.DeleteEndpoint(ctx, &api.DeleteEndpointRequest{NetworkID: "n1", EndpointID: id})
}

// The same network created and deleted by many at once.
func TestParallelNetworks(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := r.CreateNetwork(t.Context(), createNetwork("n1", "10.32.0.0/16", nil)); err != nil {
				t.Error(err)
			}
			_, err := r.CreateEndpoint(t.Context(), createEndpoint("n1", "e1", "10.32.0.5/16"))
			if err != nil && !errors.Is(err, ErrUnknown) {
				t.Error(err)
			}
			if err := r.DeleteNetwork(t.Context(), &api.DeleteNetworkRequest{NetworkID: "n1"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r.mustBeEmpty(t)
}

// actions is all that Docker, fate and the plugin's owner may do, in any
// order. Errors are what the faults make of it; only the state counts.
func (r *rig) actions(t *testing.T) map[string]func(*rapid.T) {
	ctx := t.Context()
	subnets := map[string]string{"n1": "10.32.0", "n2": "10.33.0"}
	network := func(rt *rapid.T) string { return rapid.SampledFrom([]string{"n1", "n2"}).Draw(rt, "network") }
	endpoint := func(rt *rapid.T) string {
		return rapid.SampledFrom([]string{"0123456701", "0123456702", "e3"}).Draw(rt, "endpoint")
	}
	steps := []string{
		"Apply", "JoinSegment", "LeaveSegment", "Announce", "Withdraw", "EnsureBridge", "RemoveBridge",
		"AttachPort", "CreateVeth", "RetireLink", "HasLink", "Routes", "EnsureFirewall", "Forwards",
	}
	r.kernel.forwards = true
	return map[string]func(*rapid.T){
		"fault": func(rt *rapid.T) { r.set(rapid.SampledFrom(steps).Draw(rt, "step")) },
		"mend":  func(*rapid.T) { r.set() },
		"create network": func(rt *rapid.T) {
			id := network(rt)
			_ = r.CreateNetwork(ctx, createNetwork(id, subnets[id]+".0/16", nil))
		},
		"delete network": func(rt *rapid.T) {
			_ = r.DeleteNetwork(ctx, &api.DeleteNetworkRequest{NetworkID: network(rt)})
		},
		"create endpoint": func(rt *rapid.T) {
			id := network(rt)
			addr := fmt.Sprintf("%s.%d/16", subnets[id], rapid.IntRange(1, 3).Draw(rt, "addr"))
			_, _ = r.CreateEndpoint(ctx, createEndpoint(id, endpoint(rt), addr))
		},
		"delete endpoint": func(rt *rapid.T) {
			_ = r.DeleteEndpoint(ctx, &api.DeleteEndpointRequest{NetworkID: network(rt), EndpointID: endpoint(rt)})
		},
		"join": func(rt *rapid.T) {
			sandbox := rapid.SampledFrom([]string{"s1", "s2"}).Draw(rt, "sandbox")
			_, _ = r.Join(ctx, &api.JoinRequest{NetworkID: network(rt), EndpointID: endpoint(rt), SandboxKey: sandbox})
		},
		"leave": func(rt *rapid.T) {
			_ = r.Leave(ctx, &api.LeaveRequest{NetworkID: network(rt), EndpointID: endpoint(rt)})
		},
		"expose": func(rt *rapid.T) {
			id := network(rt)
			addr := fmt.Sprintf("%s.%d/16", subnets[id], rapid.IntRange(7, 8).Draw(rt, "addr"))
			_ = r.Expose(ctx, id, Exposure{Addr: netip.MustParsePrefix(addr), Masquerade: rapid.Bool().Draw(rt, "masquerade")})
		},
		"hide": func(rt *rapid.T) {
			addr := fmt.Sprintf("%s.%d/16", subnets[network(rt)], rapid.IntRange(7, 8).Draw(rt, "addr"))
			_, _ = r.Hide(netip.MustParsePrefix(addr))
		},
		"restart": func(*rapid.T) {
			r.set()
			r.restart(t)
		},
		"reboot": func(*rapid.T) {
			r.set()
			r.kernel.reboot()
			r.restart(t)
		},
		"restore": func(*rapid.T) { _ = r.Restore(ctx) },
		"":        r.checkInvariants,
	}
}

// Whatever Docker asks, whatever fails and whenever the plugin or the host
// restarts: once all is deleted, nothing is left.
func TestNothingLeaks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		rt.Repeat(r.actions(t))
		r.set()
		if err := r.Restore(t.Context()); err != nil {
			rt.Fatal(err)
		}
		for _, id := range []string{"n1", "n2"} {
			if err := r.DeleteNetwork(t.Context(), &api.DeleteNetworkRequest{NetworkID: id}); err != nil {
				rt.Fatal(err)
			}
		}
		if _, err := r.EnsureFirewall(); err != nil {
			rt.Fatal(err)
		}
		r.mustBeEmpty(rt)
	})
}

// checkInvariants compares what the driver says with the world.
func (r *rig) checkInvariants(rt *rapid.T) {
	if disk := r.disk.dump(); len(disk[networkBucket]) != len(r.Networks()) || len(disk[endpointBucket]) != len(r.Endpoints()) {
		rt.Fatalf("disk has %d networks and %d endpoints, the driver %d and %d",
			len(disk[networkBucket]), len(disk[endpointBucket]), len(r.Networks()), len(r.Endpoints()))
	}
	if disk := r.disk.dump(); len(disk[exposureBucket]) != len(r.Exposed()) {
		rt.Fatalf("disk has %d exposed addresses, the driver %v", len(disk[exposureBucket]), r.Exposed())
	}
	for _, x := range r.Exposed() {
		if _, announced := r.fabric.endpoint("host-" + x.Addr.Addr().String()); announced != x.Announced {
			rt.Fatalf("exposed %s: announced %v, in the mesh %v", x.Addr, x.Announced, announced)
		}
	}
	routes := make(map[string]int)
	macs := make(map[string]bool)
	for _, e := range r.Endpoints() {
		_, announced := r.fabric.endpoint(e.ID)
		if announced != e.Announced {
			rt.Fatalf("endpoint %s: announced %v, in the mesh %v", e.ID, e.Announced, announced)
		}
		if announced && !e.Joined {
			rt.Fatalf("endpoint %s: announced and in no sandbox", e.ID)
		}
		key := e.Network + e.MAC.String()
		if macs[key] {
			rt.Fatalf("MAC address %s twice in network %s", e.MAC, e.Network)
		}
		macs[key] = true
		if e.Joined && r.Driver.endpoints[e.ID].rec.Multicast {
			routes[e.Sandbox]++
		}
	}
	for sandbox, n := range routes {
		if n > 1 {
			rt.Fatalf("%d multicast routes in sandbox %s", n, sandbox)
		}
	}
}
