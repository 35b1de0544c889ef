// Package mesh makes one cluster of the hosts that share a password: it finds
// peers, keeps sealed sessions with them, spreads what each host announces and
// carries Ethernet frames between their segments.
//
// Node is the facade that the plugin uses. It owns the parts below and joins
// them:
//
//	transport   sealed datagrams and streams to peers by ID
//	gossip      membership, and the spreading of replicas
//	state       the records that peers publish: endpoints, segments, free space
//	tunnel      TAP <-> sealed datagrams, one goroutine a segment
//	vxlan       the fast path: the kernel carries frames, if there is no password
//	lan         finds peers on the same LAN, if that is wanted
//
// The package knows nothing of Docker, of bridges, or of who gets which
// address: it names its TAP, and others plug that into a bridge.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"weave/mesh/gossip"
	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/lan"
	"weave/mesh/state"
	"weave/mesh/transport"
	"weave/mesh/tunnel"
	"weave/mesh/vxlan"
	"weave/mesh/wire"
)

// Store keeps what must outlive the process. Apply is atomic, and on disk when
// it returns; a nil value deletes a key.
type Store interface {
	Load(bucket string) (map[string][]byte, error)
	Apply(bucket string, changes map[string][]byte) error
}

// Replica is state that gossip keeps the same on all peers; see gossip.Replica.
type Replica = gossip.Replica

// Config is what a Node is made of. All of it stays unchanged after New.
type Config struct {
	Identity id.Identity
	Password []byte
	Nickname string
	Listen   netip.AddrPort // UDP and TCP
	// Advertise are our addresses on the underlay, told to others. VXLAN runs on
	// the first one, and so between hosts whose first ones are of one family.
	Advertise []netip.Addr
	Peers     []string // host:port to connect to
	// VXLANPort is the UDP port of the fast path, the same on all hosts; 0 for
	// none. It counts only if there is no password.
	VXLANPort uint16
	// TCPPort and Proxy are for hosts behind firewalls; see transport.Config.
	TCPPort   uint16
	Proxy     *url.URL
	Discovery Discovery
	Store     Store
	Log       *logrus.Entry

	// Replicas are spread beside the Node's own records, by name.
	Replicas map[string]Replica
	// Answer serves what a peer asks by Ask. It is called from many goroutines.
	Answer func(ctx context.Context, from id.PeerID, request []byte) ([]byte, error)
	// Changed is called after notes or endpoints of any host have changed, or who
	// is alive. It is optional, must not block, and is called from many goroutines.
	Changed func()

	tune tuning
}

// tuning holds what only tests set differently.
type tuning struct {
	keys          *handshake.Keys // of Password
	gossip        gossip.Timing   // DefaultTiming if zero
	seedInterval  time.Duration
	namesInterval time.Duration
	staleAge      time.Duration
	lookup        lookup // systemLookup if nil
}

func (t *tuning) complete() {
	if t.seedInterval == 0 {
		t.seedInterval = seedInterval
	}
	if t.namesInterval == 0 {
		t.namesInterval = namesInterval
	}
	if t.staleAge == 0 {
		t.staleAge = staleAge
	}
	if t.lookup == nil {
		t.lookup = systemLookup
	}
}

// Node is one peer of the mesh. Its methods are safe for concurrent use.
//
// Locks, in the order in which they are taken: publish, mu, those of the tunnel
// and the fast path.
// Those of seeds and known are held over the disk, and nothing is taken under
// them.
type Node struct {
	// Set by New and never changed.
	cfg       Config
	log       *logrus.Entry
	transport *transport.Transport
	gossip    *gossip.Gossip
	tunnel    *tunnel.Tunnel
	fast      *vxlan.Switch
	lan       *lan.Announcer // nil: nobody is looked for on the LAN
	seeds     *seeds
	known     *known
	routes    *routes
	raised    chan struct{} // buffered: announceAgain is due
	rechecked chan struct{} // buffered: checkSegments is due

	life context.Context // that of Run, set before anything runs; for what peers ask

	// publish keeps our deltas in the order of their versions: it is held from
	// the change of a record to the end of its broadcast.
	publish sync.Mutex

	mu       sync.Mutex
	records  *state.Table
	index    *index              // of records
	segments map[string]*segment // the segments this host is on
}

// ErrNoSegment is returned for a segment this host is not on.
var ErrNoSegment = errors.New("this host is not on the segment")

