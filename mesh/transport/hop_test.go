package transport

import (
	"net/netip"
	"testing"

	"weave/mesh/id"
)

// TestRank holds that all ways to a peer are in one order, the same at both ends.
func TestRank(t *testing.T) {
	ways := []hop{relayed(id.PeerID{1}), {pipe: &pipe{}}}
	for _, a := range []string{"[fe80::1%2]:6783", "[fd00::1]:6783", "192.0.2.1:6783"} {
		ways = append(ways, direct(netip.MustParseAddrPort(a)))
	}
	for i := 1; i < len(ways); i++ {
		if ways[i].rank() <= ways[i-1].rank() {
			t.Errorf("%s is no better than %s", ways[i], ways[i-1])
		}
	}
}

func TestUsable(t *testing.T) {
	for a, want := range map[string]bool{
		"192.0.2.1:1": true, "169.254.0.1:1": true, "[fd00::1]:1": true, "[fe80::1%2]:1": true,
		"[fe80::1]:1": false, "192.0.2.1:0": false, "0.0.0.0:1": false, "[::]:1": false, "224.0.0.1:1": false, "[ff02::1%2]:1": false,
		"255.255.255.255:1": false,
	} {
		if got := usable(netip.MustParseAddrPort(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
}
