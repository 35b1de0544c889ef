package ipam

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weave/ipam/ring"
	"weave/ipam/space"
)

// TestLateReservationIsRefused has a request to reserve come after the one that
// ended the reservation, also after a restart of the owner in between.
func TestLateReservationIsRefused(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	a := hosts[0]
	a.pool(t, small, "")
	pool := netip.MustParsePrefix(small)
	req := request{Pool: pool, Ring: a.pools[pool].chunk(), Addr: netip.MustParseAddr("10.40.0.3")}
	serve := func(o op, serial uint64) refusal {
		req.Op, req.Serial = o, serial
		return a.serve(t.Context(), "b", req).Refusal
	}
	steps := []struct {
		op     op
		serial uint64
		want   refusal
		holds  int
	}{
		{opReserve, 1, "", 1},
		{opReserve, 1, "", 1}, // delivered twice
		{opReserve, 3, "", 1}, // of another network, or asked for anew
		{opUnreserve, 2, refusedLate, 1},
		{opUnreserve, 4, "", 0},
		{opUnreserve, 4, "", 0},
		{opReserve, 3, refusedLate, 0},
		{opReserve, 5, "", 1},
		{opUnreserve, 9, "", 0},
		{opUnreserve, 10, "", 0}, // of a reservation that is still on its way
		{opReserve, 9, refusedLate, 0},
	}
	for _, restart := range []bool{false, true} {
		for i, s := range steps {
			s.serial += 20
			if restart {
				s.serial += 20
				if err := a.start(); err != nil {
					t.Fatal(err)
				}
			}
			got := serve(s.op, s.serial)
			if holds := len(a.pools[pool].reserved[req.Addr]); got != s.want || holds != s.holds {
				t.Errorf("step %d, restart %v: %s %d: refused as %q, want %q; held by %d, want %d", i, restart, s.op, s.serial, got, s.want, holds, s.holds)
			}
		}
	}
}

// TestRefusedReservationStaysRefused has the request come a second time when the
// lease that was in its way has ended.
func TestRefusedReservationStaysRefused(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	a := hosts[0]
	addr := a.lease(t, a.pool(t, small, ""))
	pool := netip.MustParsePrefix(small)
	req := request{Op: opReserve, Pool: pool, Ring: a.pools[pool].chunk(), Addr: addr, Serial: 1}
	if got := a.serve(t.Context(), "b", req).Refusal; got != refusedLeased {
		t.Fatalf("refused as %q", got)
	}
	if err := a.ReleaseAddress(t.Context(), small, addr); err != nil {
		t.Fatal(err)
	}
	if got := a.serve(t.Context(), "b", req).Refusal; got != refusedLate || a.pools[pool].reserved[addr] != nil {
		t.Errorf("refused as %q", got)
	}
	req.Serial++
	if got := a.serve(t.Context(), "b", req).Refusal; got != "" {
		t.Errorf("refused as %q", got)
	}
}

// TestSerialsRise verifies that no Serial is used twice, restarts or not.
func TestSerialsRise(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	a := hosts[0]
	var last uint64
	for i := range 3*serialsAtOnce + 2 {
		if i%serialsAtOnce == 1 {
			if err := a.start(); err != nil {
				t.Fatal(err)
			}
		}
		req := request{Op: opReserve}
		a.mu.Lock()
		err := a.number(&req)
		a.mu.Unlock()
		if err != nil || req.Serial <= last {
			t.Fatalf("serial %d after %d, %v", req.Serial, last, err)
		}
		last = req.Serial
	}
	a.disk.left = 0
	a.serial = a.serials
	if req := (request{Op: opUnreserve}); a.number(&req) == nil {
		t.Error("a serial that is not on disk is used")
	}
}

// TestDebtToAFormerOwner: who has given a shared address away did not have our
// reservation of it, dead or alive.
func TestDebtToAFormerOwner(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	a, b := hosts[0], hosts[1]
	for _, h := range hosts {
		h.pool(t, small, "")
	}
	pool := netip.MustParsePrefix(small)
	p := a.pools[pool]
	addr := p.usable.First
	for p.owner(addr) != "b" {
		addr = addr.Next()
	}
	a.mu.Lock()
	err := a.saveRecord(p, addr, &record{Kind: KindGateway, PoolID: small, At: a.place(p, addr)})
	a.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if got := len(a.unsettled(p)); got != 1 {
		t.Fatalf("%d debts", got)
	}
	next, change, err := b.pools[pool].ring.Give("b", rangeOf(addr.String()), "a")
	if err != nil || next == nil {
		t.Fatal(err)
	}
	if err := a.learn("b", gossip{Rings: []ring.Chunk{change}}); err != nil {
		t.Fatal(err)
	}
	a.settleSoon(t.Context(), p)
	if r, ok := p.records[addr]; ok || !p.free.Contains(addr) {
		t.Errorf("%+v", r)
	}
}