// replicaRecords names the Node's own records among the replicas.
const replicaRecords = "records"

// Overhead is what the MTU of a new segment is to stay below that of the underlay,
// for the way that its frames will take. A frame that takes the tunnel although
// it has none of the room that this needs is sent in two fragments.
func (c Config) Overhead() int {
	if c.noFast() == "" {
		return vxlan.Overhead(c.main())
	}
	return wire.TunnelOverhead
}

// main is our first address on the underlay; not valid if there is none.
func (c Config) main() netip.Addr {
	if len(c.Advertise) == 0 {
		return netip.Addr{}
	}
	return c.Advertise[0].Unmap()
}

// New binds the port and builds the parts. Run starts them; a Node that is
// never run must be closed.
func New(cfg Config) (*Node, error) {
	cfg.tune.complete()
	n := &Node{
		cfg: cfg, log: cfg.Log,
		index:     newIndex(),
		routes:    newRoutes(),
		segments:  map[string]*segment{},
		raised:    make(chan struct{}, 1),
		rechecked: make(chan struct{}, 1),
	}
	incarnation, err := nextIncarnation(cfg.Store, time.Now())
	if err != nil {
		return nil, err
	}
	n.records = state.New(cfg.Identity.ID, incarnation)
	if n.known, err = loadKnown(cfg.Store, cfg.Identity.ID); err != nil {
		return nil, err
	}
	if n.seeds, err = loadSeeds(cfg.Store, cfg.Peers); err != nil {
		return nil, err
	}
	n.tunnel = tunnel.New(tunnel.Config{Self: cfg.Identity.ID, Links: links{n}, Log: cfg.Log, Clock: time.Now})
	if n.transport, err = transport.New(n.transportConfig(incarnation)); err != nil {
		return nil, fmt.Errorf("bind %s: %w", cfg.Listen, err)
	}
	n.fast = n.newFast()
	n.lan = n.newLAN()
	if n.gossip, err = gossip.New(n.gossipConfig()); err != nil {
		_ = n.transport.Close()
		return nil, fmt.Errorf("start gossip: %w", err)
	}
	if err := n.loadGone(); err != nil {
		_ = n.transport.Close()
		return nil, err
	}
	return n, nil
}

// Close gives the port of a Node back that is not run.
func (n *Node) Close() error { return n.transport.Close() }

func (n *Node) transportConfig(incarnation uint64) transport.Config {
	return transport.Config{
		Identity: n.cfg.Identity, Password: n.cfg.Password, Keys: n.cfg.tune.keys, Nickname: n.cfg.Nickname,
		Incarnation: incarnation, Listen: n.cfg.Listen, Advertise: n.cfg.main(), Log: n.log,
		TCPPort: n.cfg.TCPPort, Proxy: n.cfg.Proxy, NoDiscovery: n.cfg.Discovery == DiscoverNone,
		Packet: n.packet,
		Frames: n.tunnel,
		Stream: n.stream,
		PeerUp: func(p id.PeerID) { n.gossip.PeerReachable(p) },
		Next:   n.routes.next,
		Linked: n.routes.change,
	}
}

func (n *Node) gossipConfig() gossip.Config {
	replicas := map[string]Replica{replicaRecords: recordsReplica{n}}
	for name, r := range n.cfg.Replicas {
		replicas[name] = r
	}
	return gossip.Config{
		Self: n.cfg.Identity.ID, Nickname: n.cfg.Nickname, Candidates: n.candidates(),
		Carrier: n.transport, Replicas: replicas, Events: membership{n}, Timing: n.cfg.tune.gossip, Log: n.log,
	}
}

// candidates are the underlay addresses that others may reach us at: our own, and
// those of the NATs before us as far as peers have told.
func (n *Node) candidates() []netip.AddrPort {
	own := n.ownAddresses()
	_, outside := behind(own, n.transport.Seen())
	return append(own, outside...)
}

// ownAddresses are those of Advertise, each with our port.
func (n *Node) ownAddresses() (own []netip.AddrPort) {
	for _, a := range n.cfg.Advertise {
		own = append(own, netip.AddrPortFrom(a.Unmap(), n.transport.Port()))
	}
	return own
}

