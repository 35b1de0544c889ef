package transport

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/wire"
)

// inboundStream is what Config.Stream got.
type inboundStream struct {
	from id.PeerID
	kind wire.StreamKind
	conn net.Conn
}

func streams(to chan<- inboundStream) func(*Config) {
	return func(c *Config) {
		c.Stream = func(from id.PeerID, kind wire.StreamKind, conn net.Conn) {
			to <- inboundStream{from, kind, conn}
		}
	}
}

// streamPair is both ends of a stream from a to b.
func streamPair(t *testing.T) (client net.Conn, server inboundStream, a, b *node) {
	t.Helper()
	in := make(chan inboundStream, 10)
	a, b = start(t, "127.0.0.1"), start(t, "127.0.0.2", streams(in))
	connect(t, a, b)
	client, err := a.Dial(within(t, 10*time.Second), b.self, wire.StreamSync)
	if err != nil {
		t.Fatal(err)
	}
	server = take(t, "stream", in)
	t.Cleanup(func() { _ = client.Close(); _ = server.conn.Close() })
	return client, server, a, b
}

func TestStream(t *testing.T) {
	client, server, a, _ := streamPair(t)
	if server.from != a.self || server.kind != wire.StreamSync {
		t.Errorf("stream of kind %d from %s", server.kind, server.from)
	}
	big := make([]byte, 1<<20)
	_, _ = rand.Read(big)
	for _, d := range []struct{ from, to net.Conn }{{client, server.conn}, {server.conn, client}} {
		var wg sync.WaitGroup
		wg.Go(func() {
			if n, err := d.from.Write(big); err != nil || n != len(big) {
				t.Errorf("wrote %d, %v", n, err)
			}
		})
		got := make([]byte, len(big))
		if _, err := io.ReadFull(d.to, got); err != nil || !bytes.Equal(got, big) {
			t.Errorf("read: %v", err)
		}
		wg.Wait()
	}
	if _, err := client.Write([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(server.conn) // nil: the end record came
	if err != nil || string(rest) != "bye" {
		t.Errorf("read %q, %v", rest, err)
	}
	if err := client.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := client.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
}

func TestStreamDeadline(t *testing.T) {
	client, server, _, _ := streamPair(t)
	if err := client.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if err := client.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := server.conn.Write([]byte("on")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "on" {
		t.Errorf("after the deadline: %q, %v", got, err)
	}
}

// Close does not wait for a Write that the other side does not read.
func TestStreamCloseDuringWrite(t *testing.T) {
	client, _, _, _ := streamPair(t)
	ended := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		close(started)
		_, err := client.Write(make([]byte, 64<<20))
		ended <- err
	}()
	<-started
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := take(t, "end of Write", ended); err == nil {
		t.Error("wrote 64 MiB that nobody read")
	}
}

func TestDialRefused(t *testing.T) {
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2", func(c *Config) { c.Keys = &wrongKeys })
	c := start(t, "127.0.0.3")
	if _, err := a.Dial(within(t, time.Second), b.self, wire.StreamAsk); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("unknown peer: %v", err)
	}
	a.AddCandidates(b.self, b.addr)
	_, err := a.Dial(within(t, 10*time.Second), b.self, wire.StreamAsk)
	if !errors.Is(err, handshake.ErrPassword) || !strings.Contains(err.Error(), b.addr.String()) {
		t.Errorf("wrong password: %v", err)
	}
	if len(a.Refusals()) == 0 || len(b.Refusals()) == 0 {
		t.Error("not in the lists of refusals")
	}
	other := testIdentity(t).ID
	a.wire.setLose(func([]byte) bool { return true }) // else its datagrams tell first
	a.AddCandidates(other, c.addr)
	if _, err := a.Dial(within(t, 10*time.Second), other, wire.StreamAsk); !errors.Is(err, handshake.ErrPeer) {
		t.Errorf("another peer: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.Dial(ctx, b.self, wire.StreamAsk); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A host that accepts and says nothing holds up Dial for no longer than its
// context.
func TestDialSilent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, p := start(t, "127.0.0.1"), testIdentity(t).ID
	a.AddCandidates(p, l.Addr().(*net.TCPAddr).AddrPort())
	if _, err := a.Dial(within(t, 50*time.Millisecond), p, wire.StreamAsk); err == nil {
		t.Error("dialled")
	}
}

func TestHalfOpenStreamsAreBounded(t *testing.T) {
	in := make(chan inboundStream, 1)
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2", streams(in))
	connect(t, a, b)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.7")}}
	for range maxHalfOpenOfOne + 5 {
		c, err := d.Dial("tcp", b.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	await(t, "the surplus to be dropped", func() bool { return b.dropped(dropBusy) == 5 })
	c, err := a.Dial(within(t, 10*time.Second), b.self, wire.StreamAsk) // another address gets through
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := take(t, "stream", in)
	defer s.conn.Close()
}

func TestRunEndsInboundStreams(t *testing.T) {
	client, server, _, b := streamPair(t)
	b.stop()
	if _, err := server.conn.Read(make([]byte, 1)); err == nil {
		t.Error("inbound stream is open after Run")
	}
	if _, err := client.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("other side reads %v, want an error that is not io.EOF", err)
	}
	b.inbound.mu.Lock()
	defer b.inbound.mu.Unlock()
	if b.inbound.halfOpen != 0 || len(b.inbound.bySite) != 0 {
		t.Error("half-open streams left")
	}
}

func TestStreamWithoutHandler(t *testing.T) {
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	c, err := a.Dial(within(t, 10*time.Second), b.self, wire.StreamAsk)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v", err)
	}
	await(t, "the drop to be counted", func() bool { return b.dropped(dropNoHandler) == 1 })
}

// recorder copies what passes through a connection.
type recorder struct {
	net.Conn
	sent bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error) {
	r.sent.Write(b)
	return r.Conn.Write(b)
}

// bareStream is a stream by hand, so that its bytes can be seen and changed.
func bareStream(t *testing.T, a, b *node) (*stream, *recorder) {
	t.Helper()
	c, err := net.Dial("tcp", b.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{Conn: c}
	s, err := a.openStream(r, b.self, direct(b.addr), wire.StreamAsk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, r
}

func TestStreamOnTheWire(t *testing.T) {
	in := make(chan inboundStream, 1)
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2", streams(in))
	s, r := bareStream(t, a, b)
	server := take(t, "stream", in)
	defer server.conn.Close()
	const payload = "a payload that is easily found"
	if _, err := io.WriteString(s, payload); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(payload))
	if _, err := io.ReadFull(server.conn, got); err != nil || string(got) != payload {
		t.Fatalf("read %q, %v", got, err)
	}
	assertSealed(t, r.sent.Bytes(), payload, "password", a, b)
}

func TestStreamTampered(t *testing.T) {
	in := make(chan inboundStream, 1)
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2", streams(in))
	record := func(r *recorder, s *stream) []byte {
		r.sent.Reset()
		if _, err := io.WriteString(s, "first"); err != nil {
			t.Fatal(err)
		}
		return bytes.Clone(r.sent.Bytes())
	}
	for _, tt := range []struct {
		name   string
		change func(rec []byte) []byte // what is sent after "first"
		want   error
	}{
		{"cut off", func([]byte) []byte { return nil }, io.ErrUnexpectedEOF},
		{"cut in a record", func(rec []byte) []byte { return rec[:5] }, io.ErrUnexpectedEOF},
		{"replayed", func(rec []byte) []byte { return rec }, errRecord},
		{"too long", func([]byte) []byte { return []byte{0xff, 0xff, 1} }, errRecord},
		{"too short", func([]byte) []byte { return []byte{0, 15, 1} }, errRecord},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, r := bareStream(t, a, b)
			server := take(t, "stream", in)
			defer server.conn.Close()
			if _, err := r.Conn.Write(tt.change(record(r, s))); err != nil {
				t.Fatal(err)
			}
			if err := r.Conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(server.conn)
			if string(got) != "first" || !errors.Is(err, tt.want) {
				t.Errorf("read %q, %v; want %v", got, err, tt.want)
			}
			if _, again := server.conn.Read(got); !errors.Is(again, tt.want) {
				t.Errorf("read again: %v", again)
			}
		})
	}
}

// A handshake of one medium is of no use on the other.
func TestDatagramHandshakeOnStream(t *testing.T) {
	b := start(t, "127.0.0.2")
	_, msg1, err := handshake.Initiate(handshake.Config{Identity: testIdentity(t), Keys: rightKeys, Medium: handshake.Datagrams})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", b.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := writeMessage(c, msg1); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || len(got) != 0 {
		t.Errorf("answered with %d bytes, %v", len(got), err)
	}
	if got := b.dropped(dropHandshake); got != 1 {
		t.Errorf("%d drops", got)
	}
}

func FuzzAccept(f *testing.F) {
	b := start(f, "127.0.0.2")
	_, msg1, err := handshake.Initiate(handshake.Config{Identity: testIdentity(f), Keys: rightKeys, Medium: handshake.Stream})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte{byte(len(msg1) >> 8), byte(len(msg1))}, msg1...))
	f.Add([]byte{0xff, 0xff})
	f.Add([]byte{0, 1, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		here, there := net.Pipe()
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { _, _ = io.Copy(io.Discard, here) })
		wg.Go(func() { _, _ = here.Write(in); _ = here.Close() })
		if _, _, _, err := b.acceptStream(there, direct(netip.MustParseAddrPort("127.0.0.1:1"))); err == nil {
			t.Error("junk taken for a stream")
		}
		_ = there.Close()
	})
}
