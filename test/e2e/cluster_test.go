package e2e

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"weave/plugin/control"
	"weave/test/dockerlab"
)

// TestConnect: hosts that were told of nobody meet by `weave connect`. It says
// whom it has met, and what keeps it from meeting others.
func TestConnect(t *testing.T) {
	beside(t)
	hs := spareHosts(t, 2, alone)
	for _, h := range hs {
		eventually(t, soon, func() error { return isAnother(h, "") })
		if peers := status(t, h).Peers; len(peers) != 0 {
			t.Errorf("a host that knows nobody has peers: %+v", peers)
		}
	}
	if out := weave(t, hs[1], "connect", hs[0].Net().IP4().String()); !strings.Contains(out, nickname(hs[0])) {
		t.Errorf("connect printed %q", out)
	}
	awaitPeers(t, hs)
	if _, err := hs[1].Weave("connect", nobody); err == nil || !strings.Contains(err.Error()+weave(t, hs[1], "status"), nobody) {
		t.Errorf("connecting to nobody: %v", err)
	}
}

// TestMergeOfClusters connects two clusters of one host that each started the
// same subnet: every lease is kept, and what two containers have is named.
func TestMergeOfClusters(t *testing.T) {
	beside(t)
	hs := spareHosts(t, 2, alone)
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
	clashIsTold(t, hs[loser], sub, auto[0].ip(), inSubnet(sub, 1))
	for _, c := range []container{twins[loser], auto[loser]} {
		if held := holders(t, hs[winner], c.ip()); !slices.Equal(held, []string{nickname(hs[winner])}) {
			t.Errorf("%s is announced by %v", c.ip(), held)
		}
		if err := isBack(c); err != nil {
			t.Error(err)
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

// clashIsTold: addresses that a host has lost are in its status as people see
// it, in its log, and counted in its metric.
func clashIsTold(t *testing.T, h *dockerlab.Host, pool string, addresses ...string) {
	t.Helper()
	log, err := os.ReadFile(h.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	screen := weave(t, h, "status")
	for _, address := range addresses {
		isTold := func(line string) bool {
			return strings.Contains(line, "in use on another host") && strings.Contains(line, "addr="+address+" ")
		}
		if !slices.ContainsFunc(strings.Split(string(log), "\n"), isTold) {
			t.Errorf("the log does not name the clash about %s", address)
		}
		if !strings.Contains(screen, address) {
			t.Errorf("the status does not show the clash about %s:\n%s", address, screen)
		}
	}
	if got, want := metric(t, h, fmt.Sprintf("weave_ipam_clashes{pool=%q}", pool)), fmt.Sprint(len(addresses)); got != want {
		t.Errorf("the metric counts %s clashes, want %s", got, want)
	}
}

// metric returns the value of a metric, written with its labels.
func metric(t *testing.T, h *dockerlab.Host, series string) string {
	t.Helper()
	client := unixClient(h.Path("/run/weave/weave.sock"))
	defer client.CloseIdleConnections()
	response, err := client.Get("http://weave/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, series+" "); found {
			return strings.TrimSpace(value)
		}
	}
	t.Errorf("there is no metric %s", series)
	return ""
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

// TestRmpeer removes a host from two others at once. They give out what it
// owned, but not what its container has. When it is back it joins as a new peer,
// and its container has its address all the time.
func TestRmpeer(t *testing.T) {
	t.Parallel()
	const usable = 14 // of a /28
	hs := spareCluster(t, 3)
	rest, gone := hs[:2], hs[2]
	sub := smallSubnet(28)
	kept := strings.TrimSuffix(sub, "0/28") + "9"
	net := network(t, hs, "--subnet", sub)
	all := []container{
		run(t, hs[0], net, nil), run(t, hs[1], net, nil),
		run(t, gone, net, []string{"--restart=always", "--ip", kept}),
	}
	meet(all, soon)
	if _, err := hs[0].Weave("rmpeer", nickname(gone)); err == nil || !strings.Contains(err.Error(), "alive") {
		t.Errorf("rmpeer of a host that is alive: %v", err)
	}

	comeBack := map[string]func(t *testing.T) (back func() error){
		"cut off": func(t *testing.T) func() error {
			if err := gone.Net().Cut(); err != nil {
				t.Fatal(err)
			}
			return gone.Net().Heal
		},
		"switched off": func(t *testing.T) func() error {
			if err := gone.PowerOff(); err != nil {
				t.Fatal(err)
			}
			return gone.Boot
		},
	}
	for _, how := range []string{"cut off", "switched off"} {
		before := status(t, gone).Peer
		back := comeBack[how](t)
		rmpeer(t, rest, gone, before)
		occupy(t, rest, net, usable-len(all))
		if got := addresses(t, rest, net); slices.Contains(got, kept+"/28") {
			t.Errorf("%s: %s is in use: %v", how, kept, got)
		}
		for _, h := range rest {
			refused(t, h, []string{sub}, "run", "--rm", "--net", net, dockerlab.Image, "true")
		}

		together(t, rest, func(h *dockerlab.Host) error { return removeAll(h, net, all[0].name, all[1].name) })
		if err := back(); err != nil {
			t.Fatal(err)
		}
		eventually(t, afterBoot, func() error { return isBack(all[2]) })
		eventually(t, afterBoot, func() error { return isAnother(gone, before) })
		awaitPeers(t, hs)
		meet(all, afterBoot)
		addresses(t, hs, net)
		sameRings(t, hs)
		if now := all[2].ip(); now != kept {
			t.Errorf("%s: %s was %s, is %s", how, all[2].name, kept, now)
		}
	}
	occupy(t, hs, net, usable-len(all))
	addresses(t, hs, net)
}

// rmpeer removes a peer that is out of reach from all hosts at once, and waits
// until what it owned has others for owners.
func rmpeer(t *testing.T, hosts []*dockerlab.Host, gone *dockerlab.Host, id string) {
	t.Helper()
	awaitDown(t, hosts, gone)
	together(t, hosts, func(h *dockerlab.Host) error {
		out, err := h.Weave("rmpeer", id)
		t.Logf("%s: %s", h.Name(), out)
		return err
	})
	eventually(t, soon, func() error {
		all, err := rings(hosts[0])
		if err != nil {
			return err
		}
		for pool, owners := range all {
			if n := owners[id]; n > 0 {
				return fmt.Errorf("%d addresses of %s are still the removed host's", n, pool)
			}
		}
		return nil
	})
	sameRings(t, hosts)
}

// isAnother tells whether a host has become another peer.
func isAnother(h *dockerlab.Host, before string) error {
	s, err := statusOf(h)
	if err == nil && (s.Peer == "" || s.Peer == before) {
		err = fmt.Errorf("peer %s is %q now", before, s.Peer)
	}
	return err
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
