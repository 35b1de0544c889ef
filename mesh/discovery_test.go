package mesh

import (
	"net/netip"
	"slices"
	"testing"

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
	l.everybody("with one that has discovery")
	for _, h := range []*fastHost{b, c} {
		if got := h.candidates(d); len(got) != 0 {
			t.Errorf("%s looks for one that came at %v", h.Name(), got)
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

	b.cfg.Peers = nil
	b = b.restart(t)
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
