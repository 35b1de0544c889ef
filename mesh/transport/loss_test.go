package transport

import (
	"testing"
	"time"

	"weave/mesh/wire"
)

func TestLossCountsWhatIsOverdue(t *testing.T) {
	const every = int64(100 * time.Millisecond)
	var p pings
	check := func(what string, now int64, rtt time.Duration, lost, of int) {
		t.Helper()
		if l := p.loss(now, rtt); l.lost != lost || l.of != of {
			t.Errorf("%s: %d of %d lost, want %d of %d", what, l.lost, l.of, lost, of)
		}
	}
	stamp := func(i int) int64 { return int64(i+1)*every | countedPing }
	check("no ping", stamp(1000), 0, 0, 0)
	for i := range 10 {
		p.send(stamp(i))
		if i%2 == 0 {
			p.answer(stamp(i))
		}
	}
	check("none is due", stamp(9), 0, 0, 0)
	check("five are due", stamp(4)+int64(pongDue), 0, 2, 5)
	check("all are due", stamp(9)+int64(pongDue), 0, 5, 10)
	check("a long way", stamp(9)+int64(pongDue), 10*time.Second, 0, 0)
	p.answer(stamp(1))
	p.answer(stamp(99)) // of nobody
	check("a late pong", stamp(9)+int64(pongDue), 0, 4, 10)
	p.unsend(stamp(9))
	check("one that was not sent", stamp(9)+int64(pongDue), 0, 3, 9)
	for i := range 3 * lossWindow {
		p.send(stamp(100 + i))
	}
	check("bounded", stamp(1000), 0, lossWindow, lossWindow)
	p.forget()
	check("forgotten", stamp(1000), 0, 0, 0)
}

