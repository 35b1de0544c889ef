package driver

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	api "github.com/docker/go-plugins-helpers/network"

	"weave/driver/host"
)

func TestCreateNetwork(t *testing.T) {
	r := newRig(t)
	req := createNetwork("n1", "10.32.5.7/16", map[string]any{mtuKey: "1300"})
	req.Options[internalKey] = true
	for range 2 { // the second is a repetition
		if err := r.CreateNetwork(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	nets := r.Networks()
	if len(nets) != 1 {
		t.Fatalf("%d networks", len(nets))
	}
	n := nets[0]
	if n.Segment != "10.32.0.0/16" || n.MTU != 1300 || !n.Internal || !n.Up || n.Name != "front" {
		t.Errorf("network: %+v", n)
	}
	if br := r.kernel.link(n.Bridge); !br.bridge || br.mtu != 1300 {
		t.Errorf("bridge: %+v", br)
	}
	if port := r.kernel.link(n.Port); port.master != n.Bridge {
		t.Errorf("port: %+v", port)
	}
	if !slices.Equal(n.Subnets, []netip.Prefix{netip.MustParsePrefix("10.32.0.0/16")}) {
		t.Errorf("subnets: %s", n.Subnets)
	}
	for range 2 {
		if err := r.DeleteNetwork(t.Context(), &api.DeleteNetworkRequest{NetworkID: "n1"}); err != nil {
			t.Fatal(err)
		}
	}
	r.mustBeEmpty(t)
}

func TestCreateNetworkFollowsSegment(t *testing.T) {
	r := newRig(t)
	r.fabric.mtu = 1280
	if err := r.CreateNetwork(t.Context(), createNetwork("n1", "10.32.0.0/16", map[string]any{mtuKey: "1400"})); err != nil {
		t.Fatal(err)
	}
	if n := r.Networks()[0]; n.MTU != 1280 || r.kernel.link(n.Bridge).mtu != 1280 {
		t.Errorf("network: %+v", n)
	}
}

type refusal struct {
	req  *api.CreateNetworkRequest
	want []string
}

func networkRefusals() map[string]refusal {
	opt := func(key string, value any) *api.CreateNetworkRequest {
		return createNetwork("n2", "10.40.0.0/16", map[string]any{key: value})
	}
	both := createNetwork("n2", "10.40.0.0/16", map[string]any{mtuKey: "1000"})
	both.IPv6Data = []*api.IPAMData{{Pool: "fd00::/64"}}
	two := createNetwork("n2", "10.40.0.0/16", nil)
	two.IPv4Data = append(two.IPv4Data, &api.IPAMData{Pool: "10.41.0.0/16"})
	none := createNetwork("n2", "", nil)
	badMap := createNetwork("n2", "10.40.0.0/16", nil)
	badMap.Options[genericKey] = "text"
	badFlag := createNetwork("n2", "10.40.0.0/16", nil)
	badFlag.Options[internalKey] = 7.0
	return map[string]refusal{
		"no ID":             {createNetwork("", "10.40.0.0/16", nil), []string{"network ID"}},
		"long ID":           {createNetwork(strings.Repeat("a", 65), "10.40.0.0/16", nil), []string{"network ID"}},
		"odd ID":            {createNetwork("../x", "10.40.0.0/16", nil), []string{"../x"}},
		"no pool":           {none, []string{"no address pool", "--ipam-driver weave"}},
		"bad pool":          {createNetwork("n2", "10.40/16", nil), []string{"10.40/16"}},
		"null pool":         {createNetwork("n2", "0.0.0.0/0", nil), []string{"0.0.0.0/0", "--subnet"}},
		"two pools":         {two, []string{"2 subnets"}},
		"unknown option":    {opt("weave.colour", "red"), []string{"weave.colour", segmentKey, mtuKey}},
		"segment":           {opt(segmentKey, "a b"), []string{segmentKey, "a b"}},
		"long segment":      {opt(segmentKey, strings.Repeat("a", 65)), []string{segmentKey}},
		"no number":         {opt(mtuKey, 1400), []string{mtuKey, "1400"}},
		"small MTU":         {opt(mtuKey, "67"), []string{mtuKey, "68"}},
		"odd DNS":           {opt(dnsKey, "no"), []string{dnsKey, "local-first", "off"}},
		"large MTU":         {opt(dockerMTUKey, "65001"), []string{dockerMTUKey, "65000"}},
		"two MTUs":          {createNetwork("n2", "10.40.0.0/16", map[string]any{mtuKey: "1400", dockerMTUKey: "1300"}), []string{"differ"}},
		"IPv6 MTU":          {both, []string{"1280"}},
		"options no map":    {badMap, []string{genericKey}},
		"internal no flag":  {badFlag, []string{internalKey}},
		"segment twice":     {createNetwork("n2", "10.32.0.0/16", nil), []string{"10.32.0.0/16", `"front" (n1)`, "--subnet"}},
		"name twice":        {createNetwork("n2", "10.50.0.0/16", map[string]any{segmentKey: "a"}), []string{"name:a", "(n1)"}},
		"route":             {createNetwork("n2", "172.16.0.0/12", nil), []string{"172.17.0.0/16", "docker0", "--subnet"}},
		"blackhole":         {createNetwork("n2", "10.99.1.0/24", nil), []string{"10.99.0.0/16"}},
		"same ID, other":    {createNetwork("n1", "10.60.0.0/16", nil), []string{"exists already"}},
		"IPv4 in IPv6 pool": {createNetwork("n2", "::ffff:10.0.0.0/104", nil), []string{"::ffff:10.0.0.0/104"}},
	}
}

func TestCreateNetworkRefuses(t *testing.T) {
	for name, tt := range networkRefusals() {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.kernel.routes = []host.Route{
				{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Link: "eth0"},
				{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Link: "docker0"},
				{Prefix: netip.MustParsePrefix("10.40.0.0/16"), Link: "wv12345678"},
				{Prefix: netip.MustParsePrefix("10.99.0.0/16")},
			}
			var options map[string]any
			if name == "name twice" {
				options = map[string]any{segmentKey: "a"}
			}
			if err := r.CreateNetwork(t.Context(), createNetwork("n1", "10.32.0.0/16", options)); err != nil {
				t.Fatal(err)
			}
			before, links := r.disk.dump(), r.kernel.names()
			err := r.CreateNetwork(t.Context(), tt.req)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if len(r.disk.dump()[networkBucket]) != len(before[networkBucket]) || len(r.kernel.names()) != len(links) {
				t.Error("the refused network left something behind")
			}
		})
	}
}

