package ipam

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"weave/ipam/ring"
)

func TestDefaultSubnet(t *testing.T) {
	for within, want := range map[string]string{
		"10.32.0.0/12": "10.32.0.0/16", "172.30.0.0/16": "172.30.0.0/16", "192.168.7.0/24": "192.168.7.0/24",
	} {
		if got := DefaultSubnet(netip.MustParsePrefix(within)); got.String() != want {
			t.Errorf("of %s it is %s, want %s", within, got, want)
		}
	}
}

// TestFreshPoolsSpareTheDefaultSubnet: a pool within it would keep this host from
// using it, so that comes last.
func TestFreshPoolsSpareTheDefaultSubnet(t *testing.T) {
	_, hosts := newNet(t, "a")
	a := hosts[0]
	a.cfg.Range = netip.MustParsePrefix("10.32.0.0/15")
	a.busy = prefixes("10.32.0.0/17", "10.32.128.0/18", "10.33.0.0/24", "10.33.2.0/23", "10.33.4.0/22", "10.33.8.0/21", "10.33.16.0/20", "10.33.32.0/19", "10.33.64.0/18", "10.33.128.0/17")
	first, err := a.RequestPool(t.Context(), PoolRequest{})
	if err != nil || first.ID != "10.33.1.0/24" {
		t.Errorf("%s, %v; want the only one beyond 10.32.0.0/16", first.ID, err)
	}
	second, err := a.RequestPool(t.Context(), PoolRequest{})
	if err != nil || !netip.MustParsePrefix("10.32.192.0/18").Overlaps(second.Pool) {
		t.Errorf("%s, %v; want one of those left", second.ID, err)
	}
}

// TestPrime: a majority agrees, and a host that came later gets space, too.
func TestPrime(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c")
	a, c := hosts[0], hosts[2]
	prefix := netip.MustParsePrefix(small)
	n.partition(map[ring.Peer]int{"b": 1, "c": 2})
	a.patience = 150 * time.Millisecond
	_, err := a.Prime(t.Context(), prefix)
	want(t, err, ErrNoAgreement, small, "host-b", "host-c", "2 of 3")

	n.partition(map[ring.Peer]int{"c": 2})
	a.patience = patience
	if free, err := a.Prime(t.Context(), prefix); err != nil || free != 7 {
		t.Errorf("%d addresses, want half of 14: %v", free, err)
	}
	n.partition(nil)
	if err := n.sync(); err != nil {
		t.Fatal(err)
	}
	if free, err := c.Prime(t.Context(), prefix); err != nil || free == 0 {
		t.Errorf("%d addresses for the host that owned none: %v", free, err)
	}
	if free, err := a.Prime(t.Context(), prefix); err != nil || free == 0 {
		t.Errorf("%d addresses the second time: %v", free, err)
	}
	if err := errors.Join(n.sync(), n.invariants()); err != nil {
		t.Error(err)
	}
	if leases := append(a.Leases(), c.Leases()...); len(leases) > 0 {
		t.Errorf("it leased %v", leases)
	}
}
