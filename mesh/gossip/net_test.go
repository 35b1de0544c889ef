package gossip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"weave/mesh/id"
	"weave/mesh/state"
	"weave/mesh/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quick is a Timing for tests on a busy machine.
func quick() Timing {
	return Timing{
		Gossip:       10 * time.Millisecond,
		Greet:        10 * time.Millisecond,
		Probe:        60 * time.Millisecond,
		ProbeTimeout: 30 * time.Millisecond,
		PushPull:     300 * time.Millisecond,
		GossipToDead: 200 * time.Millisecond,
		Sum:          40 * time.Millisecond,
		Settle:       20 * time.Millisecond,
		Rejoin:       50 * time.Millisecond,
		Notice:       10 * time.Millisecond,
		Newcomer:     time.Minute,
		Retry:        20 * time.Millisecond,
		IO:           5 * time.Second,
	}
}

// never disables what a Timing repeats, but for dialling and retries.
func never() Timing {
	t := quick()
	t.Gossip, t.Probe, t.PushPull, t.Sum, t.Rejoin = time.Hour, time.Hour, time.Hour, time.Hour, time.Hour
	t.Greet = time.Hour
	return t
}

// network carries datagrams and streams between nodes in memory.
type network struct {
	t  *testing.T
	wg sync.WaitGroup // handlers of streams

	mu       sync.Mutex
	nodes    map[id.PeerID]*node
	loss     float64
	cut      func(a, b id.PeerID) bool
	loud     bool // sending without a route is an error, not a loss
	conns    map[net.Conn][2]id.PeerID
	syncs    map[id.PeerID]int                                     // sync streams opened, by who did
	meetings int                                                   // streams opened for memberlist
	heard    func(from, to id.PeerID, kind wire.Kind, body []byte) // of each datagram; may be nil
}

func newNetwork(t *testing.T) *network {
	n := &network{
		t: t, nodes: map[id.PeerID]*node{}, conns: map[net.Conn][2]id.PeerID{}, syncs: map[id.PeerID]int{},
		cut: func(a, b id.PeerID) bool { return false },
	}
	t.Cleanup(n.wg.Wait)
	return n
}

// partition cuts the network between two groups, and all streams across.
func (n *network) partition(cut func(a, b id.PeerID) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = cut
	for c, ends := range n.conns {
		if cut(ends[0], ends[1]) {
			_ = c.Close()
		}
	}
}

func (n *network) heal() { n.partition(func(a, b id.PeerID) bool { return false }) }

func (n *network) setLoss(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = share
}

// route returns the node at the other end, or nil.
func (n *network) route(from, to id.PeerID) *node {
	if n.cut(from, to) || n.nodes[from] == nil {
		return nil
	}
	return n.nodes[to]
}

// port is one node's Carrier.
type port struct {
	net  *network
	self id.PeerID
}

var errNoRoute = errors.New("no route")

func (p port) Send(to id.PeerID, kind wire.Kind, body []byte) error {
	if len(body) > packetSize+16 {
		return fmt.Errorf("datagram of %d bytes", len(body))
	}
	p.net.mu.Lock()
	peer := p.net.route(p.self, to)
	lost := rand.Float64() < p.net.loss
	loud := p.net.loud
	heard := p.net.heard
	p.net.mu.Unlock()
	if peer == nil && loud {
		return errNoRoute
	}
	if peer == nil || lost {
		return nil
	}
	if heard != nil {
		heard(p.self, to, kind, body)
	}
	b := append([]byte(nil), body...)
	switch kind {
	case wire.KindGossip:
		peer.g.HandlePacket(p.self, b)
	case wire.KindRecords:
		peer.g.HandleRecords(p.self, b)
	default:
		return fmt.Errorf("kind %d", kind)
	}
	clear(b) // the buffer is used again
	return nil
}

func (p port) Dial(_ context.Context, to id.PeerID, kind wire.StreamKind) (net.Conn, error) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	peer := p.net.route(p.self, to)
	if peer == nil {
		return nil, errNoRoute
	}
	ours, theirs := net.Pipe()
	p.net.conns[ours] = [2]id.PeerID{p.self, to}
	handle := peer.g.HandleStream
	if kind == wire.StreamSync {
		handle = peer.g.HandleSync
		p.net.syncs[p.self]++
	} else {
		p.net.meetings++
	}
	p.net.wg.Go(func() {
		handle(p.self, theirs)
		p.net.mu.Lock()
		defer p.net.mu.Unlock()
		delete(p.net.conns, ours)
	})
	return ours, nil
}

