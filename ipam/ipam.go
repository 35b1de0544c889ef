// Package ipam gives out pools and addresses to Docker so that no address of a
// pool is ever in use twice among all peers.
//
// Each pool has a ring (package ring) that says which peer owns which range. A
// peer leases from its own ranges without a message; when they are full it asks
// other owners for part of theirs. The first ring of a pool is agreed upon by
// Paxos (package paxos). Whatever an answer promises is in the Store before the
// answer leaves; what cannot be stored is refused, and memory stays as it was.
//
// Who holds what: one mutex guards all state and is never held while peers are
// asked or the Cluster is told. Each pool has besides a turn, held by the one
// request that asks peers about that pool; the others wait and then see what it
// brought. Leases from own space need no turn.
//
// Two clusters that each made a ring for one pool and then meet end with that of
// the smaller seed. Leases that lie outside the own ranges then, or for another
// reason, stay with their containers and are claimed from the owners; what
// another container holds too is a Clash. Ranges of a peer that people declare
// gone (RemovePeer) go to one heir, on which the others agree, once all of them
// have told it what they were given.
//
// Hosts that join do not all know the same peers, and majorities of different
// sets need not meet. So a round of Paxos names its electors, all peers that its
// proposer has heard of, and needs a majority of them. An acceptor neither
// promises nor votes if it has heard of more, but names them, and the round
// begins anew with them; else it keeps the electors, on disk with its promise.
// Let Q be the majority of electors E that voted for a value, and Q' that of E'
// which promised a later ballot. They share an acceptor, so the value stands, if
// E = E', or if one is the other and one peer more. If they share none, then E
// and E' differ by two peers or more, nobody in Q had heard of those beyond E,
// and none of Q took part in the later round: a few hosts, cut off from the rest,
// let in more than they were, or two groups never heard of each other and lost
// whom both had met. Those are clusters apart, and merge as such; so does a host
// that has met nobody and is told of nobody: it is its own majority.
//
// The package does not talk to Docker or the network, does not decide that a
// peer is gone, and does not stop or move a container.
package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"weave/ipam/paxos"
	"weave/ipam/ring"
)

// Limits of time and size.
const (
	patience    = 8 * time.Second // for all that one request asks of peers: Docker must not hang
	askTimeout  = 2 * time.Second // for one peer
	settleEvery = 5 * time.Second
	maxPools    = 1 << 14
	maxMessage  = 8 << 20  // bytes of a request or answer between peers
	maxDelta    = 64 << 20 // bytes of gossip
)

// Store keeps state. Apply is atomic and on disk when it returns; a nil value
// deletes.
type Store interface {
	Load(bucket string) (map[string][]byte, error)
	Apply(bucket string, changes map[string][]byte) error
}

// Cluster reaches the other peers. All methods are safe for concurrent use and
// return at once, except Ask, which honours its context.
type Cluster interface {
	Known() []ring.Peer // all peers ever met, alive or not
	Alive() []ring.Peer
	Unmet() []string // configured peers never reached yet
	Ask(ctx context.Context, to ring.Peer, req []byte) ([]byte, error)
	Broadcast(delta []byte)
	Name(p ring.Peer) string // for people; may be empty
	SetFree(pool netip.Prefix, free uint64)
	Free(pool netip.Prefix) map[ring.Peer]uint64 // what the others have set
}

// Config is what an Allocator needs. All functions are called without a lock held
// and must be safe for concurrent use; they return soon, and do not wait for Run
// to end or for an address.
type Config struct {
	Self    ring.Peer
	Range   netip.Prefix // IPv4; pools that nobody chose come from here
	Store   Store
	Cluster Cluster
	Busy    func() ([]netip.Prefix, error) // prefixes that this host's routes use
	InUse   func(netip.Prefix) bool        // whether a segment anywhere in the cluster overlaps the prefix
	Log     *logrus.Entry

	// What follows may be nil.

	// Held says whose container has an address, removed peers included, as far
	// as has been announced. An address that another peer's container has is
	// leased or given to nobody but that peer.
	Held func(pool netip.Prefix, addr netip.Addr) (ring.Peer, bool)
	// Holders lists all that Held tells of a pool. Without it, RemovePeer names
	// no held addresses, and gifts of ranges may contain some.
	Holders func(pool netip.Prefix) map[netip.Addr]ring.Peer
	// Gone says that the containers of a removed peer are gone, or announced
	// under another name. Until then, what it had announced is not given out.
	Gone func(p ring.Peer) bool
	// OnClash tells that the lease of addr here has become a Clash. Those that
	// were known before the start are not told again: see Clashes.
	OnClash func(pool netip.Prefix, addr netip.Addr)
	// OnRemoved tells, once, that this peer was removed. No address is leased
	// or given from then on. A new Allocator with a new Self over the same
	// Store keeps leases and pools, and claims the addresses anew.
	OnRemoved func()
}

