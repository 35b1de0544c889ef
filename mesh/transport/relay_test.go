package transport

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// ways is a routing table that a test writes.
type ways struct {
	mu   sync.Mutex
	next map[id.PeerID]id.PeerID
}

func (w *ways) set(to, next *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next[to.self] = next.self
}

func (w *ways) unset(to *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.next, to.self)
}

func (w *ways) find(p id.PeerID) (id.PeerID, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next, ok := w.next[p]
	return next, ok
}

// startRouted is start with a routing table.
func startRouted(t testing.TB, ip string, change ...func(*Config)) (*node, *ways) {
	t.Helper()
	w := &ways{next: map[id.PeerID]id.PeerID{}}
	change = append(change, func(c *Config) { c.Next = w.find })
	return start(t, ip, change...), w
}

// line is nodes in a line: each has sessions with its neighbours, and ways to the
// others by them.
type line struct {
	nodes []*node
	ways  []*ways
}

func startLine(t testing.TB, n int, change ...func(*Config)) line {
	t.Helper()
	var l line
	for i := range n {
		n, w := startRouted(t, fmt.Sprintf("127.0.0.%d", i+1), change...)
		l.nodes, l.ways = append(l.nodes, n), append(l.ways, w)
	}
	for i, a := range l.nodes {
		for j, b := range l.nodes {
			switch {
			case j == i+1:
				connect(t, a, b)
			case j > i:
				l.ways[i].set(b, l.nodes[i+1])
			case j < i:
				l.ways[i].set(b, l.nodes[i-1])
			}
		}
	}
	return l
}

func (l line) ends() (a, b *node) { return l.nodes[0], l.nodes[len(l.nodes)-1] }

// meet makes the ends of a line peers that know no address of each other.
func (l line) meet(t testing.TB) (a, b *node) {
	t.Helper()
	a, b = l.ends()
	a.AddCandidates(b.self)
	b.AddCandidates(a.self)
	await(t, "session by relays", func() bool {
		return a.status(b.self).State == StateUp && b.status(a.self).State == StateUp
	})
	return a, b
}

func TestRelays(t *testing.T) {
	t.Parallel()
	for n := 3; n <= 5; n++ {
		t.Run(fmt.Sprintf("%d hops", n-1), func(t *testing.T) {
			l := startLine(t, n)
			a, b := l.meet(t)
			exchange(t, a, b)
			await(t, "round trip measured", func() bool { return a.status(b.self).RTT > 0 })
			if s := a.status(b.self); !s.Relayed || s.Addr.IsValid() || len(s.Candidates) != 0 {
				t.Errorf("status %+v", s)
			}
			if addr, ok := a.Link(b.self).Path(); !ok || addr.IsValid() {
				t.Errorf("path %s, %v", addr, ok)
			}
			if s := a.status(l.nodes[1].self); s.Relayed || !s.Addr.IsValid() {
				t.Errorf("neighbour's status %+v", s)
			}
			for _, p := range a.Direct() {
				if p != l.nodes[1].self {
					t.Errorf("%s is said to be reached directly", p)
				}
			}
			for _, r := range l.nodes[1 : n-1] {
				if got := r.Relayed(); got.Datagrams == 0 || got.Bytes == 0 {
					t.Errorf("a relay counts %+v", got)
				}
			}
		})
	}
}

// A relay has nothing of what it passes on but sealed bytes.
func TestRelayReadsNothing(t *testing.T) {
	t.Parallel()
	l := startLine(t, 3)
	a, b := l.meet(t)
	r := l.nodes[1]
	const secret = "a secret of the two ends, of some length"
	if err := a.Send(b.self, wire.KindGossip, []byte(secret)); err != nil {
		t.Fatal(err)
	}
	for take(t, "item", b.packets).body != secret {
	}
	// What r opens of a's datagrams is in r's own buffers: look at all it hands on.
	passed := 0
	for _, s := range r.wire.all() {
		if s.to == b.addr {
			passed++
		}
		if bytes.Contains(s.b, []byte(secret[:12])) {
			t.Error("readable on the wire")
		}
	}
	if passed == 0 {
		t.Fatal("nothing was passed on: the test sees nothing")
	}
	if len(r.packets) != 0 {
		t.Errorf("the relay was handed %+v", <-r.packets)
	}
	if frames, _ := r.frames.got(); len(frames) != 0 {
		t.Errorf("the relay was handed frames: %q", frames)
	}
}

