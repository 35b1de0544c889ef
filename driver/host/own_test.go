package host

import (
	"reflect"
	"slices"
	"testing"
)

// TestOwn: a report lists what is ours in the kernel, and nothing of others.
func TestOwn(t *testing.T) {
	k := enterHost(t)
	if links, rules, err := k.Own(); len(links)+len(rules) > 0 || err != nil {
		t.Errorf("of an empty host: %v, %v, %v", links, rules, err)
	}
	dockerFirewall(t, "iptables-nft")
	run(t, "ip link add eth0 type veth peer name eth1")
	run(t, "nft add table inet others")
	run(t, "nft add chain inet others some")
	run(t, "nft add rule inet others some counter")
	must(t, k.EnsureBridge(Bridge{Name: "wv00000001", MTU: 1400}))
	must(t, k.CreateVeth("wvl0000000a", "wvp0000000a", 1400, []byte{2, 0, 0, 0, 0, 1}))
	must(t, k.AttachPort("wv00000001", "wvl0000000a"))
	ensureFirewall(t, k)
	links, rules, err := k.Own()
	must(t, err)
	wantLinks := []Link{
		{"wv00000001", "bridge", 1400, true, ""}, {"wvl0000000a", "veth", 1400, true, "wv00000001"}, {"wvp0000000a", "veth", 1400, false, ""},
	}
	if !reflect.DeepEqual(links, wantLinks) {
		t.Errorf("links %v, want %v", links, wantLinks)
	}
	for _, want := range []Rule{
		{"bridge", "weave", "input", "weave: to the host"}, {"bridge", "weave", "output", "weave: from the host"}, {"ip", "filter", "DOCKER-USER", acceptComment},
	} {
		if !slices.Contains(rules, want) {
			t.Errorf("%v is not among %v", want, rules)
		}
	}
	if slices.ContainsFunc(rules, func(r Rule) bool { return r.Table == "others" }) {
		t.Errorf("rules of others: %v", rules)
	}
}
