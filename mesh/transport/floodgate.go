package transport

import (
	"sync/atomic"
	"time"

	"weave/mesh/udp"
	"weave/mesh/wire"
)

// To refuse a first message is cheap, to wake up for it is not: so where there are
// too many, the kernel drops them. At first those without our mark (see
// handshake.Keys), which are of strangers. If the others are too many too, somebody
// has seen the mark: then it lets one in floodThin of those in, at random, at the
// next level one in the square of that, and so on. New peers, and peers that need
// new keys, then have to try longer, or get in by TCP. Nothing but first messages
// is concerned.
const (
	// floodBound first messages refused in floodWindow are too many: at up to 25
	// microseconds each, where each has us wake up, they cost an eighth of a processor.
	floodBound  = 500
	floodWindow = 100 * time.Millisecond
	// floodHold is how long it goes on without looking whether there still is a flood.
	floodHold = 10 * time.Second
	floodThin = 8
	// maxFloodLevel is enough for what a network of 10 Gbit/s can bring.
	maxFloodLevel = 4
)

// floodgate counts first messages that are refused. The receiver's mu guards it.
type floodgate struct {
	began  time.Time // of the window
	count  int
	level  int // 0: all come in
	until  time.Time
	logged time.Time
	raised atomic.Bool // level is not 0
}

// refused counts one, and reports whether it is the one too many.
func (g *floodgate) refused(now time.Time) bool {
	if now.Sub(g.began) >= floodWindow {
		g.began, g.count = now, 0
	}
	if g.count++; g.count < floodBound {
		return false
	}
	g.began, g.count, g.until = now, 0, now.Add(floodHold)
	if g.level == maxFloodLevel {
		return false
	}
	g.level++
	g.raised.Store(true)
	return true
}

// over ends it when its time has come.
func (g *floodgate) over(now time.Time) bool {
	if g.level == 0 || now.Before(g.until) {
		return false
	}
	g.level, g.count = 0, 0
	g.raised.Store(false)
	return true
}

// rule is what the kernel is to drop.
func (g *floodgate) rule(mark uint32) udp.Shed {
	if g.level == 0 {
		return udp.Shed{}
	}
	one := 1
	for range g.level - 1 {
		one *= floodThin
	}
	return udp.Shed{First: byte(wire.TypeHandshake1), At: wire.IndexAt, Mark: mark, OneIn: one}
}

// shed counts a first message that is refused, and has the kernel drop more of them
// if there are too many.
func (r *receiver) shed() {
	g, t := &r.gate, r.t
	if !g.refused(r.now) {
		return
	}
	if r.now.Sub(g.logged) >= refusalLogGap {
		g.logged = r.now
		t.log.WithField("addr", r.from.host()).Warn("strangers flood this host with first messages, the last from this address: most are dropped unseen now")
	}
	r.setShed()
}

// unshed has the kernel let first messages in again when it is time to look.
func (r *receiver) unshed(now time.Time) {
	if !r.gate.raised.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gate.over(now) {
		r.setShed()
	}
}

func (r *receiver) setShed() {
	if err := r.t.conn.Shed(r.gate.rule(r.t.keys.Mark)); err != nil {
		r.t.log.WithError(err).Debug("the kernel drops no first messages")
	}
}
