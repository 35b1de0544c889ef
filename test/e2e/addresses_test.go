package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"weave/test/dockerlab"
)

// What the default run keeps small, and what is run by hand in full:
//
//	go test ./test/e2e -run TestComposeSameSecond -rounds 100
//	go test ./test/e2e -run TestPoolFillsUp -fill-hosts 10 -fill-bits 24
var (
	rounds    = flag.Int("rounds", 10, "how often TestComposeSameSecond brings up its file")
	fillHosts = flag.Int("fill-hosts", 3, "hosts of TestPoolFillsUp")
	fillBits  = flag.Int("fill-bits", 27, "mask of the pool of TestPoolFillsUp")
)

const (
	sameSecondNet  = "same-second"
	sameSecondFile = `
services:
  one: &service
    image: ` + dockerlab.Image + `
    command: tool idle
    networks: [shared]
  two: *service
networks:
  shared:
    name: ` + sameSecondNet + `
    driver: weave
    ipam:
      driver: weave
      config:
        - subnet: %s
`
)

// TestComposeSameSecond brings up one file on two hosts at once, by turns on a
// subnet that no host has seen, so that they must agree who starts with it, and
// on one that they know.
func TestComposeSameSecond(t *testing.T) {
	hs := hosts(t, 2)
	file := filepath.Join(t.TempDir(), "compose.yml")
	down := func(h *dockerlab.Host) error {
		_, err := compose{t, h, file}.run("down", "--timeout", "1")
		return err
	}
	t.Cleanup(func() { together(t, hs, down) })
	var sub string
	for i := range *rounds {
		if i%2 == 0 {
			sub = subnet()
		}
		if err := os.WriteFile(file, fmt.Appendf(nil, sameSecondFile, sub), 0o644); err != nil {
			t.Fatal(err)
		}
		together(t, hs, func(h *dockerlab.Host) error {
			_, err := compose{t, h, file}.run("up", "-d")
			return err
		})
		if got := addresses(t, hs, sameSecondNet); len(got) != 2*len(hs) {
			t.Errorf("round %d: two services on %d hosts have %v", i, len(hs), got)
		}
		if t.Failed() {
			t.Fatalf("round %d, subnet %s", i, sub)
		}
		together(t, hs, down)
	}
	sameRings(t, hs)
}

// sameRings waits until all hosts agree on who owns what.
func sameRings(t *testing.T, hosts []*dockerlab.Host) {
	t.Helper()
	eventually(t, soon, func() error {
		first := rings(t, hosts[0])
		for _, h := range hosts[1:] {
			if other := rings(t, h); !reflect.DeepEqual(other, first) {
				return fmt.Errorf("%s has %v, %s has %v", hosts[0].Name(), first, h.Name(), other)
			}
		}
		return nil
	})
}

// rings tells how many addresses of a pool each peer owns, by subnet and peer.
func rings(t *testing.T, h *dockerlab.Host) map[string]map[string]uint64 {
	t.Helper()
	all := map[string]map[string]uint64{}
	for _, pool := range status(t, h).IPAM {
		owners := map[string]uint64{}
		for _, o := range pool.Owners {
			owners[o.Peer] = o.Owned
		}
		all[pool.Subnet.String()] = owners
	}
	return all
}

// TestPoolFillsUp takes every address of a pool, on whichever host, sees the
// next refused on all, and gets one as soon as one is free.
func TestPoolFillsUp(t *testing.T) {
	hs := hosts(t, *fillHosts)
	sub := smallSubnet(*fillBits)
	usable := 1<<(32-*fillBits) - 2
	net := network(t, hs, "--subnet", sub)
	occupy(t, hs, net, usable)
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
// disabled, or that were on their way when the engine was killed, comes back.
// A container that runs keeps its address.
func TestLeakedLeases(t *testing.T) {
	const usable = 6 // of a /29
	hs := hosts(t, 1)
	h, sub := hs[0], smallSubnet(29)
	net := network(t, hs, "--subnet", sub)
	kept := run(t, h, net, []string{"--restart=always"})
	t.Cleanup(func() { together(t, hs, func(h *dockerlab.Host) error { return removeAll(h, net, kept.name) }) })

	var cutOff sync.WaitGroup
	for range usable - 1 {
		cutOff.Go(func() { _ = start(h, net) }) // some fail with the engine
	}
	eventually(t, soon, func() error {
		if n := poolUse(t, hs, sub).leased; n < 3 {
			return fmt.Errorf("%d leases", n)
		}
		return nil
	})
	err := h.Kill()
	cutOff.Wait()
	if err := errors.Join(err, h.Start()); err != nil {
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
