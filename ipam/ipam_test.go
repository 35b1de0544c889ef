package ipam

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"weave/ipam/ring"
)

const small = "10.40.0.0/28"

// want checks that err is of the kind and names all of the words.
func want(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got %v, want %v", err, kind)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not name %q", err, word)
		}
	}
}

func TestFillAcrossThreeHosts(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	var ids []string
	for _, h := range hosts {
		ids = append(ids, h.pool(t, small, ""))
	}
	seen := map[netip.Addr]bool{}
	for range 14 {
		addr := hosts[0].lease(t, ids[0])
		if seen[addr] || addr == netip.MustParseAddr("10.40.0.0") || addr == netip.MustParseAddr("10.40.0.15") {
			t.Fatalf("got %s after %v", addr, seen)
		}
		seen[addr] = true
	}
	if err := n.invariants(); err != nil {
		t.Fatal(err)
	}
	for i, h := range hosts {
		_, err := h.request(ids[i], "", KindLease)
		want(t, err, ErrFull, small, "14 addresses", "larger subnet")
	}
	if err := hosts[0].ReleaseAddress(t.Context(), ids[0], netip.MustParseAddr("10.40.0.7")); err != nil {
		t.Fatal(err)
	}
	if addr := hosts[2].lease(t, ids[2]); addr != netip.MustParseAddr("10.40.0.7") {
		t.Errorf("the released address is 10.40.0.7, got %s", addr)
	}
}

func TestSamePoolAtOnce(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c", "d")
	var wg sync.WaitGroup
	leases := make([]netip.Addr, len(hosts))
	for i, h := range hosts {
		wg.Go(func() {
			reply, err := h.RequestPool(t.Context(), PoolRequest{Pool: netip.MustParsePrefix("10.41.0.0/24")})
			if err != nil {
				t.Error(err)
				return
			}
			got, err := h.request(reply.ID, "", KindLease)
			if err != nil {
				t.Error(err)
			}
			leases[i] = got.Addr()
		})
	}
	wg.Wait()
	slices.SortFunc(leases, netip.Addr.Compare)
	if len(slices.Compact(leases)) != len(hosts) {
		t.Errorf("leases %v", leases)
	}
	if err := errors.Join(n.sync(), n.invariants()); err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if s := h.Status(); len(s) != 1 || len(s[0].Conflicts) != 0 || s[0].Seed != hosts[0].Status()[0].Seed {
			t.Errorf("%s: %+v", h.self, s)
		}
	}
}

func TestParallelLeases(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	ids := []string{hosts[0].pool(t, "10.40.0.0/25", ""), hosts[1].pool(t, "10.40.0.0/25", "")}
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[netip.Addr]int{}
	for i := range 126 {
		wg.Go(func() {
			h := min(1, i/20) // 20 on a, 106 on b: b needs gifts
			got, err := hosts[h].request(ids[h], "", KindLease)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			seen[got.Addr()]++
		})
	}
	wg.Wait()
	if len(seen) != 126 {
		t.Errorf("%d addresses for 126 requests", len(seen))
	}
	if err := n.invariants(); err != nil {
		t.Fatal(err)
	}
	if hosts[1].asked > 40 {
		t.Errorf("%d questions for one pool", hosts[1].asked)
	}
}

func TestOwnSpaceNeedsNoPeer(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	id := hosts[0].pool(t, small, "")
	hosts[1].pool(t, small, "")
	n.partition(map[ring.Peer]int{"b": 1})
	first := hosts[0].lease(t, id)
	if err := hosts[0].ReleaseAddress(t.Context(), id, first); err != nil {
		t.Fatal(err)
	}
	if second := hosts[0].lease(t, id); second == first {
		t.Errorf("%s is given out again at once", first)
	}
	for range 6 {
		hosts[0].lease(t, id)
	}
	_, err := hosts[0].request(id, "", KindLease)
	want(t, err, ErrFull, "host-b", small)
	want(t, err, ErrNoAnswer)
	n.partition(nil)
	hosts[0].lease(t, id)
}

