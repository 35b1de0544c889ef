package mesh

import (
	"testing"
	"time"

	"weave/test/netlab"
)

// natLab is two hosts, each behind a NAT of its own, and one that both reach.
type natLab struct {
	*hardLab
	public   *fastHost
	routers  []*netlab.Router
	inside   []*fastHost
	a, b     *container
	atRouter []*netlab.Host
}

func newNATLab(t *testing.T, kind netlab.NATKind) *natLab {
	t.Helper()
	l := &natLab{hardLab: newHardLab(t)}
	public, err := l.net.AddHost(1)
	must(t, err)
	l.public = l.start(public)
	for i := range 2 {
		r, err := l.net.AddRouter(11+i, 101+i)
		must(t, err)
		must(t, r.SetNAT(netlab.NAT{IPv4: kind}))
		h, err := r.Inside.AddHost(2)
		must(t, err)
		l.routers, l.atRouter = append(l.routers, r), append(l.atRouter, h)
	}
	for _, h := range l.atRouter {
		l.inside = append(l.inside, l.start(h, public.IP4()))
	}
	l.a, l.b = l.boxes[1], l.boxes[2]
	l.b.udpEcho()
	return l
}

// awaitWay waits until the two hosts reach each other by this many hops, both.
func (l *natLab) awaitWay(hops int) {
	l.t.Helper()
	for i, h := range l.inside {
		await(l.t, "the hosts behind NATs to reach each other", func() bool { return h.hops(l.inside[1-i]) == hops })
	}
	// Who has just met may not have told of its containers yet.
	await(l.t, "an answer", func() bool { return l.a.ask(l.b, "here", time.Second) == nil })
}

// TestLabNAT holds that two hosts behind NATs that map independently of whom they
// talk to meet directly, whatever these let in, and others by the host that both
// reach; and that a new mapping or address is followed.
func TestLabNAT(t *testing.T) {
	t.Parallel()
	l := newNATLab(t, netlab.PortRestricted)
	l.awaitWay(1)
	s := l.a.talk(l.b)
	for _, kind := range []struct {
		name string
		kind netlab.NATKind
		hops int
		says NAT
	}{
		{"full cone", netlab.FullCone, 1, NATCone},
		{"address-restricted", netlab.AddressRestricted, 1, NATCone},
		{"port-restricted", netlab.PortRestricted, 1, NATCone},
		{"symmetric", netlab.Symmetric, 2, NATUnknown},
		{"Linux", netlab.Preserving, 1, NATCone},
	} {
		gap := l.a.outage(l.b, func() {
			for _, r := range l.routers {
				must(t, r.SetNAT(netlab.NAT{IPv4: kind.kind}))
			}
		})
		t.Logf("%s: new mappings, without answers for %s", kind.name, gap)
		if gap > 5*time.Second {
			t.Errorf("%s: without answers for %s", kind.name, gap)
		}
		l.awaitWay(kind.hops)
		for i, h := range l.inside { // each tells the other
			if kind.says != NATUnknown {
				await(t, "the other's NAT", func() bool { return h.peer(l.inside[1-i]).NAT == kind.says })
			}
		}
		if says := l.inside[0].status().NAT; kind.says != NATUnknown && says != kind.says {
			t.Errorf("%s: NAT is said to be %q", kind.name, says)
		}
	}
	gap := l.a.outage(l.b, func() { must(t, l.routers[0].Renumber(21)) })
	t.Logf("new address, without answers for %s", gap)
	if gap > 5*time.Second {
		t.Errorf("new address: without answers for %s", gap)
	}
	l.awaitWay(1)
	s.end(t)
}

// TestLabPortForwarding holds that a forwarded port on one side is enough where the
// other is behind the worst of NATs, and nobody else is there.
func TestLabPortForwarding(t *testing.T) {
	t.Parallel()
	l := newHardLab(t)
	var hosts []*netlab.Host
	var routers []*netlab.Router
	for i := range 2 {
		r, err := l.net.AddRouter(11+i, 101+i)
		must(t, err)
		must(t, r.SetNAT(netlab.NAT{IPv4: netlab.Symmetric}))
		h, err := r.Inside.AddHost(2)
		must(t, err)
		routers, hosts = append(routers, r), append(hosts, h)
	}
	for _, what := range []netlab.Protocol{netlab.UDP, netlab.TCP} {
		must(t, routers[0].Forward(what, fastPort, hosts[0], fastPort))
	}
	l.start(hosts[0])
	l.start(hosts[1], routers[0].IP4())
	l.awaitHops(l.hosts, func(i, j int) int { return 1 })
	l.boxes[0].bulk(l.boxes[1])
	l.everybody("forwarded")
}
