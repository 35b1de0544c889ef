package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
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
	const batches, batch = 50, 4
	hs := hosts(t, 2)
	sub := subnet()
	net := network(t, hs, "--subnet", sub)
	for _, h := range hs { // the first one ever makes docker_gwbridge
		docker(t, h, "run", "--rm", "--net", net, dockerlab.Image, "true")
	}
	awaitNoRetired(t, hs)
	linksBefore, rulesBefore, useBefore := links(t, hs), rules(t, hs), poolUse(t, hs, sub)
	addresses := held{by: map[string]string{}}
	var group errgroup.Group
	group.SetLimit(2 * workers)
	for i := range batches {
		h := hs[i%len(hs)]
		group.Go(func() error { return runAndRemove(h, net, fmt.Sprintf("churn-%d", i), batch, &addresses) })
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
		if after := rules(t, hs); after != rulesBefore {
			return fmt.Errorf("packet filters were %s, are %s", rulesBefore, after)
		}
		if after := poolUse(t, hs, sub); after != useBefore {
			return fmt.Errorf("use of the pool was %+v, is %+v", useBefore, after)
		}
		return nil
	})
}

// runAndRemove runs containers one after the other, and then removes them: most
// of the time each has others beside it, here and on the other host.
func runAndRemove(h *dockerlab.Host, net, name string, containers int, addresses *held) error {
	var errs []error
	var names, taken []string
	for i := range containers {
		name := fmt.Sprintf("%s-%d", name, i)
		names = append(names, name)
		err := launch(h, name, net, nil)
		if err == nil {
			var address string
			address, err = addressOf(h, name, net)
			addresses.take(address, name)
			taken = append(taken, address)
		}
		errs = append(errs, err)
	}
	for _, address := range taken {
		addresses.give(address)
	}
	_, err := h.Docker(append([]string{"rm", "-f"}, names...)...)
	return errors.Join(append(errs, err)...)
}

func addressOf(h *dockerlab.Host, container, net string) (string, error) {
	var known struct {
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress string }
		}
	}
	err := ask(h, "/containers/"+container+"/json", &known)
	address := known.NetworkSettings.Networks[net].IPAddress
	if err == nil && address == "" {
		err = fmt.Errorf("%s has no address", container)
	}
	return address, err
}

// rules returns the packet filters of all hosts, ours and Docker's, without
// their counters.
func rules(t *testing.T, hosts []*dockerlab.Host) string {
	t.Helper()
	var all strings.Builder
	for _, h := range hosts {
		listed, err := h.Run("nft", "--stateless", "list", "ruleset")
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintln(&all, h.Name(), listed)
	}
	return all.String()
}

// awaitNoRetired waits until the links of containers that are gone are gone, too.
func awaitNoRetired(t *testing.T, hosts []*dockerlab.Host) {
	t.Helper()
	eventually(t, soon, func() error {
		if all := links(t, hosts); slices.ContainsFunc(all, func(l string) bool { return strings.Contains(l, " wvx") }) {
			return fmt.Errorf("links are %v", all)
		}
		return nil
	})
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