func TestSubPool(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	id := hosts[0].pool(t, "10.40.0.0/24", "10.40.0.192/29")
	hosts[1].pool(t, "10.40.0.0/24", "")
	if id != "10.40.0.0/24,10.40.0.192/29" {
		t.Errorf("ID %s", id)
	}
	for range 8 { // all of b's half
		if addr := hosts[0].lease(t, id); !netip.MustParsePrefix("10.40.0.192/29").Contains(addr) {
			t.Errorf("got %s", addr)
		}
	}
	_, err := hosts[0].request(id, "", KindLease)
	want(t, err, ErrFull, "10.40.0.192/29", "8 addresses")
	if got, err := hosts[0].request(id, "10.40.0.20", KindLease); err != nil || got.String() != "10.40.0.20/24" {
		t.Errorf("outside the ip range: %s, %v", got, err)
	}
	if err := n.invariants(); err != nil {
		t.Fatal(err)
	}
}

func TestCertainAddress(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	a, b := hosts[0], hosts[1]
	id := a.pool(t, "10.40.0.0/24", "")
	b.pool(t, "10.40.0.0/24", "")
	for _, addr := range []string{"10.40.0.9", "10.40.0.200"} {
		if got, err := a.request(id, addr, KindLease); err != nil || got.Addr().String() != addr {
			t.Fatalf("%s: %s, %v", addr, got, err)
		}
		_, err := a.request(id, addr, KindLease)
		want(t, err, ErrInUse, addr, "this host")
		_, err = b.request(id, addr, KindLease)
		want(t, err, ErrInUse, addr, "host-a")
	}
	_, err := a.request(id, "10.41.0.1", KindLease)
	want(t, err, ErrInvalid, "10.41.0.1", "10.40.0.0/24")
	for _, addr := range []string{"10.40.0.0", "10.40.0.255"} {
		_, err := a.request(id, addr, KindLease)
		want(t, err, ErrInvalid, addr, "10.40.0.254")
	}
	n.partition(map[ring.Peer]int{"b": 1})
	_, err = a.request(id, "10.40.0.201", KindLease)
	want(t, err, ErrNoAnswer, "host-b", "10.40.0.201")
	n.partition(nil)
	if err := n.invariants(); err != nil {
		t.Fatal(err)
	}
}

func TestLostGiftIsNotGivenTwice(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	a := hosts[0]
	id := a.pool(t, small, "")
	hosts[1].pool(t, small, "")
	for range 7 {
		a.lease(t, id)
	}
	n.lose(func() bool { return true }, func() bool { return true })
	if _, err := a.request(id, "", KindLease); !errors.Is(err, ErrNoAnswer) {
		t.Fatal(err)
	}
	n.lose(never, never)
	owned := func() uint64 { return hosts[1].Status()[0].Owners[0].Addresses }
	before := owned()
	if before == 8 {
		t.Fatal("b gave nothing")
	}
	a.lease(t, id)
	if owned() != before {
		t.Errorf("b gave again: a owns %d, then %d", before, owned())
	}
}

