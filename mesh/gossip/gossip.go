// Package gossip keeps the membership of the mesh, and the replicas of shared
// state on all members the same. It runs hashicorp/memberlist over the sessions
// between peers; it opens no socket itself.
//
// Members find each other by push/pull and news as memberlist does it. It knows
// a member by its peer ID, so the addresses in its messages are placeholders;
// those a peer can be reached at stand in the member's data (Member.Candidates).
// The traffic is sealed by the sessions, so memberlist's own encryption is off.
//
// A replica is what the caller wants to be the same everywhere. It spreads in
// several ways:
//
//   - Broadcast sends a small delta to all living members at once, and hands it
//     to memberlist's broadcasts as well, for those whom the datagram missed.
//   - Where a delta does not join on (ErrGap) or is too large for a datagram,
//     the receiver pulls: it opens a sync stream, sends its digest and is
//     answered with what it lacks.
//   - Who just came tells all members at once what is its own (Announcer).
//   - Members show each other a sum over their digests: when they meet, by
//     push/pull, and about once a second by one datagram to one member. Who
//     never had that sum, and does not come to it within half a second, pulls.
//     So nothing that was lost stays lost.
//
// Dead members are shown our sum now and then, too: after a partition has
// healed that is the first to get through, and who hears from a peer that is
// not a living member joins it again.
//
// The package does not know what is in a replica, decides nothing about
// addresses or sessions, and never leaves the membership on purpose: a restart
// is no departure.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// Carrier reaches peers by ID.
type Carrier interface {
	// Send sends one datagram, or queues it until there is a session. It does
	// not keep body.
	Send(to id.PeerID, kind wire.Kind, body []byte) error
	// Dial opens a stream; the context is for the dialling only. Closing the
	// stream makes its reads and writes return.
	Dial(ctx context.Context, to id.PeerID, kind wire.StreamKind) (net.Conn, error)
}

// Replica is state that is kept the same on all members. Its methods are called
// from several goroutines, and must not wait for a call of Broadcast to return.
type Replica interface {
	// Digest says what is there. Equal contents have equal digests, and the
	// digest changes with the contents.
	Digest() []byte
	// Missing returns a delta of what the sender of a digest lacks, or nothing.
	// Of very much it may return a part: as long as merging changes the digest,
	// the other asks again.
	Missing(digest []byte) []byte
	// Merge takes in a delta and does not keep it. The error is or wraps ErrGap
	// if an earlier delta is missing: then the peer is asked for all.
	Merge(from id.PeerID, delta []byte) error
}

// Announcer is a Replica that knows what of it is our own. We tell that to all
// members when we come, so that they need not pull it.
type Announcer interface {
	// Announcement returns what is our own as deltas of at most size bytes, to be
	// merged in their order, or nothing if that is not fit for a few datagrams.
	Announcement(size int) [][]byte
}

var (
	// ErrGap is returned by a Replica that lacks what comes before a delta.
	ErrGap = errors.New("gossip: delta leaves a gap")
	// ErrSelf is returned by Join for our own ID.
	ErrSelf = errors.New("gossip: that peer is myself")
)

// Timing are the intervals of the protocol.
type Timing struct {
	Gossip       time.Duration // between rounds of memberlist's broadcasts: each wakes the process, idle or not
	Greet        time.Duration // between groups of new members that are shown our sum
	Probe        time.Duration // between probes of one member each
	ProbeTimeout time.Duration // for the answer to a direct probe
	PushPull     time.Duration // between memberlist's push/pulls
	GossipToDead time.Duration // how long memberlist itself talks to the dead
	Sum          time.Duration // between sums shown to one living member each
	Settle       time.Duration // that another's sum may differ before that is a reason to pull
	Rejoin       time.Duration // between sums shown to the dead
	Notice       time.Duration // for news of a member that we heard from already; up to twice as long, longer among more than 32
	Newcomer     time.Duration // how long we are new: new members are told what is our own, and Notice is short
	Retry        time.Duration // before a pull that failed is tried again
	IO           time.Duration // deadline for dialling, and for each step of a stream
}

// DefaultTiming is right for hosts: most members know within ten seconds that
// one is dead, and one that is cut off from all others within half a minute.
func DefaultTiming() Timing {
	return Timing{
		Gossip:       200 * time.Millisecond,
		Greet:        100 * time.Millisecond,
		Probe:        time.Second,
		ProbeTimeout: 500 * time.Millisecond,
		PushPull:     20 * time.Second,
		GossipToDead: 30 * time.Second,
		Sum:          time.Second,
		Settle:       500 * time.Millisecond,
		Rejoin:       2 * time.Second,
		Notice:       time.Second,
		Newcomer:     time.Minute,
		Retry:        time.Second,
		IO:           10 * time.Second,
	}
}

