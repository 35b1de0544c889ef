package ipam

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"weave/ipam/ring"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errLost = errors.New("lost")

// disk is a Store in memory. It fails when left reaches 0; a negative left
// never does. With crash set, the host's power fails with it: dead hosts write,
// send and answer nothing.
type disk struct {
	mu      sync.Mutex
	buckets map[string]map[string][]byte
	left    int
	crash   crash
	dead    bool
}

// crash is when power fails: not at all, before the write is on disk, or after.
type crash int

const (
	noCrash crash = iota
	crashBefore
	crashAfter
)

func (d *disk) isDead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

func newDisk() *disk { return &disk{buckets: map[string]map[string][]byte{}, left: -1} }

func (d *disk) Load(bucket string) (map[string][]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.buckets[bucket]), nil
}

func (d *disk) Apply(bucket string, changes map[string][]byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead || d.left == 0 {
		d.dead = d.dead || d.crash != noCrash
		if d.crash != crashAfter || d.left != 0 {
			return errors.New("no space left on device")
		}
	}
	d.left--
	if d.buckets[bucket] == nil {
		d.buckets[bucket] = map[string][]byte{}
	}
	for key, value := range changes {
		if value == nil {
			delete(d.buckets[bucket], key)
		} else {
			d.buckets[bucket][key] = slices.Clone(value)
		}
	}
	return nil
}

func (d *disk) failAfter(writes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = writes
}

// net is the wires between hosts, under the test's control.
type net struct {
	mu        sync.Mutex
	hosts     map[ring.Peer]*host
	part      map[ring.Peer]int // hosts reach each other within one part
	loseReply func() bool       // the request is served, the answer lost
	loseCast  func() bool
	tidy      int                               // tokens that a ring may have untidied; 0: as usual
	table     map[netip.Addr]map[ring.Peer]bool // whose containers have announced an address; nil: nobody tells
	gone      map[ring.Peer]bool                // whose containers are known to be gone
}

// host is one peer: its Cluster, and its Allocator with the disk that survives
// it.
type host struct {
	*Allocator
	net   *net
	self  ring.Peer
	disk  *disk
	known []ring.Peer
	unmet []string
	asked int
	free  map[netip.Prefix]uint64
	busy  []netip.Prefix
	inUse []netip.Prefix

	clashes []netip.Addr // as OnClash told
	removed int          // calls of OnRemoved
}

func never() bool { return false }

func newNet(t testing.TB, peers ...ring.Peer) (*net, []*host) {
	t.Helper()
	n := &net{hosts: map[ring.Peer]*host{}, part: map[ring.Peer]int{}, loseReply: never, loseCast: never}
	var hosts []*host
	for _, p := range peers {
		h := &host{net: n, self: p, disk: newDisk(), known: peers, free: map[netip.Prefix]uint64{}}
		n.hosts[p] = h
		hosts = append(hosts, h)
	}
	for _, h := range hosts {
		if err := h.start(); err != nil {
			t.Fatal(err)
		}
	}
	return n, hosts
}

// start makes the Allocator anew from what is on disk, as after a crash.
func (h *host) start() error {
	log := logrus.New()
	log.SetOutput(io.Discard)
	a, err := New(Config{
		Self: h.self, Range: netip.MustParsePrefix("10.32.0.0/12"), Store: h.disk, Cluster: h,
		Busy: func() ([]netip.Prefix, error) { return h.busy, nil },
		InUse: func(p netip.Prefix) bool {
			return slices.ContainsFunc(h.inUse, func(used netip.Prefix) bool { return used.Overlaps(p) })
		},
		Log:  logrus.NewEntry(log),
		Held: h.held, Holders: h.holders, Gone: h.isGone,
		OnClash: func(_ netip.Prefix, addr netip.Addr) {
			h.net.mu.Lock()
			defer h.net.mu.Unlock()
			h.clashes = append(h.clashes, addr)
		},
		OnRemoved: func() {
			h.net.mu.Lock()
			defer h.net.mu.Unlock()
			h.removed++
		},
	})
	if err != nil {
		return err
	}
	if h.net.tidy > 0 {
		a.tidyTokens, a.scarceTokens = h.net.tidy, 2*h.net.tidy
	}
	h.net.mu.Lock()
	h.removed = 0 // it will be told again
	h.Allocator = a
	h.net.mu.Unlock()
	return nil
}

