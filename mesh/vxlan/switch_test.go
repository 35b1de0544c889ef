package vxlan

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weave/mesh/beat"
	"weave/mesh/fdb"
	"weave/mesh/id"
)

// pair is two hosts on a segment with an endpoint each.
func pair(t testing.TB) (w *world, a, b *fakeHost) {
	w = newWorld(t, 2)
	a, b = w.hosts[0], w.hosts[1]
	w.join("a", a, b)
	w.announce("a", a, 1)
	w.announce("a", b, 1)
	return w, a, b
}

func (w *world) awaitFast(hosts ...*fakeHost) time.Duration {
	w.t.Helper()
	return w.until("all to be on the fast path", func() bool {
		for _, h := range hosts {
			for _, other := range hosts {
				if h != other && !h.isFast(other) {
					return false
				}
			}
		}
		return true
	})
}

func wantPort(t testing.TB, h *fakeHost, key string, e testEndpoint, want string) {
	t.Helper()
	if got := h.port(key, e); got != want {
		t.Errorf("host %d sends to %s by %s, want %s", h.self[0], e.MAC, got, want)
	}
}

func TestFastPath(t *testing.T) {
	w, a, b := pair(t)
	w.step()
	there := endpointOf(b.self, 1)
	wantPort(t, a, "a", there, "tap")
	if fast, why := a.Peer(b.self); fast || why == "" {
		t.Errorf("fast at once: %q", why)
	}
	if took := w.awaitFast(a, b); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
	w.step()
	here := endpointOf(a.self, 1)
	want := map[slot]Entry{}
	for _, e := range []Entry{
		{Kind: Remote, MAC: there.MAC, Addr: b.addr.Addr()},
		{Kind: Remote, MAC: here.MAC, Addr: a.addr.Addr()}, // nobody afar has our container's address
		{Kind: Flood, Addr: b.addr.Addr()},
		{Kind: Port, MAC: there.MAC, Fast: true},
	} {
		want[e.slot()] = e
	}
	if got := a.device("a"); !maps.Equal(got, want) {
		t.Errorf("device has\n%v, want\n%v", got, want)
	}
	neighbour := Entry{Kind: Neighbour, MAC: there.MAC, Addr: there.IPs[0]}
	if got := a.kernel.atTAP["wvta"]; len(got) != 1 || got[neighbour.slot()] != neighbour {
		t.Errorf("bridge has %v, want %v", got, neighbour)
	}
	if !a.guard.up || !maps.Equal(a.guard.allowed, map[netip.Addr]bool{b.addr.Addr(): true}) {
		t.Errorf("guard lets in %v", a.guard.allowed)
	}
	if !slices.Equal(a.carried["a"], []id.PeerID{b.self}) {
		t.Errorf("the tunnel need not send to %v", a.carried["a"])
	}
	if fast, why := a.Peer(b.self); !fast || why != "" {
		t.Errorf("Peer = %v, %q", fast, why)
	}
	w.withdraw("a", b, 1)
	w.step()
	if len(a.kernel.atTAP["wvta"]) != 0 || len(a.device("a")) != 2 {
		t.Errorf("left behind: %v, %v", a.kernel.atTAP["wvta"], a.device("a"))
	}
	must(t, a.RemoveSegment("a", "wvxa"))
	if len(a.kernel.devices) != 0 || a.guard.up || len(a.peers) != 0 {
		t.Errorf("left behind: %v, guard %v, peers %v", a.kernel.devices, a.guard.up, a.peers)
	}
}

// TestFallsBackAndReturns holds that a direction that is cut goes by the tunnel
// in time, and only that one, with what the kernel learned.
func TestFallsBackAndReturns(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	w.run(5 * time.Second)
	stray := fdb.MAC{2, 9, 9, 9, 9, 9}
	a.kernel.devices["wvxa"].learned[stray] = b.addr.Addr()
	w.cut = func(from, _ *fakeHost, _ []byte) bool { return from == a }
	there, here := endpointOf(b.self, 1), endpointOf(a.self, 1)
	if took := w.until("a to fall back", func() bool { return a.port("a", there) == "tap" }); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
	wantPort(t, b, "a", here, "vxlan")
	if fast, why := a.Peer(b.self); fast || !strings.Contains(why, "6784") {
		t.Errorf("Peer = %v, %q", fast, why)
	}
	if len(a.carried["a"]) != 0 {
		t.Errorf("the tunnel does not send to %v", a.carried["a"])
	}
	if _, ok := a.device("a")[slot{Kind: Flood, Addr: b.addr.Addr()}]; ok {
		t.Error("multicast still goes by VXLAN")
	}
	if want := []string{"a 02:09:09:09:09:09 2"}; !slices.Equal(a.learned, want) {
		t.Errorf("the tunnel learned %v, want %v", a.learned, want)
	}
	if _, ok := a.device("a")[slot{Kind: Remote, MAC: there.MAC}]; !ok {
		t.Error("the source of b's frames is not checked any more")
	}
	w.cut = func(_, _ *fakeHost, _ []byte) bool { return false }
	w.until("a to return", func() bool { return a.port("a", there) == "vxlan" })
	if !slices.Equal(a.carried["a"], []id.PeerID{b.self}) {
		t.Errorf("the tunnel sends to b as well: %v", a.carried["a"])
	}
}

