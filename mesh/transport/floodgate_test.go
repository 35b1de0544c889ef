package transport

import (
	"testing"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/udp"
	"weave/mesh/wire"
)

func TestFloodgate(t *testing.T) {
	var g floodgate
	now := time.Unix(1000, 0)
	for i := range 10 * floodBound { // a little less than too many in each window
		if g.refused(now.Add(time.Duration(i/(floodBound-1)) * floodWindow)) {
			t.Fatal("closed for what is not too much")
		}
	}
	now = now.Add(time.Hour)
	for level := 1; level <= maxFloodLevel+1; level++ {
		for i := range floodBound {
			want := i == floodBound-1 && level <= maxFloodLevel
			if g.refused(now) != want {
				t.Fatalf("level %d, after %d: not %v", g.level, i, want)
			}
		}
	}
	if want := (udp.Shed{First: 1, At: 4, Mark: 9, OneIn: 8 * 8 * 8}); g.rule(9) != want {
		t.Errorf("rule %+v, want %+v", g.rule(9), want)
	}
	if g.over(now.Add(floodHold - 1)) {
		t.Error("opened too early")
	}
	if !g.over(now.Add(floodHold)) || g.over(now.Add(floodHold)) || g.rule(9) != (udp.Shed{}) {
		t.Error("not opened, once")
	}
}

// Where strangers flood us the kernel drops their messages, and theirs only; after a
// while it lets them in, to see.
func TestFloodIsShed(t *testing.T) {
	a, b, s := start(t, "127.0.0.1"), start(t, "127.0.0.2"), plug(t, "127.0.0.3")
	connect(t, a, b)
	forged := make([]byte, handshake.Len1)
	wire.Header{Type: wire.TypeHandshake1, Version: wire.Version}.Put(forged)
	send := func() {
		t.Helper()
		if _, err := s.WriteToUDPAddrPort(forged, a.addr); err != nil {
			t.Fatal(err)
		}
	}
	r := a.receiver
	r.mu.Lock()
	r.now = time.Now()
	for range floodBound {
		r.shed()
	}
	r.mu.Unlock()
	seen := a.dropped(dropPassword)
	for range 100 {
		send()
	}
	c := start(t, "127.0.0.4")
	connect(t, c, a) // behind them, by its mark
	exchange(t, a, b)
	if n := a.dropped(dropPassword) - seen; n != 0 {
		t.Errorf("%d forged messages were seen", n)
	}
	r.unshed(time.Now())
	if !r.gate.raised.Load() {
		t.Error("let in at once")
	}
	r.unshed(time.Now().Add(floodHold))
	send()
	await(t, "forged messages to be seen again", func() bool { return a.dropped(dropPassword) > seen })
}

// What came by a peer's stream, or through peers, is not kept out by what strangers
// send.
func TestIntroducedAreNotLimitedByStrangers(t *testing.T) {
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	r := a.receiver
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = time.Now()
	for r.handshakes.total.AllowN(r.now, 1) { // as if from many addresses
	}
	if r.first(macOfNumber(5000), direct(a.addr)) {
		t.Error("strangers are not limited")
	}
	if !r.first(macOfNumber(5001), relayed(b.self)) {
		t.Error("who comes through peers is kept out by strangers")
	}
}