// A network that Docker deleted while the plugin was away still has its
// segment for some seconds; whoever makes it anew is told to wait.
func TestSegmentTakenByUnlistedNetwork(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	err := r.CreateNetwork(t.Context(), createNetwork("n4", "10.32.0.0/16", nil))
	if err == nil || !strings.Contains(err.Error(), "goes away within a minute") {
		t.Errorf("got %v", err)
	}
}

func TestCreateNetworkAccepts(t *testing.T) {
	six := &api.CreateNetworkRequest{
		NetworkID: "n1", Options: map[string]any{internalKey: "true"}, IPv6Data: []*api.IPAMData{{Pool: "FD00:0::1/64"}},
	}
	tests := map[string]struct {
		req  *api.CreateNetworkRequest
		want NetworkStatus
	}{
		"IPv6 only": {six, NetworkStatus{Segment: "fd00::/64", MTU: 1390, Internal: true}},
		"named": {
			createNetwork("n1", "10.32.0.0/16", map[string]any{segmentKey: "Blue-1_x.y"}),
			NetworkStatus{Segment: "name:Blue-1_x.y", MTU: 1390},
		},
		"no names": {
			createNetwork("n1", "10.32.0.0/16", map[string]any{dnsKey: "off"}),
			NetworkStatus{Segment: "10.32.0.0/16", MTU: 1390, DNS: DNSOff},
		},
		"local names first": {
			createNetwork("n1", "10.32.0.0/16", map[string]any{dnsKey: "local-first"}),
			NetworkStatus{Segment: "10.32.0.0/16", MTU: 1390, DNS: DNSLocalFirst},
		},
		"names": {
			createNetwork("n1", "10.32.0.0/16", map[string]any{dnsKey: "on"}),
			NetworkStatus{Segment: "10.32.0.0/16", MTU: 1390, DNS: DNSOn},
		},
		"Docker's keys": {
			createNetwork("n1", "10.32.0.0/16", map[string]any{
				enableIPv6Key: "false", enableIPv4Key: "true", internalKey: "", dockerMTUKey: "1200",
			}),
			NetworkStatus{Segment: "10.32.0.0/16", MTU: 1200},
		},
	}
	tests["Docker's keys"].req.Options[genericKey].(map[string]any)[internalKey] = "false"
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if err := r.CreateNetwork(t.Context(), tt.req); err != nil {
				t.Fatal(err)
			}
			n := r.Networks()[0]
			if n.Segment != tt.want.Segment || n.MTU != tt.want.MTU || n.Internal != tt.want.Internal || n.DNS != tt.want.DNS {
				t.Errorf("got %+v", n)
			}
		})
	}
}

