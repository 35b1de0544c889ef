package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"weave/ipam"
	"weave/ipam/ring"
)

// host is a machine. Its Docker outlives the plugin; the peer is who the plugin
// is as long as its state is not lost. Guarded by world.mu.
type host struct {
	number int
	peer   *peer
	proc   *process // nil while the plugin is down
	docker *docker
	lives  int // identities so far
	starts int
	downAt *memory // what the last process knew when it was killed, if known
}

func (h *host) String() string { return fmt.Sprintf("host%d", h.number) }

// peer is an identity with what is on disk under it.
type peer struct {
	id     ring.Peer
	number uint64 // in the order in which peers came to be
	host   *host
	proc   *process // nil while it does not run, and for ever once its state is wiped
	disk   *disk
	left   map[seeded]*ring.Ring // rings that gave way to one of another seed, as last stored
	known  map[ring.Peer]bool
	unmet  map[int]bool // configured hosts that it has not reached yet
	own    *records
	wiped  bool              // its state is lost for ever
	ghosts map[key]ring.Peer // whose container had an address when this peer inherited it
	until  time.Time         // when it died, or the last of its messages arrives
}

// process is one run of the plugin: it dies with a crash, and nothing that it
// does afterwards has any effect.
type process struct {
	w      *world
	host   *host
	peer   *peer
	self   ring.Peer
	alloc  *ipam.Allocator
	ctx    context.Context
	cancel context.CancelFunc
	rng    *rand.Rand // of its gossip; used by that goroutine only
	seen   *view      // what the last check saw; used by the driving goroutine only

	// Guarded by world.mu.
	dead      bool
	removed   bool                       // and it knows
	calls     map[int]context.CancelFunc // of Docker, under way
	dieIn     int                        // writes until it dies; 0: not planned
	alive     map[ring.Peer]bool
	views     map[ring.Peer]*records // the gossiped tables of all peers
	viewsSent bool                   // the table is shared with messages under way
	digests   struct {
		writes int
		value  []byte
	}
}

// memory is what an Allocator knows, and must know again after a crash.
type memory struct {
	digest []byte
	leases []ipam.Lease
}

func remember(a *ipam.Allocator) *memory {
	m := &memory{a.Digest(), a.Leases()}
	for i := range m.leases {
		m.leases[i].Since = time.Time{}
	}
	return m
}

func (m *memory) equal(o *memory) bool {
	return bytes.Equal(m.digest, o.digest) && slices.Equal(m.leases, o.leases)
}

// populate makes hosts and starts them. Hosts of one group know each other;
// groups do not, until somebody connects them. In a cluster that grows, each
// host knows of the first one, and no more.
func (w *world) populate() {
	w.mu.Lock()
	for i := range w.plan.Hosts {
		h := &host{number: i}
		w.hosts = append(w.hosts, h)
		w.enter(h)
	}
	for _, h := range w.hosts {
		if w.plan.Grows && h.number > 0 {
			h.peer.unmet[0] = true
		}
		for _, other := range w.hosts {
			if !w.plan.Grows && h.number%w.plan.Groups == other.number%w.plan.Groups {
				h.peer.known[other.peer.id] = true
			}
		}
	}
	w.mu.Unlock()
	for _, h := range w.hosts {
		w.boot(h)
	}
}

// enter gives a host a new identity, an empty disk and an empty Docker. The
// order of the identities is not that of the hosts. w.mu is held.
func (w *world) enter(h *host) {
	w.identify(h, newDisk())
	h.docker = newDocker(h)
}

// identify makes a host a new peer. w.mu is held.
func (w *world) identify(h *host, d *disk) {
	h.lives++
	id := ring.Peer(fmt.Sprintf("%02x-%d.%d", mix(w.plan.Seed, uint64(h.number), uint64(h.lives))&0xff, h.number, h.lives))
	h.peer = &peer{id: id, number: uint64(len(w.peers)), host: h, disk: d, left: map[seeded]*ring.Ring{}, known: map[ring.Peer]bool{id: true}, unmet: map[int]bool{}, own: &records{}, ghosts: map[key]ring.Peer{}}
	h.downAt = nil
	w.peers[id] = h.peer
}

// acts notes that something which the peer does now, or has sent, has an effect
// in a while.
func (p *peer) acts(in time.Duration) {
	if at := time.Now().Add(in); at.After(p.until) {
		p.until = at
	}
}

// boot starts the plugin of a host. It is called by the driving goroutine.
func (w *world) boot(h *host) {
	w.mu.Lock()
	h.starts++
	p := &process{
		w: w, host: h, peer: h.peer, self: h.peer.id, alive: map[ring.Peer]bool{}, calls: map[int]context.CancelFunc{}, views: map[ring.Peer]*records{h.peer.id: h.peer.own},
		rng: rand.New(rand.NewPCG(w.plan.Seed, mix(2, uint64(h.number), uint64(h.starts)))), seen: &view{writes: -1},
	}
	p.digests.writes = -1
	p.ctx, p.cancel = context.WithCancel(context.Background())
	w.look(p)
	before := h.downAt
	if w.plan.Stumble && !w.calm && w.rng.IntN(4) == 0 {
		p.dieIn = 1 + w.rng.IntN(3)
	}
	w.log("start", h, p.self)
	w.mu.Unlock()

	a, err := ipam.New(p.config())
	if errors.Is(err, errDiskFull) || errors.Is(err, errDead) {
		return // it stays down, until the next try
	}
	if err != nil {
		w.failed("%s does not start: %w", h, err)
		return
	}
	if before != nil && !before.equal(remember(a)) {
		w.failed("%s knows %v after a crash, and %v before", h, remember(a), before)
	}
	p.alloc = a
	w.mu.Lock()
	h.downAt = nil
	h.proc, h.peer.proc = p, p
	w.mu.Unlock()
	p.announce()
	go func() {
		// Not all at the same instant, however many are started at once.
		time.Sleep(time.Duration(mix(w.plan.Seed, 4, uint64(h.number), uint64(h.starts)) % uint64(5*time.Second)))
		_ = a.Run(p.ctx)
	}()
	go p.gossip()
}

