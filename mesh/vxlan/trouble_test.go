package vxlan

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weave/mesh/beat"
	"weave/mesh/fdb"
	"weave/mesh/id"
)

// TestRefusedEntry holds that an endpoint whose entry the kernel refuses goes by
// the tunnel until it is taken.
func TestRefusedEntry(t *testing.T) {
	w, a, b := pair(t)
	w.announce("a", b, 2)
	full := true
	one, two := endpointOf(b.self, 1), endpointOf(b.self, 2)
	a.kernel.fail = func(what string, e Entry) error {
		if full && what == "set" && e.Kind == Remote && e.MAC == two.MAC {
			return unix.ENOSPC
		}
		return nil
	}
	w.awaitFast(a, b)
	w.run(time.Second)
	wantPort(t, a, "a", one, "vxlan")
	wantPort(t, a, "a", two, "tap")
	full = false
	w.until("the other to follow", func() bool { return a.port("a", two) == "vxlan" })
}

func TestRefusedFlood(t *testing.T) {
	w, a, b := pair(t)
	full := true
	a.kernel.fail = func(what string, e Entry) error {
		if full && what == "set" && e.Kind == Flood {
			return unix.ENOSPC
		}
		return nil
	}
	w.awaitFast(a, b)
	w.run(time.Second)
	if len(a.carried["a"]) != 0 {
		t.Error("multicast to b is lost")
	}
	full = false
	w.until("the tunnel to be told", func() bool { return slices.Equal(a.carried["a"], []id.PeerID{b.self}) })
}

// TestContainerMoves follows an address from host to host.
func TestContainerMoves(t *testing.T) {
	w := newWorld(t, 3)
	a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
	w.join("a", a, b, c)
	w.announce("a", b, 1)
	w.awaitFast(a, b, c)
	w.step()
	moved := endpointOf(b.self, 1)
	remote := slot{Kind: Remote, MAC: moved.MAC}
	set := func(at *fakeHost) { // each host announces it, and b withdraws it later
		for _, h := range w.hosts {
			e := moved
			e.At = fdb.At(at.self)
			h.SetEndpoint("a", e.at(h))
		}
		w.step()
	}
	set(c)
	if got := a.device("a")[remote]; got.Addr != c.addr.Addr() {
		t.Errorf("at a it is at %v", got)
	}
	wantPort(t, c, "a", moved, "none")
	if got := c.device("a")[remote]; got.Addr != c.addr.Addr() {
		t.Errorf("at its new host it is at %v", got)
	}
	w.withdraw("a", b, 1)
	w.step()
	wantPort(t, a, "a", moved, "vxlan")
	set(a)
	wantPort(t, a, "a", moved, "none")
	if _, ok := a.kernel.atTAP["wvta"][slot{Kind: Neighbour, Addr: moved.IPs[0]}]; ok {
		t.Error("the bridge answers for a container here")
	}
}

// TestBridgeComesLate holds that a segment waits for its TAP's bridge, and notes
// that it is another one.
func TestBridgeComesLate(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.hosts[0], w.hosts[1]
	a.kernel.loose = true
	w.join("a", a, b)
	w.announce("a", b, 1)
	w.run(time.Second)
	if a.Ready("a") {
		t.Error("ready without a bridge")
	}
	a.kernel.loose = false
	if took := w.until("a to be ready", func() bool { return a.Ready("a") }); took > time.Second {
		t.Errorf("took %s", took)
	}
	w.tell()
	w.awaitFast(a, b)
	w.step()
	a.kernel.bridge++
	delete(a.kernel.atTAP, "wvta")
	w.until("the new bridge to have its entries", func() bool {
		return a.port("a", endpointOf(b.self, 1)) == "vxlan" && len(a.kernel.atTAP["wvta"]) == 1
	})
	delete(a.kernel.devices, "wvxa") // somebody deleted it
	w.until("the new device to have its entries", func() bool { return a.port("a", endpointOf(b.self, 1)) == "vxlan" })
	delete(a.kernel.devices, beatLink)
	w.run(30 * time.Second)
	if !a.isFast(b) {
		t.Error("heart-beats did not find their new device")
	}
}