// Whole trains go by relays, in order, sealed by relays in trains too.
func TestRelayedFrames(t *testing.T) {
	t.Parallel()
	l := startLine(t, 3)
	a, b := l.meet(t)
	link := a.Link(b.self)
	const count, size = 40, 1000
	text := bytes.Repeat([]byte("x"), size)
	var train []byte
	for i := range count {
		var h wire.FrameHeader
		frame := fmt.Appendf(nil, "%03d%s", i, text)
		if i == count-1 {
			frame = frame[:500] // the last one may be shorter
		}
		body := make([]byte, wire.FrameHeaderLen)
		h.Put(body)
		d := wire.AppendItem(make([]byte, wire.HeaderLen), wire.KindFrame, append(body, frame...))
		d = append(d, make([]byte, wire.TagLen)...)
		if err := link.Seal(d, len(d)); err != nil {
			t.Fatal(err)
		}
		train = append(train, d...)
	}
	before := len(l.nodes[1].wire.all())
	if err := link.Send(train, wire.Overhead+size+3); err != nil {
		t.Fatal(err)
	}
	await(t, "all frames", func() bool { f, _ := b.frames.got(); return len(f) == count })
	frames, _ := b.frames.got()
	for i, f := range frames {
		if !strings.HasPrefix(f, fmt.Sprintf("%03d", i)) {
			t.Fatalf("frame %d is %.3s", i, f)
		}
	}
	calls := 0
	for _, s := range l.nodes[1].wire.all()[before:] {
		if s.to == b.addr {
			calls++
		}
	}
	if calls > count/2 {
		t.Errorf("the relay sent %d datagrams with %d calls", count, calls)
	}
}

// triangle is three nodes that all reach each other, with ways by the third.
func triangle(t *testing.T) (a, b, c *node) {
	t.Helper()
	a, aw := startRouted(t, "127.0.0.1")
	b, bw := startRouted(t, "127.0.0.2")
	c, cw := startRouted(t, "127.0.0.3")
	connect(t, a, b)
	connect(t, b, c)
	connect(t, a, c)
	// A way is asked for only where there is no direct one.
	aw.set(b, c)
	aw.set(c, b)
	bw.set(a, c)
	bw.set(c, a)
	cw.set(a, b)
	cw.set(b, a)
	return a, b, c
}

// talk keeps a link in use until the test ends.
func talk(t *testing.T, from, to *node) {
	t.Helper()
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				d := wire.AppendItem(make([]byte, wire.HeaderLen), wire.KindFrame, make([]byte, wire.FrameHeaderLen+14))
				d = append(d, make([]byte, wire.TagLen)...)
				if l := from.Link(to.self); l.Seal(d, len(d)) == nil {
					_ = l.Send(d, len(d))
				}
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-ended })
}

// A link that is in use and dies, in both directions or one, is left within 3 s
// by both, and taken again when it works again.
func TestDeadLinkIsLeft(t *testing.T) {
	t.Parallel()
	for name, both := range map[string]bool{"cut": true, "one way cut": false} {
		t.Run(name, func(t *testing.T) {
			a, b, _ := triangle(t)
			a.undiallable() // else TCP would do
			b.undiallable()
			talk(t, a, b)
			exchange(t, a, b)
			if s := a.status(b.self); s.Relayed {
				t.Fatalf("status %+v", s)
			}
			a.wire.setCut(b.addr, true)
			b.wire.setCut(a.addr, both)
			cut := time.Now()
			await(t, "another way", func() bool { return a.status(b.self).Relayed && b.status(a.self).Relayed })
			if took := time.Since(cut); took > 3*time.Second {
				t.Errorf("it took %s", took)
			}
			awaitExchange(t, a, b)
			a.wire.setCut(b.addr, false)
			b.wire.setCut(a.addr, false)
			await(t, "the direct way again", func() bool { return !a.status(b.self).Relayed && !b.status(a.self).Relayed })
			exchange(t, a, b)
		})
	}
}