// Run runs all parts until ctx ends or one of them fails. TAPs and VXLAN devices
// stay, so that the next run takes them over. It can be called once.
func (n *Node) Run(ctx context.Context) error {
	for _, p := range n.known.list() {
		kp, _ := n.known.get(p)
		n.lookFor(p, kp.Candidates)
	}
	g, ctx := errgroup.WithContext(ctx)
	n.life = ctx
	g.Go(func() error { return n.transport.Run(ctx) })
	g.Go(func() error { return n.gossip.Run(ctx) })
	g.Go(func() error { return n.tunnel.Run(ctx) })
	g.Go(func() error { return n.fast.Run(ctx) })
	g.Go(func() error { return n.seedLoop(ctx) })
	if n.lan != nil {
		g.Go(func() error { n.lan.Run(ctx); return nil })
	}
	g.Go(func() error { return n.tend(ctx) })
	g.Go(func() error { return n.routeLoop(ctx) })
	if err := g.Wait(); err != nil {
		return fmt.Errorf("run mesh: %w", err)
	}
	return nil
}

// packet takes small items from the transport's receive goroutine.
func (n *Node) packet(from id.PeerID, kind wire.Kind, body []byte) {
	switch kind {
	case wire.KindGossip:
		n.gossip.HandlePacket(from, body)
	case wire.KindRecords:
		n.gossip.HandleRecords(from, body)
	case wire.KindReport:
		n.fast.Heard(from, body)
	}
}

// stream serves what a peer opened.
func (n *Node) stream(from id.PeerID, kind wire.StreamKind, c net.Conn) {
	switch kind {
	case wire.StreamGossip:
		n.gossip.HandleStream(from, c)
	case wire.StreamSync:
		n.gossip.HandleSync(from, c)
	case wire.StreamAsk:
		if err := n.serveAsk(from, c); err != nil {
			n.log.WithField("peer", from.Short()).WithError(err).Debug("a peer's request failed")
		}
	default:
		_ = c.Close() // of a later version
	}
}

// How often tend looks after things.
const (
	greetEvery = 5 * time.Second
	pruneEvery = time.Minute
)

// tend does what time brings.
func (n *Node) tend(ctx context.Context) error {
	greet := time.NewTicker(greetEvery)
	defer greet.Stop()
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.raised:
			n.announceAgain()
		case <-n.rechecked:
			n.checkSegments()
		case <-greet.C:
			n.greet()
			n.dropStale()
			if err := n.known.save(); err != nil {
				n.log.WithError(err).Error("peers are not on disk: a restart would forget them")
			}
		case now := <-prune.C:
			n.mu.Lock()
			n.records.Prune(now, tombstoneAge)
			n.mu.Unlock()
		}
	}
}

// greet makes members of peers that have a session and did not become any when
// it came up: their streams were blocked, or too many came at once.
func (n *Node) greet() {
	for _, p := range n.transport.Peers() {
		if p.State == transport.StateUp {
			n.gossip.PeerReachable(p.ID)
		}
	}
}

// links gives the tunnel its way to peers.
type links struct{ n *Node }

// Link implements tunnel.Links. A nil *transport.Link must become a nil
// interface.
func (l links) Link(p id.PeerID) tunnel.Link {
	if link := l.n.transport.Link(p); link != nil {
		return link
	}
	return nil
}

// membership takes gossip's events.
type membership struct{ n *Node }

// Up implements gossip.Events.
func (m membership) Up(x gossip.Member) {
	m.n.log.WithFields(logrus.Fields{"peer": x.ID.Short(), "nickname": x.Nickname}).Info("peer joined")
	m.remember(x)
	m.n.routes.change()
	m.n.tell(kindEndpoint)
}

// Update implements gossip.Events.
func (m membership) Update(x gossip.Member) { m.remember(x) }

// Down implements gossip.Events.
func (m membership) Down(x gossip.Member) {
	m.n.log.WithFields(logrus.Fields{"peer": x.ID.Short(), "nickname": x.Nickname}).Warn("peer does not answer")
	if link := m.n.transport.Link(x.ID); link != nil {
		link.Watch() // perhaps only the way there is gone, and another is to be found
	}
	m.n.routes.change()
	m.n.tell(kindEndpoint)
}

func (m membership) remember(x gossip.Member) {
	m.n.lookFor(x.ID, x.Candidates)
	if err := m.n.known.remember(x.ID, knownPeer{Nickname: x.Nickname, Candidates: x.Candidates}); err != nil {
		m.n.log.WithField("peer", x.ID.Short()).WithError(err).Error("a peer is not on disk: a restart would forget it")
	}
}