// TestRelayedPeer holds that a peer that others have to pass things on to is off
// the fast path at once, and on it again when it is reached directly.
func TestRelayedPeer(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	a.watched = 0
	w.run(time.Minute)
	if a.watched > 0 {
		t.Errorf("a peer that reports is watched %d times", a.watched)
	}
	w.cut = func(_, _ *fakeHost, _ []byte) bool { return true }
	w.mute = true
	if took := w.until("a to ask what there is", func() bool { return a.watched > 0 }); took > 2*time.Second {
		t.Errorf("asked after %s", took)
	}
	w.relayed = func(_, _ *fakeHost) bool { return true }
	there := endpointOf(b.self, 1)
	if took := w.until("a to fall back", func() bool { return a.port("a", there) == "tap" }); took > time.Second {
		t.Errorf("took %s", took)
	}
	w.mute = false
	w.step()
	if fast, why := a.Peer(b.self); fast || !strings.Contains(why, "through other hosts") {
		t.Errorf("Peer = %v, %q", fast, why)
	}
	if len(a.guard.allowed) != 0 {
		t.Errorf("guard lets in %v", a.guard.allowed)
	}
	w.cut = func(_, _ *fakeHost, _ []byte) bool { return false }
	w.relayed = func(_, _ *fakeHost) bool { return false }
	w.awaitFast(a, b)
}

// TestNobodyGetsMulticastTwice holds the order of the two lists at each change.
func TestNobodyGetsMulticastTwice(t *testing.T) {
	w, a, b := pair(t)
	flood := slot{Kind: Flood, Addr: b.addr.Addr()}
	check := func(what string, e Entry) error {
		if e.slot() != flood {
			return nil
		}
		if !slices.Contains(a.carried["a"], b.self) {
			t.Errorf("while the entry is %s, the tunnel sends too", what)
		}
		return nil
	}
	a.kernel.fail = check
	w.awaitFast(a, b)
	w.step()
	w.cut = func(_, _ *fakeHost, _ []byte) bool { return true }
	w.until("a to fall back", func() bool { return !a.isFast(b) })
	w.step()
	if len(a.carried["a"]) != 0 {
		t.Errorf("nobody sends to b: %v", a.carried["a"])
	}
}

func TestOnlyThePairFalls(t *testing.T) {
	w := newWorld(t, 3)
	a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
	w.join("a", a, b, c)
	for _, h := range w.hosts {
		w.announce("a", h, 1)
	}
	w.awaitFast(a, b, c)
	w.cut = func(from, to *fakeHost, _ []byte) bool { return from != c && to != c }
	w.until("a and b to part", func() bool { return !a.isFast(b) && !b.isFast(a) })
	w.run(30 * time.Second)
	if a.isFast(b) || !a.isFast(c) || !c.isFast(a) || !c.isFast(b) {
		t.Error("not only the pair fell")
	}
	wantPort(t, a, "a", endpointOf(b.self, 1), "tap")
	wantPort(t, a, "a", endpointOf(c.self, 1), "vxlan")
	if !slices.Equal(a.carried["a"], []id.PeerID{c.self}) {
		t.Errorf("the tunnel need not send to %v", a.carried["a"])
	}
}

// TestPeerWithoutPlugin holds that the path to a peer stays whose plugin is
// down, however long, and while it comes back.
func TestPeerWithoutPlugin(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	w.run(time.Second)
	before := a.kernel.changes
	b.dead = true
	w.run(time.Minute)
	wantPort(t, a, "a", endpointOf(b.self, 1), "vxlan")
	b.start()
	w.join("a", b)
	w.announce("a", a, 1)
	w.announce("a", b, 1)
	w.run(time.Minute)
	if a.kernel.changes != before {
		t.Errorf("a changed its tables: %v", a.kernel.log[len(a.kernel.log)-(a.kernel.changes-before):])
	}
}