// TestSomeSegmentsOnly holds that the status names the segment that is not on
// the fast path.
func TestSomeSegmentsOnly(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.hosts[0], w.hosts[1]
	w.join("a", a, b)
	w.join("b", a, b)
	w.awaitFast(a, b)
	b.SetVNI("b", 999)
	w.tell()
	if fast, why := a.Peer(b.self); !fast || !strings.Contains(why, "segment b") {
		t.Errorf("Peer = %v, %q", fast, why)
	}
}

// TestShortFramesOnly holds that full probes are as long as the frames of the
// segment with the largest MTU.
func TestShortFramesOnly(t *testing.T) {
	w, a, b := pair(t)
	longest := 0
	w.cut = func(_, _ *fakeHost, frame []byte) bool {
		longest = max(longest, len(frame))
		return len(frame) > 1000
	}
	w.run(10 * time.Second)
	if fast, why := a.Peer(b.self); fast || !strings.Contains(why, "MTU") {
		t.Errorf("Peer = %v, %q", fast, why)
	}
	if longest != 1390+ethernetLen {
		t.Errorf("the longest probe had %d bytes", longest)
	}
	a.AddSegment(Segment{Key: "j", VNI: 7, MTU: 8000, Link: "wvxj", TAP: "wvtj"})
	w.run(time.Second)
	if longest != 8000+ethernetLen {
		t.Errorf("the longest probe had %d bytes", longest)
	}
}

func TestStrangers(t *testing.T) {
	w, a, b := pair(t)
	stranger := id.PeerID{77}
	for range 2 * maxReports {
		a.Heard(stranger, make([]byte, beat.ReportLen))
	}
	a.Heard(b.self, []byte("short"))
	for range maxReports {
		a.judge(<-a.reports)
	}
	a.take(beat.AppendProbe(nil, beat.Probe{Seq: 1}, stranger, a.self, 0))
	a.take([]byte("no probe"))
	a.SetMembers("unknown", nil)
	a.SetEndpoint("unknown", endpointOf(b.self, 1).Endpoint)
	a.SetVNI("unknown", 5)
	must(t, a.RemoveSegment("unknown", "wvxunknown"))
	if len(a.peers) != 1 {
		t.Errorf("peers %v", a.peers)
	}
	w.awaitFast(a, b)
}

// TestFlat holds that of 1,000 endpoints on 20 segments each comes and goes at
// the cost of its own entries.
func TestFlat(t *testing.T) {
	const segments, endpoints = 20, 1000
	w := newWorld(t, 2)
	a, b := w.hosts[0], w.hosts[1]
	key := func(n int) string { return string(rune('a' + n%segments)) }
	for n := range segments {
		w.join(key(n), a, b)
	}
	w.awaitFast(a, b)
	w.step()
	cost := func(h *fakeHost, f func()) int {
		before := h.kernel.changes
		f()
		h.settle()
		return h.kernel.changes - before
	}
	for n := range endpoints {
		from, there := b, a
		if n%2 == 0 {
			from, there = a, b
		}
		if got := cost(there, func() { w.announce(key(n), from, n) }); got != 3 {
			t.Fatalf("endpoint %d costs the other host %d changes, want 3", n, got)
		}
		if got := cost(from, func() {}); got != 1 {
			t.Fatalf("endpoint %d costs its host %d changes, want 1", n, got)
		}
	}
	if got := cost(a, func() { w.tell() }); got != 0 {
		t.Errorf("members told again cost %d changes", got)
	}
	for n := range endpoints {
		from, there := b, a
		if n%2 == 0 {
			from, there = a, b
		}
		if got := cost(there, func() { w.withdraw(key(n), from, n) }); got != 3 {
			t.Fatalf("the end of endpoint %d costs %d changes, want 3", n, got)
		}
		from.settle()
	}
	w.run(10 * time.Second)
	for n := range segments {
		if got := a.device(key(n)); len(got) != 1 {
			t.Errorf("segment %s is left with %v", key(n), got)
		}
	}
}

