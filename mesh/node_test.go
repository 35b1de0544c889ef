package mesh

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/transport"
)

// TestThreeThroughOneSeed holds that hosts that know one host find all, and
// that all of them remember that.
func TestThreeThroughOneSeed(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.1.1"))
	b := start(t, configure(t, "127.0.1.2", a.addr))
	c := start(t, configure(t, "127.0.1.3", a.addr))
	all := []*node{a, b, c}
	awaitMembers(t, all...)
	for _, n := range all {
		await(t, "both others to be known", func() bool { return len(n.Known()) == 2 })
		if got := n.store.keys(bucketPeers); len(got) != 2 {
			t.Errorf("%s has on disk the peers %v", n.cfg.Nickname, got)
		}
		for _, other := range all {
			if other != n && n.Nickname(other.self) != other.cfg.Nickname {
				t.Errorf("%s calls %s %q", n.cfg.Nickname, other.cfg.Nickname, n.Nickname(other.self))
			}
		}
		if n.Nickname(n.self) != n.cfg.Nickname {
			t.Errorf("own name is %q", n.Nickname(n.self))
		}
	}
	await(t, "c to have a session with b", func() bool {
		i := slices.IndexFunc(c.Peers(), func(p Peer) bool { return p.ID == b.self })
		return i >= 0 && c.Peers()[i].Path.State == transport.StateUp && c.Peers()[i].Alive
	})
	await(t, "the seed to be met", func() bool { return b.seed(t, a.addr).Peer == a.self })
	if s := b.seed(t, a.addr); s.Self || s.Error != "" || s.Tried.IsZero() || len(b.Unmet()) != 0 {
		t.Errorf("seed %+v, unmet %v", s, b.Unmet())
	}
}

// TestRecordsSpread holds that what one host publishes is known to all,
// whenever they came.
func TestRecordsSpread(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.2.1"))
	must(t, a.SetFree("10.0.0.0/8", 7))
	b := start(t, configure(t, "127.0.2.2", a.addr))
	await(t, "b to hear what was before it came", func() bool { return b.Free("10.0.0.0/8")[a.self] == 7 })
	must(t, a.SetFree("10.0.0.0/8", 8))
	await(t, "b to hear of the change", func() bool { return b.Free("10.0.0.0/8")[a.self] == 8 })
	must(t, b.SetFree("10.0.0.0/8", 1))
	await(t, "a to hear from b", func() bool { return a.Free("10.0.0.0/8")[b.self] == 1 })
	if own := a.Free("10.0.0.0/8"); len(own) != 1 {
		t.Errorf("Free tells of more than the others: %v", own)
	}
	if got := a.Free("10.9.0.0/16"); len(got) != 0 {
		t.Errorf("free space in a pool that nobody has: %v", got)
	}
}

func TestWrongPassword(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.3.1"))
	cfg := configure(t, "127.0.3.2", a.addr)
	cfg.Password = []byte("another")
	b := start(t, cfg)
	blames := func(n *node, byThem bool) func() bool {
		return func() bool {
			return slices.ContainsFunc(n.Refusals(), func(r transport.Refusal) bool {
				return r.ByThem == byThem && strings.Contains(r.Reason, "password")
			})
		}
	}
	await(t, "a to say that the password differs", blames(a, false))
	await(t, "b to say that the password differs", blames(b, true))
	await(t, "the seed to tell", func() bool { return strings.Contains(b.seed(t, a.addr).Error, "password") })
	if _, err := b.Connect(within(t), a.addr); !errors.Is(err, handshake.ErrPassword) {
		t.Errorf("Connect: %v", err)
	}
	if len(a.Known())+len(b.Known())+len(a.Peers())+len(b.Peers()) != 0 {
		t.Errorf("a stranger is a peer: %v %v %v %v", a.Known(), b.Known(), a.Peers(), b.Peers())
	}
	if got := b.Unmet(); len(got) != 1 || got[0].Addr != a.addr {
		t.Errorf("unmet %v", got)
	}
}

// TestRestart holds that a host is back soon after its start, with nothing but
// what is on its disk, and that its new records replace the old.
func TestRestart(t *testing.T) {
	t.Parallel()
	cfg := configure(t, "127.0.4.1")
	cfg.tune.staleAge = time.Second
	a := start(t, cfg)
	b := start(t, configure(t, "127.0.4.2", a.addr))
	awaitMembers(t, a, b)
	await(t, "a to be known", func() bool { return len(b.Known()) == 1 })
	must(t, b.SetFree("10.0.0.0/8", 5))
	must(t, b.SetFree("10.1.0.0/16", 5))
	await(t, "a to hear", func() bool { return a.Free("10.1.0.0/16")[b.self] == 5 })
	first := incarnationOf(t, b.store)

	b.cfg.Peers = nil
	began := time.Now()
	b = b.restart(t)
	must(t, b.SetFree("10.0.0.0/8", 6))
	awaitMembers(t, a, b)
	await(t, "a to hear the new record", func() bool { return a.Free("10.0.0.0/8")[b.self] == 6 })
	if took := time.Since(began); took > 10*time.Second { // less than a second, where other tests leave it time
		t.Errorf("took %s", took)
	}
	await(t, "a to forget the old record", func() bool { return len(a.Free("10.1.0.0/16")) == 0 })
	if next := incarnationOf(t, b.store); next <= first {
		t.Errorf("incarnation %d after %d", next, first)
	}
}

