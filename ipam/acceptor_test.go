package ipam

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weave/ipam/paxos"
	"weave/ipam/ring"
)

// TestDecreesAreForgotten: however many pools are asked for, in a minority or
// not, an acceptor remembers few of them, and promises nothing twice.
func TestDecreesAreForgotten(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	a, b := hosts[0], hosts[1]
	for _, h := range hosts {
		h.tidyDecrees = 4
	}
	pool := func(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("10.50.%d.0/24", i)) }
	n.partition(map[ring.Peer]int{"b": 1, "c": 1})
	a.patience = 10 * time.Millisecond
	for i := range 20 {
		_, err := a.RequestPool(t.Context(), PoolRequest{Pool: pool(i)})
		want(t, err, ErrNoAgreement)
	}
	if len(a.acceptors) > 4 || len(a.pools) != 0 || a.floor == 0 {
		t.Errorf("%d decrees, %d pools, floor %d", len(a.acceptors), len(a.pools), a.floor)
	}

	high := paxos.Ballot{N: 1000, Peer: "b"}
	promise := func(ballot paxos.Ballot, i int) bool {
		ans := a.serve(t.Context(), "b", request{Op: opPrepare, Pool: pool(i), Ballot: ballot, Electors: []ring.Peer{"a", "b", "c"}})
		return ans.Promise != nil && ans.Promise.OK
	}
	if !promise(high, 100) {
		t.Fatal("no promise")
	}
	for i := range 20 {
		promise(paxos.Ballot{N: a.floor + 1, Peer: "b"}, 101+i)
	}
	if _, known := a.acceptors[pool(100).String()]; known {
		t.Fatal("not forgotten")
	}
	for range 2 { // also after a restart
		if promise(paxos.Ballot{N: 1000, Peer: "a"}, 100) || promise(high, 100) || !promise(paxos.Ballot{N: a.floor, Peer: "b"}, 100) {
			t.Errorf("a forgotten promise is broken, or none is made; floor %d", a.floor)
		}
		if err := a.start(); err != nil {
			t.Fatal(err)
		}
		a.tidyDecrees = 4
		delete(a.acceptors, pool(100).String())
	}

	n.partition(nil)
	for i := range 20 {
		for _, h := range []*host{b, a} {
			h.pool(t, pool(i).String(), "")
		}
	}
	for _, h := range hosts {
		if len(h.acceptors) > 5 || len(h.Status()) != 20 {
			t.Errorf("%s: %d decrees, %d pools", h.self, len(h.acceptors), len(h.Status()))
		}
	}
}

// TestAcceptedIsNotForgotten until the outcome is known.
func TestAcceptedIsNotForgotten(t *testing.T) {
	_, hosts := newNet(t, "a", "b", "c")
	a := hosts[0]
	a.tidyDecrees = 2
	value := encode(founding{Seed: ring.SeedID{9}, Owners: []ring.Peer{"b"}})
	ballot := paxos.Ballot{N: 7, Peer: "b"}
	for i := range 4 {
		pool := netip.MustParsePrefix(fmt.Sprintf("10.50.%d.0/24", i))
		ans := a.serve(t.Context(), "b", request{Op: opAccept, Pool: pool, Ballot: ballot, Value: value, Electors: []ring.Peer{"a", "b", "c"}})
		if ans.Vote == nil || !ans.Vote.OK {
			t.Fatalf("%+v", ans)
		}
	}
	if len(a.acceptors) != 4 || a.floor != 0 {
		t.Errorf("%d decrees, floor %d", len(a.acceptors), a.floor)
	}
	a.pool(t, "10.50.0.0/24", "")
	if a.Status()[0].Seed != (ring.SeedID{9}).String() {
		t.Error("a value that may have been decided is lost")
	}
	if err := a.forgetDecrees(); err != nil || len(a.acceptors) != 3 {
		t.Errorf("%d decrees, %v", len(a.acceptors), err)
	}
}