// TestRestart holds that a new run changes nothing in the kernel but what has
// changed in the mesh, in whatever order it hears of things.
func TestRestart(t *testing.T) {
	w, a, b := pair(t)
	w.announce("a", b, 2)
	w.announce("a", b, 3)
	w.awaitFast(a, b)
	w.run(time.Second)
	a.kernel.changes, a.kernel.log, a.guard.changes = 0, nil, 0
	a.start()
	w.down = func(_, _ *fakeHost) bool { return true } // no sessions at first
	if !a.AddSegment(Segment{Key: "a", VNI: vniOf("a"), MTU: 1390, Link: "wvxa", TAP: "wvta"}) {
		t.Error("the device of the earlier run is not ready")
	}
	a.keys = []string{"a"}
	a.SetEndpoint("a", endpointOf(a.self, 1).at(a))
	w.run(2 * time.Second)
	a.SetEndpoint("a", endpointOf(b.self, 1).at(a)) // before its host is a member
	w.run(time.Second)
	w.tell()
	w.run(time.Second)
	w.down = func(_, _ *fakeHost) bool { return false }
	w.step()
	if fast, why := a.Peer(b.self); !fast {
		t.Errorf("b has to prove itself again: %s", why)
	}
	a.SetEndpoint("a", endpointOf(b.self, 2).at(a))
	w.run(5 * time.Second)
	if a.kernel.changes != 0 || a.guard.changes != 0 {
		t.Errorf("changed: %v, guard %d times", a.kernel.log, a.guard.changes)
	}
	w.run(grace)
	gone := endpointOf(b.self, 3)
	wantPort(t, a, "a", gone, "none")
	if a.kernel.changes != 3 {
		t.Errorf("changed: %v, want 3 entries of the endpoint that is gone deleted", a.kernel.log)
	}
}

// TestRestartWhilePeerIsAway holds that a peer without a plugin keeps its path when ours
// starts anew, as long as others announce its endpoints.
func TestRestartWhilePeerIsAway(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	w.run(time.Second)
	b.dead = true
	a.start()
	w.join("a", a)
	a.SetEndpoint("a", endpointOf(b.self, 1).at(a))
	w.run(3 * grace)
	wantPort(t, a, "a", endpointOf(b.self, 1), "vxlan")
	if !a.guard.allowed[b.addr.Addr()] {
		t.Error("b's frames are not let in")
	}
}

func TestPassword(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	w.step()
	a.off = "a password is set"
	a.start()
	w.join("a", a)
	w.announce("a", b, 1)
	w.run(5 * time.Second)
	if len(a.kernel.devices) != 0 || len(a.kernel.atTAP["wvta"]) != 0 || a.guard.up {
		t.Errorf("an earlier run left %v, %v, guard %v", a.kernel.devices, a.kernel.atTAP, a.guard.up)
	}
	if fast, why := a.Peer(b.self); fast || why != a.off {
		t.Errorf("Peer = %v, %q", fast, why)
	}
	if a.Ready("a") || a.Found("wvxa") != 0 {
		t.Error("ready all the same")
	}
	must(t, a.RemoveSegment("a", "wvxa"))
}

// TestPasswordWithoutSegments holds that what all segments shared goes, too, if
// none is added any more.
func TestPasswordWithoutSegments(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	a.off = "a password is set"
	a.start()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must(t, a.Run(ctx))
	if a.kernel.devices[beatLink] != nil || a.guard.up {
		t.Errorf("an earlier run left %v, guard %v", a.kernel.devices[beatLink], a.guard.up)
	}
}

// TestNewVNI holds that a segment's old number carries nothing from the change
// on, and that the new device comes after the others know.
func TestNewVNI(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	w.step()
	there := endpointOf(b.self, 1)
	changed := a.changed
	a.SetVNI("a", 999)
	a.SetVNI("a", 999)
	if a.Ready("a") || a.kernel.devices["wvxa"] != nil {
		t.Error("the old device stays")
	}
	w.tell()
	w.step()
	wantPort(t, a, "a", there, "none") // the tunnel knows
	wantPort(t, b, "a", endpointOf(a.self, 1), "tap")
	w.run(moveHold - 2*time.Second)
	if a.Ready("a") {
		t.Error("the new device is there too early")
	}
	w.until("a to be ready", func() bool { return a.Ready("a") })
	if a.changed == changed || a.kernel.devices["wvxa"].VNI != 999 {
		t.Errorf("Changed was called %d times, device %+v", a.changed-changed, a.kernel.devices["wvxa"])
	}
	w.tell()
	if _, why := a.Peer(b.self); !strings.Contains(why, "VNI") {
		t.Errorf("reason %q", why)
	}
	b.SetVNI("a", 999)
	w.tell()
	w.until("b to be ready", func() bool { return b.Ready("a") })
	w.tell()
	w.awaitFast(a, b)
	w.step()
	wantPort(t, a, "a", there, "vxlan")
}

