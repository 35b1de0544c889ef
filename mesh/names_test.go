package mesh

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weave/mesh/id"
)

// names is a resolver whose answers change.
type names struct {
	mu   sync.Mutex
	says []netip.Addr
}

func (n *names) say(hosts ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.says = nil
	for _, h := range hosts {
		n.says = append(n.says, addr(h))
	}
}

func (n *names) lookup(context.Context, string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.says), nil
}

// startNamed runs a node on the port of another, with a name for its peers.
func startNamed(t *testing.T, ip string, like *node, r *names, again time.Duration) *node {
	t.Helper()
	cfg := configure(t, ip, addrPort(addr("127.0.0.1"), like.cfg.Listen.Port()).String())
	cfg.Peers[0] = "cluster.example" + cfg.Peers[0][len("127.0.0.1"):]
	cfg.Listen = addrPort(addr(ip), like.cfg.Listen.Port())
	cfg.tune.lookup, cfg.tune.namesInterval = r.lookup, again
	return start(t, cfg)
}

// TestNamesAreLookedUpAnew holds that a name may stand for other hosts later: before
// anybody was met, and after that.
func TestNamesAreLookedUpAnew(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.14.1"))
	var r names
	b := startNamed(t, "127.0.14.2", a, &r, 300*time.Millisecond)
	seed := b.cfg.Peers[0]
	await(t, "the name to have no address", func() bool { return b.seed(t, seed).Error != "" })
	r.say("127.0.14.2")
	await(t, "b to see itself", func() bool { return b.seed(t, seed).Self })
	r.say("127.0.14.2", "127.0.14.1")
	awaitMembers(t, a, b)
	await(t, "a to be met", func() bool { return b.seed(t, seed).Peer == a.self })
	cfg := configure(t, "127.0.14.3")
	cfg.Listen = addrPort(addr("127.0.14.3"), a.cfg.Listen.Port())
	c := start(t, cfg)
	r.say("127.0.14.3", "127.0.14.1")
	awaitMembers(t, a, b, c)
}

// TestAllBehindANameAreMet holds that hosts which are given one name for all of them
// are one cluster, not pairs.
func TestAllBehindANameAreMet(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.15.1"))
	b := start(t, configure(t, "127.0.15.2"))
	farAway(t, addrPort(addr("127.0.15.4"), a.cfg.Listen.Port()), b.cfg.Listen)
	var r names
	r.say("127.0.15.1", "127.0.15.4")
	c := startNamed(t, "127.0.15.3", a, &r, time.Hour)
	awaitMembers(t, a, b, c)
	// What is known to be up is not tried again and again.
	c.cfg.tune.namesInterval = 300 * time.Millisecond
	c = c.restart(t)
	awaitMembers(t, a, b, c)
	await(t, "the name to be looked up", func() bool { return c.seed(t, c.cfg.Peers[0]).Met() && !c.seed(t, c.cfg.Peers[0]).Tried.IsZero() })
	sessions := func() (when []time.Time) {
		for _, p := range c.Peers() {
			when = append(when, p.Path.Established)
		}
		return when
	}
	before, looked := sessions(), c.seed(t, c.cfg.Peers[0]).Tried
	await(t, "the name to be looked up again", func() bool { return c.seed(t, c.cfg.Peers[0]).Tried.After(looked) })
	if after := sessions(); !slices.Equal(before, after) {
		t.Errorf("sessions of %v, then of %v", before, after)
	}
}

// TestForgetConfigured holds that who was met at a configured address is known after
// a restart although somebody wanted to forget it.
func TestForgetConfigured(t *testing.T) {
	store := newStore()
	s, err := loadSeeds(store, []string{"a:1"})
	must(t, err)
	must(t, s.add("a:1"))
	must(t, s.met("a:1", time.Unix(1000, 0), id.PeerID{5}))
	if _, err := s.forget("a:1"); !errors.Is(err, ErrConfigured) {
		t.Errorf("forget: %v", err)
	}
	s, err = loadSeeds(store, []string{"a:1"})
	must(t, err)
	if got := s.snapshot()[0]; got.Added || got.Peer != (id.PeerID{5}) {
		t.Errorf("after a restart: %+v", got)
	}
}

// TestSeedsShareAddresses holds that an address is gone only when no seed stands for
// it any more.
func TestSeedsShareAddresses(t *testing.T) {
	s, err := loadSeeds(newStore(), []string{"a:1", "b:1"})
	must(t, err)
	x, y, z := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:1"), netip.MustParseAddrPort("192.0.2.3:1")
	must(t, s.add("c:1"))
	for _, step := range []struct {
		seed string
		to   []netip.AddrPort
		gone []netip.AddrPort
	}{
		{"a:1", []netip.AddrPort{x, y}, nil},
		{"c:1", []netip.AddrPort{y, z}, nil},
		{"a:1", []netip.AddrPort{z}, []netip.AddrPort{x}},
		{"unknown:1", []netip.AddrPort{x}, nil},
		{"a:1", []netip.AddrPort{z, x}, nil},
	} {
		if gone := s.resolved(step.seed, step.to); !slices.Equal(gone, step.gone) {
			t.Errorf("%s is %v: %v gone, want %v", step.seed, step.to, gone, step.gone)
		}
	}
	if gone, err := s.forget("c:1"); err != nil || !slices.Equal(gone, []netip.AddrPort{y}) {
		t.Errorf("forget: %v gone, %v", gone, err)
	}
}

// farAway makes a peer answer at another address, by UDP, after a while.
func farAway(t *testing.T, at, peer netip.AddrPort) {
	t.Helper()
	const away = 150 * time.Millisecond
	here, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	must(t, err)
	there, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(peer))
	must(t, err)
	var from atomic.Pointer[netip.AddrPort]
	var both sync.WaitGroup
	both.Go(func() {
		for b := make([]byte, 2000); ; {
			n, a, err := here.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			from.Store(&a)
			d := slices.Clone(b[:n])
			time.AfterFunc(away, func() { _, _ = there.Write(d) })
		}
	})
	both.Go(func() {
		for b := make([]byte, 2000); ; {
			n, err := there.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			d := slices.Clone(b[:n])
			time.AfterFunc(away, func() { _, _ = here.WriteToUDPAddrPort(d, *from.Load()) })
		}
	})
	t.Cleanup(func() { _ = here.Close(); _ = there.Close(); both.Wait() })
}
