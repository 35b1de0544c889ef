package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weave/ipam/paxos"
	"weave/ipam/ring"
)

// newHub is hosts that were all told of h0 only, and have heard of others as
// far as heard says.
func newHub(t testing.TB, heard map[ring.Peer][]ring.Peer) (*net, []*host) {
	n, hosts := newNet(t, "h0", "h1", "h2", "h3")
	for _, h := range hosts[1:] {
		h.known = append([]ring.Peer{"h0", h.self}, heard[h.self]...)
	}
	return n, hosts
}

func seeds(hosts []*host, pool string) map[string][]ring.Peer {
	all := map[string][]ring.Peer{}
	for _, h := range hosts {
		for _, s := range h.Status() {
			if s.Pool.String() == pool {
				all[s.Seed] = append(all[s.Seed], h.self)
			}
		}
	}
	return all
}

// TestViewsThatDiffer: hosts of which some have not heard of the others yet, and
// to whom nothing comes by gossip, all get the one ring of a new pool.
func TestViewsThatDiffer(t *testing.T) {
	n, hosts := newHub(t, map[ring.Peer][]ring.Peer{"h1": {"h2"}, "h2": {"h1"}})
	n.lose(never, func() bool { return true })
	for i := range 20 {
		pool := fmt.Sprintf("10.50.%d.0/24", i)
		var wg sync.WaitGroup
		for _, h := range hosts {
			wg.Go(func() {
				_, err := h.RequestPool(t.Context(), PoolRequest{Pool: netip.MustParsePrefix(pool)})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if s := seeds(hosts, pool); len(s) != 1 {
			t.Fatalf("pool %s has seeds %v", pool, s)
		}
	}
}

// TestAcceptorRefusesAnElectorateThatIsTooSmall: h0 has met h1 and h2, so it is
// no majority together with h3.
func TestAcceptorRefusesAnElectorateThatIsTooSmall(t *testing.T) {
	n, hosts := newHub(t, nil)
	hub, late := hosts[0], hosts[3]
	n.partition(map[ring.Peer]int{"h1": 1, "h2": 1})
	late.patience = 200 * time.Millisecond
	_, err := late.RequestPool(t.Context(), PoolRequest{Pool: netip.MustParsePrefix(small)})
	want(t, err, ErrNoAgreement, "3 of 4 hosts", "host-h1", "host-h2")
	if got := late.electors; !slices.Equal(got, []ring.Peer{"h0", "h1", "h2", "h3"}) {
		t.Errorf("electors %v", got)
	}

	// Both know it after a restart, whatever they have met since.
	late.known, hub.known = []ring.Peer{"h3"}, []ring.Peer{"h0"}
	if err := errors.Join(late.start(), hub.start()); err != nil {
		t.Fatal(err)
	}
	late.patience = 200 * time.Millisecond
	_, err = late.RequestPool(t.Context(), PoolRequest{Pool: netip.MustParsePrefix(small)})
	want(t, err, ErrNoAgreement, "3 of 4 hosts")
	req := request{Op: opPrepare, Pool: netip.MustParsePrefix(small), Electors: []ring.Peer{"h0", "h3"}, Ballot: paxos.Ballot{N: 1 << 20, Peer: "h3"}}
	if ans := hub.serve(t.Context(), "h3", req); ans.Promise != nil || !slices.Equal(ans.Electors, []ring.Peer{"h1", "h2"}) {
		t.Errorf("answer %+v", ans)
	}
	req.Op, req.Value = opAccept, encode(founding{Owners: []ring.Peer{"h3"}})
	if ans := hub.serve(t.Context(), "h3", req); ans.Vote != nil || !slices.Equal(ans.Electors, []ring.Peer{"h1", "h2"}) {
		t.Errorf("answer %+v", ans)
	}
}

// TestRemovedPeersAreNoElectors, though other hosts still name them.
func TestRemovedPeersAreNoElectors(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c", "d", "e")
	n.partition(map[ring.Peer]int{"d": 1, "e": 1})
	for _, p := range []ring.Peer{"d", "e"} {
		if _, err := hosts[0].RemovePeer(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	n.partition(map[ring.Peer]int{"c": 1, "d": 1, "e": 1})
	hosts[0].known = []ring.Peer{"a", "b", "c"} // it has forgotten those that it removed
	hosts[0].pool(t, small, "")
}

// TestElectorsMachine has hosts that know each other through one, and hear of
// the rest bit by bit, start a pool at once, with losses: there is one seed as
// long as the one that all know answers.
func TestElectorsMachine(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n, hosts := newHub(t, nil)
		m := &machine{net: n, hosts: hosts}
		for _, h := range hosts[1:] {
			for _, other := range hosts[1:] {
				if other != h && rapid.Bool().Draw(rt, "knows") {
					h.known = append(h.known, other.self)
				}
			}
		}
		part := map[ring.Peer]int{}
		for _, h := range hosts {
			part[h.self] = rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(rt, "part")
		}
		n.partition(part)
		m.pending = rapid.SliceOfN(rapid.Bool(), 0, 40).Draw(rt, "losses")
		n.lose(m.flip, func() bool { return true })
		var wg sync.WaitGroup
		for _, h := range hosts {
			h.patience = 10 * time.Millisecond
			wg.Go(func() { _, _ = h.RequestPool(t.Context(), PoolRequest{Pool: netip.MustParsePrefix(small)}) })
		}
		wg.Wait()
		if s := seeds(hosts, small); len(s) > 1 {
			rt.Fatalf("seeds %v", s)
		}
	})
}