func TestPeerThatCannot(t *testing.T) {
	for name, test := range map[string]struct {
		change func(b *fakeHost)
		why    string
	}{
		"other port":   {func(b *fakeHost) { b.addr = netip.AddrPortFrom(b.addr.Addr(), 7000) }, "port 7000"},
		"other family": {func(b *fakeHost) { b.addr = netip.MustParseAddrPort("[2001:db8::2]:6783") }, "2001:db8::2"},
		"no session":   {func(b *fakeHost) { b.dead = true }, "no session"},
		"no device":    {func(b *fakeHost) { b.kernel.loose = true }, "has no VXLAN device"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			a, b := w.hosts[0], w.hosts[1]
			test.change(b)
			w.join("a", a, b)
			w.announce("a", b, 1)
			w.run(10 * time.Second)
			if fast, why := a.Peer(b.self); fast || !strings.Contains(why, test.why) {
				t.Errorf("Peer = %v, %q, want %q", fast, why, test.why)
			}
			wantPort(t, a, "a", endpointOf(b.self, 1), "tap")
		})
	}
	w := newWorld(t, 2)
	if _, why := w.hosts[0].Peer(w.hosts[1].self); why != "no segment in common" {
		t.Errorf("reason %q", why)
	}
}

// TestPeerMoves holds that another underlay address has to prove itself, and
// that nothing goes to the old one.
func TestPeerMoves(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	w.step()
	old := b.addr.Addr()
	b.addr = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.77"), meshPort)
	w.step()
	wantPort(t, a, "a", endpointOf(b.self, 1), "tap")
	for x, e := range a.device("a") {
		if e.Addr == old {
			t.Errorf("entry %v names the old address", x)
		}
	}
	if a.guard.allowed[old] {
		t.Error("the old address is still let in")
	}
	w.until("a to take the new way", func() bool { return a.port("a", endpointOf(b.self, 1)) == "vxlan" })
}

func TestKernelWithoutVXLAN(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.hosts[0], w.hosts[1]
	a.kernel.fail = func(what string, _ Entry) error {
		if what == "make" {
			return unix.EOPNOTSUPP
		}
		return nil
	}
	w.join("a", a, b)
	w.announce("a", b, 1)
	w.run(10 * time.Second)
	if fast, why := a.Peer(b.self); fast || !strings.Contains(why, "this host has no VXLAN") {
		t.Errorf("Peer = %v, %q", fast, why)
	}
	if a.kernel.changes > 0 {
		t.Errorf("entries without a device: %v", a.kernel.log)
	}
	a.kernel.fail = nil
	w.until("a to be ready", func() bool { return a.Ready("a") })
	w.tell()
	w.awaitFast(a, b)
}

// TestNoGuardNoVXLAN holds that frames are let in only under guard.
func TestNoGuardNoVXLAN(t *testing.T) {
	w, a, b := pair(t)
	w.awaitFast(a, b)
	w.step()
	a.guard.err = fmt.Errorf("%w: no nftables", ErrUnguarded)
	w.until("the device to be taken away", func() bool { return a.kernel.devices["wvxa"] == nil })
	if a.Ready("a") {
		t.Error("still ready")
	}
	if _, why := a.Peer(b.self); !strings.Contains(why, "no nftables") {
		t.Errorf("reason %q", why)
	}
	a.guard.err = nil
	w.until("it to come back", func() bool { return a.Ready("a") })
	w.tell()
	w.awaitFast(a, b)
	for _, noticed := range []bool{false, true} {
		a.guard.allowed, a.guard.touched = nil, noticed // somebody flushed all tables
		took := w.until("b to be let in again", func() bool { return a.guard.allowed[b.addr.Addr()] })
		if noticed && took > beat.Interval {
			t.Errorf("b is shut out for %s", took)
		}
	}
}