// Without another way the dead one is kept, for it may come back.
func TestNoOtherWay(t *testing.T) {
	t.Parallel()
	told := make(chan struct{}, 100)
	a := start(t, "127.0.0.1", func(c *Config) { c.Linked = func() { told <- struct{}{} } })
	b := start(t, "127.0.0.2")
	a.undiallable()
	b.undiallable()
	connect(t, a, b)
	for len(a.Direct()) == 0 {
		take(t, "news of a link", told)
	}
	talk(t, a, b)
	a.wire.setCut(b.addr, true)
	for len(a.Direct()) > 0 {
		take(t, "news that the link is gone", told)
	}
	if s := a.status(b.self); s.Relayed || s.Addr != b.addr {
		t.Errorf("status %+v", s)
	}
	a.wire.setCut(b.addr, false)
	for len(a.Direct()) == 0 {
		take(t, "news of the link again", told)
	}
	awaitExchange(t, a, b)
}

// An idle link is not watched closely.
func TestIdleLinkIsPingedSeldom(t *testing.T) {
	t.Parallel()
	quiet := func(c *Config) { c.PingInterval = time.Hour }
	a, b := start(t, "127.0.0.1", quiet), start(t, "127.0.0.2", quiet)
	connect(t, a, b)
	await(t, "round trips", func() bool { return a.status(b.self).RTT > 0 && b.status(a.self).RTT > 0 })
	await(t, "the path MTUs", func() bool { return a.status(b.self).MTU > usualMTU && b.status(a.self).MTU > usualMTU })
	before := a.status(b.self).TxDatagrams
	time.Sleep(3 * watchInterval) // it is the absence of pings that is awaited
	if after := a.status(b.self).TxDatagrams; after != before {
		t.Errorf("%d datagrams on an idle link", after-before)
	}
	talk(t, a, b)
	first := a.status(b.self).RTT
	await(t, "pings on a busy link", func() bool { return a.status(b.self).RTT != first })
}

// A link on which a ping is not answered is watched closely, so that one that is cut
// while it is idle is soon given up. What is answered, or may still be, is no reason.
func TestIdleLinkWithoutPong(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	a.stop() // what follows does the work of its goroutines
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conn = &tap{Conn: a.conn, lose: func([]byte) bool { return true }} // else it is closed
	p, now := a.peers[b.self], time.Now().Add(time.Minute)
	p.watch.closely = false
	p.busy.Store(false)
	look := func(what string, pong, after, rtt time.Duration, want bool) {
		t.Helper()
		a.ping(p, now)
		p.proved.Store(a.since(now.Add(pong)))
		p.rtt.Store(int64(rtt))
		a.observe(p, now.Add(after))
		if p.watch.closely != want {
			t.Errorf("%s: it is watched closely: %v", what, p.watch.closely)
		}
	}
	const before = -time.Second
	look("answered", time.Millisecond, time.Second, 0, false)
	look("on its way", before, pongLate/2, 0, false)
	look("a long way", before, time.Second, time.Second, false)
	look("not answered", before, time.Second, 0, true)
}

// Ways that lead in a circle end with their hops, and nothing goes straight back.
func TestCircles(t *testing.T) {
	t.Parallel()
	a, aw := startRouted(t, "127.0.0.1")
	b, bw := startRouted(t, "127.0.0.2")
	c, cw := startRouted(t, "127.0.0.3")
	d, dw := startRouted(t, "127.0.0.4")
	x := start(t, "127.0.0.9") // whom nobody reaches
	connect(t, a, b)
	connect(t, b, c)
	connect(t, c, d)
	connect(t, d, b)
	aw.set(x, b)
	bw.set(x, c)
	cw.set(x, d)
	dw.set(x, b)
	if err := a.send(make([]byte, 100), 100, relayed(x.self)); err != nil {
		t.Fatal(err)
	}
	await(t, "the last hop", func() bool { return b.dropped(dropHops)+c.dropped(dropHops)+d.dropped(dropHops) == 1 })
	if n := b.Relayed().Datagrams + c.Relayed().Datagrams + d.Relayed().Datagrams; n != maxHops-1 {
		t.Errorf("passed on %d times, want %d", n, maxHops-1)
	}

	before := b.Relayed().Datagrams + c.Relayed().Datagrams + d.Relayed().Datagrams
	far := make([]byte, wire.RelayHeaderLen+100)
	wire.RelayHeader{Hops: 255, To: x.self, From: a.self}.Put(far) // more than there are
	if err := a.Send(b.self, wire.KindRelay, far); err != nil {
		t.Fatal(err)
	}
	await(t, "the last hop", func() bool { return b.dropped(dropHops)+c.dropped(dropHops)+d.dropped(dropHops) == 2 })
	if n := b.Relayed().Datagrams + c.Relayed().Datagrams + d.Relayed().Datagrams - before; n != maxHops {
		t.Errorf("passed on %d times, want %d", n, maxHops)
	}

	cw.set(x, b) // where it came from
	if err := a.send(make([]byte, 100), 100, relayed(x.self)); err != nil {
		t.Fatal(err)
	}
	await(t, "the datagram to end", func() bool { return c.dropped(dropNoRoute) == 1 })
	bw.set(x, a) // to who sent it first
	if err := a.send(make([]byte, 100), 100, relayed(x.self)); err != nil {
		t.Fatal(err)
	}
	await(t, "the datagram to end", func() bool { return b.dropped(dropNoRoute) == 1 })
	aw.unset(x)
	if err := a.send(make([]byte, 100), 100, relayed(x.self)); !errors.Is(err, ErrNoRoute) {
		t.Errorf("without a way: %v", err)
	}
}