// rejoin makes the Allocator anew under another name, as a removed host does.
func (h *host) rejoin(self ring.Peer) error {
	h.net.mu.Lock()
	delete(h.net.hosts, h.self)
	for _, holders := range h.net.table {
		if holders[h.self] {
			holders[self] = true // announced anew; the old name is still in the table
		}
	}
	h.self = self
	h.net.hosts[self] = h
	for _, other := range h.net.hosts {
		other.known = append(slices.Clone(other.known), self)
	}
	h.net.mu.Unlock()
	return h.start()
}

func (h *host) held(_ netip.Prefix, addr netip.Addr) (ring.Peer, bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	holders := slices.Sorted(maps.Keys(h.net.table[addr]))
	if len(holders) == 0 {
		return "", false
	}
	return holders[0], true
}

func (h *host) holders(pool netip.Prefix) map[netip.Addr]ring.Peer {
	h.net.mu.Lock()
	addrs := slices.Collect(maps.Keys(h.net.table))
	h.net.mu.Unlock()
	all := map[netip.Addr]ring.Peer{}
	for _, addr := range addrs {
		if holder, held := h.held(pool, addr); held {
			all[addr] = holder
		}
	}
	return all
}

func (h *host) isGone(p ring.Peer) bool {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.net.gone[p]
}

// setGone has everybody know that the containers of a peer are gone.
func (n *net) setGone(p ring.Peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gone == nil {
		n.gone = map[ring.Peer]bool{}
	}
	n.gone[p] = true
	for _, holders := range n.table {
		delete(holders, p)
	}
}

// announce is what the endpoint table says of a container from then on.
func (h *host) announce(addr netip.Addr, present bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.net.table == nil {
		return
	}
	if h.net.table[addr] == nil {
		h.net.table[addr] = map[ring.Peer]bool{}
	}
	h.net.table[addr][h.self] = true
	if !present {
		delete(h.net.table[addr], h.self)
		for _, former := range h.former {
			delete(h.net.table[addr], former)
		}
	}
}

func (h *host) Known() []ring.Peer {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.known
}

func (h *host) Alive() []ring.Peer {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	var alive []ring.Peer
	for _, p := range h.known {
		if h.net.hosts[p] != nil && h.net.part[p] == h.net.part[h.self] {
			alive = append(alive, p)
		}
	}
	return alive
}

func (h *host) Unmet() []string         { return h.unmet }
func (h *host) Name(p ring.Peer) string { return "host-" + string(p) }

func (h *host) Ask(ctx context.Context, to ring.Peer, req []byte) ([]byte, error) {
	h.net.mu.Lock()
	h.asked++
	self, reachable := h.self, h.net.hosts[to] != nil && h.net.part[to] == h.net.part[h.self]
	var other *Allocator
	if reachable {
		other = h.net.hosts[to].Allocator
	}
	h.net.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !reachable || h.disk.isDead() || h.net.hosts[to].disk.isDead() {
		return nil, errLost
	}
	ans, err := other.Answer(ctx, self, req)
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.net.loseReply() || h.disk.isDead() || h.net.hosts[to].disk.isDead() {
		return nil, errLost
	}
	return ans, err
}

func (h *host) Broadcast(delta []byte) {
	h.net.mu.Lock()
	hosts := maps.Clone(h.net.hosts)
	h.net.mu.Unlock()
	for p, other := range hosts {
		h.net.mu.Lock()
		lost := p == h.self || h.net.part[p] != h.net.part[h.self] || h.net.loseCast()
		a := other.Allocator
		h.net.mu.Unlock()
		if !lost && !h.disk.isDead() && !other.disk.isDead() {
			_ = a.Merge(h.self, delta) // a gap: the next sync heals it
		}
	}
}

