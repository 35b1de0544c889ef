package mesh

import (
	"testing"
	"time"

	"weave/test/netlab"
)

// byTCP tells whether a host reaches another by TCP.
func (h *fastHost) byTCP(other *fastHost) bool {
	for _, p := range h.status().Peers {
		if p.Name == other.Name() {
			return p.Up && p.Alive && p.TCP
		}
	}
	return false
}

// TestLabUDPIsBlocked holds that a host from which no UDP gets out is a full member all
// the same, by TCP, and takes UDP when it gets through; and that what is blocked later is
// left within 3 s.
func TestLabUDPIsBlocked(t *testing.T) {
	t.Parallel()
	l := newHardLab(t)
	hosts := l.addHosts(3)
	must(t, hosts[0].SetFilter(netlab.Filter{UDP: true}))
	l.start(hosts[1])
	l.start(hosts[2], hosts[1].IP4())
	l.start(hosts[0], hosts[1].IP4())
	blocked := l.hosts[2]
	l.awaitHops(l.hosts, func(i, j int) int { return 1 })
	for _, h := range l.hosts[:2] {
		await(t, "TCP to be taken", func() bool { return blocked.byTCP(h) && h.byTCP(blocked) })
	}
	l.everybody("blocked")
	l.boxes[2].bulk(l.boxes[0])
	for _, c := range l.boxes {
		c.udpEcho()
	}
	s := l.boxes[2].talk(l.boxes[0])
	must(t, hosts[0].SetFilter(netlab.Filter{}))
	await(t, "UDP to be taken", func() bool { return !blocked.byTCP(l.hosts[0]) && !l.hosts[0].byTCP(blocked) })
	s.awaitAnswers(t, 10)
	gap := l.boxes[2].outage(l.boxes[0], func() { must(t, hosts[0].SetFilter(netlab.Filter{UDP: true})) })
	t.Logf("blocked later: without answers for %s", gap)
	if gap > 3*time.Second {
		t.Errorf("blocked later: without answers for %s", gap)
	}
	s.end(t)
}

// TestLabOnlyOnePortGetsOut holds that a host from which nothing gets out but TCP to
// one port, or to a proxy, is a full member.
func TestLabOnlyOnePortGetsOut(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		out   uint16
		proxy bool
	}{{"443", 443, false}, {"proxy", 3128, true}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := newHardLab(t)
			hosts := l.addHosts(3)
			must(t, hosts[0].SetFilter(netlab.Filter{OnlyTCP: []uint16{test.out}}))
			if test.proxy {
				proxy, err := hosts[2].ServeProxy(test.out, fastPort)
				must(t, err)
				t.Cleanup(func() { must(t, proxy.Close()) })
				l.proxy = "http://" + proxy.Addr().String()
			} else {
				l.tcpPort = test.out
			}
			l.start(hosts[1])
			l.start(hosts[0], hosts[1].IP4())
			l.awaitHops(l.hosts, func(i, j int) int { return 1 })
			await(t, "TCP to be taken", func() bool { return l.hosts[0].byTCP(l.hosts[1]) && l.hosts[1].byTCP(l.hosts[0]) })
			l.everybody(test.name)
			l.boxes[1].bulk(l.boxes[0])
			l.boxes[0].bulk(l.boxes[1])
		})
	}
}

// TestLabIdleLinkIsBlocked holds that hosts which send each other nothing notice that
// UDP is blocked, too: by a ping that is not answered, or by what the membership says.
func TestLabIdleLinkIsBlocked(t *testing.T) {
	t.Parallel()
	l := newHardLab(t)
	hosts := l.addHosts(2) // without containers: these are never quite silent
	l.place(hosts[0], "secret").call("run")
	l.place(hosts[1], "secret", hosts[0].IP4()).call("run")
	l.awaitHops(l.hosts, func(i, j int) int { return 1 })
	time.Sleep(12 * time.Second) // until nobody watches the link closely
	must(t, l.hosts[1].SetFilter(netlab.Filter{UDP: true}))
	began := time.Now()
	await(t, "TCP to be taken", func() bool { return l.hosts[0].byTCP(l.hosts[1]) && l.hosts[1].byTCP(l.hosts[0]) })
	t.Logf("members again after %s", time.Since(began))
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("members again after %s", took)
	}
}
