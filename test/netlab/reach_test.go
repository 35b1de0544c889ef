package netlab

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// reach returns who reaches whom by UDP, as "1>2 2>1 …"; want is what to
// be patient with.
func reach(t *testing.T, hosts []*Host, six bool, want string) (out string) {
	t.Helper()
	for i, a := range hosts {
		for j, b := range hosts {
			way := fmt.Sprintf("%d>%d ", i+1, j+1)
			if i != j && passes(open(t, a, six, 0), open(t, b, six, 0), strings.Contains(want, way)) {
				out += way
			}
		}
	}
	return out
}

func TestConnect(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	var hosts []*Host
	for n := range 4 {
		hosts = append(hosts, addHost(t, lab, n+1))
	}
	full := "1>2 1>3 1>4 2>1 2>3 2>4 3>1 3>2 3>4 4>1 4>2 4>3 "
	for _, shape := range []struct {
		name  string
		links []Link
		want  string
	}{
		{"Line", Line(hosts...), "1>2 2>1 2>3 3>2 3>4 4>3 "},
		{"Ring", Ring(hosts...), "1>2 1>4 2>1 2>3 3>2 3>4 4>1 4>3 "},
		{"Star", Star(hosts[1], hosts[0], hosts[2], hosts[3]), "1>2 2>1 2>3 2>4 3>2 4>2 "},
		{"Sites", Sites(hosts[:2], hosts[2:]), "1>2 1>3 2>1 3>1 3>4 4>3 "},
		{"None", nil, ""},
		{"Full", Full(hosts...), full},
	} {
		must(t, lab.Connect(hosts, shape.links))
		for i, name := range []string{"IPv4", "IPv6"} {
			if got := reach(t, hosts, i == 1, shape.want); got != shape.want {
				t.Errorf("%s, %s: %s, not %s", shape.name, name, got, shape.want)
			}
		}
	}
}

// macOf is what a host has found to be the MAC of another.
func macOf(t *testing.T, h *Host, other netip.Addr) (found string) {
	t.Helper()
	must(t, h.Do(func() error {
		all, err := netlink.NeighList(0, netlink.FAMILY_ALL)
		for _, n := range all {
			if n.IP.Equal(other.AsSlice()) {
				found = n.HardwareAddr.String()
			}
		}
		return err
	}))
	return found
}

func TestCutLink(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	a, b, c := addHost(t, lab, 1), addHost(t, lab, 2), addHost(t, lab, 3)
	both(t, func(t *testing.T, six bool) {
		tcp := func(from, to *Host, should bool) bool {
			return connects(t, from, to, netip.AddrPortFrom(address(to, six), 7000), should)
		}
		udp := func(from, to *Host, should bool) bool {
			return passes(open(t, from, six, 0), open(t, to, six, 0), should)
		}
		check := func(what string, udpAB, udpBA, tcpAB bool) {
			t.Helper()
			if ab, ba, stream := udp(a, b, udpAB), udp(b, a, udpBA), tcp(a, b, tcpAB); ab != udpAB || ba != udpBA || stream != tcpAB {
				t.Errorf("%s: UDP %v, back %v, TCP %v", what, ab, ba, stream)
			}
			if !udp(a, c, true) || !udp(c, b, true) || !tcp(c, a, true) {
				t.Errorf("%s: another host is concerned", what)
			}
		}
		check("at first", true, true, true)
		must(t, lab.CutLink(a, b, UDP))
		check("UDP cut", false, false, true)
		must(t, lab.HealLink(b, a))
		check("healed", true, true, true)
		must(t, lab.CutOneWay(a, b, UDP))
		check("UDP cut one way", false, true, true)
		must(t, lab.HealLink(a, b))
		must(t, lab.CutLink(b, a, TCP))
		check("TCP cut", true, true, false)
		must(t, lab.CutLink(a, b, AllIP))
		check("all cut", false, false, false)
		must(t, lab.HealLink(a, b))
		check("healed again", true, true, true)
	})
	must(t, lab.CutLink(a, b, AllIP))
	must(t, lab.RemoveHost(b))
	d := addHost(t, lab, 4)
	must(t, lab.CutLink(a, d, AllIP))
	both(t, func(t *testing.T, six bool) {
		if passes(open(t, a, six, 0), open(t, d, six, 0), false) || macOf(t, a, address(d, six)) == "" {
			t.Error("neighbours do not find each other")
		}
	})
	if b = addHost(t, lab, 2); !passes(open(t, b, false, 0), open(t, a, false, 0), true) {
		t.Error("the next host of that number is cut off")
	}
}