func (h *host) SetFree(pool netip.Prefix, free uint64) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.free[pool] = free
}

func (h *host) Free(pool netip.Prefix) map[ring.Peer]uint64 {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	free := map[ring.Peer]uint64{}
	for p, other := range h.net.hosts {
		if count, ok := other.free[pool]; ok && p != h.self {
			free[p] = count
		}
	}
	return free
}

func (n *net) partition(part map[ring.Peer]int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.part = part
}

func (n *net) lose(reply, cast func() bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loseReply, n.loseCast = reply, cast
}

// sync is a push/pull between all pairs.
func (n *net) sync() error {
	for _, from := range n.hosts {
		for _, to := range n.hosts {
			if missing := from.Missing(to.Digest()); missing != nil {
				if err := to.Merge(from.self, missing); err != nil {
					return fmt.Errorf("%s to %s: %w", from.self, to.self, err)
				}
			}
		}
	}
	return nil
}

// invariants are what must hold at any time: what a host believes to own is its
// alone, and no lease is outside of it or free.
func (n *net) invariants() error {
	owned := map[place]ring.Peer{}
	for _, h := range n.hosts {
		h.mu.Lock()
		err := h.invariants(owned, true)
		h.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// invariants of one host. Strict are those that a merge or a removal suspends
// for a while: leases are backed, and no two hosts believe to own one address.
func (h *host) invariants(owned map[place]ring.Peer, strict bool) error {
	for prefix, p := range h.pools {
		if p.ring == nil || prefix.Addr().Is6() {
			continue
		}
		var free uint64
		for addr := prefix.Addr(); prefix.Contains(addr); addr = addr.Next() {
			ours := p.owner(addr) == h.self
			record, recorded := p.records[addr]
			if other := owned[place{prefix, addr}]; ours && other != "" && strict {
				return fmt.Errorf("%s is owned by %s and %s", addr, h.self, other)
			}
			if ours {
				owned[place{prefix, addr}] = h.self
			} else if p.reserved[addr] != nil {
				return fmt.Errorf("%s has reservations of %s, which is not its own", h.self, addr)
			}
			if record.Kind == KindLease && (!ours && strict || p.reserved[addr] != nil) {
				return fmt.Errorf("%s leases %s: owned %v, reserved %v", h.self, addr, ours, p.reserved[addr])
			}
			if p.held[addr] != "" && !ours && strict {
				return fmt.Errorf("%s has stored who holds %s, which is not its own", h.self, addr)
			}
			want := ours && !recorded && p.reserved[addr] == nil && p.usable.Contains(addr)
			if p.free.Contains(addr) != want {
				return fmt.Errorf("%s: %s free: %v, want %v", h.self, addr, !want, want)
			}
			if want {
				free++
			}
		}
		if free != p.free.Count() {
			return fmt.Errorf("%s: %d of pool %s free, counted %d", h.self, free, prefix, p.free.Count())
		}
	}
	return nil
}

func (h *host) pool(t testing.TB, prefix, sub string) string {
	t.Helper()
	r := PoolRequest{Pool: netip.MustParsePrefix(prefix)}
	if sub != "" {
		r.SubPool = netip.MustParsePrefix(sub)
	}
	reply, err := h.RequestPool(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return reply.ID
}

func (h *host) request(poolID, addr string, kind Kind) (netip.Prefix, error) {
	r := AddressRequest{PoolID: poolID, Kind: kind}
	if addr != "" {
		r.Address = netip.MustParseAddr(addr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return h.RequestAddress(ctx, r)
}

func (h *host) lease(t testing.TB, poolID string) netip.Addr {
	t.Helper()
	p, err := h.request(poolID, "", KindLease)
	if err != nil {
		t.Fatal(err)
	}
	return p.Addr()
}
