package ipam

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"weave/ipam/paxos"
	"weave/ipam/ring"
)

func TestGapIsPulled(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	n.partition(map[ring.Peer]int{"c": 1})
	a.pool(t, small, "")
	n.partition(nil)
	n.lose(never, func() bool { return true })
	b.mu.Lock()
	_, change, err := b.pools[netip.MustParsePrefix(small)].ring.Give("b", rangeOf("10.40.0.9"), "a")
	b.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	want(t, c.Merge("b", encode(gossip{Rings: []ring.Chunk{change}})), ring.ErrGap, "ring")
	if c.Missing(c.Digest()) != nil || b.Missing(c.Digest()) == nil {
		t.Error("digests do not tell who misses something")
	}
	if err := errors.Join(n.sync(), n.invariants()); err != nil {
		t.Fatal(err)
	}
	if b.Missing(c.Digest()) != nil {
		t.Error("still different after the sync")
	}
}

// TestMergeKeepsTheGood has one message with a good ring and bad ones.
func TestMergeKeepsTheGood(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	a := hosts[0]
	a.pool(t, small, "")
	good, err := ring.New(netip.MustParsePrefix("10.60.0.0/24"), ring.SeedID{1}, []ring.Peer{"b"})
	if err != nil {
		t.Fatal(err)
	}
	ours := a.pools[netip.MustParsePrefix(small)].ring.Chunk()
	ours.Tokens = []ring.Token{{Start: ours.Tokens[0].Start, Owner: "b", Version: 9}}
	part := good.Chunk()
	part.Pool = netip.MustParsePrefix("10.60.0.0/16")
	part.End = netip.MustParseAddr("10.60.9.0")
	tooLarge := good.Chunk()
	tooLarge.Pool = netip.MustParsePrefix("0.0.0.0/0")
	err = a.Merge("b", encode(gossip{Rings: []ring.Chunk{ours, part, tooLarge, good.Chunk()}}))
	want(t, err, ring.ErrOurs, "host-b", small)
	want(t, err, ring.ErrGap)
	want(t, err, ErrInvalid)
	if s := a.Status(); len(s) != 2 || s[1].Owners[0].Peer != "b" || s[0].Free != 7 {
		t.Errorf("%+v", s)
	}
}

