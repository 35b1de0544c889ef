package transport

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/session"
	"weave/mesh/wire"
)

func TestConnect(t *testing.T) {
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	if p := take(t, "PeerUp", a.ups); p != b.self {
		t.Errorf("up: %s", p)
	}
	if p := take(t, "PeerUp", b.ups); p != a.self {
		t.Errorf("up: %s", p)
	}
	exchange(t, a, b)
	await(t, "round trip measured", func() bool { return a.status(b.self).RTT > 0 && b.status(a.self).RTT > 0 })
	s := b.status(a.self)
	if s.State != StateUp || s.Nickname != "nickname-of-127.0.0.1" || s.Addr != a.addr || s.SeenAt != b.addr ||
		s.RxBytes == 0 || s.TxDatagrams == 0 || s.LastError != "" || s.Cipher == "" || s.Established.IsZero() {
		t.Errorf("status: %+v", s)
	}
}

func TestThreeFullMesh(t *testing.T) {
	nodes := []*node{start(t, "127.0.0.1"), start(t, "127.0.0.2"), start(t, "127.0.0.3")}
	for _, n := range nodes {
		for _, m := range nodes {
			n.AddCandidates(m.self, netip.MustParseAddrPort("127.0.0.9:9"), m.addr)
		}
	}
	exchange(t, nodes[0], nodes[1])
	exchange(t, nodes[1], nodes[2])
	exchange(t, nodes[2], nodes[0])
	if n := len(nodes[0].Peers()); n != 2 {
		t.Errorf("%d peers, want 2: not itself", n)
	}
}

func TestCiphers(t *testing.T) {
	a := start(t, "127.0.0.1", func(c *Config) { c.tune.noAES = true })
	b := start(t, "127.0.0.2")
	connect(t, a, b)
	exchange(t, a, b)
	if got := a.status(b.self).Cipher; got != "ChaCha20-Poly1305" {
		t.Errorf("cipher %s", got)
	}
}

func TestWrongPassword(t *testing.T) {
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2", func(c *Config) { c.Keys = &wrongKeys })
	for _, d := range []struct{ from, to *node }{{a, b}, {b, a}} {
		_, err := d.from.Connect(within(t, 10*time.Second), d.to.addr)
		if !errors.Is(err, handshake.ErrPassword) || !strings.Contains(err.Error(), d.to.addr.String()) {
			t.Errorf("connect: %v", err)
		}
		mine, theirs := d.from.Refusals()[0], d.to.Refusals()[0]
		if !mine.ByThem || mine.Addr != d.to.addr.Addr() || mine.Reason != "password differs" || mine.Count != 1 {
			t.Errorf("the refused one's list: %+v", mine)
		}
		if theirs.ByThem || theirs.Addr != d.from.addr.Addr() || theirs.Reason != "password differs" || theirs.At.IsZero() {
			t.Errorf("the refusing one's list: %+v", theirs)
		}
	}
	if len(a.Peers())+len(b.Peers()) != 0 {
		t.Error("a stranger became a peer")
	}
}

// As a candidate from a stale list, the stranger is tried on and named.
func TestWrongPasswordOfCandidate(t *testing.T) {
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2", func(c *Config) { c.Keys = &wrongKeys })
	a.AddCandidates(b.self, b.addr)
	await(t, "reason in the status", func() bool { return a.status(b.self).LastError == "password differs" })
	if s := a.status(b.self).State; s != StateDown {
		t.Errorf("state %q", s)
	}
}