// Loss is worth telling where it is high and lasts: one in twenty, before and of
// late. What was a moment's trouble is not, nor what is over.
func TestLossLasts(t *testing.T) {
	const every = int64(time.Second)
	at := func(places ...int) (lost [lossWindow]bool) {
		for _, i := range places {
			lost[i] = true
		}
		return lost
	}
	for _, c := range []struct {
		name  string
		lost  [lossWindow]bool
		pings int
		want  bool
	}{
		{"none", at(), lossWindow, false},
		{"one in twenty", at(0, 25, 40, 60, 80), lossWindow, true},
		{"less", at(0, 25, 40, 80), lossWindow, false},
		{"a moment", at(70, 71, 72, 73, 74), lossWindow, false},
		{"over", at(5, 10, 15, 20, 49), lossWindow, false},
		{"just begun", at(50, 55, 60, 65, 99), lossWindow, false},
		{"every third of few", at(0, 3, 6, 9, 12), 15, true},
	} {
		var p pings
		for i := range lossWindow / 3 { // of before, so that the ring has turned
			p.send(int64(i+1) | countedPing)
		}
		p.forget()
		for i := range c.pings {
			stamp := int64(i+1)*every | countedPing
			if p.send(stamp); !c.lost[i] {
				p.answer(stamp)
			}
		}
		if got := p.loss(2*lossWindow*every, 0); got.lasting != c.want {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// lossOf waits until so many pings are judged and returns how many are lost.
func (n *node) lossOf(of *node, pings int) PeerStatus {
	n.t.Helper()
	var s PeerStatus
	await(n.t, "pings to be due", func() bool { s = n.status(of.self); return s.Pings >= pings })
	return s
}

// What is lost of pings and pongs is the loss that the status tells, of one path;
// knocking in vain is no loss.
func TestLoss(t *testing.T) {
	t.Parallel()
	often := func(c *Config) { c.PingInterval = 50 * time.Millisecond }
	a, b := start(t, "127.0.0.1", often), start(t, "127.0.0.2", often)
	connect(t, a, b)
	a.door.shut.Store(true) // no other path
	b.door.shut.Store(true)
	if s := a.lossOf(b, 20); s.LostPings*10 > s.Pings { // a busy machine may lose one
		t.Errorf("%d of %d lost where nothing is", s.LostPings, s.Pings)
	}
	n := 0 // every fourth; the wire guards it
	a.wire.setLose(func(d []byte) bool {
		if h, err := wire.ParseHeader(d); err == nil && h.Type == wire.TypeSealed && len(d) == pingDatagram {
			n++
			return n%4 == 0
		}
		return false
	})
	a.Link(b.self).pings.forget() // those of before
	if s := a.lossOf(b, 20); s.LostPings*5 < s.Pings || s.LostPings*3 > s.Pings {
		t.Errorf("%d of %d lost, want a fourth", s.LostPings, s.Pings)
	}
	if s := b.status(a.self); s.LostPings*10 > s.Pings || s.Lossy { // a busy machine may lose one
		t.Errorf("the other side, whose pings are answered, has %d of %d lost", s.LostPings, s.Pings)
	}
	await(t, "the loss to be told", func() bool { return a.status(b.self).Lossy })
}

// While a path is gone its pings are lost, which says nothing of it once it is back.
func TestLossIsNotThatOfAnOutage(t *testing.T) {
	t.Parallel()
	often := func(c *Config) { c.PingInterval = 50 * time.Millisecond }
	a, b := start(t, "127.0.0.1", often), start(t, "127.0.0.2", often)
	a.door.shut.Store(true) // no other path
	b.door.shut.Store(true)
	connect(t, a, b)
	a.wire.setCut(b.addr, true)
	p := func() *peer { a.mu.Lock(); defer a.mu.Unlock(); return a.peers[b.self] }()
	await(t, "the path to be given up", func() bool { return !p.up.Load() })
	lost := p.pings.loss(a.since(time.Now().Add(time.Minute)), 0).lost // by which it was noticed
	sent := p.txDatagrams.Load()
	await(t, "many more pings", func() bool { return p.txDatagrams.Load() > sent+20 })
	a.wire.setCut(b.addr, false)
	await(t, "the path to be taken again", p.up.Load)
	if s := a.lossOf(b, lost+5); s.LostPings > lost {
		t.Errorf("%d of %d lost, %d of them before the outage was noticed", s.LostPings, s.Pings, lost)
	}
}

const pingDatagram = wire.HeaderLen + wire.ItemHeaderLen + pingLen + wire.TagLen

// A peer that is reached by relays is knocked at in vain, which is no loss of the
// way by relays. Each change of the way begins anew.
func TestLossIsOfThePath(t *testing.T) {
	t.Parallel()
	a, b, c := triangle(t)
	for _, n := range []*node{a, b, c} {
		n.door.shut.Store(true) // no way by TCP either
	}
	before := a.status(b.self)
	if before.PathSince.IsZero() || before.PathSince.After(time.Now()) {
		t.Errorf("the path is since %s", before.PathSince)
	}
	talk(t, a, b)
	a.wire.setCut(b.addr, true)
	b.wire.setCut(a.addr, true)
	await(t, "the way by relays", func() bool { return a.status(b.self).Relayed })
	s := a.lossOf(b, 3)
	if s.LostPings != 0 {
		t.Errorf("%d of %d lost by relays", s.LostPings, s.Pings)
	}
	if !s.PathSince.After(before.PathSince) {
		t.Errorf("the path changed at %s, as if it had not", s.PathSince)
	}
	if again := a.status(b.self); again.Relayed && again.PathSince != s.PathSince {
		t.Error("the path changed again")
	}
}

// Another relay is another path.
func TestPathSinceTellsOfRelays(t *testing.T) {
	t.Parallel()
	l := startLine(t, 3)
	a, b := l.meet(t)
	d := start(t, "127.0.0.9")
	connect(t, a, d)
	var before time.Time
	await(t, "the relay to be noticed", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		p := a.peers[b.self]
		before = a.epoch.Add(time.Duration(p.moved.Load()))
		return p.watch.via == l.nodes[1].self
	})
	l.ways[0].set(b, d) // it passes nothing on, and is the way all the same
	await(t, "the path to be another", func() bool { return a.status(b.self).PathSince.After(before) })
}

// A ping by the path and one that knocks may leave at the same time, and a ping
// may not leave at all.
func TestLossIsOfPingsThatLeft(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	a.stop() // what follows does the work of its goroutines
	a.mu.Lock()
	defer a.mu.Unlock()
	p, now := a.peers[b.self], time.Now()
	now = now.Add(time.Duration(1 - a.since(now)%2)) // as a ping's
	check := func(what string, lost, of int) {
		t.Helper()
		if l := p.pings.loss(a.since(now.Add(time.Minute)), 0); l.lost != lost || l.of != of {
			t.Errorf("%s: %d of %d lost, want %d of %d", what, l.lost, l.of, lost, of)
		}
	}
	a.conn = &tap{Conn: a.conn, lose: func([]byte) bool { return true }} // else it is closed
	r := newReceiver(a.Transport)
	r.from = *p.path.Load()
	p.pings.forget()
	a.ping(p, now)
	r.ponged(&p.Link, wire.AppendAddr(a.knockBody(now), a.addr))
	check("a knock was answered", 1, 1)
	r.ponged(&p.Link, wire.AppendAddr(pingBody(a.since(now)|countedPing), a.addr))
	check("the ping was answered", 0, 1)
	nowhere := relayed(b.self)
	p.path.Store(&nowhere)
	a.ping(p, now.Add(time.Second))
	check("a ping that went nowhere", 0, 1)
}

// A path that leads where an earlier one led begins anew with the session.
func TestPathSinceIsOfThisTime(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	before := a.status(b.self)
	b.stop()
	a.mu.Lock()
	for p := a.peers[b.self]; len(p.sessions) > 0; {
		a.retire(p, 0)
	}
	a.mu.Unlock()
	b = start(t, "127.0.0.2", func(c *Config) { c.Identity, c.Incarnation, c.Listen = b.cfg.Identity, 2, b.addr })
	connect(t, a, b)
	after := a.status(b.self)
	if after.Addr != before.Addr || !after.PathSince.After(before.PathSince) {
		t.Errorf("at %s since %s; then at %s since %s", before.Addr, before.PathSince, after.Addr, after.PathSince)
	}
}