// announce tells of the containers that run, but for those that lost a clash.
func (p *process) announce() {
	p.w.mu.Lock()
	all := p.host.docker.endpoints(p.w)
	p.w.mu.Unlock()
	all = slices.DeleteFunc(all, func(e *endpoint) bool { return p.alloc.Clashed(e.key.pool, e.key.addr) })
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.publish(func(r *records) {
		clear(r.endpoints)
		for _, e := range all {
			r.endpoints[e.key] = true
		}
	})
}

func (p *process) config() ipam.Config {
	log := logrus.New()
	log.SetOutput(io.Discard)
	log.SetLevel(logrus.PanicLevel)
	return ipam.Config{
		Self: p.self, Range: netip.MustParsePrefix("10.32.0.0/24"), Store: store{p}, Cluster: cluster{p},
		Busy:  func() ([]netip.Prefix, error) { return nil, nil },
		InUse: p.inUse,
		Held: func(pool netip.Prefix, addr netip.Addr) (ring.Peer, bool) {
			p.w.mu.Lock()
			defer p.w.mu.Unlock()
			return p.holder(key{pool, addr})
		},
		Holders: func(pool netip.Prefix) map[netip.Addr]ring.Peer {
			p.w.mu.Lock()
			defer p.w.mu.Unlock()
			if p.w.plan.Fault == FaultGhosts {
				return nil
			}
			return p.holders(pool)
		},
		Gone: func(id ring.Peer) bool {
			p.w.mu.Lock()
			defer p.w.mu.Unlock()
			return p.superseded(id)
		},
		OnClash:   p.onClash,
		OnRemoved: p.onRemoved,
		Log:       logrus.NewEntry(log),
	}
}

// inUse says whether any host has a network that overlaps a prefix.
func (p *process) inUse(prefix netip.Prefix) bool {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return slices.ContainsFunc(p.w.hosts, func(h *host) bool { return h.docker.overlaps(prefix) })
}

// onClash has the losing endpoint announced no more.
func (p *process) onClash(pool netip.Prefix, addr netip.Addr) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	k := key{pool, addr}
	p.w.log("clash", p.host, k)
	p.w.clashed = true
	p.publish(func(r *records) { delete(r.endpoints, k) })
}

func (p *process) onRemoved() {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.w.log("removed", p.self)
	p.removed = true
}

// rejoin makes new peers of hosts that have learnt of their removal. What is on
// disk stays, and so do the containers.
func (w *world) rejoin() {
	for _, p := range w.running() {
		h := p.host
		w.mu.Lock()
		due := p.removed && (w.calm || w.rng.IntN(3) == 0)
		if due {
			w.kill(h)
			old := h.peer
			w.identify(h, old.disk)
			maps.Copy(h.peer.known, old.known)
			h.peer.own = &records{former: append([]ring.Peer{old.id}, old.own.former...), endpoints: old.own.endpoints}
			w.joinRings()
		}
		w.mu.Unlock()
		if due {
			w.boot(h)
		}
	}
}

// kill ends the process of a host, if one runs, at this instant. w.mu is held.
func (w *world) kill(h *host) {
	if h.proc != nil {
		w.end(h.proc)
	}
}

// end is the death of a process, which may still be starting. w.mu is held.
func (w *world) end(p *process) {
	w.log("dies", p.host)
	p.dead = true
	p.cancel()
	p.cut()
	p.host.proc, p.peer.proc = nil, nil
	p.peer.acts(0)
	if w.plan.Fault == FaultLostWrites {
		w.undo(p.peer)
	}
}

// crash kills the process between two events, and notes what it knew.
func (w *world) crash(h *host) {
	w.mu.Lock()
	p := h.proc
	w.mu.Unlock()
	if p == nil {
		return
	}
	before := remember(p.alloc)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kill(h)
	h.downAt = before
}

// wipe takes a host's disk: its containers are gone, and it comes back as a new
// peer that knows no more than what it is configured with.
func (w *world) wipe(h *host) {
	w.mu.Lock()
	w.log("wiped", h)
	w.kill(h)
	w.wiped = true
	for _, former := range w.peers {
		former.wiped = former.wiped || former.host == h
	}
	h.docker.vanish(w)
	w.enter(h)
	for _, other := range w.hosts {
		if other != h && (len(h.peer.unmet) == 0 || w.rng.IntN(2) == 0) {
			h.peer.unmet[other.number] = true
		}
	}
	w.joinRings()
	w.mu.Unlock()
	w.boot(h)
}