func TestRunAnnouncesFreeSpace(t *testing.T) {
	n, hosts := newNet(t, "a")
	a := hosts[0]
	a.pool(t, small, "")
	a.lease(t, small)
	pool := netip.MustParsePrefix(small)
	if a.free[pool] != 13 {
		t.Errorf("announced %d free", a.free[pool])
	}
	delete(a.free, pool)
	if err := a.start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	for free := uint64(0); free != 13; {
		n.mu.Lock()
		free = a.free[pool]
		n.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAnswerRefuses(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	a := hosts[0]
	a.pool(t, small, "")
	pool, other := netip.MustParsePrefix(small), netip.MustParsePrefix("10.61.0.0/24")
	addr := netip.MustParseAddr("10.40.0.3")
	chunk := a.pools[pool].chunk()
	tests := []struct {
		name string
		req  request
		want refusal
	}{
		{"unknown pool", request{Op: opClaim, Pool: other, Addrs: []netip.Addr{addr}}, refusedFailed},
		{"without a ring", request{Op: opClaim, Pool: pool, Addrs: []netip.Addr{addr}}, refusedFailed},
		{"unknown op", request{Op: "dance", Pool: pool, Ring: chunk, Addr: addr}, refusedFailed},
		{"no address", request{Op: opReserve, Pool: pool, Ring: chunk}, refusedFailed},
		{"network address", request{Op: opClaim, Pool: pool, Ring: chunk, Addrs: []netip.Addr{pool.Addr()}}, refusedFailed},
		{"not ours", request{Op: opReserve, Pool: pool, Ring: chunk, Addr: netip.MustParseAddr("10.40.0.9"), Serial: 1}, refusedMoved},
		{"no serial", request{Op: opReserve, Pool: pool, Ring: chunk, Addr: addr}, refusedFailed},
		{"removal by one who may not ask", request{Op: opSpace, Decree: &removal{"c", 1}}, refusedFailed},
		{"no heir", request{Op: opInherit, Decree: &removal{"c", 1}}, refusedFailed},
		{"removal of a living peer", request{Op: opPrepare, Decree: &removal{"a", 1}, Ballot: paxos.Ballot{N: 1, Peer: "b"}}, refusedAlive},
		{"no ring", request{Op: opSpace, Pool: pool}, refusedFailed},
		{"sub-pool elsewhere", request{Op: opSpace, Pool: pool, Ring: chunk, Within: other}, refusedFailed},
		{"ballot of another", request{Op: opPrepare, Pool: other, Ballot: paxos.Ballot{N: 1, Peer: "c"}}, refusedFailed},
		{"ballot 0", request{Op: opPrepare, Pool: other, Ballot: paxos.Ballot{Peer: "b"}}, refusedFailed},
		{"value is no list", request{Op: opAccept, Pool: other, Electors: []ring.Peer{"a", "b"}, Ballot: paxos.Ballot{N: 1, Peer: "b"}, Value: []byte(`{}`)}, refusedFailed},
	}
	for _, test := range tests {
		b, err := a.Answer(t.Context(), "b", encode(test.req))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		var ans answer
		if err := decode(b, maxMessage, &ans); err != nil || ans.Refusal != test.want {
			t.Errorf("%s: %q %s, want %q", test.name, ans.Refusal, ans.Detail, test.want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	_, hosts := newNet(f, "a", "b")
	id := hosts[0].pool(f, small, "")
	hosts[0].lease(f, id)
	pool := netip.MustParsePrefix(small)
	chunk := hosts[0].pools[pool].chunk()
	for _, o := range []op{opSpace, opClaim, opReserve, opUnreserve, opPrepare, opAccept} {
		f.Add(encode(request{Op: o, Pool: pool, Ring: chunk, Addr: netip.MustParseAddr("10.40.0.5"), Addrs: []netip.Addr{netip.MustParseAddr("10.40.0.5")}, Serial: 1, Ballot: paxos.Ballot{N: 3, Peer: "b"}}))
	}
	f.Add(encode(request{Op: opPrepare, Pool: netip.MustParsePrefix("10.41.0.0/24"), Electors: []ring.Peer{"a", "b", "c"}, Ballot: paxos.Ballot{N: 3, Peer: "b"}}))
	f.Add(encode(request{Op: opPrepare, Decree: &removal{"c", 1}, Electors: []ring.Peer{"a", "b"}, Ballot: paxos.Ballot{N: 3, Peer: "b"}}))
	f.Add(encode(gossip{Removed: removed{"b": {"c", 1}}}))
	f.Add([]byte(`{"op":"claim"}`))
	f.Add(encode(gossip{Rings: []ring.Chunk{*chunk}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h := hosts[0]
		leases := len(h.Leases())
		_, _ = h.Answer(context.Background(), "b", b)
		_ = h.Merge("b", b)
		_ = h.Missing(b)
		if len(h.Leases()) != leases || len(h.Removed()) > maxRemoved || checkElectors(h.electors) != nil {
			t.Fatal("a peer changed our leases")
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if p := h.pools[pool]; p.ring.Check() != nil || p.free.Contains(h.cfg.Range.Addr()) {
			t.Fatal("a peer broke the ring")
		}
	})
}

// TestPromiseNeedsTheDisk has an acceptor that cannot store: it must not answer.
func TestPromiseNeedsTheDisk(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	b := hosts[1]
	b.disk.failAfter(0)
	req := request{Op: opPrepare, Pool: netip.MustParsePrefix(small), Electors: []ring.Peer{"a", "b"}, Ballot: paxos.Ballot{N: 1, Peer: "a"}}
	if ans := b.serve(t.Context(), "a", req); ans.Refusal != refusedFailed || ans.Promise != nil || len(b.pools) != 0 {
		t.Errorf("%+v, %d pools", ans, len(b.pools))
	}
}
