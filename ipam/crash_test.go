package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"

	"weave/ipam/ring"
)

// script is a life of three hosts, of which one starts apart: every kind of
// write happens. Each step may be repeated.
type script struct {
	*books
	a, b, c *host
}

func (s *script) steps() []func() error {
	lease := func(h *host, addr string) func() error { return func() error { return s.take(h, addr) } }
	pool := func(h *host) func() error {
		return func() error {
			_, err := h.RequestPool(context.Background(), PoolRequest{Pool: netip.MustParsePrefix(small)})
			return err
		}
	}
	return []func() error{
		pool(s.a), pool(s.b), pool(s.c),
		lease(s.a, ""), lease(s.b, ""), lease(s.c, ""), lease(s.c, "10.40.0.9"), lease(s.a, "10.40.0.10"),
		s.gateway(s.a, "10.40.0.12"), s.gateway(s.c, "10.40.0.13"),
		s.giveUp(s.a, "10.40.0.10"), lease(s.b, "10.40.0.2"),
		s.meeting, s.talk, s.talk,
		lease(s.a, ""), lease(s.b, ""), lease(s.c, ""), s.giveUp(s.c, "10.40.0.9"),
		s.cutOff, lease(s.c, ""), s.removal, lease(s.a, ""), s.reunion, s.talk, s.comeBack, s.talk, s.talk,
		lease(s.c, ""),
	}
}

// take leases; only what a living host answered counts.
func (s *script) take(h *host, addr string) error {
	got, err := h.request(small, addr, KindLease)
	if errors.Is(err, ErrInUse) || errors.Is(err, ErrFull) {
		return nil
	}
	if err == nil && !h.disk.isDead() {
		s.held[h][got.Addr()] = true
	}
	return err
}

func (s *script) gateway(h *host, addr string) func() error {
	return func() error {
		got, err := h.request(small, addr, KindGateway)
		if err == nil && !h.disk.isDead() {
			s.shared[leased{h, got.Addr()}]++
		}
		return err
	}
}

func (s *script) giveUp(h *host, addr string) func() error {
	return func() error {
		delete(s.held[h], netip.MustParseAddr(addr))
		return h.ReleaseAddress(context.Background(), small, netip.MustParseAddr(addr))
	}
}

func (s *script) meeting() error {
	meet(s.net)
	s.net.partition(nil)
	return nil
}

func (s *script) talk() error {
	for _, h := range s.hosts {
		h.Settle(context.Background())
	}
	return s.net.sync()
}

func (s *script) cutOff() error {
	s.net.partition(map[ring.Peer]int{s.c.self: 1})
	return nil
}

func (s *script) removal() error {
	_, err := s.a.RemovePeer(context.Background(), "c")
	return err
}

func (s *script) reunion() error { s.net.partition(nil); return nil }

func (s *script) comeBack() error {
	if s.c.self == "c" && s.c.removed > 0 {
		return s.c.rejoin("c2")
	}
	return nil
}

// reconcile releases what a crash kept Docker from hearing of, unless the host
// crashes again.
func (s *script) reconcile(h *host) {
	for _, l := range h.Leases() {
		unheard := l.Kind == KindLease && !s.held[h][l.Addr]
		for n := s.shared[leased{h, l.Addr}]; l.Kind != KindLease && n < h.pools[l.Pool].records[l.Addr].Count; n++ {
			unheard = true
		}
		if unheard && h.ReleaseAddress(context.Background(), small, l.Addr) != nil {
			return
		}
	}
}

// blow is when a host crashes: before or after one of its writes, and perhaps
// once more while it comes back from that.
type blow struct {
	victim, write int
	when          crash
	again         int // writes from its start to the second crash; negative: none
}

func (b blow) String() string {
	return fmt.Sprintf("host %d, crash %d, write %d, again %d", b.victim, b.when, b.write, b.again)
}

func (b blow) strike(hosts []*host) {
	hosts[b.victim].disk.left, hosts[b.victim].disk.crash = b.write, b.when
}

