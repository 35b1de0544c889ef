package transport

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/udp"
	"weave/mesh/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	rightKeys = handshake.Keys{PSK: [32]byte{1}, MAC: [32]byte{2}, Mark: 1}
	wrongKeys = handshake.Keys{PSK: [32]byte{3}, MAC: [32]byte{4}, Mark: 2}
)

// packet is what Config.Packet got.
type packet struct {
	from id.PeerID
	kind wire.Kind
	body string
}

// node is a Transport under test with all that its callbacks got.
type node struct {
	*Transport
	t       testing.TB
	self    id.PeerID
	addr    netip.AddrPort
	wire    *tap
	door    *door
	packets chan packet
	ups     chan id.PeerID
	frames  *frameSink
	stop    func() // ends Run and waits for it
}

// frameSink is a Frames that keeps all.
type frameSink struct {
	mu      sync.Mutex
	frames  []string
	flushes int
}

func (f *frameSink) Receive(_ id.PeerID, _ uint64, _ wire.FrameHeader, frame []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frames = append(f.frames, string(frame))
}

func (f *frameSink) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flushes++
}

func (f *frameSink) got() (frames []string, flushes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.frames...), f.flushes
}

// tap is a Conn that records what is sent and may lose it.
type tap struct {
	Conn

	mu   sync.Mutex
	sent []sent
	lose func(b []byte) bool     // nil: nothing
	cut  map[netip.AddrPort]bool // what goes there is lost
}

type sent struct {
	b  []byte
	to netip.AddrPort
}

func (c *tap) Write(b []byte, size int, to netip.AddrPort) error {
	c.mu.Lock()
	if len(c.sent) < 10_000 {
		c.sent = append(c.sent, sent{bytes.Clone(b), to})
	}
	lost := c.lose != nil && c.lose(b) || c.cut[to]
	c.mu.Unlock()
	if lost {
		return nil
	}
	return c.Conn.Write(b, size, to)
}

func (c *tap) setLose(f func(b []byte) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lose = f
}

// setCut loses all that goes to an address from now on, or no more.
func (c *tap) setCut(to netip.AddrPort, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut == nil {
		c.cut = map[netip.AddrPort]bool{}
	}
	c.cut[to] = cut
}

func (c *tap) all() []sent {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]sent(nil), c.sent...)
}

// door is a TCP listener that may be shut, but for one address.
type door struct {
	net.Listener
	shut atomic.Bool
	but  atomic.Pointer[string]
}

func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil || !d.shut.Load() {
			return c, err
		}
		if but := d.but.Load(); but != nil && c.RemoteAddr().(*net.TCPAddr).IP.String() == *but {
			return c, nil
		}
		_ = c.Close()
	}
}

func testIdentity(t testing.TB) id.Identity {
	t.Helper()
	i, err := id.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func quiet() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}

// start makes a node on a free port of ip and runs it until the test ends.
func start(t testing.TB, ip string, change ...func(*Config)) *node {
	t.Helper()
	n := &node{
		t: t, packets: make(chan packet, 1000), ups: make(chan id.PeerID, 1000),
		frames: &frameSink{}, wire: &tap{}, door: &door{},
	}
	cfg := Config{
		Identity:     testIdentity(t),
		Nickname:     "nickname-of-" + ip,
		Incarnation:  1,
		Listen:       netip.AddrPortFrom(netip.MustParseAddr(ip), 0),
		Log:          quiet(),
		Frames:       n.frames,
		PingInterval: time.Second,
		Packet: func(from id.PeerID, kind wire.Kind, body []byte) {
			n.packets <- packet{from, kind, string(body)}
		},
		PeerUp: func(p id.PeerID) { n.ups <- p },
	}
	cfg.Keys = &rightKeys
	cfg.tune.wrapConn = func(c Conn) Conn { n.wire.Conn = c; return n.wire }
	cfg.tune.wrapTCP = func(l net.Listener) net.Listener { n.door.Listener = l; return n.door }
	for _, f := range change {
		f(&cfg)
	}
	n.self = cfg.Identity.ID
	var err error
	if n.Transport, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	n.addr = netip.AddrPortFrom(cfg.Listen.Addr(), n.Port())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// take waits for a value.
func take[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("no %s within 10 s", what)
		panic("unreachable")
	}
}

// await polls a condition that no channel tells of.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func connect(t testing.TB, from, to *node) {
	t.Helper()
	p, err := from.Connect(within(t, 10*time.Second), to.addr)
	if err != nil {
		t.Fatal(err)
	}
	if p != to.self {
		t.Fatalf("connected to %s, want %s", p, to.self)
	}
}

// exchange sends an item each way and waits for both.
func exchange(t testing.TB, a, b *node) {
	t.Helper()
	for _, d := range []struct{ from, to *node }{{a, b}, {b, a}} {
		if err := d.from.Send(d.to.self, wire.KindGossip, []byte("item")); err != nil {
			t.Fatal(err)
		}
		want := packet{d.from.self, wire.KindGossip, "item"}
		got := take(t, "item", d.to.packets)
		for got.body == "" { // awaitExchange may have sent more than it waited for
			got = take(t, "item", d.to.packets)
		}
		if got != want {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
}

// awaitExchange is exchange where first items may be lost.
func awaitExchange(t testing.TB, a, b *node) {
	t.Helper()
	for _, d := range []struct{ from, to *node }{{a, b}, {b, a}} {
		await(t, "item to arrive", func() bool {
			if d.from.Send(d.to.self, wire.KindGossip, nil) != nil {
				return false
			}
			select {
			case <-d.to.packets:
				return true
			case <-time.After(20 * time.Millisecond):
				return false
			}
		})
	}
}

func (n *node) status(p id.PeerID) PeerStatus {
	for _, s := range n.Peers() {
		if s.ID == p {
			return s
		}
	}
	return PeerStatus{}
}

func (n *node) dropped(reason drop) uint64 { return n.drops[reason].Load() }

// plug is a bare socket that plays a stranger.
func plug(t testing.TB, ip string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

var _ Conn = (*udp.Conn)(nil)
