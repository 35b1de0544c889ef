package e2e

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"weave/test/dockerlab"
)

// What is run by hand in full:
//
//	go test ./test/e2e -run TestPoolFillsUp -fill-hosts 10 -fill-bits 24
var (
	rounds    = flag.Int("rounds", 100, "how often TestComposeSameSecond brings up its file")
	fillHosts = flag.Int("fill-hosts", 3, "hosts of TestPoolFillsUp")
	fillBits  = flag.Int("fill-bits", 27, "mask of the pool of TestPoolFillsUp")
)

// sameSecondFile lacks the name of its network and the subnet.
const sameSecondFile = `
services:
  one:
    image: ` + dockerlab.Image + `
    command: tool idle
    networks: [shared]
networks:
  shared:
    name: %s
    internal: true
    driver: weave
    ipam:
      driver: weave
      config:
        - subnet: %s
`

// TestComposeSameSecond brings up one file on two hosts at once, by turns on a
// subnet that no host has seen, so that they must agree who starts with it, and
// on one that they know.
func TestComposeSameSecond(t *testing.T) {
	t.Parallel()
	const lanes = 2 // files at a time: docker-compose waits half of its time
	hs := hosts(t, 2)
	var group errgroup.Group
	var pools [lanes][]string
	for lane := range lanes {
		dir, mine := t.TempDir(), (*rounds+lane)/lanes
		group.Go(func() (err error) {
			pools[lane], err = composeSameSecond(t, hs, dir, fmt.Sprintf("same-second-%d", lane), mine)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	sameRings(t, hs, slices.Concat(pools[:]...)...)
}

// composeSameSecond does so a number of times, until something fails, and
// returns the subnets.
func composeSameSecond(t *testing.T, hs []*dockerlab.Host, dir, name string, rounds int) (pools []string, err error) {
	down := func(h *dockerlab.Host) error { // cheaper than docker-compose down
		return errors.Join(
			askFor(h, http.MethodDelete, "/containers/"+name+"_one_1?force=1", nil, nil),
			askFor(h, http.MethodDelete, "/networks/"+name, nil, nil))
	}
	file := filepath.Join(dir, "compose.yml")
	for i := range rounds {
		if i%2 == 0 {
			pools = append(pools, subnet())
		}
		sub := pools[i/2]
		if err := os.WriteFile(file, fmt.Appendf(nil, sameSecondFile, name, sub), 0o644); err != nil {
			return nil, err
		}
		together(t, hs, func(h *dockerlab.Host) error {
			_, err := compose{t, h, file}.run("-p", name, "up", "-d")
			return err
		})
		if got := addresses(t, hs, name); len(got) != len(hs) {
			t.Errorf("a service on %d hosts has %v", len(hs), got)
		}
		together(t, hs, down)
		if t.Failed() {
			return nil, fmt.Errorf("%s: round %d, subnet %s", name, i, sub)
		}
	}
	return pools, nil
}

// sameRings waits until all hosts agree on who owns what, of all pools or of
// some: where other tests run beside, these must not change any more.
func sameRings(t *testing.T, hosts []*dockerlab.Host, pools ...string) {
	t.Helper()
	eventually(t, soon, func() error { return ringsAgree(hosts, pools) })
}

func ringsAgree(hosts []*dockerlab.Host, pools []string) error {
	var first map[string]map[string]uint64
	for i, h := range hosts {
		all, err := rings(h)
		if err != nil {
			return err
		}
		if len(pools) > 0 {
			maps.DeleteFunc(all, func(pool string, _ map[string]uint64) bool { return !slices.Contains(pools, pool) })
		}
		switch {
		case len(all) < max(1, len(pools)):
			return fmt.Errorf("%s knows %v of %v", h.Name(), all, pools)
		case i == 0:
			first = all
		case !reflect.DeepEqual(all, first):
			return fmt.Errorf("%s has %v, %s has %v", hosts[0].Name(), first, h.Name(), all)
		}
	}
	return nil
}

// rings tells how many addresses of a pool each peer owns, by subnet and peer.
func rings(h *dockerlab.Host) (map[string]map[string]uint64, error) {
	all := map[string]map[string]uint64{}
	s, err := statusOf(h)
	for _, pool := range s.IPAM {
		owners := map[string]uint64{}
		for _, o := range pool.Owners {
			owners[o.Peer] = o.Owned
		}
		all[pool.Subnet.String()] = owners
	}
	return all, err
}

// TestPoolFillsUp takes every address of a pool, on whichever host, sees the
// next refused on all, and gets one as soon as one is free.
func TestPoolFillsUp(t *testing.T) {
	beside(t)
	hs := hosts(t, *fillHosts)
	sub := smallSubnet(*fillBits)
	usable := 1<<(32-*fillBits) - 2
	net := network(t, hs, "--subnet", sub)
	begin := time.Now()
	occupy(t, hs, net, usable)
	t.Logf("%d containers run on %d hosts after %s", usable, len(hs), time.Since(begin).Round(time.Second))
	if got := addresses(t, hs, net); len(got) != usable {
		t.Errorf("%d containers have addresses, want %d: %v", len(got), usable, got)
	}
	for _, h := range hs {
		refused(t, h, []string{sub, "full"}, "run", "--rm", "--net", net, dockerlab.Image, "true")
	}
	for i, h := range hs {
		docker(t, h, "rm", "-f", strings.Fields(docker(t, h, "ps", "-q", "--filter", "network="+net))[0])
		other := hs[(i+1)%len(hs)]
		docker(t, other, "run", "--rm", "--net", net, dockerlab.Image, "true")
		if err := start(other, net); err != nil {
			t.Error(err)
		}
	}
}

// TestLeakedLeases: what containers had that Docker deleted while the plugin was
// disabled, or that were on their way when the plugin and then the engine was
// killed, comes back. A container that runs keeps its address.
func TestLeakedLeases(t *testing.T) {
	t.Parallel()
	const usable = 14 // of a /28
	h := spareHost(t, alone(0, ""))
	hs := []*dockerlab.Host{h}
	sub := smallSubnet(28)
	net := network(t, hs, "--subnet", sub)
	kept := run(t, h, net, []string{"--restart=always"})

	var cutOff sync.WaitGroup
	for range usable - 1 {
		cutOff.Go(func() { _ = start(h, net) }) // some fail with the plugin, or the engine
	}
	for _, kill := range []func() error{h.KillPlugin, h.Kill} {
		before := poolUse(t, hs, sub).leased
		eventually(t, soon, func() error {
			if n := poolUse(t, hs, sub).leased; n < before+2 {
				return fmt.Errorf("%d leases, then %d", before, n)
			}
			return nil
		})
		if err := kill(); err != nil {
			t.Error(err)
		}
	}
	cutOff.Wait()
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, afterBoot, func() error { return isBack(kept) })
	if err := start(h, net); err != nil { // one more, that runs
		t.Fatal(err)
	}
	if err := h.DisablePlugin(); err != nil {
		t.Fatal(err)
	}
	// The engine removes a container even if the plugin cannot be told.
	_ = removeAll(h, net, kept.name)
	if err := h.EnablePlugin(); err != nil {
		t.Fatal(err)
	}
	if left := docker(t, h, "ps", "-a", "--format", "{{.Names}}", "--filter", "network="+net); left != kept.name {
		t.Fatalf("containers are left: %s", left)
	}
	eventually(t, noticed, func() error {
		if n := poolUse(t, hs, sub).leased; n != 1 {
			return fmt.Errorf("%d leases, want that of %s", n, kept.name)
		}
		return nil
	})
	occupy(t, hs, net, usable-1)
	if got := addresses(t, hs, net); len(got) != usable {
		t.Errorf("the addresses are %v, %s among them", got, kept.ip())
	}
}
