package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"weave/plugin/control"
	"weave/test/dockerlab"
)

// spareHosts boots hosts for one test that know each other by the first, or
// each only itself.
func spareHosts(t *testing.T, n int, apart bool) []*dockerlab.Host {
	t.Helper()
	hosts(t, 1) // makes the lab
	var all []*dockerlab.Host
	for i := range n {
		h := bareHost(t, spare+i)
		settings := map[string]string{"WEAVE_PASSWORD": "of spare hosts"}
		if i > 0 && !apart {
			settings["WEAVE_PEERS"] = all[0].Net().IP4().String()
		}
		install(t, h, settings)
		all = append(all, h)
	}
	if !apart {
		awaitPeers(t, all)
	}
	return all
}

func awaitPeers(t *testing.T, hosts []*dockerlab.Host) {
	t.Helper()
	for _, h := range hosts {
		for _, other := range hosts {
			if h != other {
				awaitPeer(t, h, other)
			}
		}
	}
}

// TestMergeOfClusters connects two clusters of one host that each started the
// same subnet: every lease is kept, and what two containers have is named.
func TestMergeOfClusters(t *testing.T) {
	hs := spareHosts(t, 2, true)
	sub := subnet()
	net := network(t, hs, "--subnet", sub)
	var all, twins []container
	for i, h := range hs {
		twins = append(twins, run(t, h, net, []string{"--ip", inSubnet(sub, 1)}))
		all = append(all, run(t, h, net, []string{"--ip", inSubnet(sub, 50+i)}), run(t, h, net, nil))
	}
	// Without a wish both began at the same end: these are twins, too.
	auto := []container{all[1], all[3]}
	if auto[0].ip() != auto[1].ip() {
		t.Fatalf("%s and %s are no clash", auto[0].ip(), auto[1].ip())
	}
	weave(t, hs[1], "connect", hs[0].Net().IP4().String())
	awaitPeers(t, hs)
	sameRings(t, hs)
	all[0].reaches(all[2].ip(), soon)
	all[2].reaches(all[0].ip(), soon)

	loser := clashLoser(t, hs, auto[0].ip(), inSubnet(sub, 1))
	winner := 1 - loser
	for _, c := range []container{twins[loser], auto[loser]} {
		if held := holders(t, hs[winner], c.ip()); !slices.Equal(held, []string{nickname(hs[winner])}) {
			t.Errorf("%s is announced by %v", c.ip(), held)
		}
	}
	for i, h := range hs {
		if n := status(t, h).IPAM[0].Leased; n != 3 {
			t.Errorf("%s has %d leases", hs[i].Name(), n)
		}
	}

	docker(t, hs[loser], "restart", auto[loser].name)
	docker(t, hs[loser], "rm", "-f", twins[loser].name)
	if auto[0].ip() == auto[1].ip() {
		t.Errorf("%s came back with %s", auto[loser].name, auto[loser].ip())
	}
	meet(append(all, twins[winner]), soon)
	for _, h := range hs {
		sayNoError(t, h)
	}
	occupy(t, hs, net, 4)
	if got := addresses(t, hs, net); len(got) != 9 {
		t.Errorf("nine containers have %v", got)
	}
}

// clashLoser waits until one host says that its containers have addresses of
// the other's, and returns its number.
func clashLoser(t *testing.T, hosts []*dockerlab.Host, addresses ...string) int {
	t.Helper()
	says := func(i int) bool {
		text := errorsOf(t, hosts[i])
		for _, address := range append(addresses, nickname(hosts[1-i])) {
			if !strings.Contains(text, address) {
				return false
			}
		}
		return true
	}
	loser := -1
	eventually(t, soon, func() error {
		if loser = slices.IndexFunc([]bool{says(0), says(1)}, func(b bool) bool { return b }); loser < 0 {
			return fmt.Errorf("no host names the clash: %q, %q", errorsOf(t, hosts[0]), errorsOf(t, hosts[1]))
		}
		return nil
	})
	t.Logf("%s says: %s", hosts[loser].Name(), errorsOf(t, hosts[loser]))
	return loser
}

// holders lists the hosts that have announced an address, as a host sees it.
func holders(t *testing.T, h *dockerlab.Host, address string) []string {
	t.Helper()
	var all []string
	for _, e := range status(t, h).Endpoints {
		for _, a := range e.Addresses {
			if a.String() == address {
				all = append(all, e.Host)
			}
		}
	}
	return all
}

// TestRmpeer removes a host that is switched off from two others at once. They
// give out what it owned, but not what its container has, which it has again
// when it is back, as a new peer.
func TestRmpeer(t *testing.T) {
	const usable = 14 // of a /28
	hs := spareHosts(t, 3, false)
	rest, gone := hs[:2], hs[2]
	sub := smallSubnet(28)
	net := network(t, hs, "--subnet", sub)
	all := []container{run(t, hs[0], net, nil), run(t, hs[1], net, nil), run(t, gone, net, []string{"--restart=always"})}
	before, kept := status(t, gone).Peer, all[2].ip()
	meet(all, soon)
	if _, err := hs[0].Weave("rmpeer", nickname(gone)); err == nil || !strings.Contains(err.Error(), "alive") {
		t.Errorf("rmpeer of a host that is alive: %v", err)
	}
	if err := gone.PowerOff(); err != nil {
		t.Fatal(err)
	}
	awaitDown(t, rest, gone)
	together(t, rest, func(h *dockerlab.Host) error {
		out, err := h.Weave("rmpeer", before)
		t.Logf("%s: %s", h.Name(), out)
		return err
	})
	eventually(t, soon, func() error {
		for pool, owners := range rings(t, rest[0]) {
			if n := owners[before]; n > 0 {
				return fmt.Errorf("%d addresses of %s are still the removed host's", n, pool)
			}
		}
		return nil
	})
	sameRings(t, rest)
	occupy(t, rest, net, usable-len(all))
	if got := addresses(t, rest, net); slices.Contains(got, kept+"/28") {
		t.Errorf("%s is in use: %v", kept, got)
	}
	for _, h := range rest {
		refused(t, h, []string{sub}, "run", "--rm", "--net", net, dockerlab.Image, "true")
	}

	together(t, rest, func(h *dockerlab.Host) error { return removeAll(h, net, all[0].name, all[1].name) })
	if err := gone.Boot(); err != nil {
		t.Fatal(err)
	}
	eventually(t, afterBoot, func() error { return isBack(all[2]) })
	awaitPeers(t, hs)
	meet(all, afterBoot)
	addresses(t, hs, net)
	sameRings(t, hs)
	if after := status(t, gone).Peer; after == before {
		t.Errorf("the removed host is %s again", after)
	}
	occupy(t, hs, net, usable-len(all))
	addresses(t, hs, net)
}

// awaitDown waits until no host counts a peer as reachable.
func awaitDown(t *testing.T, hosts []*dockerlab.Host, peer *dockerlab.Host) {
	t.Helper()
	eventually(t, afterBoot, func() error {
		for _, h := range hosts {
			for _, p := range status(t, h).Peers {
				if p.Nickname == nickname(peer) && p.State != control.Down {
					return fmt.Errorf("%s says that %s is %s", h.Name(), peer.Name(), p.State)
				}
			}
		}
		return nil
	})
}
