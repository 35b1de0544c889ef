package ipam

import (
	"net/netip"
	"testing"
)

// TestWishesAreKeptFree: an address that a container was given by name is there
// for it again, over a restart too, until no other is left.
func TestWishesAreKeptFree(t *testing.T) {
	_, hosts := newNet(t, "a")
	h := hosts[0]
	id := h.pool(t, small, "")
	wish := netip.MustParseAddr("10.40.0.1") // where others begin to search
	for _, restart := range []func(){func() {}, func() { must(t, h.start()) }} {
		if _, err := h.request(id, wish.String(), KindLease); err != nil {
			t.Fatal(err)
		}
		must(t, h.ReleaseAddress(t.Context(), id, wish))
		restart()
		var others []netip.Addr
		for range 13 { // of 14
			addr := h.lease(t, id)
			if addr == wish {
				t.Fatalf("%s went to somebody else after %v", wish, others)
			}
			others = append(others, addr)
		}
		if addr := h.lease(t, id); addr != wish {
			t.Errorf("the last address is %s, want %s", addr, wish)
		}
		for _, addr := range append(others, wish) {
			must(t, h.ReleaseAddress(t.Context(), id, addr))
		}
	}
}

// TestWishesEndWithTheNetwork: once a host has no network of a pool left, its
// addresses are all alike again.
func TestWishesEndWithTheNetwork(t *testing.T) {
	_, hosts := newNet(t, "a")
	h := hosts[0]
	id := h.pool(t, small, "")
	wish := netip.MustParseAddr("10.40.0.1")
	if _, err := h.request(id, wish.String(), KindLease); err != nil {
		t.Fatal(err)
	}
	must(t, h.ReleaseAddress(t.Context(), id, wish))
	must(t, h.ReleasePool(t.Context(), id))
	must(t, h.start())
	h.pool(t, small, "")
	if addr := h.lease(t, id); addr != wish {
		t.Errorf("the first address is %s, want %s", addr, wish)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