// Whatever step fails, nothing stays, and the next try succeeds.
func TestCreateNetworkRollsBack(t *testing.T) {
	for _, step := range []string{"Routes", "JoinSegment", "EnsureBridge", "EnsureFirewall", "AttachPort", "Apply"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.set(step)
			err := r.CreateNetwork(t.Context(), createNetwork("n1", "10.32.0.0/16", nil))
			if err == nil || !strings.Contains(err.Error(), step) {
				t.Fatalf("error: %v", err)
			}
			r.set()
			if _, err := r.EnsureFirewall(); err != nil {
				t.Fatal(err)
			}
			r.mustBeEmpty(t)
			r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
		})
	}
}

// The firewall goes with the last network, at the next try if need be, and is
// not touched by a driver that has had none.
func TestFirewallGoesWithTheLastNetwork(t *testing.T) {
	r := newRig(t)
	r.kernel.firewall = true // of another run
	if _, err := r.EnsureFirewall(); err != nil || !r.kernel.firewall {
		t.Fatalf("firewall %v, error %v", r.kernel.firewall, err)
	}
	deleteNetwork := func(id string) {
		t.Helper()
		if err := r.DeleteNetwork(t.Context(), &api.DeleteNetworkRequest{NetworkID: id}); err != nil {
			t.Fatal(err)
		}
	}
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	r.mustCreateNetwork(t, "n2", "10.33.0.0/16")
	deleteNetwork("n1")
	if !r.kernel.firewall {
		t.Error("with one network: no firewall")
	}
	r.set("RemoveFirewall")
	deleteNetwork("n2")
	if !r.kernel.firewall {
		t.Fatal("the fault did not strike")
	}
	r.set()
	if _, err := r.EnsureFirewall(); err != nil || r.kernel.firewall {
		t.Errorf("without a network: firewall %v, error %v", r.kernel.firewall, err)
	}
}

func TestDeleteNetworkAgainAfterFailure(t *testing.T) {
	for _, step := range []string{"Withdraw", "RetireLink", "RemoveBridge", "LeaveSegment", "Apply"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
			r.mustCreateEndpoint(t, "n1", "e1", "10.32.0.5/16")
			r.mustJoin(t, "n1", "e1", sandbox1)
			req := &api.DeleteNetworkRequest{NetworkID: "n1"}
			r.set(step)
			if err := r.DeleteNetwork(t.Context(), req); err == nil || !strings.Contains(err.Error(), step) {
				t.Fatalf("error: %v", err)
			}
			r.set()
			if err := r.DeleteNetwork(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			r.mustBeEmpty(t)
		})
	}
}

// A delete that failed halfway leaves a network that still works.
func TestJoinRevivesNetwork(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	r.set("LeaveSegment")
	if err := r.DeleteNetwork(t.Context(), &api.DeleteNetworkRequest{NetworkID: "n1"}); err == nil {
		t.Fatal("no error")
	}
	r.set()
	r.mustCreateEndpoint(t, "n1", "e1", "10.32.0.5/16")
	r.mustJoin(t, "n1", "e1", sandbox1)
	if n := r.Networks()[0]; !r.kernel.link(n.Bridge).bridge {
		t.Error("no bridge")
	}
}

func TestCreateNetworkCancelled(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.CreateNetwork(ctx, createNetwork("n1", "10.32.0.0/16", nil)); err == nil {
		t.Fatal("no error")
	}
	r.mustBeEmpty(t)
}

// TestSegmentTaken: commands know by these words that another one was faster.
func TestSegmentTaken(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	err := r.CreateNetwork(t.Context(), createNetwork("n2", "10.32.0.0/16", nil))
	if err == nil || !strings.Contains(err.Error(), "this host is on segment 10.32.0.0/16 already") {
		t.Errorf("second network on a segment: %v", err)
	}
}