func incarnationOf(t testing.TB, s *mapStore) uint64 {
	t.Helper()
	values, err := s.Load(bucketMesh)
	must(t, err)
	return binary.BigEndian.Uint64(values[keyIncarnation])
}

// TestForgottenRun holds that a host whose incarnation went back, as from a
// backup, is heard all the same.
func TestForgottenRun(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.5.1"))
	cfg := configure(t, "127.0.5.2", a.addr)
	must(t, putIncarnation(cfg.Store, 1<<61))
	b := start(t, cfg)
	must(t, b.SetFree("10.0.0.0/8", 1))
	await(t, "a to hear", func() bool { return a.Free("10.0.0.0/8")[b.self] == 1 })

	b.cfg.Store = newStore()
	b = b.restart(t)
	must(t, b.SetFree("10.0.0.0/8", 2))
	await(t, "a to hear the host again", func() bool { return a.Free("10.0.0.0/8")[b.self] == 2 })
	await(t, "the raised incarnation to be on disk", func() bool { return incarnationOf(t, b.store) > 1<<61 })
}

// TestSeedGone holds that the cluster is found again without the host that
// everybody was told of.
func TestSeedGone(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.6.1"))
	b := start(t, configure(t, "127.0.6.2", a.addr))
	c := start(t, configure(t, "127.0.6.3", a.addr))
	awaitMembers(t, a, b, c)
	await(t, "c to be known to b", func() bool { return len(b.Known()) == 2 })
	await(t, "the seed to be met", func() bool { return b.seed(t, a.addr).Met() })
	a.stop()
	b = b.restart(t)
	awaitMembers(t, b, c)
	if len(b.Unmet()) != 0 {
		t.Errorf("a host that was met before the restart counts twice: unmet %v, known %v", b.Unmet(), b.Known())
	}
	await(t, "the seed to be taken for dead", func() bool { return !slices.Contains(b.Alive(), a.self) })
	if !slices.Contains(b.Known(), a.self) {
		t.Errorf("known %v", b.Known())
	}
}

// TestSeedReplaced holds that an address is tried again when the peer that was
// met there is gone: a host that lost its state is a new peer, and does not
// know us.
func TestSeedReplaced(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.7.1"))
	b := start(t, configure(t, "127.0.7.2", a.addr))
	awaitMembers(t, a, b)
	await(t, "the seed to be met", func() bool { return b.seed(t, a.addr).Peer == a.self })
	a.stop()
	cfg := a.cfg
	cfg.Identity, cfg.Store = testIdentity(t), newStore()
	again := start(t, cfg)
	awaitMembers(t, again, b)
	await(t, "the seed to be the new peer", func() bool { return b.seed(t, a.addr).Peer == again.self })
}

func TestSelfAsSeed(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.8.1"))
	p, err := a.Connect(within(t), a.addr)
	if err != nil || p != a.self {
		t.Fatalf("Connect to myself: %v, %v", p, err)
	}
	if s := a.seed(t, a.addr); !s.Self || s.Met() || len(a.Unmet()) != 0 {
		t.Errorf("seed %+v, unmet %v", s, a.Unmet())
	}
}

// TestConnectIsDurable holds that an address given to Connect is tried after a
// restart, when nobody was there before.
func TestConnectIsDurable(t *testing.T) {
	t.Parallel()
	b := start(t, configure(t, "127.0.9.2"))
	b.stop() // to have a free port
	a := start(t, configure(t, "127.0.9.1"))
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := a.Connect(ctx, b.addr); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Connect where nobody is: %v", err)
	}
	if got := a.Unmet(); len(got) != 1 || got[0].Addr != b.addr {
		t.Errorf("unmet %v", got)
	}
	a = a.restart(t)
	if s := a.seed(t, b.addr); !s.Added || s.Configured || s.Met() {
		t.Errorf("seed %+v", s)
	}
	b = start(t, b.cfg)
	awaitMembers(t, a, b)
	await(t, "b to be known", func() bool { return len(a.Known()) == 1 })
	must(t, a.Forget(b.addr))
	if len(a.Seeds()) != 0 || len(a.store.keys(bucketSeeds)) != 0 || len(a.Known()) != 1 {
		t.Errorf("after Forget: %v, on disk %v, known %v", a.Seeds(), a.store.keys(bucketSeeds), a.Known())
	}
}

