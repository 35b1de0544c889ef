package e2e

import (
	"slices"
	"sync"
	"testing"
	"time"

	"weave/test/dockerlab"
)

// cut takes a host off the wire until heal is called, or the test ends.
func cut(t *testing.T, h *dockerlab.Host) (heal func()) {
	t.Helper()
	if err := h.Net().Cut(); err != nil {
		t.Fatal(err)
	}
	heal = sync.OnceFunc(func() {
		if err := h.Net().Heal(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(heal)
	return heal
}

// TestPartition: hosts without each other go on with the pools that they know,
// each from its own ranges; a new pool needs the majority. Healed, all is one
// again within ten seconds.
func TestPartition(t *testing.T) {
	hs := hosts(t, 3)
	majority, alone := hs[:2], hs[2]
	old, known, small, unknown := subnet(), subnet(), smallSubnet(29), subnet()
	net := network(t, hs, "--subnet", old)
	smallNet := network(t, hs, "--subnet", small)
	seedPool(t, alone, known)
	sameRings(t, hs)
	var all []container
	for _, h := range hs {
		all = append(all, run(t, h, net, nil))
	}
	meet(all, soon)

	heal := cut(t, alone)
	var refusals sync.WaitGroup
	refusals.Go(func() { refusedInTime(t, alone, unknown, majority) })
	seedPool(t, majority[0], subnet())
	knownNet := network(t, hs, "--subnet", known)
	for _, h := range hs {
		all = append(all, run(t, h, net, nil), run(t, h, knownNet, nil))
	}
	if _, err := all[0].try("ping", "-c1", "-W1", all[2].ip()); err == nil {
		t.Error("a ping crossed a cut wire")
	}
	ownShareOnly(t, alone, smallNet, small, majority)
	refusals.Wait()

	heal()
	healed := time.Now()
	sameRings(t, hs)
	for _, n := range []string{net, knownNet} {
		meet(slices.DeleteFunc(slices.Clone(all), func(c container) bool { return c.net != n }), soon)
	}
	took := time.Since(healed)
	t.Logf("healed after %s", took.Round(time.Millisecond))
	if took > whole {
		t.Errorf("healed after %s, want %s", took, whole)
	}
	for _, n := range []string{net, knownNet} {
		addresses(t, hs, n)
	}
	network(t, hs, "--subnet", unknown)
}

// seedPool makes a subnet known to the hosts, without a network.
func seedPool(t *testing.T, h *dockerlab.Host, subnet string) {
	t.Helper()
	docker(t, h, creation("passing", "--subnet", subnet)...)
	docker(t, h, "network", "rm", "passing")
}

// meet waits until each container reaches the next.
func meet(all []container, limit time.Duration) {
	for i, c := range all {
		c.t.Helper()
		c.reaches(all[(i+1)%len(all)].ip(), limit)
	}
}

// refusedInTime: a network on a new pool is refused by a host without the
// others, which are named.
func refusedInTime(t *testing.T, h *dockerlab.Host, subnet string, others []*dockerlab.Host) {
	t.Helper()
	const limit = 10 * time.Second
	words := []string{subnet, "majority", "start weave there"}
	for _, other := range others {
		words = append(words, nickname(other))
	}
	begin := time.Now()
	refused(t, h, words, creation("refused", "--subnet", subnet)...)
	took := time.Since(begin)
	t.Logf("refused after %s", took.Round(time.Millisecond))
	if took > limit {
		t.Errorf("the refusal took %s", took)
	}
}

// ownShareOnly: a host without the others gives out what it owns of a pool, and
// then names those who own the rest.
func ownShareOnly(t *testing.T, h *dockerlab.Host, net, subnet string, others []*dockerlab.Host) {
	t.Helper()
	words := []string{subnet}
	for _, other := range others {
		words = append(words, nickname(other))
	}
	var share int
	for _, p := range status(t, h).IPAM {
		if p.Subnet.String() == subnet {
			share = int(p.Free)
		}
	}
	if share == 0 {
		t.Fatalf("%s owns nothing of %s", h.Name(), subnet)
	}
	occupy(t, []*dockerlab.Host{h}, net, share)
	refused(t, h, words, "run", "--rm", "--net", net, dockerlab.Image, "true")
	if got := addresses(t, []*dockerlab.Host{h}, net); len(got) != share {
		t.Errorf("%v have been given out, want %d", got, share)
	}
}
