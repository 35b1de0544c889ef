package ipam

import (
	"errors"
	"maps"
	"net/netip"
	"testing"

	"weave/ipam/ring"
)

// snapshot returns a function that puts the disk back to what it is now.
func (h *host) snapshot() (restore func() error) {
	buckets := map[string]map[string][]byte{}
	for name, bucket := range h.disk.buckets {
		buckets[name] = maps.Clone(bucket)
	}
	return func() error {
		h.disk.buckets = buckets
		return h.start()
	}
}

// TestSnapshotRestored has a host forget what it gave away. Once it hears of it,
// it gives out nothing, until it is a new peer.
func TestSnapshotRestored(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	a, b := hosts[0], hosts[1]
	a.pool(t, small, "")
	b.pool(t, small, "")
	n.table = map[netip.Addr]map[ring.Peer]bool{}
	kept := a.lease(t, small)
	a.announce(kept, true)
	restore := a.snapshot()
	for b.Status()[0].Owners[1].Addresses == 8 { // until a gave some
		b.lease(t, small)
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	if err := a.Merge("b", b.Missing(a.Digest())); !errors.Is(err, ring.ErrOurs) {
		t.Fatal(err)
	}
	for range 2 { // also after a restart
		free := a.Status()[0].Free
		for _, addr := range []string{"", "10.40.0.6"} {
			_, err := a.request(small, addr, KindLease)
			want(t, err, ErrStale, "snapshot", "weave rmpeer a")
		}
		_, err := a.request(small, "10.40.0.6", KindGateway)
		if err == nil {
			t.Error("a reserves an address")
		}
		_, err = a.RequestPool(t.Context(), PoolRequest{Pool: netip.MustParsePrefix("10.41.0.0/24")})
		want(t, err, ErrStale)
		req := request{Op: opSpace, Pool: netip.MustParsePrefix(small), Ring: b.pools[netip.MustParsePrefix(small)].chunk()}
		if ans := a.serve(t.Context(), "b", req); ans.Refusal != refusedFailed {
			t.Errorf("a gives: %+v", ans)
		}
		if s := a.Status()[0]; s.LeasesOff == "" || s.Free != free || s.Leases != 1 || a.removed != 0 {
			t.Errorf("%+v", s)
		}
		if err := a.start(); err != nil {
			t.Fatal(err)
		}
	}

	n.partition(map[ring.Peer]int{"a": 1}) // weave is stopped there
	if _, err := b.RemovePeer(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	n.partition(nil)
	_ = a.Merge("b", b.Missing(a.Digest())) // the ring is not for what a was
	if a.removed != 1 {
		t.Fatal("a does not hear of its removal")
	}
	if err := a.rejoin("a2"); err != nil {
		t.Fatal(err)
	}
	if err := n.sync(); err != nil {
		t.Fatal(err)
	}
	a.Settle(t.Context())
	if s := a.Status()[0]; s.LeasesOff != "" || s.Unbacked != 0 || s.Leases != 1 || len(s.Conflicts) != 0 {
		t.Errorf("%+v", s)
	}
	a.lease(t, small)
	if err := n.invariants(); err != nil {
		t.Error(err)
	}
}