// Kind says what an address is requested for.
type Kind string

// A lease is of one endpoint. Gateways and other reserved addresses are shared:
// each peer may hold the same one, and no endpoint gets it.
const (
	KindLease    Kind = "lease"
	KindGateway  Kind = "gateway"
	KindReserved Kind = "reserved"
)

// Allocator is the IPAM of one peer. All methods are safe for concurrent use.
type Allocator struct {
	cfg          Config
	patience     time.Duration
	askTimeout   time.Duration
	tidyTokens   int
	scarceTokens int
	manyTokens   int
	tidyDecrees  int

	wakeup   chan struct{} // there is work for Run
	removing chan struct{} // holds one token; taken while peers agree on an heir
	stored   identity      // as it is on disk
	lost     []string      // on the way through New: keys of what a former name's ranges had
	former   []ring.Peer   // whom this peer was before it was removed, the latest first

	mu        sync.Mutex // guards all below and what pools say it guards
	pools     map[netip.Prefix]*pool
	handles   map[string]handle
	acceptors map[string]paxos.State // by decree
	floor     uint64                 // of the ballots of all others
	electors  []ring.Peer            // of all rounds that this peer ever had part in; sorted
	removed   removed
	stale     *stale // nil unless this peer's disk is too old
	serial    uint64 // the last Serial that was used; up to serials may be, without another write
	serials   uint64
	told      map[ring.Peer]bool                    // heirs' work: who has told its rings since the last removal
	awaited   []ring.Peer                           // who had not, when it was last tried
	inherited map[ring.Peer]map[netip.Prefix]uint64 // addresses taken over since the start
	picked    map[netip.Prefix]bool                 // fresh pools on their way to a handle
	changed   map[netip.Prefix]bool                 // pools whose free space the Cluster must hear of
	deltas    []gossip                              // changes to broadcast
	clashes   []place                               // to tell
	farewell  bool                                  // OnRemoved was called
	flushing  bool
}

// place is an address of a pool.
type place struct {
	pool netip.Prefix
	addr netip.Addr
}

// New loads the state. What is there but cannot be right is an error that names
// bucket and key: nothing is guessed or reset.
func New(cfg Config) (*Allocator, error) {
	if !cfg.Range.Addr().Is4() || checkPrefix(cfg.Range) != nil {
		return nil, fmt.Errorf("address range %s: want an IPv4 prefix from /%d to /%d: %w", cfg.Range, minBits4, maxBits4, ErrInvalid)
	}
	a := &Allocator{
		cfg:        cfg,
		patience:   patience,
		askTimeout: askTimeout,
		tidyTokens: tidyTokens, scarceTokens: scarceTokens, manyTokens: manyTokens, tidyDecrees: tidyDecrees,
		pools:     map[netip.Prefix]*pool{},
		handles:   map[string]handle{},
		acceptors: map[string]paxos.State{},
		removed:   removed{},
		told:      map[ring.Peer]bool{},
		inherited: map[ring.Peer]map[netip.Prefix]uint64{},
		wakeup:    make(chan struct{}, 1),
		removing:  make(chan struct{}, 1),
		picked:    map[netip.Prefix]bool{},
		changed:   map[netip.Prefix]bool{},
	}
	if err := a.load(); err != nil {
		return nil, err
	}
	return a, nil
}