func TestOtherVersion(t *testing.T) {
	a, s := start(t, "127.0.0.1"), plug(t, "127.0.0.2")
	msg := make([]byte, 700)
	wire.Header{Type: wire.TypeHandshake1, Version: 9, Counter: 77}.Put(msg)
	if _, err := s.WriteToUDPAddrPort(msg, a.addr); err != nil {
		t.Fatal(err)
	}
	n, _, err := s.ReadFromUDPAddrPort(msg)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := wire.ParseHeader(msg[:n]); err != nil || h.Type != wire.TypeReject || h.Version != wire.Version || h.Index != 77 {
		t.Errorf("answer %+v, %v", h, err)
	}
	if r := a.Refusals()[0]; r.Reason != "protocol version 9, ours is 2" {
		t.Errorf("refusal %+v", r)
	}

	// The other way round: what we are told when we connect to such a host.
	stranger := plug(t, "127.0.0.3")
	result := make(chan error, 1)
	go func() {
		_, err := a.Connect(context.Background(), stranger.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort())
		result <- err
	}()
	n, from, err := stranger.ReadFromUDPAddrPort(msg)
	if err != nil || n != handshake.Len1 {
		t.Fatal(n, err)
	}
	h, err := wire.ParseHeader(msg)
	if err != nil {
		t.Fatal(err)
	}
	reject := handshake.Reject(h, handshake.VersionError{Theirs: 1})
	reject[1] = 9
	if _, err := stranger.WriteToUDPAddrPort(reject, from); err != nil {
		t.Fatal(err)
	}
	err = take(t, "error of Connect", result)
	if !errors.Is(err, handshake.ErrVersion) || !strings.Contains(err.Error(), "protocol version 9, ours is 2") {
		t.Errorf("connect: %v", err)
	}
}

func TestSelf(t *testing.T) {
	a := start(t, "127.0.0.1")
	if _, err := a.Connect(within(t, 10*time.Second), a.addr); !errors.Is(err, handshake.ErrSelf) {
		t.Errorf("connect to itself: %v", err)
	}
	a.AddCandidates(a.self, a.addr)
	if len(a.Peers()) != 0 {
		t.Error("peer of itself")
	}
}

func TestNoAnswer(t *testing.T) {
	a, s := start(t, "127.0.0.1"), plug(t, "127.0.0.2")
	addr := s.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
	_, err := a.Connect(within(t, 100*time.Millisecond), addr)
	if !errors.Is(err, ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connect: %v", err)
	}
	if _, err := a.Connect(context.Background(), netip.AddrPort{}); err == nil {
		t.Error("connected to nothing")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.attempts) != 0 || a.table.count != 0 {
		t.Errorf("left behind: %d attempts, %d indices", len(a.attempts), a.table.count)
	}
}

// The candidate is another peer's: it is dropped, and the true one is found.
// Control ticks seldom when there is nothing to do, and often for a handshake.
func TestPace(t *testing.T) {
	a, s := start(t, "127.0.0.1", func(c *Config) { c.PingInterval = time.Hour }), plug(t, "127.0.0.2")
	calm := func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.every == 6*time.Minute
	}
	await(t, "ticks to be seldom", calm)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		_, err := a.Connect(ctx, s.LocalAddr().(*net.UDPAddr).AddrPort())
		ended <- err
	}()
	if err := s.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // without a tick, message 1 is sent once
		if _, _, err := s.ReadFromUDPAddrPort(make([]byte, 2000)); err != nil {
			t.Error(err)
		}
	}
	cancel()
	<-ended
	await(t, "ticks to be seldom again", calm)
}

func TestAnotherPeerAnswers(t *testing.T) {
	a, b, c := start(t, "127.0.0.1"), start(t, "127.0.0.2"), start(t, "127.0.0.3")
	a.AddCandidates(b.self, c.addr)
	await(t, "error in the status", func() bool {
		return strings.Contains(a.status(b.self).LastError, handshake.ErrPeer.Error())
	})
	if s := a.status(b.self); len(s.Candidates) != 0 {
		t.Errorf("candidates %v", s.Candidates)
	}
	a.AddCandidates(b.self, b.addr)
	exchange(t, a, b)
}

func TestSend(t *testing.T) {
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	if err := a.Send(b.self, wire.KindGossip, nil); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("unknown peer: %v", err)
	}
	if a.Link(b.self) != nil {
		t.Error("link to an unknown peer")
	}
	connect(t, a, b)
	if err := a.Send(b.self, wire.KindGossip, make([]byte, MaxBody+1)); !errors.Is(err, ErrTooBig) {
		t.Errorf("too big: %v", err)
	}
	for _, size := range []int{0, 1, 1300, 9000, MaxBody} {
		body := strings.Repeat("x", size)
		if err := a.Send(b.self, wire.KindRecords, []byte(body)); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if got := take(t, "item", b.packets); got.body != body || got.kind != wire.KindRecords {
			t.Errorf("%d bytes: got %d of kind %d", size, len(got.body), got.kind)
		}
	}
}

