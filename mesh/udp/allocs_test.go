//go:build !race

package udp

import (
	"net/netip"
	"testing"
)

// Under the race detector a sync.Pool forgets at random.
func TestTrainsAllocateNothing(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1", "0.0.0.0"} {
		a, b := listen(t, addr), listen(t, addr)
		to := b.LocalAddr()
		if to.Addr().IsUnspecified() {
			to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), to.Port())
		}
		buf, trains := pattern(14200), newTrains(4)
		round := func() {
			if err := a.Write(buf, 1420, to); err != nil {
				t.Fatal(err)
			}
			if _, err := b.ReadBatch(trains); err != nil {
				t.Fatal(err)
			}
		}
		if n := testing.AllocsPerRun(200, round); n != 0 {
			t.Errorf("%s: %v allocations with GSO", addr, n)
		}
		a.gso.Store(false)
		if n := testing.AllocsPerRun(200, round); n != 0 {
			t.Errorf("%s: %v allocations without GSO", addr, n)
		}
	}
}