func TestSharedAddresses(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	var ids []string
	for _, h := range hosts {
		ids = append(ids, h.pool(t, small, ""))
	}
	gateway := "10.40.0.7" // in b's range
	for i, h := range hosts {
		if got, err := h.request(ids[i], gateway, KindGateway); err != nil || got.String() != "10.40.0.7/28" {
			t.Fatalf("%s: %s, %v", h.self, got, err)
		}
	}
	_, err := hosts[0].request(ids[0], gateway, KindLease)
	want(t, err, ErrInUse, gateway, "host-b", "gateway")
	_, err = hosts[1].request(ids[1], gateway, KindLease)
	want(t, err, ErrInUse, gateway)
	for range 13 {
		if addr := hosts[0].lease(t, ids[0]); addr.String() == gateway {
			t.Fatal("the gateway is leased")
		}
	}
	_, err = hosts[0].request(ids[0], "", KindLease)
	want(t, err, ErrFull)
	_, err = hosts[1].request(ids[1], "10.40.0.1", KindReserved)
	want(t, err, ErrInUse, "10.40.0.1", "host-a")

	// The owner learns of each release in the end, and then it may be leased.
	for i, h := range hosts {
		if i == 2 {
			n.partition(map[ring.Peer]int{"c": 1})
		}
		if err := h.ReleaseAddress(t.Context(), ids[i], netip.MustParseAddr(gateway)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = hosts[1].request(ids[1], gateway, KindLease)
	want(t, err, ErrInUse)
	if err := hosts[2].start(); err != nil {
		t.Fatal(err)
	}
	n.partition(nil)
	hosts[2].Settle(t.Context())
	if _, err := hosts[1].request(ids[1], gateway, KindLease); err != nil {
		t.Fatal(err)
	}
	if err := n.invariants(); err != nil {
		t.Fatal(err)
	}
}

func TestSharedTwiceOnOneHost(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	a, addr := hosts[0], netip.MustParseAddr("10.40.0.9")
	id := a.pool(t, small, "")
	a.pool(t, small, "")
	for range 2 {
		if _, err := a.request(id, addr.String(), KindGateway); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.ReleaseAddress(t.Context(), id, addr); err != nil {
		t.Fatal(err)
	}
	if s := hosts[1].Status()[0]; s.Reserved != 1 {
		t.Fatalf("reserved: %d", s.Reserved)
	}
	for i, reserved := range []int{1, 0} { // the last release of the pool frees what it held
		if err := a.ReleasePool(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if s := hosts[1].Status()[0]; s.Reserved != reserved {
			t.Fatalf("after release %d: reserved %d", i, s.Reserved)
		}
	}
	if s := a.Status()[0]; s.Shared != 0 || len(s.Handles) != 0 {
		t.Errorf("%+v", s)
	}
}

func TestReleaseIsIdempotent(t *testing.T) {
	_, hosts := newNet(t, "a")
	id := hosts[0].pool(t, small, "")
	addr := hosts[0].lease(t, id)
	for range 2 {
		if err := hosts[0].ReleaseAddress(t.Context(), id, addr); err != nil {
			t.Fatal(err)
		}
		if err := hosts[0].ReleasePool(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if got := hosts[0].Leases(); len(got) != 0 {
		t.Errorf("leases %v", got)
	}
	_, err := hosts[0].request(id, "", KindLease)
	want(t, err, ErrUnknownPool, small)
}

func TestIPv6(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	id := hosts[0].pool(t, "fd00:1::/64", "")
	hosts[1].pool(t, "fd00:1::/64", "")
	if got := hosts[0].lease(t, id); got.String() != "fd00:1::1" {
		t.Errorf("got %s", got)
	}
	if got := hosts[1].lease(t, id); got.String() != "fd00:1:0:0:8000::" {
		t.Errorf("got %s", got)
	}
	if _, err := hosts[0].request(id, "fd00:1::ffff:0:0:1", KindLease); err != nil {
		t.Error(err)
	}
	_, err := hosts[0].request(id, "fd00:1::", KindLease)
	want(t, err, ErrInvalid)
	if err := n.sync(); err != nil {
		t.Error(err)
	}
}

// TestOldReservationIsSettledFirst loses the answer to a reservation, and then
// the owner before the next try: the owner must hear that both are over.
func TestOldReservationIsSettledFirst(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	a, b := hosts[0], hosts[1]
	id := a.pool(t, small, "")
	n.lose(func() bool { return true }, never)
	_, err := a.request(id, "10.40.0.9", KindGateway)
	want(t, err, ErrNoAnswer, "host-b")
	n.lose(never, never)
	n.partition(map[ring.Peer]int{"b": 1})
	_, err = a.request(id, "10.40.0.9", KindGateway)
	want(t, err, ErrNoAnswer, "host-b")
	n.partition(nil)
	a.Settle(t.Context())
	if s := b.Status()[0]; s.Reserved != 0 {
		t.Errorf("%d still reserved", s.Reserved)
	}
}
