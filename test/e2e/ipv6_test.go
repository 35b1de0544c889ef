package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"weave/test/dockerlab"
)

// subnet6 returns a /64 that no other test uses.
func subnet6() string { return fmt.Sprintf("fd64:%x::/64", sequence.Add(1)) }

func (c container) ip6() string { c.t.Helper(); return c.inspect("GlobalIPv6Address") }

func TestIPv6(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	sub4, sub6 := subnet(), subnet6()
	wish := sub6[:len(sub6)-len("/64")] + "77"
	net := network(t, hs, "--ipv6", "--subnet", sub4, "--subnet", sub6)
	all := []container{
		run(t, hs[0], net, nil).serve(), run(t, hs[1], net, []string{"--ip6", wish}).serve(),
		run(t, hs[0], net, nil).serve(), run(t, hs[1], net, nil).serve(),
	}
	if got := all[1].ip6(); got != wish {
		t.Errorf("--ip6 %s gave %s", wish, got)
	}
	refused(t, hs[0], []string{wish}, "run", "--rm", "--net", net, "--ip6", wish, dockerlab.Image, "true")
	seen := map[string]bool{}
	for i, to := range all {
		address := to.ip6()
		seen[address] = true
		both := fmt.Sprintf("ping -6 -c1 -W1 %s && tool send -timeout=1s tcp [%s]:7000", address, address)
		all[(i+1)%len(all)].exec("sh", "-c", both)
		for _, h := range hs { // with its first packet
			docker(t, h, "run", "--rm", "--net", net, dockerlab.Image, "sh", "-c", both)
		}
	}
	if len(seen) != len(all) {
		t.Errorf("addresses are not unique: %v", seen)
	}
	sameRings(t, hs, sub4, sub6)
	namesOfIPv6(t, all[0], all[1])
}

// TestIPv6Only: a network without IPv4, which engines make since 28.0.
func TestIPv6Only(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	var engine struct{ APIVersion string }
	if err := ask(hs[0], "/version", &engine); err != nil {
		t.Fatal(err)
	}
	if version, err := strconv.ParseFloat(strings.TrimPrefix(engine.APIVersion, "1."), 64); err != nil || version < 48 {
		t.Skipf("the engine speaks API %s, and 1.48 is the first that can do without IPv4", engine.APIVersion)
	}
	net, sub := uniqueName("net"), subnet6()
	for _, h := range hs {
		err := askFor(h, http.MethodPost, "/v1.48/networks/create", map[string]any{
			"Name": net, "Driver": "weave", "EnableIPv4": false, "EnableIPv6": true,
			"IPAM": map[string]any{"Driver": "weave", "Config": []any{map[string]any{"Subnet": sub}}},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := removeNetwork(t, h, net); err != nil {
				t.Error(err)
			}
		})
	}
	a, b := run(t, hs[0], net, nil).serve(), run(t, hs[1], net, nil).serve()
	for _, way := range [][2]container{{a, b}, {b, a}} {
		from, to := way[0], way[1]
		if address := to.ip(); address != "" {
			t.Errorf("%s has %s", to.name, address)
		}
		from.exec("sh", "-c", fmt.Sprintf("ping -6 -c1 -W1 %s && tool send -timeout=1s tcp [%[1]s]:7000", to.ip6()))
		from.finds(to.name, to.ip6())
		from.findsAs(to.ip6(), to.name)
	}
}

// namesOfIPv6: a container is found by both its addresses, and its name by both. What
// has addresses of one family only has none of the other; it is not asked elsewhere.
func namesOfIPv6(t *testing.T, asker, far container) {
	t.Helper()
	asker.finds(far.name, far.ip()+" "+far.ip6())
	asker.findsAs(far.ip6(), far.name)
	asker.findsAs(far.ip(), far.name)
	for _, address := range []string{"fd00::7", "192.0.2.7"} {
		name := uniqueName("one-family")
		weave(t, far.host, "dns-add", name, address, "--network", far.net)
		asker.finds(name, address) // of the other family there are none, without an error
		asker.findsAs(address, name)
		weave(t, far.host, "dns-remove", name, "--network", far.net)
	}
}

// TestIPv6WithoutIPv4Subnet: an engine that asks for an IPv4 pool all the same
// gets one of the host's own, so that the segment needs a name to be shared.
func TestIPv6WithoutIPv4Subnet(t *testing.T) {
	hs := hosts(t, 2)
	net := network(t, hs, "--ipv6", "--subnet", subnet6(), "-o", "weave.segment="+uniqueName("segment"))
	a, b := run(t, hs[0], net, nil).serve(), run(t, hs[1], net, nil).serve()
	for _, way := range []struct{ from, to container }{{a, b}, {b, a}} {
		way.from.exec("ping", "-6", "-c1", "-W2", way.to.ip6())
		way.from.exec("tool", "send", "tcp", "["+way.to.ip6()+"]:7000")
	}
	if a.ip6() == b.ip6() {
		t.Errorf("both have %s", a.ip6())
	}
	a.finds(b.name, b.ip6()) // IPv4 it has on its own host only
	a.findsAs(b.ip6(), b.name)
}