// revive starts a host that has crashed, and again if it crashes in that.
func (b *blow) revive(t *testing.T, h *host) {
	t.Helper()
	for h.disk.isDead() {
		h.disk.dead, h.disk.left, h.disk.crash = false, -1, noCrash
		if b.again >= 0 {
			h.disk.left, h.disk.crash, b.again = b.again, crashBefore, -1
		}
		if err := h.start(); err != nil && !h.disk.isDead() {
			t.Fatalf("%s: start: %v", b, err)
		}
	}
}

// eachBlow runs a script with each blow that there is to its hosts.
func eachBlow(t *testing.T, hosts, least int, run func(*testing.T, blow) (crashed bool)) {
	total := 0
	for victim := range hosts {
		for _, when := range []crash{crashBefore, crashAfter} {
			for again := -1; again < 2; again++ {
				if again >= 0 && when == crashAfter {
					continue // what it comes back to is that of another write
				}
				for write := 0; ; write++ {
					var crashed bool
					synctest.Test(t, func(t *testing.T) { crashed = run(t, blow{victim, write, when, again}) })
					if !crashed {
						break
					}
					total++
				}
			}
		}
	}
	if t.Logf("%d crashes", total); total < least {
		t.Errorf("only %d crashes", total)
	}
}

// TestCrashAtEachWrite lets each host crash before and after each of its writes,
// and again while it comes back, and start again from its disk: nothing that was
// answered is lost, nothing is given twice, and in the end everything is owned
// and free.
func TestCrashAtEachWrite(t *testing.T) { eachBlow(t, 3, 250, runScript) }

func runScript(t *testing.T, b blow) (crashed bool) {
	n, hosts := newNet(t, "a", "b", "c")
	n.partition(map[ring.Peer]int{"c": 1})
	for _, h := range hosts {
		h.known = []ring.Peer{"a", "b"}
	}
	hosts[2].known = []ring.Peer{"c"}
	s := &script{books: newBooks(n, hosts), a: hosts[0], b: hosts[1], c: hosts[2]}
	b.strike(hosts)
	for i, step := range s.steps() {
		err := step()
		for h := hosts[b.victim]; h.disk.isDead(); {
			crashed = true
			b.revive(t, h)
			s.reconcile(h)
			err = step()
		}
		if err != nil {
			t.Fatalf("%s: step %d: %v", b, i, err)
		}
		s.check(t)
	}
	hosts[b.victim].disk.left, hosts[b.victim].disk.crash = -1, noCrash
	s.reconcile(hosts[b.victim])
	for range 2 {
		s.calm(t)
		if err := s.comeBack(); err != nil {
			t.Fatal(err)
		}
	}
	s.converged(t)
	return crashed
}

// TestFullDisk has a disk that takes no write: leases are refused, and all that
// needs none goes on.
func TestFullDisk(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	a, b := hosts[0], hosts[1]
	id := a.pool(t, small, "")
	b.pool(t, small, "")
	addr := a.lease(t, id)
	a.disk.failAfter(0)
	for _, want := range []string{"", "10.40.0.3", "10.40.0.12"} {
		if got, err := a.request(id, want, KindLease); err == nil {
			t.Errorf("leased %s, which is not on disk", got)
		}
	}
	if l := a.Leases(); len(l) != 1 || l[0].Addr != addr || len(a.Status()) != 1 {
		t.Errorf("leases %v, status %+v", l, a.Status())
	}
	for range 6 { // the rest of its own: 10.40.0.12 it gave away
		b.lease(t, id)
	}
	_, err := b.request(id, "", KindLease) // a cannot give: it could not write it down
	want(t, err, ErrFull, "host-a")
	if ans := a.serve(t.Context(), "b", request{Op: opRings, Digest: []byte("{}")}); ans.Gossip == nil {
		t.Error("no rings for others")
	}
	if _, err := a.RequestPool(t.Context(), PoolRequest{Pool: netip.MustParsePrefix(small)}); err == nil {
		t.Error("a handle that is not on disk")
	}
	a.disk.failAfter(-1)
	b.lease(t, id)
	a.lease(t, id)
}
