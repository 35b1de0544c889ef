package vxlan

import (
	"net/netip"
	"testing"
	"time"

	"weave/mesh/beat"
)

// TestBothRestart holds that of two hosts each can restart while the other is
// away, for however long that takes, and that nothing in the kernel changes for
// it: not while the other is away, nor while it comes back.
func TestBothRestart(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	w.run(time.Second)
	before, allowed := a.kernel.changes, a.guard.changes
	b.dead = true
	a.start()
	w.run(3 * grace) // its segments are slow to come
	w.join("a", a)
	a.SetEndpoint("a", endpointOf(a.self, 1).at(a))
	w.run(10 * time.Minute)
	wantPort(t, a, "a", endpointOf(b.self, 1), "vxlan")
	b.start()
	w.run(grace / 2)
	w.join("a", b)
	w.announce("a", a, 1)
	w.announce("a", b, 1)
	w.run(2 * grace)
	if a.kernel.changes != before || a.guard.changes != allowed {
		t.Errorf("changed: %v, guard %d times", a.kernel.log[len(a.kernel.log)-(a.kernel.changes-before):], a.guard.changes-allowed)
	}
	if !a.isFast(b) {
		t.Error("b has to prove itself again")
	}
}

// TestRestartIsNoCut holds that a run that has only begun does not tell that it
// hears nothing: its peers, which probe seldom, would hold that for misses.
func TestRestartIsNoCut(t *testing.T) {
	for phase := range 6 {
		w, a, b := pair(t)
		w.awaitFast(a, b)
		w.run(10*time.Minute + time.Duration(phase)*beat.Interval)
		before, beats := a.kernel.changes+b.kernel.changes, b.beats
		a.start()
		w.join("a", a)
		a.SetEndpoint("a", endpointOf(a.self, 1).at(a))
		a.SetEndpoint("a", endpointOf(b.self, 1).at(a))
		w.run(10 * time.Second)
		if beats = b.beats - beats; beats > 35 { // 50 if it probed as often as a does
			t.Errorf("restart %d intervals later: %d probes and reports", phase, beats)
		}
		if changes := a.kernel.changes + b.kernel.changes - before; changes > 0 || !a.isFast(b) || !b.isFast(a) {
			t.Errorf("restart %d intervals later: %d changes, fast %v, %v", phase, changes, a.isFast(b), b.isFast(a))
		}
	}
}

// TestPeerIsBackElsewhere holds that nothing is left for the address that a peer
// had before we restarted, if it was away then and is back with another.
func TestPeerIsBackElsewhere(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	w.run(time.Second)
	old := b.addr.Addr()
	b.dead = true
	a.start()
	w.join("a", a, b)
	w.run(2 * grace)
	b.addr = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.77"), meshPort)
	b.start()
	w.join("a", b)
	w.run(grace + 2*tendEvery)
	for x, e := range a.device("a") {
		if e.Addr == old {
			t.Errorf("entry %v names the old address", x)
		}
	}
	if a.guard.allowed[old] {
		t.Error("the old address is still let in")
	}
}

// TestRemovedPeerIsForgotten holds that what an earlier run left for a host goes
// when that is no more of the cluster, or has been away for too long.
func TestRemovedPeerIsForgotten(t *testing.T) {
	for name, end := range map[string]func(*world, *fakeHost){
		"removed":  func(_ *world, b *fakeHost) { b.removed = true },
		"too long": func(w *world, _ *fakeHost) { w.run(graceAway) },
	} {
		t.Run(name, func(t *testing.T) {
			w, a, b := pair(t)
			w.awaitFast(a, b)
			w.run(time.Second)
			b.dead = true
			a.start()
			w.join("a", a)
			w.run(2 * grace)
			if !a.guard.allowed[b.addr.Addr()] {
				t.Fatal("the path of a host that is away is cut")
			}
			end(w, b)
			w.run(grace + 2*tendEvery)
			if len(a.device("a")) > 0 || a.guard.allowed[b.addr.Addr()] {
				t.Errorf("left behind: %v, let in %v", a.device("a"), a.guard.allowed)
			}
		})
	}
}