// TestRequestThatFailedIsADebt: an owner that could not store a reservation may
// get the request a second time.
func TestRequestThatFailedIsADebt(t *testing.T) {
	_, hosts := newNet(t, "a", "b")
	a, b := hosts[0], hosts[1]
	for _, h := range hosts {
		h.pool(t, small, "")
	}
	pool := netip.MustParsePrefix(small)
	addr := a.pools[pool].usable.First
	for a.pools[pool].owner(addr) != "b" {
		addr = addr.Next()
	}
	b.disk.left = 0
	if _, err := a.request(small, addr.String(), KindGateway); err == nil {
		t.Fatal("reserved on a full disk")
	}
	if got := a.unsettled(a.pools[pool]); len(got) != 1 {
		t.Fatalf("debts: %v", got)
	}
	b.disk.left = -1
	a.Settle(t.Context())
	req := request{Op: opReserve, Pool: pool, Ring: a.pools[pool].chunk(), Addr: addr, Serial: 1}
	if got := b.serve(t.Context(), "a", req).Refusal; got != refusedLate || len(a.unsettled(a.pools[pool])) > 0 {
		t.Errorf("refused as %q, debts %v", got, a.unsettled(a.pools[pool]))
	}
}

// reservationsOnDisk counts those that a start would find.
func (h *host) reservationsOnDisk() (n int) {
	for key := range h.disk.buckets[bucketRings] {
		if strings.Contains(key, " ") && !strings.HasPrefix(key, keyHeard) {
			n++
		}
	}
	return n
}

// TestReservationsEndWithTheRange verifies that no reservation stays on disk when
// its range is lost, from where it would come back with the range.
func TestReservationsEndWithTheRange(t *testing.T) {
	reserve := func(t *testing.T) *host {
		_, hosts := newNet(t, "a")
		a := hosts[0]
		a.pool(t, small, "")
		pool := netip.MustParsePrefix(small)
		req := request{Op: opReserve, Pool: pool, Ring: a.pools[pool].chunk(), Addr: netip.MustParseAddr("10.40.0.3"), Serial: 1}
		if got := a.serve(t.Context(), "b", req).Refusal; got != "" || a.reservationsOnDisk() != 1 {
			t.Fatalf("refused as %q, %d on disk", got, a.reservationsOnDisk())
		}
		if err := a.start(); err != nil || len(a.pools[pool].reserved) != 1 {
			t.Fatalf("after a restart: %v", err)
		}
		return a
	}
	t.Run("another ring", func(t *testing.T) {
		a := reserve(t)
		r, err := ring.New(netip.MustParsePrefix(small), ring.SeedID{}, []ring.Peer{"a"})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.learn("b", gossip{Rings: []ring.Chunk{r.Chunk()}}); err != nil || a.reservationsOnDisk() != 0 {
			t.Errorf("%v, %d on disk", err, a.reservationsOnDisk())
		}
	})
	t.Run("another name", func(t *testing.T) {
		a := reserve(t)
		if err := a.rejoin("a2"); err != nil || a.reservationsOnDisk() != 0 {
			t.Errorf("%v, %d on disk", err, a.reservationsOnDisk())
		}
	})
	t.Run("another name, disk full", func(t *testing.T) {
		a := reserve(t)
		a.disk.left = 0
		if err := a.rejoin("a2"); err == nil {
			t.Error("starts, and the reservation is still on disk")
		}
	})
}

// TestReservationsOfARangeThatComesBack has an heir lose a range to a gift of a
// removed peer that surfaces late, and inherit it once more, as the receiver was
// removed, too: what is reserved there must be so again.
func TestReservationsOfARangeThatComesBack(t *testing.T) {
	n, hosts := newNet(t, "a", "b", "c", "d")
	a, b := hosts[0], hosts[1]
	for _, h := range hosts[:3] {
		h.pool(t, small, "")
	}
	pool := netip.MustParsePrefix(small)
	before := a.pools[pool].ring
	for _, gone := range []ring.Peer{"d", "c"} {
		delete(n.hosts, gone)
		if _, err := a.RemovePeer(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
	}
	theirs := before.Ranges("c")[0]
	addr := theirs.Last.Prev()
	for _, h := range []*host{a, b} {
		if err := n.sync(); err != nil {
			t.Fatal(err)
		}
		if _, err := h.request(small, addr.String(), KindGateway); err != nil {
			t.Fatal(err)
		}
	}
	late, _, err := before.Give("c", space.Range{First: addr, Last: theirs.Last}, "d")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Merge("b", encode(gossip{Rings: []ring.Chunk{late.Chunk()}})); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, h := range []*host{a, b} {
			h.Settle(t.Context())
		}
		if err := n.sync(); err != nil {
			t.Fatal(err)
		}
	}
	if got := a.pools[pool].reserved[addr]; a.pools[pool].owner(addr) != "a" || !slices.Equal(got, reservation{"a", "b"}) {
		t.Errorf("%s is owned by %s and reserved for %v, want a, and for a and b", addr, a.pools[pool].owner(addr), got)
	}
}
