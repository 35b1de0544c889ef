package ipam

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weave/ipam/ring"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestRequestPoolRefuses(t *testing.T) {
	prefix := netip.MustParsePrefix
	tests := []struct {
		name  string
		req   PoolRequest
		kind  error
		words string
	}{
		{"not canonical", PoolRequest{Pool: prefix("10.1.2.3/16")}, ErrInvalid, "10.1.2.3/16 10.1.0.0/16"},
		{"too small", PoolRequest{Pool: prefix("10.1.2.0/31")}, ErrInvalid, "10.1.2.0/31 /30"},
		{"too large", PoolRequest{Pool: prefix("10.0.0.0/7").Masked()}, ErrInvalid, "10.0.0.0/7 /8"},
		{"v6 too small", PoolRequest{Pool: prefix("fd00::/127")}, ErrInvalid, "fd00::/127 /126"},
		{"v6 without subnet", PoolRequest{V6: true}, ErrInvalid, "--subnet fd00:"},
		{"v6 and v4", PoolRequest{V6: true, Pool: prefix("10.1.0.0/16")}, ErrInvalid, "10.1.0.0/16"},
		{"unknown option", PoolRequest{Options: map[string]string{"colour": "red"}}, ErrInvalid, "colour"},
		{"v4 in v6", PoolRequest{Pool: prefix("::ffff:10.1.0.0/112")}, ErrInvalid, "::ffff:10.1.0.0/112"},
		{"sub-pool alone", PoolRequest{SubPool: prefix("10.1.0.0/24")}, ErrInvalid, "10.1.0.0/24 --subnet"},
		{"sub-pool outside", PoolRequest{Pool: prefix("10.1.0.0/16"), SubPool: prefix("10.2.0.0/24")}, ErrInvalid, "10.1.0.0/16 10.2.0.0/24"},
		{"sub-pool larger", PoolRequest{Pool: prefix("10.1.0.0/16"), SubPool: prefix("10.0.0.0/8")}, ErrInvalid, "10.1.0.0/16 10.0.0.0/8"},
		{"sub-pool not canonical", PoolRequest{Pool: prefix("10.1.0.0/16"), SubPool: prefix("10.1.3.9/24")}, ErrInvalid, "10.1.3.0/24"},
		{"sub-pool of the network address", PoolRequest{Pool: prefix("10.1.0.0/16"), SubPool: prefix("10.1.0.0/32")}, ErrInvalid, "10.1.0.0/32"},
		{"busy", PoolRequest{Pool: prefix("172.17.0.0/24")}, ErrOverlap, "172.17.0.0/24 172.17.0.0/16 route"},
		{"held", PoolRequest{Pool: prefix("10.50.1.0/24")}, ErrOverlap, "10.50.1.0/24 10.50.0.0/16 network"},
	}
	_, hosts := newNet(t, "a")
	hosts[0].busy = prefixes("172.17.0.0/16", "fe80::/64")
	hosts[0].pool(t, "10.50.0.0/16", "")
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := hosts[0].RequestPool(t.Context(), test.req)
			want(t, err, test.kind, strings.Fields(test.words)...)
		})
	}
	if n := len(hosts[0].Status()); n != 1 {
		t.Errorf("%d pools after refusals", n)
	}
}

func TestGatewayIsTheNetworkAddress(t *testing.T) {
	_, hosts := newNet(t, "a")
	reply, err := hosts[0].RequestPool(t.Context(), PoolRequest{Pool: netip.MustParsePrefix(small)})
	if err != nil || reply.Gateway != small || reply.ID != small || reply.Pool.String() != small {
		t.Errorf("%+v, %v", reply, err)
	}
}

