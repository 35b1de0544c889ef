package e2e

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"weave/test/dockerlab"
)

// held is the set of addresses that running containers have.
type held struct {
	mu    sync.Mutex
	by    map[string]string
	twice []string
}

func (h *held) take(address, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if other, taken := h.by[address]; taken {
		h.twice = append(h.twice, fmt.Sprintf("%s: %s and %s", address, other, name))
	}
	h.by[address] = name
}

func (h *held) give(address string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.by, address)
}

// TestChurn runs and removes 200 containers on two hosts in parallel: no
// address is given out twice, none is leaked, no link is left behind.
func TestChurn(t *testing.T) {
	const containers = 200
	hs := hosts(t, 2)
	sub := subnet()
	net := network(t, hs, "--subnet", sub)
	for _, h := range hs { // the first one ever makes docker_gwbridge
		docker(t, h, "run", "--rm", "--net", net, dockerlab.Image, "true")
	}
	linksBefore, useBefore := links(t, hs), poolUse(t, hs, sub)
	addresses := held{by: map[string]string{}}
	var group errgroup.Group
	group.SetLimit(workers)
	for i := range containers {
		h := hs[i%len(hs)]
		group.Go(func() error { return runAndRemove(h, net, fmt.Sprintf("churn-%d", i), &addresses) })
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if len(addresses.twice) > 0 {
		t.Errorf("addresses given out twice: %v", addresses.twice)
	}
	eventually(t, soon, func() error {
		if after := links(t, hs); !slices.Equal(after, linksBefore) {
			return fmt.Errorf("links were %v, are %v", linksBefore, after)
		}
		if after := poolUse(t, hs, sub); after != useBefore {
			return fmt.Errorf("use of the pool was %+v, is %+v", useBefore, after)
		}
		return nil
	})
}

func runAndRemove(h *dockerlab.Host, net, name string, addresses *held) error {
	if _, err := h.Docker("run", "-d", "--name", name, "--net", net, dockerlab.Image, "tool", "idle"); err != nil {
		_, rmErr := h.Docker("rm", "-f", name)
		return errors.Join(err, rmErr)
	}
	address, err := h.Docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)
	if err == nil {
		addresses.take(address, name)
		addresses.give(address)
	}
	_, rmErr := h.Docker("rm", "-f", name)
	return errors.Join(err, rmErr)
}

// links returns the links of all hosts in order.
func links(t *testing.T, hosts []*dockerlab.Host) []string {
	t.Helper()
	var all []string
	for _, h := range hosts {
		names, err := h.Net().Links()
		if err != nil {
			t.Error(err)
		}
		for _, name := range names {
			all = append(all, h.Name()+" "+name)
		}
	}
	slices.Sort(all)
	return all
}
