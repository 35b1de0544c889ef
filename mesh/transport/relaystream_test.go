package transport

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"testing"
	"time"

	"weave/mesh/id"
	"weave/mesh/wire"
)

func TestRelayedStreams(t *testing.T) {
	t.Parallel()
	type inbound struct {
		from id.PeerID
		kind wire.StreamKind
		c    net.Conn
	}
	streams := make(chan inbound, 1)
	l := startLine(t, 4, func(c *Config) {
		c.Stream = func(from id.PeerID, kind wire.StreamKind, c net.Conn) { streams <- inbound{from, kind, c} }
	})
	a, b := l.meet(t)
	out, err := a.Dial(within(t, 10*time.Second), b.self, wire.StreamSync)
	if err != nil {
		t.Fatal(err)
	}
	in := take(t, "stream", streams)
	if in.from != a.self || in.kind != wire.StreamSync {
		t.Errorf("stream of kind %d from %s", in.kind, in.from)
	}
	data := make([]byte, 1<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	for _, d := range []struct{ from, to net.Conn }{{out, in.c}, {in.c, out}} {
		sent := make(chan error, 1)
		go func() { _, err := d.from.Write(data); sent <- err }()
		got := make([]byte, len(data))
		if _, err := io.ReadFull(d.to, got); err != nil || !bytes.Equal(got, data) {
			t.Fatal("not what was sent", err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
	if _, err := in.c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the other side closed: %v", err)
	}
	_ = in.c.Close()
	for _, r := range l.nodes[1:3] {
		await(t, "relay to be done", func() bool { return r.passing.count() == 0 })
	}
}

// A relay that ends cuts the streams that it passes on.
func TestRelayOfStreamsEnds(t *testing.T) {
	t.Parallel()
	streams := make(chan net.Conn, 1)
	l := startLine(t, 3, func(c *Config) {
		c.Stream = func(_ id.PeerID, _ wire.StreamKind, c net.Conn) { streams <- c }
	})
	a, b := l.meet(t)
	out, err := a.Dial(within(t, 10*time.Second), b.self, wire.StreamSync)
	if err != nil {
		t.Fatal(err)
	}
	in := take(t, "stream", streams)
	l.nodes[1].stop()
	for _, c := range []net.Conn{out, in} {
		if _, err := c.Read(make([]byte, 1)); err != io.ErrUnexpectedEOF {
			t.Errorf("a cut stream reads %v", err)
		}
		_ = c.Close()
	}
}

// Nobody is reached by way of a stream that no relay takes on.
func TestRelayedStreamsAreRefused(t *testing.T) {
	t.Parallel()
	l := startLine(t, 3)
	a, b := l.meet(t)
	r := l.nodes[1]
	for r.passing.take(testIdentity(t).ID) { // as many as there is room for
	}
	full := r.passing.count()
	if c, err := a.Dial(within(t, 10*time.Second), b.self, wire.StreamSync); err == nil {
		t.Error("dialled through a busy relay")
		_ = c.Close()
	}
	if n := r.dropped(dropBusy); n != 1 {
		t.Errorf("%d dropped", n)
	}
	if full != maxRelayed {
		t.Errorf("%d are passed on at most", full)
	}
	r.passing.mu.Lock()
	r.passing.all, r.passing.of = 0, nil
	r.passing.mu.Unlock()
	l.ways[1].unset(b)
	next := a.Link(r.self)
	c, err := a.dialOnward(within(t, 10*time.Second), next, wire.RelayHeader{Hops: 0, To: testIdentity(t).ID, From: a.self})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a stream without hops: %v", err)
	}
	_ = c.Close()
	if r.dropped(dropHops) != 1 {
		t.Error("a stream without hops was not counted")
	}
}

// A stream that is passed on may be silent one way for as long as the other is not.
func TestOneWayStreamIsPassedOn(t *testing.T) {
	t.Parallel()
	const idle = 200 * time.Millisecond
	a, left := net.Pipe()
	right, b := net.Pipe()
	ended := make(chan struct{})
	go func() { defer close(ended); join(left, right, idle) }()
	began := time.Now()
	for time.Since(began) < 3*idle {
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
			t.Fatalf("cut after %s: %v", time.Since(began), err)
		}
	}
	take(t, "end of a stream that is idle", ended)
	_, _ = a.Close(), b.Close()
}

// A stream that came from where its way leads is not passed back, nor is a relay
// that ends held up by one that it is opening.
func TestStreamsAreNotPassedBack(t *testing.T) {
	t.Parallel()
	a, aw := startRouted(t, "127.0.0.1")
	b, bw := startRouted(t, "127.0.0.2")
	c, cw := startRouted(t, "127.0.0.3")
	x := testIdentity(t).ID
	connect(t, a, b)
	connect(t, b, c)
	aw.next[x], bw.next[x], cw.next[x] = b.self, c.self, b.self
	open := func() {
		t.Helper()
		s, err := a.dialRelay(within(t, 10*time.Second), x)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
	}
	open()
	await(t, "the stream to end", func() bool { return c.dropped(dropNoRoute) == 1 })
	if n := b.dropped(dropHops) + c.dropped(dropHops) + b.dropped(dropNoRoute); n != 0 {
		t.Errorf("it went back: %d", n)
	}
	// A neighbour whose port takes connections and says nothing:
	mute, err := net.Listen("tcp", "127.0.0.4:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	dead := direct(mute.Addr().(*net.TCPAddr).AddrPort())
	c.stop()
	b.Link(c.self).path.Store(&dead)
	open()
	in, err := mute.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	began := time.Now()
	b.stop()
	if took := time.Since(began); took > dialTimeout/2 {
		t.Errorf("Run ended after %s", took)
	}
}

// One neighbour cannot take all the streams that a relay passes on.
func TestRelayedStreamsOfOne(t *testing.T) {
	t.Parallel()
	l := startLine(t, 3)
	a, b := l.meet(t)
	r := l.nodes[1]
	for range maxRelayedOfOne {
		if !r.passing.take(a.self) {
			t.Fatal("refused too early")
		}
	}
	if c, err := a.Dial(within(t, 10*time.Second), b.self, wire.StreamSync); err == nil {
		t.Error("one neighbour has more streams passed on than it may")
		_ = c.Close()
	}
	if n := r.dropped(dropBusy); n != 1 {
		t.Errorf("%d dropped", n)
	}
	other := testIdentity(t).ID
	if !r.passing.take(other) {
		t.Error("another is refused for it")
	}
	r.passing.give(other)
	for range maxRelayedOfOne {
		r.passing.give(a.self)
	}
	r.passing.mu.Lock()
	defer r.passing.mu.Unlock()
	if r.passing.all != 0 || len(r.passing.of) != 0 {
		t.Errorf("left behind: %d, %d", r.passing.all, len(r.passing.of))
	}
}
