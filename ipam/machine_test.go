package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weave/ipam/ring"
	"weave/ipam/space"
)

func rangeOf(addr string) space.Range { return space.Single(netip.MustParseAddr(addr)) }

// leased is what a test's Docker believes to hold.
type leased struct {
	host *host
	addr netip.Addr
}

// machine drives some hosts through random requests, crashes and losses, and
// keeps the books that Docker would keep.
type machine struct {
	net     *net
	hosts   []*host
	leases  map[netip.Addr]*host
	shared  map[leased]int
	pending []bool // coins for the network, drawn before each step
}

func (m *machine) host(t *rapid.T) *host { return rapid.SampledFrom(m.hosts).Draw(t, "host") }

func (m *machine) addr(t *rapid.T) string {
	return fmt.Sprintf("10.40.0.%d", rapid.IntRange(1, 14).Draw(t, "addr"))
}

// flip is a coin that the test drew.
func (m *machine) flip() bool {
	if len(m.pending) == 0 {
		return false
	}
	coin := m.pending[0]
	m.pending = m.pending[1:]
	return coin
}

func (m *machine) coins(t *rapid.T) {
	coins := rapid.SliceOfN(rapid.Bool(), 0, 4).Draw(t, "losses")
	m.net.mu.Lock()
	m.pending = coins
	m.net.mu.Unlock()
}

func (m *machine) lease(t *rapid.T) { m.leaseAt(t, "") }
func (m *machine) claim(t *rapid.T) { m.leaseAt(t, m.addr(t)) }

func (m *machine) leaseAt(t *rapid.T, addr string) {
	m.coins(t)
	h := m.host(t)
	got, err := h.request(small, addr, KindLease)
	if err != nil {
		return
	}
	if other := m.leases[got.Addr()]; other != nil {
		t.Fatalf("%s leased to %s and %s", got, other.self, h.self)
	}
	for s, count := range m.shared {
		if s.addr == got.Addr() && count > 0 {
			t.Fatalf("%s leased to %s, reserved by %s", got, h.self, s.host.self)
		}
	}
	m.leases[got.Addr()] = h
}