// Run tells the Cluster about free space and, until ctx ends, settles whatever
// could not be done at once because peers were out of reach.
func (a *Allocator) Run(ctx context.Context) error {
	a.mu.Lock()
	for prefix := range a.pools {
		a.changed[prefix] = true
	}
	a.mu.Unlock()
	ticker := time.NewTicker(settleEvery)
	defer ticker.Stop()
	for {
		a.Settle(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-a.wakeup:
		}
	}
}

// Settle does once what Run does again and again: it takes over what this peer
// inherits, claims unbacked leases, brings reservations of shared addresses into
// line with their owners, and tidies rings.
func (a *Allocator) Settle(ctx context.Context) {
	a.flush()
	for _, err := range []error{a.adoptOrphans(ctx), a.takeOver(ctx)} {
		if err != nil {
			a.cfg.Log.WithError(err).Warn("ranges of removed peers are still without an owner")
		}
	}
	if err := a.keepHeld(); err != nil {
		a.cfg.Log.WithError(err).Warn("a restart would forget what containers of removed peers hold")
	}
	a.claimAll(ctx)
	for _, p := range a.allPools() {
		a.settleSoon(ctx, p)
		if err := a.tidy(p); err != nil {
			a.cfg.Log.WithError(err).WithField("pool", p.prefix).Warn("the ring of a pool is not tidied")
		}
	}
}

// wake has Run settle at once.
func (a *Allocator) wake() {
	select {
	case a.wakeup <- struct{}{}:
	default: // it is to wake up already
	}
}

func (a *Allocator) allPools() []*pool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sorted()
}

// mayLease refuses once this peer is removed, or its disk too old. a.mu is held.
func (a *Allocator) mayLease() error {
	switch {
	case a.isRemoved(a.cfg.Self):
		return ErrRemoved
	case a.stale != nil:
		return a.stale.err()
	}
	return nil
}

// ownerOf is the owner of addr, or who inherits from it. a.mu is held.
func (a *Allocator) ownerOf(p *pool, addr netip.Addr) ring.Peer {
	owner := p.owner(addr)
	if heir, _ := a.heirOf(owner); heir != "" {
		return heir
	}
	return owner
}

// flush tells the Cluster and others what changed, without a.mu, in order, and
// by one goroutine at a time; a change made meanwhile goes out with the same
// call. Whoever changes state defers it before locking.
func (a *Allocator) flush() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.flushing {
		return
	}
	a.flushing = true
	for {
		n := a.takeNews()
		if n.empty() {
			break
		}
		a.mu.Unlock()
		a.tell(n)
		a.mu.Lock()
	}
	a.flushing = false
}

// news is what others must hear.
type news struct {
	deltas  []gossip
	free    map[netip.Prefix]uint64
	clashes []place
	removed bool
}

func (n news) empty() bool { return len(n.deltas)+len(n.free)+len(n.clashes) == 0 && !n.removed }

// takeNews is what has not been told. a.mu is held.
func (a *Allocator) takeNews() news {
	n := news{deltas: a.deltas, clashes: a.clashes, free: map[netip.Prefix]uint64{}}
	n.removed = a.isRemoved(a.cfg.Self) && !a.farewell
	for prefix := range a.changed {
		if count, changed := a.pools[prefix].unpublished(); changed {
			n.free[prefix] = count
		}
	}
	a.deltas, a.clashes, a.farewell = nil, nil, a.farewell || n.removed
	clear(a.changed)
	return n
}

func (a *Allocator) tell(n news) {
	for _, delta := range n.deltas {
		a.cfg.Cluster.Broadcast(encode(delta))
	}
	for prefix, count := range n.free {
		a.cfg.Cluster.SetFree(prefix, count)
	}
	for _, c := range n.clashes {
		if a.cfg.OnClash != nil {
			a.cfg.OnClash(c.pool, c.addr)
		}
	}
	if n.removed && a.cfg.OnRemoved != nil {
		a.cfg.OnRemoved()
	}
}

func (a *Allocator) name(p ring.Peer) string {
	if name := a.cfg.Cluster.Name(p); name != "" {
		return name
	}
	return printable(string(p), maxName)
}