func TestFreshPools(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	whole := netip.MustParsePrefix("10.32.0.0/12")
	hosts[0].busy = prefixes("10.32.0.0/13", "192.168.0.0/16")
	hosts[0].inUse = prefixes("10.40.0.0/14")
	hosts[1].pool(t, "10.44.0.0/16", "")
	var seen []netip.Prefix
	for range 20 {
		reply, err := hosts[0].RequestPool(t.Context(), PoolRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if !whole.Overlaps(reply.Pool) || reply.Pool.Bits() != 24 {
			t.Errorf("pool %s", reply.Pool)
		}
		for _, other := range append(seen, prefixes("10.32.0.0/13", "10.40.0.0/14", "10.44.0.0/16")...) {
			if other.Overlaps(reply.Pool) {
				t.Errorf("pool %s overlaps %s", reply.Pool, other)
			}
		}
		seen = append(seen, reply.Pool)
	}
}

func TestFreshPoolsRunOut(t *testing.T) {
	_, hosts := newNet(t, "a")
	a := hosts[0]
	a.cfg.Range = netip.MustParsePrefix("10.32.0.0/23")
	request := func() (PoolReply, error) { return a.RequestPool(t.Context(), PoolRequest{}) }
	first, err := request()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.ReleasePool(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	second, err := request()
	if err != nil || second.Pool == first.Pool {
		t.Fatalf("%s has a ring already, the other pool none: %v", second.Pool, err)
	}
	third, err := request()
	if err != nil || third.Pool != first.Pool {
		t.Fatalf("%s and not %s, which nobody uses: %v", third.Pool, first.Pool, err)
	}
	_, err = request()
	want(t, err, ErrFull, "10.32.0.0/23", "--subnet", "WEAVE_IPALLOC_RANGE")
	if err := a.ReleasePool(t.Context(), third.ID); err != nil {
		t.Fatal(err)
	}
	a.inUse = prefixes(third.ID)
	_, err = request()
	want(t, err, ErrFull)
}

func TestSeedingNeedsAMajority(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	a := hosts[0]
	a.patience = 150 * time.Millisecond
	n.partition(map[ring.Peer]int{"b": 1, "c": 2})
	_, err := a.RequestPool(t.Context(), PoolRequest{Pool: netip.MustParsePrefix(small)})
	want(t, err, ErrNoAgreement, small, "host-b", "host-c", "2 of 3", "WEAVE_PEERS")
	n.partition(map[ring.Peer]int{"c": 2})
	a.pool(t, small, "")
	if owners := a.Status()[0].Owners; len(owners) != 2 {
		t.Errorf("owners %v, want those alive", owners)
	}
}

// TestManyInAMinority: those who wait for the turn of another request are told
// as much as that one is.
func TestManyInAMinority(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	a := hosts[0]
	a.patience = 100 * time.Millisecond
	n.partition(map[ring.Peer]int{"b": 1, "c": 2})
	errs := make(chan error)
	for range 5 {
		go func() {
			_, err := a.RequestPool(context.Background(), PoolRequest{Pool: netip.MustParsePrefix(small)})
			errs <- err
		}()
	}
	for range 5 {
		err := <-errs
		want(t, err, ErrNoAgreement, small, "host-b", "host-c", "2 of 3", "weave rmpeer")
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v blames the time", err)
		}
	}
}

func TestManyOnAFullHost(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	a := hosts[0]
	id := a.pool(t, small, "")
	for a.Status()[0].Free > 0 {
		a.lease(t, id)
	}
	n.partition(map[ring.Peer]int{"b": 1})
	_, err := a.request(id, "", KindLease)
	want(t, err, ErrNoAnswer, "host-b")
	a.patience = 10 * time.Millisecond
	a.pools[netip.MustParsePrefix(small)].turn <- struct{}{} // of one that waits
	_, err = a.request(id, "", KindLease)
	want(t, err, ErrNoAnswer, small, "host-b", "start weave there")
	n.partition(nil)
	<-a.pools[netip.MustParsePrefix(small)].turn
	a.lease(t, id)
}

func TestUnmetPeersCount(t *testing.T) {
	_, hosts := newNet(t, "a")
	a := hosts[0]
	a.patience, a.unmet = 100*time.Millisecond, []string{"h2:6783"}
	_, err := a.RequestPool(t.Context(), PoolRequest{Pool: netip.MustParsePrefix(small)})
	want(t, err, ErrNoAgreement, "h2:6783")
}

func TestPeerConnectedWhileSeeding(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	n.partition(map[ring.Peer]int{"b": 1})
	done := make(chan error, 1)
	go func() {
		_, err := hosts[0].RequestPool(context.Background(), PoolRequest{Pool: netip.MustParsePrefix(small)})
		done <- err
	}()
	for asked := 0; asked < 3; {
		n.mu.Lock()
		asked = hosts[0].asked
		n.mu.Unlock()
	}
	n.partition(nil)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestLatecomerGetsTheRing has b hear nothing by gossip; its request finds the
// ring at a, whatever b's own view of the cluster.
func TestLatecomerGetsTheRing(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	n.lose(never, func() bool { return true })
	n.partition(map[ring.Peer]int{"b": 1})
	hosts[0].known = []ring.Peer{"a"}
	id := hosts[0].pool(t, small, "")
	n.partition(nil)
	hosts[1].pool(t, small, "")
	if a, b := hosts[0].Status()[0], hosts[1].Status()[0]; a.Seed != b.Seed || b.Free != 0 {
		t.Errorf("%+v and %+v", a, b)
	}
	hosts[1].lease(t, id)
}

func TestHandlesSurvive(t *testing.T) {
	_, hosts := newNet(t, "a")
	a := hosts[0]
	id := a.pool(t, "10.40.0.0/24", "10.40.0.16/28")
	a.pool(t, "10.40.0.0/24", "10.40.0.16/28")
	addr := a.lease(t, id)
	if err := a.start(); err != nil {
		t.Fatal(err)
	}
	s := a.Status()[0]
	if len(s.Handles) != 1 || s.Handles[0] != (HandleStatus{ID: id, Refs: 2}) {
		t.Errorf("handles %v", s.Handles)
	}
	l := a.Leases()
	if len(l) != 1 || l[0].Addr != addr || l[0].PoolID != id || l[0].Kind != KindLease || l[0].Since.IsZero() {
		t.Errorf("leases %v", l)
	}
	if got := a.lease(t, id); got == addr {
		t.Errorf("%s leased twice", addr)
	}
}

// TestStoreFails fails each write in turn: the request is refused, memory stays
// as it was and agrees with the disk, and the next try works.
func TestStoreFails(t *testing.T) {
	for writes := range 12 {
		n, hosts := newNet(t, "a", "b")
		a, b := hosts[0], hosts[1]
		b.disk.failAfter(writes / 2)
		a.disk.failAfter(writes)
		script := func() error {
			_, err := a.RequestPool(t.Context(), PoolRequest{Pool: netip.MustParsePrefix(small)})
			for range 8 {
				if err == nil {
					_, err = a.request(small, "", KindLease)
				}
			}
			if err == nil {
				_, err = a.request(small, "10.40.0.14", KindGateway)
			}
			return err
		}
		a.patience = 100 * time.Millisecond
		if err := script(); err == nil {
			t.Errorf("%d writes are enough", writes)
		}
		before := a.Leases()
		if err := n.invariants(); err != nil {
			t.Fatalf("after %d writes: %v", writes, err)
		}
		a.disk.failAfter(-1)
		b.disk.failAfter(-1)
		if err := errors.Join(a.start(), b.start()); err != nil {
			t.Fatal(err)
		}
		for i, l := range a.Leases() {
			if l.Addr != before[i].Addr {
				t.Errorf("after %d writes: disk has %v, memory %v", writes, a.Leases(), before)
			}
		}
		a.patience = 5 * time.Second
		for _, l := range a.Leases() {
			if err := a.ReleaseAddress(t.Context(), l.PoolID, l.Addr); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(script(), n.sync(), n.invariants()); err != nil {
			t.Errorf("after %d writes: %v", writes, err)
		}
	}
}

func TestCorruptState(t *testing.T) {
	tests := []struct{ bucket, key, value string }{
		{bucketRings, small, `{`},
		{bucketRings, small, `{"pool":"10.40.0.0/24","seed":"00000000000000000000000000000001","tokens":[{"start":"10.40.0.0","owner":"a","v":1}]}`},
		{bucketRings, "10.40.0.1/28", `{}`},
		{bucketRings, "nonsense", `{}`},
		{bucketPaxos, small, `[]`},
		{bucketPaxos, keyElectors, `[""]`},
		{bucketPaxos, keyFloor, `-1`},
		{bucketPaxos, keyFloor, `4611686018427387904`},
		{bucketPaxos, "10.1.2.3/8", `{}`},
		{bucketPaxos, small, `{"value":"e30="}`},
		{bucketPaxos, removalKey + "1 b", `x`},
		{bucketSelf, keySelf, `{}`},
		{bucketRemoved, "b", `{"heir":"b","round":1}`},
		{bucketPools, "10.99.0.0/16", `{"refs":1}`},
		{bucketPools, small, `{"refs":0}`},
		{bucketPools, small, `x`},
		{bucketPools, "x,y", `{"refs":1}`},
		{bucketLeases, small + " 10.40.0.3", `{"kind":"loan"}`},
		{bucketLeases, small + " 10.40.0.3", `{"kind":"gateway","count":-1}`},
		{bucketLeases, small + " 10.40.0.0", `{"kind":"lease"}`},
		{bucketLeases, small, `{"kind":"lease"}`},
		{bucketRings, small + " 10.40.0.3", `{}`},
		{bucketRings, small + " 10.40.0.3", `[]`},
		{bucketRings, "10.99.0.0/16 10.99.0.3", `["b"]`},
		{bucketRings, keyHeard + small + " b", `0`},
		{bucketRings, keyHeard + small, `1`},
		{bucketRings, keyHeld + small + " 10.40.0.3", `"b"`}, // who was not removed
		{bucketRings, keyHeld + small + " 10.40.0.3", `1`},
		{bucketRings, keyHeld + small, `"b"`},
	}
	for _, test := range tests {
		_, hosts := newNet(t, "a", "b")
		a := hosts[0]
		a.pool(t, small, "")
		if err := a.disk.Apply(test.bucket, map[string][]byte{test.key: []byte(test.value)}); err != nil {
			t.Fatal(err)
		}
		err := a.start()
		want(t, err, ErrCorrupt, test.bucket, test.key)
	}
}