// What is sent before there is a session waits for it, within bounds.
func TestQueue(t *testing.T) {
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	a.wire.setLose(func([]byte) bool { return true })
	a.AddCandidates(b.self, b.addr)
	for i := range maxQueued {
		if err := a.Send(b.self, wire.KindGossip, []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Send(b.self, wire.KindGossip, nil); !errors.Is(err, ErrQueueFull) {
		t.Errorf("one too many: %v", err)
	}
	a.wire.setLose(nil)
	for i := range maxQueued {
		if got := take(t, "queued item", b.packets); got.body != string([]byte{byte(i)}) {
			t.Fatalf("item %d: %q", i, got.body)
		}
	}
}

func TestSimultaneous(t *testing.T) {
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	for range 100 {
		var wg sync.WaitGroup
		for _, d := range []struct{ from, to *node }{{a, b}, {b, a}} {
			wg.Go(func() {
				if _, err := d.from.Connect(within(t, 10*time.Second), d.to.addr); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		exchange(t, a, b)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.peers[b.self].sessions); n > maxSessions {
		t.Errorf("%d sessions", n)
	}
}

// A peer killed and started again, with the same identity and port, goes on at
// once in both directions, whichever side speaks first.
func TestRestart(t *testing.T) {
	identity := testIdentity(t)
	a := start(t, "127.0.0.1")
	b := start(t, "127.0.0.2", func(c *Config) { c.Identity = identity })
	connect(t, a, b)
	exchange(t, a, b)
	for i := range 3 {
		b.stop()
		began := time.Now()
		b = start(t, "127.0.0.2", func(c *Config) {
			c.Identity, c.Listen, c.Incarnation = identity, b.addr, uint64(i+2)
		})
		b.AddCandidates(a.self, a.addr)
		exchange(t, b, a)
		if d := time.Since(began); d > time.Second {
			t.Errorf("took %v", d)
		}
		a.mu.Lock()
		if n := len(a.peers[b.self].sessions); n != 1 {
			t.Errorf("%d sessions, want only that of the new run", n)
		}
		a.mu.Unlock()
	}
}

// The restarted peer remembers nobody: the other one notices the silence.
func TestRestartWithoutMemory(t *testing.T) {
	identity := testIdentity(t)
	fast := func(c *Config) { c.PingInterval = 50 * time.Millisecond }
	a := start(t, "127.0.0.1", fast)
	b := start(t, "127.0.0.2", fast, func(c *Config) { c.Identity = identity })
	connect(t, a, b)
	b.stop()
	b = start(t, "127.0.0.2", fast, func(c *Config) { c.Identity, c.Listen, c.Incarnation = identity, b.addr, 2 })
	take(t, "PeerUp after the restart", b.ups)
	awaitExchange(t, a, b)
	if b.dropped(dropUnknownSession) == 0 {
		t.Error("datagrams of the lost session were not counted")
	}
}

func TestRekey(t *testing.T) {
	for name, limits := range map[string]session.Limits{
		"age":   {RekeyAge: 150 * time.Millisecond, RejectAge: 20 * time.Second, RekeyMessages: 1 << 30, RejectMessages: 1 << 40},
		"count": {RekeyAge: time.Hour, RejectAge: 2 * time.Hour, RekeyMessages: 20, RejectMessages: 1 << 40},
	} {
		t.Run(name, func(t *testing.T) {
			set := func(c *Config) { c.tune.limits = limits }
			a, b := start(t, "127.0.0.1", set), start(t, "127.0.0.2", set)
			connect(t, a, b)
			seen := map[time.Time]bool{}
			await(t, "four sessions", func() bool {
				exchange(t, a, b)
				seen[a.status(b.self).Established] = true
				return len(seen) == 4
			})
			if len(a.ups) != 1 {
				t.Errorf("%d times up", len(a.ups))
			}
		})
	}
}

// A session that cannot be renewed ends, and what is sent then waits.
func TestExpiry(t *testing.T) {
	set := func(c *Config) {
		c.tune.limits = session.Limits{RekeyAge: time.Hour, RejectAge: 200 * time.Millisecond, RekeyMessages: 1 << 30, RejectMessages: 1 << 40}
	}
	a, b := start(t, "127.0.0.1", set), start(t, "127.0.0.2")
	connect(t, a, b)
	take(t, "PeerUp", a.ups)
	a.wire.setLose(func([]byte) bool { return true })
	link := a.Link(b.self)
	await(t, "end of the session", func() bool { return errors.Is(link.Seal(make([]byte, 64), 64), ErrNoSession) })
	if err := a.Send(b.self, wire.KindGossip, []byte("late")); err != nil {
		t.Fatal(err)
	}
	a.wire.setLose(nil)
	if got := take(t, "item", b.packets); got.body != "late" {
		t.Errorf("got %q", got.body)
	}
	take(t, "PeerUp again", a.ups)
}

func TestSupersededSessionsGo(t *testing.T) {
	fast := func(c *Config) { c.PingInterval = 20 * time.Millisecond }
	a, b := start(t, "127.0.0.1", fast), start(t, "127.0.0.2", fast)
	for range 3 {
		connect(t, a, b)
	}
	for _, n := range []*node{a, b} {
		await(t, "one session, one index", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.table.count == 1
		})
	}
	exchange(t, a, b)
}

// Nothing of a name, a payload, an ID or a password is on the wire.
func TestNothingInClear(t *testing.T) {
	const secret = "the-secret-password"
	keys := handshake.Derive([]byte(secret))
	set := func(c *Config) { c.Keys = &keys }
	a, b := start(t, "127.0.0.1", set), start(t, "127.0.0.2", set)
	connect(t, a, b)
	const payload = "a payload that is easily found"
	if err := a.Send(b.self, wire.KindGossip, []byte(payload)); err != nil {
		t.Fatal(err)
	}
	take(t, "item", b.packets)
	sendFrames(t, a.Link(b.self), 3, payload)
	await(t, "frames", func() bool { frames, _ := b.frames.got(); return len(frames) == 3 })
	if frames, flushes := b.frames.got(); frames[0] != payload || flushes == 0 {
		t.Errorf("frames %q, %d flushes", frames, flushes)
	}
	all := append(a.wire.all(), b.wire.all()...)
	if len(all) < 6 {
		t.Fatalf("only %d datagrams captured", len(all))
	}
	for _, s := range all {
		assertSealed(t, s.b, payload, secret, a, b)
	}
}

func assertSealed(t *testing.T, b []byte, payload, password string, nodes ...*node) {
	t.Helper()
	secrets := []string{payload, password, "nickname"}
	for _, n := range nodes {
		secrets = append(secrets, n.self.String(), string(n.self[:]), string(n.cfg.Identity.Public))
	}
	for _, s := range secrets {
		if bytes.Contains(b, []byte(s)) {
			t.Errorf("%q in clear", s)
		}
	}
}

// sendFrames sends n frames in one train, as the tunnel does.
func sendFrames(t testing.TB, l *Link, n int, text string) {
	t.Helper()
	size := wire.Overhead + len(text)
	buf := make([]byte, n*size)
	for i := range n {
		d := buf[i*size : (i+1)*size]
		body := make([]byte, wire.FrameHeaderLen, wire.FrameHeaderLen+len(text))
		wire.FrameHeader{Segment: 1}.Put(body)
		wire.AppendItem(d[:wire.HeaderLen], wire.KindFrame, append(body, text...))
	}
	if err := l.Seal(buf, size); err != nil {
		t.Fatal(err)
	}
	if err := l.Send(buf, size); err != nil {
		t.Fatal(err)
	}
}

func TestConfigRefused(t *testing.T) {
	good := testIdentity(t)
	for name, cfg := range map[string]Config{
		"nickname": {Identity: good, Nickname: "a\x00b"},
		"identity": {Identity: id.Identity{}},
		"port":     {Identity: good, Listen: netip.MustParseAddrPort("203.0.113.1:1")},
	} {
		cfg.Log, cfg.Keys = quiet(), &rightKeys
		if tr, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
			_ = tr.Close()
		}
	}
}

func TestClosed(t *testing.T) {
	a := start(t, "127.0.0.1")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a.stop()
	if _, err := a.Connect(context.Background(), netip.MustParseAddrPort("127.0.0.2:1")); !errors.Is(err, ErrClosed) {
		t.Errorf("connect: %v", err)
	}
	if err := a.Run(context.Background()); err == nil {
		t.Error("ran twice")
	}
}