func (m *machine) release(t *rapid.T) {
	m.coins(t)
	addr := netip.MustParseAddr(m.addr(t))
	if h := m.leases[addr]; h != nil {
		delete(m.leases, addr)
		if err := h.ReleaseAddress(t.Context(), small, addr); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *machine) reserve(t *rapid.T) {
	m.coins(t)
	h, addr := m.host(t), m.addr(t)
	got, err := h.request(small, addr, KindGateway)
	if err != nil {
		return
	}
	if other := m.leases[got.Addr()]; other != nil {
		t.Fatalf("%s reserved by %s, leased to %s", got, h.self, other.self)
	}
	m.shared[leased{h, got.Addr()}]++
}

func (m *machine) unreserve(t *rapid.T) {
	m.coins(t)
	for s := range m.shared {
		if m.shared[s] == 0 || s.addr.String() != m.addr(t) {
			continue
		}
		m.shared[s]--
		if err := s.host.ReleaseAddress(t.Context(), small, s.addr); err != nil {
			t.Fatal(err)
		}
		return
	}
}

func (m *machine) crash(t *rapid.T) {
	if err := m.host(t).start(); err != nil {
		t.Fatal(err)
	}
}

// fill has the disk of a host refuse one write from now on.
func (m *machine) fill(t *rapid.T) {
	h := m.host(t)
	h.disk.failAfter(rapid.IntRange(0, 2).Draw(t, "writes"))
	if rapid.Bool().Draw(t, "claim") {
		m.claim(t)
	} else {
		m.lease(t)
	}
	h.disk.failAfter(-1)
}

func (m *machine) split(t *rapid.T) {
	part := map[ring.Peer]int{}
	for _, h := range m.hosts {
		part[h.self] = rapid.IntRange(0, 1).Draw(t, "part")
	}
	m.net.partition(part)
}

func (m *machine) heal(*rapid.T) { m.net.partition(nil) }

func (m *machine) settle(t *rapid.T) {
	m.coins(t)
	m.host(t).Settle(t.Context())
}

func (m *machine) check(t *rapid.T) {
	if err := m.net.invariants(); err != nil {
		t.Fatal(err)
	}
}

// settled is what must hold when all is calm: all rings alike, the books of all
// hosts as Docker's, and the whole pool free once everything is released.
func (m *machine) settled(t *rapid.T) {
	m.heal(t)
	m.net.lose(never, never)
	for range 3 {
		if err := m.net.sync(); err != nil {
			t.Fatal(err)
		}
	}
	held := 0
	for _, h := range m.hosts {
		h.Settle(t.Context())
		if string(h.Digest()) != string(m.hosts[0].Digest()) {
			t.Fatalf("%s and %s differ", h.self, m.hosts[0].self)
		}
		for _, l := range h.Leases() {
			if l.Kind == KindLease && m.leases[l.Addr] != h || l.Kind != KindLease && m.shared[leased{h, l.Addr}] == 0 {
				t.Fatalf("%s leaks %v", h.self, l)
			}
			held++
			if err := h.ReleasePool(t.Context(), small); err != nil {
				t.Fatal(err)
			}
			if err := h.ReleaseAddress(t.Context(), small, l.Addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, count := range m.shared {
		held -= min(count, 1)
	}
	if held != len(m.leases) {
		t.Fatalf("%d leases kept of %d", held, len(m.leases))
	}
	m.check(t)
	var free uint64
	for _, h := range m.hosts {
		free += h.Status()[0].Free
	}
	if free != 14 {
		t.Fatalf("%d of 14 addresses free in the end", free)
	}
}

func TestMachine(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		peers := []ring.Peer{"a", "b", "c", "d", "e"}[:rapid.IntRange(2, 5).Draw(rt, "hosts")]
		n, hosts := newNet(t, peers...)
		m := &machine{net: n, hosts: hosts, leases: map[netip.Addr]*host{}, shared: map[leased]int{}}
		n.tidy = rapid.IntRange(1, 8).Draw(rt, "tidy")
		for _, h := range hosts {
			h.pool(t, small, "")
			h.tidyTokens, h.scarceTokens = n.tidy, 2*n.tidy
		}
		n.lose(m.flip, m.flip)
		rt.Repeat(map[string]func(*rapid.T){
			"lease": m.lease, "lease more": m.lease, "claim": m.claim, "release": m.release,
			"reserve": m.reserve, "unreserve": m.unreserve, "crash": m.crash, "full disk": m.fill,
			"split": m.split, "heal": m.heal, "settle": m.settle, "": m.check,
		})
		m.settled(rt)
	})
}

// TestSeedingMachine has all hosts request one pool at once, with losses and
// partitions: there is never more than one seed.
func TestSeedingMachine(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		peers := []ring.Peer{"a", "b", "c", "d", "e"}[:rapid.IntRange(2, 5).Draw(rt, "hosts")]
		n, hosts := newNet(t, peers...)
		m := &machine{net: n, hosts: hosts}
		m.pending = rapid.SliceOfN(rapid.Bool(), 0, 60).Draw(rt, "losses")
		n.lose(m.flip, m.flip)
		m.split(rt)
		done := make(chan error, len(hosts))
		for _, h := range hosts {
			h.patience = 10 * time.Millisecond
			go func() {
				_, err := h.RequestPool(t.Context(), PoolRequest{Pool: netip.MustParsePrefix(small)})
				done <- err
			}()
		}
		for range hosts {
			if err := <-done; err != nil && !errors.Is(err, ErrNoAgreement) {
				rt.Fatal(err)
			}
		}
		n.lose(never, never)
		m.heal(rt)
		for _, h := range hosts {
			h.patience = 5 * time.Second
			if err := h.start(); err != nil {
				rt.Fatal(err)
			}
			h.pool(t, small, "")
		}
		if err := errors.Join(n.sync(), n.invariants()); err != nil {
			rt.Fatal(err)
		}
		for _, h := range hosts {
			if s := h.Status()[0]; len(s.Conflicts) > 0 || string(h.Digest()) != string(hosts[0].Digest()) {
				rt.Fatalf("%s: %+v", h.self, s)
			}
		}
	})
}

func BenchmarkLease(b *testing.B) {
	for _, leases := range []int{10, 1000, 30000} {
		b.Run(fmt.Sprint(leases), func(b *testing.B) {
			_, hosts := newNet(b, "a")
			id := hosts[0].pool(b, "10.32.0.0/16", "")
			for range leases {
				hosts[0].lease(b, id)
			}
			for b.Loop() {
				addr := hosts[0].lease(b, id)
				if err := hosts[0].ReleaseAddress(b.Context(), id, addr); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