// Config is what a Gossip is made of. All of it stays unchanged after New.
type Config struct {
	Self       id.PeerID
	Nickname   string           // what is unprintable, or beyond 64 bytes, is cut off
	Candidates []netip.AddrPort // where others may reach us, see SetCandidates
	Carrier    Carrier
	Replicas   map[string]Replica // by name, of at most 32 bytes
	Events     Events             // may be nil
	Timing     Timing             // DefaultTiming if zero
	Log        *logrus.Entry
}

// Gossip is our part in the membership. Its methods are safe for concurrent
// use.
type Gossip struct {
	// Set by New and never changed.
	cfg       Config
	members   *members
	life      *lifetime
	transport *peerTransport
	pulls     *pulls
	doubts    *doubts
	rumours   *memberlist.TransmitLimitedQueue
	inbox     chan incoming
	announce  chan struct{} // buffered: tell all members to pull
	changed   chan struct{} // buffered: our sum is another
	ready     chan struct{} // closed once list and began are set
	began     time.Time
	warnings  *rate.Limiter // for what a peer could make us log

	list       atomic.Pointer[memberlist.Memberlist]
	candidates atomic.Pointer[[]netip.AddrPort]

	seenMu sync.Mutex
	seen   *seen

	joinMu  sync.Mutex
	joining map[id.PeerID]struct{} // in the background
}

// Bounds of what waits.
const (
	maxInbox   = 1024
	maxRumours = 256
	maxJoining = 64
	// greetings is how many new members are greeted in a round of gossip, and
	// how many dead ones at a time.
	greetings = 32
	// joinTime ends a join in the background.
	joinTime = 30 * time.Second
)

// New makes a Gossip; it starts nothing.
func New(cfg Config) (*Gossip, error) {
	if cfg.Timing == (Timing{}) {
		cfg.Timing = DefaultTiming()
	}
	for name := range cfg.Replicas {
		if len(name) == 0 || len(name) > maxReplicaName {
			return nil, fmt.Errorf("gossip: replica name %q: want 1 to %d bytes", name, maxReplicaName)
		}
	}
	g := &Gossip{
		cfg:      cfg,
		members:  newMembers(cfg.Self),
		life:     newLifetime(),
		inbox:    make(chan incoming, maxInbox),
		announce: make(chan struct{}, 1),
		changed:  make(chan struct{}, 1),
		doubts:   newDoubts(cfg.Timing.Settle),
		ready:    make(chan struct{}),
		seen:     newSeen(),
		joining:  map[id.PeerID]struct{}{},
		warnings: newWarnings(),
	}
	g.candidates.Store(&cfg.Candidates)
	g.transport = newPeerTransport(cfg.Self, cfg.Carrier, g.life)
	g.rumours = &memberlist.TransmitLimitedQueue{NumNodes: g.members.count, RetransmitMult: 3}
	g.pulls = &pulls{
		life: g.life, pull: g.pull, again: g.members.isAlive, failed: g.pullFailed,
		retry: cfg.Timing.Retry, stale: cfg.Timing.PushPull,
		slots:   make(chan struct{}, pullsAtOnce),
		running: map[id.PeerID]*pulling{},
		asked:   map[id.PeerID]asked{},
	}
	return g, nil
}

// Run takes part in the membership until the context is done, and then returns
// nil. It can be called once. When it returns, all goroutines of the package
// have ended; those of memberlist that wait for the answer to a probe end by
// themselves within a probe's time, and can send nothing any more.
func (g *Gossip) Run(ctx context.Context) error {
	defer g.life.wg.Wait()
	defer g.life.end()
	list, err := memberlist.Create(g.memberlistConfig())
	if err != nil {
		return fmt.Errorf("start gossip: %w", err)
	}
	g.list.Store(list)
	g.began = time.Now()
	close(g.ready)
	if g.cfg.Events != nil {
		g.life.start(func(ctx context.Context) { g.members.tell(ctx, g.cfg.Events) })
	}
	g.life.start(g.intake)
	g.life.start(g.tend)
	g.life.start(g.settle)
	<-ctx.Done()
	if err := list.Shutdown(); err != nil {
		return fmt.Errorf("stop gossip: %w", err)
	}
	return nil
}

