package transport

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weave/mesh/wire"
)

// way is a way of a race that ends when it is told.
func way(err error, end <-chan struct{}, begun *atomic.Int32) opener {
	return func(ctx context.Context) (net.Conn, error) {
		begun.Add(1)
		select {
		case <-end:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		c, other := net.Pipe()
		_ = other.Close()
		return c, nil
	}
}

func TestRace(t *testing.T) {
	now, never := make(chan struct{}), make(chan struct{})
	close(now)
	bad := errors.New("bad")
	t.Run("the first will do", func(t *testing.T) {
		var begun atomic.Int32
		c, err := race(t.Context(), time.Hour, way(nil, now, &begun), way(nil, now, &begun))
		if err != nil || begun.Load() != 1 {
			t.Fatal(err, begun.Load())
		}
		_ = c.Close()
	})
	t.Run("the first fails", func(t *testing.T) {
		var begun atomic.Int32
		c, err := race(t.Context(), time.Hour, way(bad, now, &begun), way(nil, now, &begun))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	})
	t.Run("the first takes long", func(t *testing.T) {
		var begun atomic.Int32
		c, err := race(t.Context(), time.Millisecond, way(nil, never, &begun), way(nil, now, &begun), way(nil, never, &begun))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	})
	t.Run("the second comes too late", func(t *testing.T) {
		begun := make(chan struct{})
		ours, theirs := net.Pipe()
		late := func(ctx context.Context) (net.Conn, error) {
			close(begun)
			<-ctx.Done()
			return ours, nil
		}
		var n atomic.Int32
		c, err := race(t.Context(), time.Millisecond, way(nil, begun, &n), late)
		if err != nil || c == ours {
			t.Fatal(err)
		}
		_ = c.Close()
		_ = theirs.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := theirs.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the one that came too late is left open: %v", err)
		}
	})
	t.Run("all fail", func(t *testing.T) {
		var begun atomic.Int32
		if _, err := race(t.Context(), time.Hour, way(bad, now, &begun), way(bad, now, &begun)); !errors.Is(err, bad) || begun.Load() != 2 {
			t.Fatal(err, begun.Load())
		}
	})
	t.Run("given up", func(t *testing.T) {
		var begun atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := race(ctx, time.Millisecond, way(nil, never, &begun), way(nil, never, &begun)); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}

// Streams come from the address that datagrams come from.
func TestStreamsComeFromOurAddress(t *testing.T) {
	t.Parallel()
	streams := make(chan heard, 1)
	a, b := start(t, "127.0.0.5"), start(t, "127.0.0.2", hearing(streams))
	connect(t, a, b)
	out, err := a.dialDirect(within(t, 10*time.Second), b.self, wire.StreamAsk)
	if err != nil {
		t.Fatal(err)
	}
	in := take(t, "stream", streams).c
	if got := in.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != a.addr.Addr() {
		t.Errorf("a stream of %s comes from %s", a.addr, got)
	}
	_, _ = out.Close(), in.Close()
	for to, certain := range map[string]bool{"192.0.2.1": true, "2001:db8::1": false} { // families do not mix
		if got := a.dialer(netip.MustParseAddr(to)).LocalAddr != nil; got != certain {
			t.Errorf("to %s from a certain address: %v", to, got)
		}
	}
}

// freeTCP is a port that nobody listens on.
func freeTCP(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// Where only a certain port gets out, that is taken.
func TestFurtherPort(t *testing.T) {
	t.Parallel()
	port := freeTCP(t)
	further := func(c *Config) { c.TCPPort = port }
	a, b := start(t, "127.0.0.1", further), start(t, "127.0.0.2", further)
	blockUDP(true, a, b)
	a.undiallable()
	b.undiallable() // by the usual port
	connect(t, a, b)
	exchange(t, a, b)
	if s := a.status(b.self); !s.TCP || s.Addr.Port() != port && b.status(a.self).Addr.Port() != port {
		t.Errorf("status %+v", s)
	}
}

// A port that somebody else has is done without, and taken when it is free.
func TestFurtherPortIsTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	further := func(c *Config) { c.TCPPort, c.tune.maxBackoff = port, 50*time.Millisecond }
	a, b := start(t, "127.0.0.1", further), start(t, "127.0.0.2", further)
	connect(t, a, b)
	exchange(t, a, b)
	if err := a.TCPTrouble(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the trouble is %v", err)
	}
	if err := b.TCPTrouble(); err != nil { // nobody has it there
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, "the port to be taken", func() bool { return a.TCPTrouble() == nil })
	a.undiallable()
	b.undiallable() // by the usual port
	blockUDP(true, a, b)
	await(t, "TCP to be taken", func() bool { return a.status(b.self).TCP && b.status(a.self).TCP })
	if s := a.status(b.self); s.Addr.Port() != port && b.status(a.self).Addr.Port() != port {
		t.Errorf("status %+v", s)
	}
}

// proxy serves CONNECT to whatever is asked for, for those who know the password,
// or answers with something else. It tells how often it was asked.
func proxy(t *testing.T, answer string) (u *url.URL, asked *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.8:0")
	if err != nil {
		t.Fatal(err)
	}
	asked = new(atomic.Int32)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			asked.Add(1)
			go serveProxy(c, answer)
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return &url.URL{Scheme: "http", Host: l.Addr().String(), User: url.UserPassword("me", "secret")}, asked
}

func serveProxy(c net.Conn, answer string) {
	defer c.Close()
	in := bufio.NewReader(c)
	req, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	if answer != "" {
		_, _ = io.WriteString(c, answer)
		_, _ = io.Copy(io.Discard, in)
		return
	}
	if req.Method != http.MethodConnect || req.Header.Get("Proxy-Authorization") != "Basic bWU6c2VjcmV0" {
		_, _ = io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
		return
	}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 8)}}
	to, err := dialer.Dial("tcp", req.Host)
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { _, _ = io.Copy(to, in); _ = to.Close() }()
	_, _ = io.Copy(c, to)
}

