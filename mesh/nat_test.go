package mesh

import (
	"net/netip"
	"slices"
	"testing"
)

func TestBehind(t *testing.T) {
	own := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:6783"), netip.MustParseAddrPort("[fd00::2]:6783")}
	for _, test := range []struct {
		seen    []string
		kind    NAT
		outside []string
	}{
		{nil, NATUnknown, nil},
		{[]string{"10.0.0.2:6783", "10.0.0.2:6783"}, NATNone, nil},
		{[]string{"10.0.0.2:6783", "[fd00::2]:6783"}, NATNone, nil},
		{[]string{"192.0.2.1:6783", "[fd00::2]:6783"}, NATCone, []string{"192.0.2.1:6783"}},
		{[]string{"192.0.2.1:6783"}, NATCone, []string{"192.0.2.1:6783"}},
		{[]string{"192.0.2.1:4000", "10.0.0.2:6783", "192.0.2.1:4000"}, NATCone, []string{"192.0.2.1:4000"}},
		{[]string{"192.0.2.1:4000", "198.51.100.1:4000"}, NATCone, []string{"192.0.2.1:4000", "198.51.100.1:4000"}},
		{[]string{"192.0.2.1:4000", "192.0.2.1:4001"}, NATSymmetric, nil},
		{[]string{"192.0.2.1:4000", "192.0.2.1:4001", "198.51.100.1:1"}, NATSymmetric, []string{"198.51.100.1:1"}},
		{[]string{"10.0.0.2:1024"}, NATCone, []string{"10.0.0.2:1024"}}, // the port alone
		{[]string{"1.0.0.1:1", "1.0.0.2:1", "1.0.0.3:1", "1.0.0.4:1", "1.0.0.5:1"}, NATCone, []string{"1.0.0.1:1", "1.0.0.2:1", "1.0.0.3:1", "1.0.0.4:1"}},
	} {
		var seen, want []netip.AddrPort
		for _, s := range test.seen {
			seen = append(seen, netip.MustParseAddrPort(s))
		}
		for _, s := range test.outside {
			want = append(want, netip.MustParseAddrPort(s))
		}
		if kind, outside := behind(own, seen); kind != test.kind || !slices.Equal(outside, want) {
			t.Errorf("%v: %q, %v", test.seen, kind, outside)
		}
	}
}
