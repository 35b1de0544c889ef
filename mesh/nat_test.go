package mesh

import (
	"net/netip"
	"slices"
	"testing"

	"weave/mesh/id"
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
		{[]string{"[fd00::abcd:1]:6783"}, NATNone, []string{"[fd00::abcd:1]:6783"}}, // a privacy address
		{[]string{"[fd00::abcd:1]:6783", "192.0.2.1:4000"}, NATCone, []string{"192.0.2.1:4000", "[fd00::abcd:1]:6783"}},
		{[]string{"[fd00::abcd:1]:6783", "[fd00::abcd:1]:6784"}, NATSymmetric, nil},
		{[]string{"[fd00::abcd:1]:1024"}, NATCone, []string{"[fd00::abcd:1]:1024"}},
		{[]string{"[fd00:0:0:1::2]:6783"}, NATCone, []string{"[fd00:0:0:1::2]:6783"}}, // another prefix
		{[]string{"10.0.0.3:6783"}, NATCone, []string{"10.0.0.3:6783"}},               // there are none of IPv4
		{[]string{"10.0.0.2:1024"}, NATCone, []string{"10.0.0.2:1024"}},               // the port alone
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

// What another host tells of its NAT is one of the kinds that we know, or nothing.
func TestHostRecord(t *testing.T) {
	x, p := newIndex(), id.PeerID{1}
	for _, c := range []struct {
		key, value string
		bad        bool
		want       NAT
	}{
		{hostKey, `{"nat":"cone"}`, false, NATCone},
		{"later", `{"nat":"none"}`, false, NATCone},
		{hostKey, `{"nat":"symmetric","later":[1]}`, false, NATSymmetric},
		{hostKey, `{"nat":"\u001b[31m"}`, false, NATUnknown},
		{hostKey, `{"nat":"none"}`, false, NATNone},
		{hostKey, `{"nat":5}`, true, NATUnknown},
		{hostKey, `{"nat":"none"}`, false, NATNone},
		{hostKey, ``, false, NATUnknown},
	} {
		var value []byte
		if c.value != "" {
			value = []byte(c.value)
		}
		if err := x.setHost(p, c.key, value); (err != nil) != c.bad || x.hosts[p].NAT != c.want {
			t.Errorf("%s %s: %v, %+v", c.key, c.value, err, x.hosts[p])
		}
	}
	if len(x.hosts) != 0 {
		t.Errorf("%d hosts kept of which nothing is known", len(x.hosts))
	}
}

// Each host tells the others what kind of NAT it is behind.
func TestNATIsTold(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.23.1"))
	b := start(t, configure(t, "127.0.23.2", a.addr))
	told := func(n, of *node) NAT {
		for _, p := range n.Peers() {
			if p.ID == of.self {
				return p.NAT
			}
		}
		return "not met"
	}
	await(t, "both to tell", func() bool { return told(a, b) == NATNone && told(b, a) == NATNone })
	must(t, a.MarkGone(b.self))
	await(t, "nothing to be told of who is gone", func() bool { return told(a, b) == NATUnknown })
}