func TestProxy(t *testing.T) {
	t.Parallel()
	u, asked := proxy(t, "")
	b := start(t, "127.0.0.2")
	c, err := throughProxy(within(t, 10*time.Second), u, b.addr)
	if err != nil {
		t.Fatal(err)
	}
	a := start(t, "127.0.0.1")
	s, err := a.openStream(c, b.self, direct(b.addr), wire.StreamDatagrams)
	if err != nil || s.peer != b.self || asked.Load() != 1 {
		t.Fatal(err, asked.Load())
	}
	if newPipe(s, s.peer).remote.IsValid() {
		t.Error("the proxy is taken for the peer")
	}
	_ = s.Close()
}

// What a proxy answers instead is told, and nothing secret with it.
func TestProxyRefuses(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"HTTP/1.1 403 Forbidden\r\n\r\n":                                       "403 Forbidden",
		"HTTP/1.1 200 OK\r\n\r\nhello":                                         "nobody asked for",
		"SSH-2.0-OpenSSH_9.2\r\n":                                              "malformed",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswer) + "\r\n\r\n": "unexpected EOF",
	} {
		u, _ := proxy(t, answer)
		_, err := throughProxy(within(t, 10*time.Second), u, start(t, "127.0.0.2").addr)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.60q: %v", answer, err)
		}
	}
	u, _ := proxy(t, "HTTP/1.1 200 OK")
	if _, err := throughProxy(within(t, 50*time.Millisecond), u, start(t, "127.0.0.2").addr); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a proxy that says nothing: %v", err)
	}
}

// Where TCP does not get out either, the proxy is taken.
func TestOnlyProxyGetsOut(t *testing.T) {
	t.Parallel()
	u, asked := proxy(t, "")
	a, b := start(t, "127.0.0.1", func(c *Config) { c.Proxy = u }), start(t, "127.0.0.2")
	blockUDP(true, a, b)
	a.undiallable()
	b.undiallable()
	host := u.Hostname()
	b.door.but.Store(&host)
	connect(t, a, b)
	exchange(t, a, b)
	if s := a.status(b.self); !s.TCP || asked.Load() == 0 {
		t.Errorf("status %+v, proxy asked %d times", s, asked.Load())
	}
}

// TestShortSegments: each end of a stream sends segments that a path of 1280 bytes
// takes, though its first link takes more, and whatever the other end offers.
func TestShortSegments(t *testing.T) {
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ours, err := listenTCP(netip.MustParseAddr("127.0.0.1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	a := start(t, "127.0.0.8")
	for what, tt := range map[string]struct {
		from *net.Dialer
		to   net.Listener
		ours func(dialed, accepted net.Conn) net.Conn
	}{
		"dialed":   {a.dialer(netip.MustParseAddr("127.0.0.1")), plain, func(c, _ net.Conn) net.Conn { return c }},
		"accepted": {&net.Dialer{}, ours, func(_, c net.Conn) net.Conn { return c }},
	} {
		dialed, err := tt.from.Dial("tcp", tt.to.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := tt.to.Accept()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := tt.ours(dialed, accepted).(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var mss int
		if e := raw.Control(func(fd uintptr) { mss, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
		if mss > maxSegment {
			t.Errorf("%s: segments of %d bytes", what, mss)
		}
		for _, c := range []io.Closer{dialed, accepted, tt.to} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
