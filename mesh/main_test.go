package mesh

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"

	"weave/mesh/gossip"
	"weave/mesh/handshake"
	"weave/mesh/id"
)

// TestMain looks for leaks. memberlist's wait for the answer to a probe ends by
// itself, later than the rest of it.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"),
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).handleIndirectPing.func2"))
}

// mapStore is a Store in memory; it fails while err is set.
type mapStore struct {
	mu      sync.Mutex
	buckets map[string]map[string][]byte
	err     error
}

func newStore() *mapStore { return &mapStore{buckets: map[string]map[string][]byte{}} }

func (s *mapStore) Load(bucket string) (map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	return maps.Clone(s.buckets[bucket]), nil
}

func (s *mapStore) Apply(bucket string, changes map[string][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	b := s.buckets[bucket]
	if b == nil {
		b = map[string][]byte{}
		s.buckets[bucket] = b
	}
	for k, v := range changes {
		if v == nil {
			delete(b, k)
		} else {
			b[k] = slices.Clone(v)
		}
	}
	return nil
}

func (s *mapStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *mapStore) keys(bucket string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.buckets[bucket]))
}

var errDisk = errors.New("no space left")

// node is a Node under test.
type node struct {
	*Node
	self  id.PeerID
	addr  string // where it listens
	cfg   Config
	store *mapStore
	stop  func() // ends Run and waits for it; once
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
	if os.Getenv("WEAVE_TEST_LOG") != "" {
		l.SetOutput(os.Stderr)
		l.SetLevel(logrus.DebugLevel)
	}
	return logrus.NewEntry(l)
}

// configure describes a node on a free port of ip that answers "from:request".
func configure(t testing.TB, ip string, peers ...string) Config {
	addr := netip.MustParseAddr(ip)
	log := quiet().WithField("node", ip)
	timing := gossip.DefaultTiming()
	timing.Gossip, timing.Greet = 20*time.Millisecond, 20*time.Millisecond
	timing.Probe, timing.ProbeTimeout = 200*time.Millisecond, 100*time.Millisecond
	timing.Sum, timing.Rejoin, timing.Retry = 100*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
	return Config{
		Identity: testIdentity(t), Password: []byte("secret"), Nickname: "host-" + ip,
		Listen: netip.AddrPortFrom(addr, 0), Advertise: []netip.Addr{addr}, Peers: peers, Store: newStore(), Log: log,
		Answer: func(_ context.Context, _ id.PeerID, request []byte) ([]byte, error) {
			return append([]byte("you said "), request...), nil
		},
		tune: tuning{gossip: timing, seedInterval: 200 * time.Millisecond},
	}
}

var derived sync.Map // of passwords; under the race detector each takes a second

func keysOf(password string) *handshake.Keys {
	once, _ := derived.LoadOrStore(password, sync.OnceValue(func() *handshake.Keys {
		keys := handshake.Derive([]byte(password))
		return &keys
	}))
	return once.(func() *handshake.Keys)()
}

// start runs a node until the test ends.
func start(t testing.TB, cfg Config) *node {
	t.Helper()
	cfg.tune.keys = keysOf(string(cfg.Password))
	n := &node{self: cfg.Identity.ID, cfg: cfg, store: cfg.Store.(*mapStore)}
	var err error
	if n.Node, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	// A restart takes the same port.
	n.cfg.Listen = netip.AddrPortFrom(cfg.Listen.Addr(), n.transport.Port())
	n.addr = n.cfg.Listen.String()
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

// restart ends a node and starts it again with its store.
func (n *node) restart(t testing.TB) *node {
	t.Helper()
	n.stop()
	return start(t, n.cfg)
}

// wait is how long a condition is waited for. It is long: the machine may be
// busy.
const wait = 20 * time.Second

// await polls a condition that no channel tells of.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(wait); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", wait, what)
		}
	}
}

// awaitMembers waits until all nodes have each other for living members.
func awaitMembers(t testing.TB, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		await(t, n.cfg.Nickname+" to have all members", func() bool {
			for _, other := range nodes {
				if other != n && !slices.Contains(n.Alive(), other.self) {
					return false
				}
			}
			return true
		})
	}
}

func (n *node) seed(t testing.TB, addr string) Seed {
	t.Helper()
	for _, s := range n.Seeds() {
		if s.Addr == addr {
			return s
		}
	}
	t.Fatalf("%s has no seed %s: %+v", n.cfg.Nickname, addr, n.Seeds())
	return Seed{}
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// namespace is a thread in a network namespace of its own. Both end with the
// test.
type namespace struct{ calls chan func() }

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	needRoot(t)
	n := &namespace{calls: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		ns, err := netns.New()
		made <- err
		if err != nil {
			return
		}
		for call := range n.calls {
			call()
		}
		_ = ns.Close()
	}()
	must(t, <-made)
	t.Cleanup(func() { close(n.calls) })
	return n
}

// do calls f inside.
func (n *namespace) do(f func() error) error {
	result := make(chan error)
	n.calls <- func() { result <- f() }
	return <-result
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// pick puts addresses in an order.
func pick(order []int, from ...netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, i := range order {
		out = append(out, from[i])
	}
	return out
}