// TestReach holds that of several addresses behind a name one is enough.
func TestReach(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.10.1"))
	b := start(t, configure(t, "127.0.10.2"))
	self, other := a.cfg.Listen, b.cfg.Listen
	silent := configure(t, "127.0.10.3").Listen
	silent = addrPort(silent.Addr(), self.Port())
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}} {
		addrs := pick(order, self, silent, other)
		if p, err := a.reach(within(t), addrs); err != nil || p != b.self {
			t.Errorf("reach %v: %v, %v", addrs, p, err)
		}
	}
	if _, err := a.reach(within(t), pick([]int{0}, self)); !errors.Is(err, handshake.ErrSelf) {
		t.Errorf("reach nobody but myself: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := a.reach(ctx, pick([]int{0, 1}, self, silent))
	if errors.Is(err, handshake.ErrSelf) || !errors.Is(err, transport.ErrNoAnswer) {
		t.Errorf("reach myself and nobody: %v", err)
	}
}

func TestAsk(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.11.1"))
	cfg := configure(t, "127.0.11.2", a.addr)
	asked := make(chan id.PeerID, 100)
	cfg.Answer = func(ctx context.Context, from id.PeerID, request []byte) ([]byte, error) {
		asked <- from
		switch string(request) {
		case "refuse":
			return nil, errors.New("not\x1b[31m you")
		case "much":
			return make([]byte, maxAsk), nil
		case "most":
			return make([]byte, maxAsk-1), nil
		case "wait":
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return request, nil
	}
	b := start(t, cfg)
	awaitMembers(t, a, b)

	got, err := a.Ask(within(t), b.self, []byte("hello"))
	if err != nil || string(got) != "hello" || <-asked != a.self {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err = a.Ask(within(t), b.self, nil); err != nil || len(got) != 0 {
		t.Errorf("empty request: %q, %v", got, err)
	}
	big := bytes.Repeat([]byte("x"), maxAsk-1)
	if got, err = a.Ask(within(t), b.self, big); err != nil || !bytes.Equal(got, big) {
		t.Errorf("largest request: %d bytes, %v", len(got), err)
	}
	if got, err = a.Ask(within(t), b.self, []byte("most")); err != nil || len(got) != maxAsk-1 {
		t.Errorf("largest answer: %d bytes, %v", len(got), err)
	}
	if _, err = a.Ask(within(t), b.self, make([]byte, maxAsk+1)); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too long a request: %v", err)
	}
	if _, err = a.Ask(within(t), b.self, []byte("much")); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too long an answer: %v", err)
	}
	_, err = a.Ask(within(t), b.self, []byte("refuse"))
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not?[31m you") || !strings.Contains(err.Error(), b.self.Short()) {
		t.Errorf("refused: %v", err)
	}
	if _, err = a.Ask(within(t), id.PeerID{9}, []byte("x")); !errors.Is(err, transport.ErrUnknownPeer) {
		t.Errorf("unknown peer: %v", err)
	}
	if _, err = b.Ask(within(t), a.self, []byte("x")); err != nil {
		t.Errorf("the other way: %v", err)
	}
}

// TestAskEnds holds that a question ends with its context, with its peer, and
// with the peer's run.
func TestAskEnds(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.12.1"))
	cfg := configure(t, "127.0.12.2", a.addr)
	asked := make(chan struct{}, 10)
	cfg.Answer = func(ctx context.Context, _ id.PeerID, _ []byte) ([]byte, error) {
		asked <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	b := start(t, cfg)
	awaitMembers(t, a, b)
	ctx, cancel := context.WithCancel(context.Background())
	answered := make(chan error)
	ask := func(ctx context.Context) {
		_, err := a.Ask(ctx, b.self, []byte("x"))
		answered <- err
	}
	go ask(ctx)
	<-asked
	cancel()
	if err := <-answered; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	go ask(context.Background())
	<-asked
	b.stop() // must not wait for the answer that never comes
	if err := <-answered; err == nil {
		t.Error("an answer from a peer that is gone")
	}
	if _, err := a.Ask(within(t), b.self, []byte("x")); err == nil {
		t.Error("an answer from a peer that is gone")
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	a := start(t, configure(t, "127.0.13.1"))
	for name, change := range map[string]func(*Config){
		"port taken":      func(c *Config) { c.Listen = a.cfg.Listen },
		"foreign address": func(c *Config) { c.Listen = addrPort(addr("192.0.2.1"), 0) },
		"bad seed":        func(c *Config) { c.Peers = []string{"nowhere"} },
		"disk":            func(c *Config) { c.Store.(*mapStore).fail(errDisk) },
		"short incarnation": func(c *Config) {
			must(t, c.Store.Apply(bucketMesh, map[string][]byte{keyIncarnation: {1}}))
		},
		"last incarnation": func(c *Config) { must(t, putIncarnation(c.Store, ^uint64(0))) },
		"bad peer":         func(c *Config) { must(t, c.Store.Apply(bucketPeers, map[string][]byte{"x": []byte("{}")})) },
		"bad peer's value": func(c *Config) {
			must(t, c.Store.Apply(bucketPeers, map[string][]byte{a.self.String(): []byte("{")}))
		},
		"bad seed's value": func(c *Config) {
			must(t, c.Store.Apply(bucketSeeds, map[string][]byte{"a:1": []byte("{")}))
		},
	} {
		cfg := configure(t, "127.0.13.2")
		change(&cfg)
		if n, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
			_ = n.Close()
		}
	}
	n, err := New(configure(t, "127.0.13.3"))
	must(t, err)
	must(t, n.Close())
}
