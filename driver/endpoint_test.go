package driver

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"

	api "github.com/docker/go-plugins-helpers/network"
)

func TestEndpointLife(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	for range 2 {
		res, err := r.CreateEndpoint(t.Context(), createEndpoint("n1", "0123456789abcdef", "10.32.0.5/16"))
		if err != nil {
			t.Fatal(err)
		}
		if *res.Interface != (api.EndpointInterface{MacAddress: "02:57:0a:20:00:05"}) {
			t.Fatalf("answer: %+v", *res.Interface)
		}
	}
	want := &api.JoinResponse{
		InterfaceName: api.InterfaceName{SrcName: "wvc01234567", DstPrefix: "ethwe"},
		StaticRoutes:  []*api.StaticRoute{{Destination: "224.0.0.0/4", RouteType: 1}},
	}
	for range 2 {
		if res := r.mustJoin(t, "n1", "0123456789abcdef", sandbox1); !reflect.DeepEqual(res, want) {
			t.Fatalf("answer: %+v", res)
		}
	}
	if n := r.calls["CreateVeth"]; n != 1 {
		t.Errorf("%d pairs made", n)
	}
	if l := r.kernel.link("wvc01234567"); l.mac != "02:57:0a:20:00:05" || l.mtu != 1390 {
		t.Errorf("container side: %+v", l)
	}
	if l := r.kernel.link("wvl01234567"); l.master != r.Networks()[0].Bridge {
		t.Errorf("host side: %+v", l)
	}
	e, ok := r.fabric.endpoint("0123456789abcdef")
	if !ok || e.Segment != "10.32.0.0/16" || e.MAC.String() != "02:57:0a:20:00:05" ||
		len(e.Addrs) != 1 || e.Addrs[0] != netip.MustParsePrefix("10.32.0.5/16") {
		t.Errorf("announced: %+v", e)
	}
	info, err := r.EndpointInfo(t.Context(), &api.InfoRequest{NetworkID: "n1", EndpointID: "0123456789abcdef"})
	if err != nil || info.Value["weave.segment"] != "10.32.0.0/16" {
		t.Errorf("info: %v, %v", info, err)
	}
	for range 2 {
		if err := r.Leave(t.Context(), &api.LeaveRequest{NetworkID: "n1", EndpointID: "0123456789abcdef"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := r.fabric.endpoint("0123456789abcdef"); ok || r.kernel.link("wvl01234567") != (link{}) {
		t.Error("left traces")
	}
	if from := r.kernel.retired["wvl01234567"]; from != sandbox1 {
		t.Errorf("its links were retired from %q", from)
	}
	for range 2 {
		req := &api.DeleteEndpointRequest{NetworkID: "n1", EndpointID: "0123456789abcdef"}
		if err := r.DeleteEndpoint(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.DeleteNetwork(t.Context(), &api.DeleteNetworkRequest{NetworkID: "n1"}); err != nil {
		t.Fatal(err)
	}
	r.mustBeEmpty(t)
}

func TestSetContainerName(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	r.mustCreateEndpoint(t, "n1", "e1", "10.32.0.5/16")
	r.mustJoin(t, "n1", "e1", sandbox1)
	for _, step := range []string{"Announce", "Apply"} {
		r.set(step)
		if err := r.SetContainerName("e1", "web"); !errors.Is(err, errInjected) {
			t.Fatalf("%s: %v", step, err)
		}
	}
	r.set()
	for range 2 {
		if err := r.SetContainerName("e1", "web"); err != nil {
			t.Fatal(err)
		}
	}
	if e, _ := r.fabric.endpoint("e1"); e.Container != "web" {
		t.Errorf("announced: %+v", e)
	}
	r.restart(t)
	if e := r.Endpoints()[0]; e.Container != "web" {
		t.Errorf("after a restart: %+v", e)
	}
}

func TestUnknownEndpoint(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	r.mustCreateNetwork(t, "n2", "10.33.0.0/16")
	r.mustCreateEndpoint(t, "n1", "e1", "10.32.0.5/16")
	for _, id := range [][2]string{{"n1", "e2"}, {"n2", "e1"}, {"n3", "e1"}} {
		if _, err := r.Join(t.Context(), &api.JoinRequest{NetworkID: id[0], EndpointID: id[1]}); !errors.Is(err, ErrUnknown) {
			t.Errorf("join %v: %v", id, err)
		}
		if _, err := r.EndpointInfo(t.Context(), &api.InfoRequest{NetworkID: id[0], EndpointID: id[1]}); !errors.Is(err, ErrUnknown) {
			t.Errorf("info %v: %v", id, err)
		}
		if err := r.Leave(t.Context(), &api.LeaveRequest{NetworkID: id[0], EndpointID: id[1]}); err != nil {
			t.Errorf("leave %v: %v", id, err)
		}
		if err := r.DeleteEndpoint(t.Context(), &api.DeleteEndpointRequest{NetworkID: id[0], EndpointID: id[1]}); err != nil {
			t.Errorf("delete %v: %v", id, err)
		}
	}
	if err := errors.Join(r.Purge("e9"), r.SetContainerName("e9", "web")); err != nil {
		t.Error(err)
	}
	if len(r.Endpoints()) != 1 {
		t.Error("the endpoint of the other network is gone")
	}
}

func TestCreateEndpointRefuses(t *testing.T) {
	mac := func(s string) *api.CreateEndpointRequest {
		req := createEndpoint("n1", "e2", "10.32.0.6/16")
		req.Interface.MacAddress = s
		return req
	}
	noInterface := createEndpoint("n1", "e2", "")
	noInterface.Interface = nil
	tests := map[string]struct {
		req  *api.CreateEndpointRequest
		want []string
	}{
		"no network":     {createEndpoint("n9", "e2", "10.32.0.6/16"), []string{"n9"}},
		"odd ID":         {createEndpoint("n1", "E 2", "10.32.0.6/16"), []string{"E 2"}},
		"no interface":   {noInterface, []string{"no interface"}},
		"no address":     {createEndpoint("n1", "e2", ""), []string{"no address", "--ipam-driver weave"}},
		"bad address":    {createEndpoint("n1", "e2", "10.32.0.6"), []string{"10.32.0.6"}},
		"outside":        {createEndpoint("n1", "e2", "10.33.0.6/16"), []string{"10.33.0.6", "10.32.0.0/16"}},
		"bad MAC":        {mac("xyz"), []string{"xyz"}},
		"long MAC":       {mac("02:00:5e:10:00:00:00:01"), []string{"6 bytes"}},
		"multicast MAC":  {mac("01:00:5e:00:00:01"), []string{"multicast"}},
		"zero MAC":       {mac("00:00:00:00:00:00"), []string{"00:00:00:00:00:00"}},
		"same MAC":       {mac("02:57:0a:20:00:05"), []string{"02:57:0a:20:00:05", "e1"}},
		"same address":   {createEndpoint("n1", "e2", "10.32.0.7/16"), []string{"10.32.0.7", "e7"}},
		"held elsewhere": {createEndpoint("n1", "e2", "10.32.0.8/16"), []string{"10.32.0.8", `host "h2"`, `container "web" (abc123)`, "--ipam-driver weave"}},
		"held, no name":  {createEndpoint("n1", "e2", "10.32.0.9/16"), []string{`"h3"`, "endpoint 0123456789ab:"}},
		"same ID":        {createEndpoint("n1", "e1", "10.32.0.6/16"), []string{"exists already"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
			r.mustCreateEndpoint(t, "n1", "e1", "10.32.0.5/16")
			given := createEndpoint("n1", "e7", "10.32.0.7/16")
			given.Interface.MacAddress = "02:00:00:00:00:07"
			if _, err := r.CreateEndpoint(t.Context(), given); err != nil {
				t.Fatal(err)
			}
			r.mustJoin(t, "n1", "e7", sandbox1)
			r.fabric.holders["10.32.0.0/16 10.32.0.8"] = Holder{Host: "h2", Container: "web", Endpoint: "abc123"}
			r.fabric.holders["10.32.0.0/16 10.32.0.9"] = Holder{Host: "h3", Endpoint: "0123456789abcdef"}
			_, err := r.CreateEndpoint(t.Context(), tt.req)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if len(r.Endpoints()) != 2 || len(r.disk.dump()[endpointBucket]) != 2 {
				t.Error("the refused endpoint left something behind")
			}
		})
	}
}

func TestCreateEndpointMAC(t *testing.T) {
	r := newRig(t)
	req := createNetwork("n1", "10.32.0.0/16", nil)
	req.IPv6Data = []*api.IPAMData{{Pool: "fd00::/64"}}
	if err := r.CreateNetwork(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	given := createEndpoint("n1", "e1", "10.32.0.5/16")
	given.Interface.MacAddress = "02:00:00:00:00:01"
	for range 2 {
		res, err := r.CreateEndpoint(t.Context(), given)
		if err != nil || *res.Interface != (api.EndpointInterface{}) {
			t.Fatalf("answer %+v, %v: Docker takes it for a change", res, err)
		}
	}
	six := createEndpoint("n1", "e2", "")
	six.Interface.AddressIPv6 = "fd00::5/64"
	res, err := r.CreateEndpoint(t.Context(), six)
	if err != nil || !strings.HasPrefix(res.Interface.MacAddress, "02:57:") {
		t.Fatalf("answer %+v, %v", res, err)
	}
	if routes := r.mustJoin(t, "n1", "e2", sandbox1).StaticRoutes; len(routes) > 0 {
		t.Errorf("an endpoint without IPv4 got the route %+v", routes[0])
	}
	other := createEndpoint("n1", "e3", "")
	other.Interface.AddressIPv6 = "fd00::6/64"
	if next, err := r.CreateEndpoint(t.Context(), other); err != nil || *next.Interface == *res.Interface {
		t.Fatalf("answer %+v, %v", next, err)
	}
}

func TestEndpointRollsBack(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	r.set("Apply")
	if _, err := r.CreateEndpoint(t.Context(), createEndpoint("n1", "e1", "10.32.0.5/16")); !errors.Is(err, errInjected) {
		t.Fatalf("error: %v", err)
	}
	if len(r.Endpoints()) != 0 {
		t.Error("the endpoint stayed")
	}
	r.set()
	r.mustCreateEndpoint(t, "n1", "e1", "10.32.0.5/16")
	links := r.kernel.names()
	for _, step := range []string{"CreateVeth", "AttachPort", "Apply", "Announce"} {
		r.set(step)
		_, err := r.Join(t.Context(), &api.JoinRequest{NetworkID: "n1", EndpointID: "e1", SandboxKey: sandbox1})
		if err == nil || !strings.Contains(err.Error(), step) {
			t.Fatalf("%s: %v", step, err)
		}
		if now := r.kernel.names(); !reflect.DeepEqual(now, links) {
			t.Errorf("%s: links left: %v", step, now)
		}
		if e := r.Endpoints()[0]; step != "Apply" && e.Joined || e.Announced {
			t.Errorf("%s: %+v", step, e)
		}
	}
	r.set()
	if res := r.mustJoin(t, "n1", "e1", sandbox1); len(res.StaticRoutes) != 1 {
		t.Error("no multicast route")
	}
	for _, step := range []string{"Withdraw", "RetireLink", "Apply"} {
		r.set(step)
		if err := r.Leave(t.Context(), &api.LeaveRequest{NetworkID: "n1", EndpointID: "e1"}); !errors.Is(err, errInjected) {
			t.Fatalf("%s: %v", step, err)
		}
		if err := r.Purge("e1"); !errors.Is(err, errInjected) {
			t.Fatalf("%s: %v", step, err)
		}
	}
	r.set()
	if err := r.Purge("e1"); err != nil {
		t.Fatal(err)
	}
	if now := r.kernel.names(); !reflect.DeepEqual(now, links) {
		t.Errorf("links left: %v", now)
	}
}

// Only one endpoint of a sandbox may bring the multicast route.
func TestMulticastRouteOncePerSandbox(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	r.mustCreateNetwork(t, "n2", "10.33.0.0/16")
	r.mustCreateEndpoint(t, "n1", "e1", "10.32.0.5/16")
	r.mustCreateEndpoint(t, "n2", "e2", "10.33.0.5/16")
	routes := func(network, id, sandbox string) int { return len(r.mustJoin(t, network, id, sandbox).StaticRoutes) }
	if n := routes("n1", "e1", sandbox1); n != 1 {
		t.Errorf("first: %d routes", n)
	}
	if n := routes("n2", "e2", sandbox1); n != 0 {
		t.Errorf("second: %d routes", n)
	}
	if n := routes("n1", "e1", sandbox1); n != 1 {
		t.Errorf("first, again: %d routes", n)
	}
	if n := routes("n2", "e2", "/var/run/docker/netns/2"); n != 1 {
		t.Errorf("in a sandbox of its own: %d routes", n)
	}
	if err := r.Leave(t.Context(), &api.LeaveRequest{NetworkID: "n1", EndpointID: "e1"}); err != nil {
		t.Fatal(err)
	}
	if n := routes("n2", "e2", sandbox1); n != 1 {
		t.Errorf("after the first has left: %d routes", n)
	}
}

// IDs that share their first digits get links of different names.
func TestLinkNameClash(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	r.mustCreateEndpoint(t, "n1", "0123456789", "10.32.0.5/16")
	r.mustCreateEndpoint(t, "n1", "0123456788", "10.32.0.6/16")
	first := r.mustJoin(t, "n1", "0123456789", sandbox1).InterfaceName.SrcName
	second := r.mustJoin(t, "n1", "0123456788", sandbox1).InterfaceName.SrcName
	if first == second || len(second) > 15 {
		t.Fatalf("names %s and %s", first, second)
	}
	r.restart(t)
	if again := r.mustJoin(t, "n1", "0123456788", sandbox1).InterfaceName.SrcName; again != second {
		t.Errorf("after a restart %s is %s", second, again)
	}
}

// An address whose endpoint died unnoticed is free; a living one's is not.
func TestAddressOfDeadEndpoint(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	r.mustCreateEndpoint(t, "n1", "e1", "10.32.0.5/16")
	r.mustJoin(t, "n1", "e1", sandbox1)
	again := createEndpoint("n1", "e2", "10.32.0.5/16")
	if _, err := r.CreateEndpoint(t.Context(), again); err == nil {
		t.Fatal("a living endpoint lost its address")
	}
	if err := r.kernel.RetireLink(r.Endpoints()[0].Link, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := r.CreateEndpoint(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if all := r.Endpoints(); len(all) != 1 || all[0].ID != "e2" {
		t.Errorf("endpoints: %+v", all)
	}
}

// Docker forgets an endpoint whose creation failed, and gives its address to
// the next. A MAC address that the user chose says nothing of that kind.
func TestAddressOfAbandonedEndpoint(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	r.mustCreateEndpoint(t, "n1", "e1", "10.32.0.5/16")
	chosen := createEndpoint("n1", "e2", "10.32.0.6/16")
	chosen.Interface.MacAddress = "02:57:0a:20:00:05"
	if _, err := r.CreateEndpoint(t.Context(), chosen); err == nil {
		t.Fatal("one MAC address for two endpoints")
	}
	r.mustCreateEndpoint(t, "n1", "e3", "10.32.0.5/16")
	if all := r.Endpoints(); len(all) != 1 || all[0].ID != "e3" {
		t.Errorf("endpoints: %+v", all)
	}
}

func TestOtherCalls(t *testing.T) {
	r := newRig(t)
	caps, err := r.GetCapabilities(t.Context())
	if err != nil || caps.Scope != "local" || caps.ConnectivityScope != "local" {
		t.Errorf("capabilities %+v, %v", caps, err)
	}
	if _, err := r.AllocateNetwork(t.Context(), nil); err == nil {
		t.Error("AllocateNetwork")
	}
	if err := r.FreeNetwork(t.Context(), nil); err == nil {
		t.Error("FreeNetwork")
	}
	if err := errors.Join(r.DiscoverNew(t.Context(), nil), r.DiscoverDelete(t.Context(), nil),
		r.ProgramExternalConnectivity(t.Context(), nil), r.RevokeExternalConnectivity(t.Context(), nil)); err != nil {
		t.Error(err)
	}
}

// TestRefusalWhileOtherChanges is for the race detector: the endpoint that a
// refusal names may get its container's name meanwhile.
func TestRefusalWhileOtherChanges(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	r.mustCreateEndpoint(t, "n1", "e1", "10.32.0.5/16")
	r.mustJoin(t, "n1", "e1", sandbox1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 100 {
			if err := r.SetContainerName("e1", fmt.Sprintf("c%d", i)); err != nil {
				t.Error(err)
			}
		}
	})
	for range 100 {
		_, err := r.CreateEndpoint(t.Context(), createEndpoint("n1", "e2", "10.32.0.5/16"))
		if err == nil || !strings.Contains(err.Error(), "belongs to endpoint e1") {
			t.Errorf("error %v", err)
		}
	}
	wg.Wait()
}
