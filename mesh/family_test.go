package mesh

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"weave/test/netlab"
)

// addHostsOf is addHosts, each of one family of addresses.
func (l *hardLab) addHostsOf(families ...netlab.Family) []*netlab.Host {
	l.t.Helper()
	hosts := l.addHosts(len(families))
	for i, f := range families {
		must(l.t, hosts[i].Only(f))
	}
	return hosts
}

// linkLocal is the address of a host by which others on its link reach it.
func linkLocal(t *testing.T, h *netlab.Host) (found netip.Addr) {
	t.Helper()
	must(t, h.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := link.Addrs()
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.(*net.IPNet).IP); ok && ip.Is6() && ip.IsLinkLocalUnicast() {
				found = ip.WithZone(link.Name) // all hosts call theirs the same
			}
		}
		return err
	}))
	return found
}

// at is where a host reaches another directly; not valid if it does not.
func (h *fastHost) at(other *fastHost) netip.AddrPort {
	for _, p := range h.status().Peers {
		if p.Name == other.Name() && p.Up && !p.Relayed {
			at, _ := netip.ParseAddrPort(p.Addr)
			return at
		}
	}
	return netip.AddrPort{}
}

// TestLabIPv6 holds that hosts without IPv4 meet, by a link-local address too, pass on
// for others, take TCP where UDP is blocked, and come back from both.
func TestLabIPv6(t *testing.T) {
	t.Parallel()
	l := newHardLab(t)
	hosts := l.addHostsOf(netlab.IPv6, netlab.IPv6, netlab.IPv6)
	must(t, l.net.Connect(hosts, netlab.Line(hosts...)))
	l.dual = true
	l.start(hosts[0])
	l.start(hosts[1], hosts[0].IP6())
	l.start(hosts[2], linkLocal(t, hosts[1]))
	l.awaitHops(l.hosts, func(i, j int) int { return max(i-j, j-i) })
	for i, h := range l.hosts[1:] {
		await(t, "addresses that are good for all links", func() bool { return h.at(l.hosts[i]).Addr() == hosts[i].IP6() })
	}
	l.everybody("line")
	a, b := l.boxes[0], l.boxes[2]
	a.bulk(b)
	b.udpEcho()
	s := a.talk(b)

	must(t, l.net.HealLink(hosts[0], hosts[2]))
	l.awaitHops(l.hosts, func(int, int) int { return 1 })
	gap := a.outage(b, func() { must(t, hosts[0].SetFilter(netlab.Filter{UDP: true})) })
	t.Logf("blocked: without answers for %s", gap)
	if gap > 3*time.Second {
		t.Errorf("blocked: without answers for %s", gap)
	}
	for _, h := range l.hosts[1:] {
		await(t, "TCP to be taken", func() bool { return l.hosts[0].byTCP(h) && h.byTCP(l.hosts[0]) })
	}
	a.bulk(b)
	must(t, hosts[0].SetFilter(netlab.Filter{}))
	await(t, "UDP to be taken", func() bool { return !l.hosts[0].byTCP(l.hosts[2]) && !l.hosts[2].byTCP(l.hosts[0]) })
	s.awaitAnswers(t, 10)
	s.end(t)
	if nat := l.hosts[0].status().NAT; nat != NATNone {
		t.Errorf("NAT is said to be %q", nat)
	}
}

// TestLabIPv6Firewalls holds that two hosts behind routers that translate nothing, and
// let in only what answers, meet directly by a host that both reach.
func TestLabIPv6Firewalls(t *testing.T) {
	t.Parallel()
	l := &natLab{hardLab: newHardLab(t)}
	public := l.addHostsOf(netlab.IPv6)[0]
	l.public = l.start(public)
	for i := range 2 {
		r, err := l.net.AddRouter(11+i, 101+i)
		must(t, err)
		must(t, r.SetNAT(netlab.NAT{IPv6: netlab.Stateful}))
		h, err := r.Inside.AddHost(2)
		must(t, err)
		must(t, h.Only(netlab.IPv6))
		l.inside = append(l.inside, l.start(h, public.IP6()))
	}
	l.a, l.b = l.boxes[1], l.boxes[2]
	l.b.udpEcho()
	l.awaitWay(1)
	l.a.bulk(l.b)
	l.everybody("firewalls")
	for _, h := range l.hosts {
		if nat := h.status().NAT; nat != NATNone {
			t.Errorf("%s: NAT is said to be %q", h.Name(), nat)
		}
	}
}

// TestLabMixedFamilies holds that a host with IPv4 only and one with IPv6 only meet by
// one that has both, which they know by a name.
func TestLabMixedFamilies(t *testing.T) {
	t.Parallel()
	l := newHardLab(t)
	hosts := l.addHosts(3)
	must(t, hosts[0].Only(netlab.IPv4))
	must(t, hosts[1].Only(netlab.IPv6))
	both := hosts[2]
	l.dual = true
	l.names = map[string][]netip.Addr{"both.example": {both.IP6(), both.IP4()}}
	l.start(both)
	l.peers = []string{"both.example:6783"}
	l.start(hosts[0])
	l.start(hosts[1])
	l.awaitHops(l.hosts, func(i, j int) int {
		if i > 0 && j > 0 {
			return 2
		}
		return 1
	})
	l.everybody("mixed")
	l.boxes[1].bulk(l.boxes[2])
	for _, h := range l.hosts {
		if nat := h.status().NAT; nat != NATNone {
			t.Errorf("%s: NAT is said to be %q", h.Name(), nat)
		}
	}
}

// TestLabFamilyDies holds that two hosts with both families go on by the other one
// within 3 s if IPv4 dies, with or without a password, and back when it returns;
// and that IPv4 goes on without IPv6.
func TestLabFamilyDies(t *testing.T) {
	t.Parallel()
	for name, password := range map[string]string{"sealed": "secret", "fast path": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newHardLab(t)
			l.dual, l.password = true, password
			hosts := l.addHosts(2)
			l.start(hosts[0])
			l.start(hosts[1], hosts[0].IP4())
			l.awaitHops(l.hosts, func(int, int) int { return 1 })
			l.awaitFamily(true)
			a, b := l.boxes[0], l.boxes[1]
			b.udpEcho()
			s := a.talk(b)
			s.awaitAnswers(t, 10)
			for _, change := range []struct {
				what   string
				filter netlab.Filter
				four   bool
			}{
				{"IPv4 ends", netlab.Filter{IPv4: true}, false},
				{"IPv4 is back", netlab.Filter{}, true},
				{"IPv6 ends", netlab.Filter{IPv6: true}, true},
			} {
				gap := a.outage(b, func() { must(t, hosts[0].SetFilter(change.filter)) })
				t.Logf("%s: without answers for %s", change.what, gap)
				if gap > 3*time.Second {
					t.Errorf("%s: without answers for %s", change.what, gap)
				}
				l.awaitFamily(change.four)
				s.awaitAnswers(t, 10)
			}
			a.bulk(b)
			s.end(t)
		})
	}
}

// awaitFamily waits until the two hosts reach each other by IPv4, or by IPv6; the
// fast path is there with IPv4.
func (l *hardLab) awaitFamily(four bool) {
	l.t.Helper()
	for i, h := range l.hosts {
		other := l.hosts[1-i]
		await(l.t, "the other family to be taken", func() bool {
			at := h.at(other)
			fast, _ := h.fast(other)
			return at.IsValid() && at.Addr().Is4() == four && fast == (four && l.password == "")
		})
	}
}
