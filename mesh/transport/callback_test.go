package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// heard is what Config.Stream got.
type heard struct {
	from id.PeerID
	kind wire.StreamKind
	c    net.Conn
}

// hearing has streams go to the channel.
func hearing(streams chan heard) func(*Config) {
	return func(c *Config) {
		c.Stream = func(from id.PeerID, kind wire.StreamKind, c net.Conn) { streams <- heard{from, kind, c} }
	}
}

// undiallable makes a node refuse TCP, as one behind a NAT.
func (n *node) undiallable() { n.door.shut.Store(true) }

// through sends some bytes each way, and closes.
func through(t *testing.T, out, in net.Conn) {
	t.Helper()
	for _, d := range []struct{ from, to net.Conn }{{out, in}, {in, out}} {
		data := bytes.Repeat([]byte("stream"), 20_000)
		written := make(chan error, 1)
		go func() {
			_, err := d.from.Write(data)
			written <- err
		}()
		got := make([]byte, len(data))
		if _, err := io.ReadFull(d.to, got); err != nil || !bytes.Equal(got, data) {
			t.Fatal("not what was sent", err)
		}
		if err := take(t, "end of writing", written); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
	if _, err := in.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the other side closed: %v", err)
	}
	_ = in.Close()
}

// A peer that cannot be dialled dials back, so that it has streams all the same.
func TestDialledBack(t *testing.T) {
	t.Parallel()
	streams, served := make(chan heard, 1), make(chan struct{})
	defer close(served)
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2", func(c *Config) {
		c.Stream = func(from id.PeerID, kind wire.StreamKind, c net.Conn) {
			streams <- heard{from, kind, c}
			<-served
		}
	})
	b.undiallable()
	connect(t, b, a)
	c, err := a.Dial(within(t, 10*time.Second), b.self, wire.StreamAsk)
	if err != nil {
		t.Fatal(err)
	}
	in := take(t, "stream", streams)
	if n := b.calling.Load(); n != 0 {
		t.Errorf("%d streams are being opened", n)
	}
	if in.from != a.self || in.kind != wire.StreamAsk {
		t.Errorf("stream of kind %d from %s", in.kind, in.from)
	}
	through(t, c, in.c)
	await(t, "nothing to be left", func() bool {
		b.inbound.mu.Lock()
		defer b.inbound.mu.Unlock()
		return len(b.inbound.conns) == 0
	})
}

// Relays have streams with peers that they cannot dial, too.
func TestRelayIsDialledBack(t *testing.T) {
	t.Parallel()
	streams := make(chan heard, 1)
	l := startLine(t, 4, hearing(streams))
	l.nodes[1].undiallable()
	l.nodes[3].undiallable()
	a, b := l.meet(t)
	c, err := a.Dial(within(t, 10*time.Second), b.self, wire.StreamSync)
	if err != nil {
		t.Fatal(err)
	}
	through(t, c, take(t, "stream", streams).c)
}

// Neither can be dialled: that is what relays are for.
func TestNobodyCanDial(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	a.undiallable()
	b.undiallable()
	if c, err := a.Dial(within(t, time.Second), b.self, wire.StreamSync); err == nil {
		_ = c.Close()
		t.Fatal("a stream out of nothing")
	}
	if n := len(a.callbacks.waiting); n != 0 {
		t.Errorf("%d streams are still waited for", n)
	}
}

// A stream that was not asked for, or of another peer, is closed.
func TestUncalledStreams(t *testing.T) {
	t.Parallel()
	a, b, c := start(t, "127.0.0.1"), start(t, "127.0.0.2"), start(t, "127.0.0.3")
	connect(t, b, a)
	connect(t, c, a)
	token, got := a.callbacks.expect(b.self)
	for _, try := range []struct {
		from  *node
		token uint64
	}{{b, token + 1}, {c, token}} {
		s, err := try.from.dialDirect(within(t, 10*time.Second), a.self, wire.StreamCallback)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(binary.BigEndian.AppendUint64(nil, try.token)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("reading gives %v", err)
		}
		_ = s.Close()
	}
	select {
	case <-got:
		t.Error("a stream was taken")
	default:
	}
	a.callbacks.forget(token)
}

// What others want opened is bounded.
func TestCallbacksAreBounded(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	b.calling.Store(maxCallbacks)
	if err := a.Send(b.self, wire.KindCallback, make([]byte, tokenLen)); err != nil {
		t.Fatal(err)
	}
	await(t, "it to be dropped", func() bool { return b.dropped(dropBusy) == 1 })
	if n := b.calling.Load(); n != maxCallbacks {
		t.Errorf("%d are being opened", n)
	}
	b.calling.Store(0)
	if err := a.Send(b.self, wire.KindCallback, make([]byte, tokenLen-1)); err != nil {
		t.Fatal(err)
	}
	await(t, "a short one to be dropped", func() bool { return b.dropped(dropMalformed) == 1 })
}

// Who wants streams opened all the time is not a tool to try addresses with.
func TestCallbacksAreLimited(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	for range 3 * maxCallbacks {
		if err := a.Send(b.self, wire.KindCallback, make([]byte, tokenLen)); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "some to be dropped", func() bool { return b.dropped(dropRate) > 0 })
}

// Who ends while it waits is not held up.
func TestEndWhileWaiting(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	a.undiallable()
	b.undiallable()
	result := make(chan error)
	go func() {
		_, err := a.Dial(within(t, time.Minute), b.self, wire.StreamSync)
		result <- err
	}()
	await(t, "it to be waited for", func() bool {
		a.callbacks.mu.Lock()
		defer a.callbacks.mu.Unlock()
		return len(a.callbacks.waiting) == 1
	})
	a.stop()
	if err := take(t, "error", result); !errors.Is(err, ErrClosed) {
		t.Errorf("dial: %v", err)
	}
}

// A stream that came when nobody waited any more is closed, and so is a second one.
func TestCallbackComesLate(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, b, a)
	token, got := a.callbacks.expect(b.self)
	call := func() net.Conn {
		s, err := b.dialDirect(within(t, 10*time.Second), a.self, wire.StreamCallback)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		if _, err := s.Write(binary.BigEndian.AppendUint64(nil, token)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	closed := func(what string, s net.Conn) {
		if err := s.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: reading gives %v", what, err)
		}
	}
	first := call()
	await(t, "it to come", func() bool { return len(got) == 1 })
	closed("a second one", call())
	a.callbacks.forget(token)
	closed("late", first)
	await(t, "nothing to be left", func() bool {
		a.inbound.mu.Lock()
		defer a.inbound.mu.Unlock()
		return len(a.inbound.conns) == 0
	})
}