// A datagram in a relay's item may not hold another such item: a chain of them
// would have us work for each.
func TestRelayInRelay(t *testing.T) {
	t.Parallel()
	l := startLine(t, 3)
	a, b := l.meet(t)
	h := wire.RelayHeader{Hops: 5, To: l.nodes[1].self, From: a.self}
	body := make([]byte, wire.RelayHeaderLen+20)
	h.Put(body)
	before := b.dropped(dropMalformed)
	if err := a.Send(b.self, wire.KindRelay, body); err != nil {
		t.Fatal(err)
	}
	await(t, "it to be dropped", func() bool { return b.dropped(dropMalformed) == before+1 })
}

// A link never counts as direct while its path is not, whatever the peer answers
// while control gives the direct path up.
func TestProofIsOfThePath(t *testing.T) {
	t.Parallel()
	a, aw := startRouted(t, "127.0.0.1")
	b, c := start(t, "127.0.0.2"), start(t, "127.0.0.3")
	connect(t, a, b)
	connect(t, a, c)
	aw.set(b, c)
	a.stop() // what follows does the work of its goroutines
	l := a.Link(b.self)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := newReceiver(a.Transport)
		for range 100_000 {
			r.from = direct(b.addr)
			r.ponged(l, wire.AppendAddr(a.knockBody(time.Now()), a.addr))
		}
	}()
	for {
		a.mu.Lock()
		p := a.peers[b.self]
		a.lost(p)
		a.observe(p, time.Now())
		up, direct := p.up.Load(), p.path.Load().direct()
		a.mu.Unlock()
		if up && !direct {
			t.Error("said to be direct with a path by relays")
		}
		select {
		case <-done:
			return
		default:
		}
	}
}

// A way by relays is told of only when it has been seen to work, and what a relay
// says of where a datagram comes from decides nothing.
func TestForgedOrigin(t *testing.T) {
	t.Parallel()
	l := startLine(t, 3)
	a, b := l.meet(t)
	link := a.Link(b.self)
	link.proved.Store(0)
	if _, ok := link.Path(); ok {
		t.Error("a way by relays is told of before an answer came")
	}
	await(t, "an answer", func() bool { _, ok := link.Path(); return ok })

	d := wire.AppendItem(make([]byte, wire.HeaderLen), wire.KindKeepalive, nil)
	d = append(d, make([]byte, wire.TagLen)...)
	if err := b.Link(a.self).Seal(d, len(d)); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, wire.RelayHeaderLen)
	wire.RelayHeader{Hops: 9, To: a.self, From: l.nodes[1].self}.Put(body)
	a.stop() // what follows does the work of its goroutines
	r := newReceiver(a.Transport)
	r.now, r.from = time.Now(), direct(l.nodes[1].addr)
	link.path.Store(nil) // so that the datagram decides
	r.relay(a.Link(l.nodes[1].self), append(body, d...))
	if path := link.path.Load(); path == nil || *path != relayed(b.self) {
		t.Errorf("path %v", path)
	}
}