// table is a Replica of records, as the mesh's Node makes one.
type table struct {
	mu      sync.Mutex
	t       *state.Table
	changes int
}

func (r *table) Digest() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.t.Digest()
}

func (r *table) Missing(digest []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	delta, err := r.t.Missing(digest)
	if err != nil {
		return nil
	}
	return delta
}

func (r *table) Merge(_ id.PeerID, delta []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	res, err := r.t.Merge(delta, time.Now())
	r.changes += len(res.Changes)
	if err == nil && res.Gap {
		return ErrGap
	}
	return err
}

// announcing is a table that is announced.
type announcing struct{ *table }

// Announcement implements Announcer.
func (r announcing) Announcement(size int) [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.t.AnnounceIn(size, 4)
}

func (r *table) get(owner id.PeerID, key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, _ := r.t.Get(owner, "k", key)
	return string(rec.Value)
}

func (r *table) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.t.All("k"))
}

// watcher keeps the events of a node.
type watcher struct {
	mu  sync.Mutex
	log []string
}

func (w *watcher) add(what string, m Member) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, what+" "+m.Nickname)
}

func (w *watcher) Up(m Member)     { w.add("up", m) }
func (w *watcher) Down(m Member)   { w.add("down", m) }
func (w *watcher) Update(m Member) { w.add("update", m) }

func (w *watcher) events() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.log...)
}

// node is one member with one replica.
type node struct {
	net     *network
	id      id.PeerID
	g       *Gossip
	records *table
	watch   *watcher
	stop    func()
}

type option func(*Config)

func (n *network) start(i int, incarnation uint64, options ...option) *node {
	n.t.Helper()
	peer := id.PeerID{byte(i), 15: byte(i)}
	x := &node{
		net: n, id: peer, watch: &watcher{},
		records: &table{t: state.New(peer, incarnation)},
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	cfg := Config{
		Self: peer, Nickname: fmt.Sprintf("host%d", i),
		Candidates: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 6783)},
		Carrier:    port{n, peer},
		Replicas:   map[string]Replica{"records": x.records},
		Events:     x.watch, Timing: quick(), Log: logrus.NewEntry(log),
	}
	for _, o := range options {
		o(&cfg)
	}
	var err error
	if x.g, err = New(cfg); err != nil {
		n.t.Fatal(err)
	}
	n.mu.Lock()
	n.nodes[peer] = x
	n.mu.Unlock()

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.g.Run(ctx) }()
	<-x.g.ready
	x.stop = sync.OnceFunc(func() {
		n.mu.Lock()
		if n.nodes[peer] == x {
			delete(n.nodes, peer)
		}
		n.mu.Unlock()
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("Run: %v", err)
		}
	})
	n.t.Cleanup(x.stop)
	return x
}

// cluster starts nodes 1 to count and joins each to the first.
func (n *network) cluster(count int, options ...option) []*node {
	n.t.Helper()
	var out []*node
	for i := range count {
		x := n.start(i+1, 1, options...)
		out = append(out, x)
		if i > 0 {
			x.join(out[0])
		}
	}
	eventually(n.t, "all are members", func() bool { return allAlive(out, count-1) })
	return out
}

func (x *node) join(to *node) {
	x.net.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := x.g.Join(ctx, to.id); err != nil {
		x.net.t.Fatalf("Join: %v", err)
	}
}

// write writes a record and tells nobody.
func (x *node) write(key, value string) (delta []byte) {
	x.net.t.Helper()
	x.records.mu.Lock()
	defer x.records.mu.Unlock()
	delta, err := x.records.t.Set("k", key, []byte(value))
	if err != nil {
		x.net.t.Fatal(err)
	}
	return delta
}

// set writes a record and broadcasts it.
func (x *node) set(key, value string) {
	x.net.t.Helper()
	x.g.Broadcast("records", x.write(key, value))
}

func (x *node) living() int { return len(x.g.members.in(Alive)) }

func allAlive(nodes []*node, count int) bool {
	for _, x := range nodes {
		if x.living() != count {
			return false
		}
	}
	return true
}

// equal tells whether all nodes hold the same records.
func equal(nodes []*node) bool {
	for _, x := range nodes[1:] {
		if string(x.records.Digest()) != string(nodes[0].records.Digest()) {
			return false
		}
	}
	return true
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