func (g *Gossip) memberlistConfig() *memberlist.Config {
	t := g.cfg.Timing
	c := memberlist.DefaultLANConfig()
	c.Name = g.cfg.Self.String()
	c.Transport = g.transport
	c.RequireNodeNames = true
	c.Delegate = (*delegate)(g)
	c.Events = g.members
	c.Alive = g.members
	c.Logger = newLogger(g.cfg.Log)
	c.UDPBufferSize = packetSize
	c.EnableCompression = false
	// Streams take the same way as packets: a stream that gets through says
	// nothing about the datagrams that a member lives by.
	c.DisableTcpPings = true
	c.GossipInterval = t.Gossip
	c.GossipToTheDeadTime = t.GossipToDead
	c.ProbeInterval = t.Probe
	c.ProbeTimeout = t.ProbeTimeout
	c.PushPullInterval = t.PushPull
	c.TCPTimeout = t.IO
	return c
}

// SetCandidates replaces the addresses where others may reach us, at most 16 of
// which are told, the first ones. The other members hear of it with the next
// gossip. It keeps the slice. It is not to be called twice at the same time.
func (g *Gossip) SetCandidates(c []netip.AddrPort) {
	g.candidates.Store(&c)
	if list := g.list.Load(); list != nil { // else Run begins with them
		_ = list.UpdateNode(time.Millisecond) // its one error is that they were not told yet
	}
}

// Members lists the other members in the order of their IDs. Dead ones stay,
// up to a bound.
func (g *Gossip) Members() []Member { return g.members.all() }

// Join makes a peer and ourselves members of one membership: when it returns
// nil, the peer is a living member and all that it had and we had not has been
// fetched. The carrier must know how to reach the peer. Before Run has begun
// it waits.
func (g *Gossip) Join(ctx context.Context, peer id.PeerID) error {
	if peer == g.cfg.Self {
		return ErrSelf
	}
	select {
	case <-g.ready:
	case <-g.life.ctx.Done():
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := g.meet(ctx, peer); err != nil {
		return fmt.Errorf("join peer %s: %w", peer.Short(), err)
	}
	if err := g.pulls.await(ctx, peer); err != nil {
		return fmt.Errorf("join peer %s: %w", peer.Short(), err)
	}
	return nil
}

// meet does push/pulls with a peer until it is a living member. One is not
// enough where each has declared the other dead: by the first they learn what
// is said about them, by the next they tell that it is wrong.
func (g *Gossip) meet(ctx context.Context, peer id.PeerID) error {
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		if err := g.pushPull(ctx, peer); err != nil {
			return err
		}
		if g.members.isAlive(peer) {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-g.life.ctx.Done():
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pushPull exchanges memberships with a peer. memberlist does not know of
// contexts, so it does so in a goroutine.
func (g *Gossip) pushPull(ctx context.Context, peer id.PeerID) error {
	result := make(chan error, 1)
	started := g.life.start(func(context.Context) {
		_, err := g.list.Load().Join([]string{addressOf(peer)})
		result <- err
	})
	if !started {
		return ErrClosed
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// PeerReachable tells that a peer answers, for example that there is a session
// with it. If it does not become a living member within a while, it is joined in
// the background.
func (g *Gossip) PeerReachable(peer id.PeerID) {
	if peer == g.cfg.Self || g.members.isAlive(peer) {
		return
	}
	g.joinMu.Lock()
	defer g.joinMu.Unlock()
	if _, busy := g.joining[peer]; busy || len(g.joining) >= maxJoining {
		return
	}
	if g.life.start(func(ctx context.Context) { g.rejoin(ctx, peer) }) {
		g.joining[peer] = struct{}{}
	}
}

// notice is how long to wait for news of a member that we hear from: gossip needs
// rounds by the logarithm of the members' number. Who is new itself does not wait
// so long: where all start at once, to meet is what spreads news. It is random, so
// that not all rejoin at once.
func (g *Gossip) notice() time.Duration {
	d := g.cfg.Timing.Notice
	if !g.young() {
		d = time.Duration(float64(d) * max(1, math.Log2(float64(g.members.count()))/5))
	}
	return d + rand.N(d+1)
}

// young tells whether we began not long ago, or not yet.
func (g *Gossip) young() bool {
	select {
	case <-g.ready:
		return time.Since(g.began) < g.cfg.Timing.Newcomer
	default:
		return true
	}
}

// rejoin joins a peer that we hear from, unless it joins somebody else: of a new
// member all hear sooner than they are told of it, and must not all exchange all
// with it.
func (g *Gossip) rejoin(ctx context.Context, peer id.PeerID) {
	defer func() {
		g.joinMu.Lock()
		defer g.joinMu.Unlock()
		delete(g.joining, peer)
	}()
	if !pause(ctx, g.notice()) || g.members.isAlive(peer) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	if err := g.Join(ctx, peer); err != nil {
		g.cfg.Log.WithField("peer", peer.Short()).WithError(err).Debug("peer was not joined")
	}
}
