package mesh

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"weave/mesh/id"
	"weave/test/netlab"
)

// candidates are where a host would look for another.
func (h *fastHost) candidates(other *fastHost) []netip.AddrPort {
	for _, p := range h.status().Peers {
		if p.Name == other.Name() {
			return p.Candidates
		}
	}
	return nil
}

// between tells whether any of the frames is from one of two hosts to the other.
func between(frames [][]byte, a, b *netlab.Host) bool {
	return slices.ContainsFunc(frames, func(f []byte) bool {
		if len(f) < 34 || f[12] != 8 || f[13] != 0 {
			return false
		}
		from, to := netip.AddrFrom4([4]byte(f[26:30])), netip.AddrFrom4([4]byte(f[30:34]))
		return from == a.IP4() && to == b.IP4() || from == b.IP4() && to == a.IP4()
	})
}

// TestLabNoDiscovery holds that hosts without discovery connect to their seeds only,
// and reach each other through these; and that they let others in.
func TestLabNoDiscovery(t *testing.T) {
	t.Parallel()
	l := newHardLab(t)
	hosts := l.addHosts(4)
	capture, err := l.net.Capture()
	must(t, err)
	seed := l.start(hosts[0])
	l.discovery = DiscoverNone
	b, c := l.start(hosts[1], hosts[0].IP4()), l.start(hosts[2], hosts[0].IP4())
	l.awaitHops(l.hosts, func(i, j int) int {
		if i+j == 3 {
			return 2
		}
		return 1
	})
	l.everybody("without discovery")
	if got := b.candidates(seed); !slices.Equal(got, []netip.AddrPort{addrPort(seed.IP4(), fastPort)}) {
		t.Errorf("b looks for its seed at %v", got)
	}
	frames, err := capture.Stop()
	must(t, err)
	if between(frames, b.Host, c.Host) || !between(frames, b.Host, seed.Host) {
		t.Error("hosts without discovery sent each other something, or nothing to their seed")
	}

	l.discovery = DiscoverPeers
	must(t, l.net.CutLink(hosts[1], hosts[3], netlab.AllIP))
	d := l.start(hosts[3], hosts[0].IP4())
	await(t, "relays", func() bool { return b.hops(d) == 2 && d.hops(b) == 2 && d.hops(c) == 1 && c.hops(d) == 1 })
	must(t, l.net.HealLink(hosts[1], hosts[3]))
	await(t, "the newcomer to be let in", func() bool { return b.hops(d) == 1 && d.hops(b) == 1 })
	l.boxes[3].udpEcho()
	await(t, "frames", func() bool { return l.boxes[1].ask(l.boxes[3], "b to d", time.Second) == nil })
	for _, h := range []*fastHost{b, c} {
		if got := h.candidates(d); len(got) != 0 {
			t.Errorf("%s looks for one that came at %v", h.Name(), got)
		}
	}
}

// TestLabLAN holds that hosts on one LAN find each other without being told of any;
// that hosts with another password, or none, are clusters of their own and not even
// tried, and that hosts behind a router are not found.
func TestLabLAN(t *testing.T) {
	t.Parallel()
	l := newHardLab(t)
	hosts := l.addHosts(5)
	router, err := l.net.AddRouter(6, 7)
	must(t, err)
	inside, err := router.Inside.AddHost(9)
	must(t, err)
	capture, err := l.net.Capture()
	must(t, err)
	l.discovery = DiscoverLAN
	run := func(h *netlab.Host, password string) *fastHost {
		x := l.place(h, password)
		x.call("run")
		return x
	}
	beyond, stranger := run(inside, "secret"), run(hosts[4], "another")
	open1, a := run(hosts[2], ""), run(hosts[0], "secret")
	open2, b := run(hosts[3], ""), run(hosts[1], "secret")
	began := time.Now()
	for _, pair := range [][2]*fastHost{{a, b}, {open1, open2}} {
		await(t, "the pair to meet", func() bool { return pair[0].hops(pair[1]) == 1 && pair[1].hops(pair[0]) == 1 })
	}
	t.Logf("met after %s", time.Since(began))
	if took := time.Since(began); took > 10*time.Second { // 1.1 s, where other tests leave it time
		t.Errorf("it took %s", took)
	}
	frames, err := capture.Stop()
	must(t, err)
	for x, want := range map[*fastHost]int{a: 1, b: 1, open1: 1, open2: 1, stranger: 0, beyond: 0} {
		if s := x.status(); len(s.Peers) != want || len(s.Refused) > 0 {
			t.Errorf("%s: peers %+v, refused %+v", x.Name(), s.Peers, s.Refused)
		}
	}
	for i, x := range l.hosts {
		for _, y := range l.hosts[:i] {
			if pair := x.setup.Password == y.setup.Password && x != beyond && y != beyond; between(frames, x.Host, y.Host) != pair {
				t.Errorf("%s and %s: a pair is %t, but it is not so that they send each other something", x.Name(), y.Name(), pair)
			}
		}
	}
	for _, x := range []*fastHost{stranger, beyond} {
		if s := x.status(); len(s.LAN) != 1 || s.Trouble != "" {
			t.Errorf("%s is announced on %v: %s", x.Name(), s.LAN, s.Trouble)
		}
	}
}