// TestGuardNotSeen holds that a fast path stays, with all that is in the kernel,
// while it cannot be told whether its guard is up: in this run and in the next;
// but not for ever.
func TestGuardNotSeen(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	w.run(time.Second)
	before := a.kernel.changes
	a.guard.err = errors.New("netlink: interrupted")
	w.run(patience / 2)
	if !a.Ready("a") || !a.isFast(b) {
		t.Error("the fast path is given up")
	}
	a.start()
	w.join("a", a)
	w.announce("a", b, 1)
	w.run(patience / 2)
	if a.Ready("a") {
		t.Error("frames are asked for without a guard")
	}
	a.guard.err = nil
	w.run(2 * tendEvery)
	w.tell()
	if !a.isFast(b) || a.kernel.changes != before {
		t.Errorf("changed: %v", a.kernel.log[len(a.kernel.log)-(a.kernel.changes-before):])
	}
	a.guard.err = errors.New("netlink: broken")
	w.run(patience + 2*tendEvery)
	if a.kernel.devices["wvxa"] != nil {
		t.Error("the device stays although nobody sees its guard")
	}
}

// TestLearnedIsHandedOver holds that what the kernel learned behind a peer goes
// to the tunnel for whatever reason the peer leaves the fast path.
func TestLearnedIsHandedOver(t *testing.T) {
	for name, leave := range map[string]func(w *world, a, b *fakeHost){
		"another VNI":     func(_ *world, _, b *fakeHost) { b.SetVNI("a", 999) },
		"no device":       func(_ *world, _, b *fakeHost) { b.guard.err = ErrUnguarded },
		"another address": func(_ *world, _, b *fakeHost) { b.addr = netip.MustParseAddrPort("192.0.2.77:6783") },
		"another port":    func(_ *world, _, b *fakeHost) { b.addr = netip.MustParseAddrPort("192.0.2.2:7000") },
		"silence":         func(w *world, _, _ *fakeHost) { w.cut = func(_, _ *fakeHost, _ []byte) bool { return true } },
	} {
		t.Run(name, func(t *testing.T) {
			w, a, b := pair(t)
			w.awaitFast(a, b)
			w.step()
			a.kernel.devices["wvxa"].learned[fdb.MAC{2, 9, 9, 9, 9, 9}] = b.addr.Addr()
			leave(w, a, b)
			w.run(2 * tendEvery)
			w.tell()
			w.step()
			if want := []string{"a 02:09:09:09:09:09 2"}; !slices.Equal(a.learned, want) {
				t.Errorf("the tunnel learned %v, want %v", a.learned, want)
			}
		})
	}
}

// TestDeaf holds that heart-beats are bound anew after an error, once.
func TestDeaf(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); a.hear(ctx) }()
	for end := time.Now().Add(10 * time.Second); !a.deaf.Load() && time.Now().Before(end); {
		runtime.Gosched()
	}
	cancel()
	<-ended
	w.run(3 * tendEvery)
	if a.binds != 2 {
		t.Errorf("bound %d times, want 2", a.binds)
	}
}

// TestIdleIsCheap holds that peers that have long been up cost a third, and are
// given up in time all the same.
func TestIdleIsCheap(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	w.run(2 * time.Second)
	cost := func() int { a.beats = 0; w.run(24 * time.Second); return a.beats }
	young := cost()
	w.run(10 * time.Second)
	if old := cost(); old > young/3+2 {
		t.Errorf("%d probes and reports in the end, %d at first", old, young)
	}
	w.cut = func(_, _ *fakeHost, _ []byte) bool { return true }
	if took := w.until("a to fall back", func() bool { return !a.isFast(b) }); took > 3200*time.Millisecond {
		t.Errorf("took %s", took)
	}
}