// TestNoDiscoveryOverRestart holds that a host without discovery does not look for
// those that it remembers, nor for one whose address was forgotten.
func TestNoDiscoveryOverRestart(t *testing.T) {
	t.Parallel()
	cfg := configure(t, "127.0.16.1")
	cfg.Discovery = DiscoverNone // that it does not come to us
	a := start(t, cfg)
	cfg = configure(t, "127.0.16.2", a.addr)
	cfg.Discovery = DiscoverNone
	b := start(t, cfg)
	awaitMembers(t, a, b)
	looksFor := func(n *node, p id.PeerID) []netip.AddrPort {
		for _, x := range n.transport.Peers() {
			if x.ID == p {
				return x.Candidates
			}
		}
		t.Errorf("%s: the transport does not know %s", n.cfg.Nickname, p.Short())
		return nil
	}
	await(t, "a to be known", func() bool { return len(b.Known()) == 1 })
	if got := looksFor(b, a.self); !slices.Equal(got, []netip.AddrPort{a.cfg.Listen}) {
		t.Errorf("b looks for its seed at %v", got)
	}

	// The seeds' loop makes one round. Were it to try the address as well, it would
	// end our try below when it finds it forgotten.
	b.cfg.tune.seedInterval = time.Hour
	b.cfg.Peers = []string{b.addr}
	b = b.restart(t)
	await(t, "the round", func() bool { return b.seed(t, b.addr).Self })
	await(t, "a to be known", func() bool { return len(b.Known()) == 1 && len(b.transport.Peers()) == 1 })
	if got := looksFor(b, a.self); len(got) != 0 {
		t.Errorf("b looks for who it remembers at %v", got)
	}
	if _, err := b.Connect(within(t), a.addr); err != nil {
		t.Fatal(err)
	}
	awaitMembers(t, a, b)
	must(t, b.Forget(a.addr))
	if got := looksFor(b, a.self); len(got) != 0 {
		t.Errorf("b looks for whom it was to forget at %v", got)
	}
	if p, err := b.meet(within(t), a.addr); err != nil || p != a.self { // as if it was forgotten meanwhile
		t.Errorf("meet: %v, %v", p, err)
	}
	if got := looksFor(b, a.self); len(got) != 0 {
		t.Errorf("b looks for whom it forgot while it met it at %v", got)
	}
}

// TestForgetIsForGood holds that an address which was taken back is no seed again,
// though the peer that was met there is remembered.
func TestForgetIsForGood(t *testing.T) {
	t.Parallel()
	a, b := start(t, configure(t, "127.0.17.1")), start(t, configure(t, "127.0.17.2"))
	if _, err := a.Connect(within(t), b.addr); err != nil {
		t.Fatal(err)
	}
	await(t, "b to be known", func() bool { return len(a.Known()) == 1 })
	must(t, a.Forget(b.addr))
	a = a.restart(t)
	awaitMembers(t, a, b)
	if len(a.Seeds()) != 0 || len(a.store.keys(bucketSeeds)) != 0 {
		t.Errorf("seeds %v, on disk %v", a.Seeds(), a.store.keys(bucketSeeds))
	}
}
