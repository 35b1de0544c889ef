package scale

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"weave/mesh/gossip"
	"weave/mesh/id"
	"weave/mesh/state"
	"weave/mesh/wire"
)

// How mesh.Node joins: see seedTimeout and seedInterval there.
const (
	joinTimeout = 8 * time.Second
	joinEvery   = 3 * time.Second
)

// peer is one member: gossip, and what it keeps the same on all.
type peer struct {
	world   *world
	index   int
	id      id.PeerID
	gossip  *gossip.Gossip
	records *records
	rings   *rings
	members atomic.Int64 // living ones, as its gossip told

	generations []int // of its endpoints; only tests of one endpoint at a time
	free        uint64
}

// add starts a peer that knows nobody.
func (w *world) add(ctx context.Context, i int) (*peer, error) {
	p := &peer{world: w, index: i, id: peerID(i), rings: &rings{}}
	p.records = &records{table: state.New(p.id, uint64(time.Now().UnixNano()))}
	p.records.learnt = func(key string) { w.changes.learnt(key) }
	log := logrus.New()
	log.SetOutput(io.Discard)
	addr := netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})
	g, err := gossip.New(gossip.Config{
		Self: p.id, Nickname: fmt.Sprintf("docker-host-%04d", i),
		Candidates: []netip.AddrPort{netip.AddrPortFrom(addr, 6783)},
		Carrier:    port{w.net, p},
		Replicas:   map[string]gossip.Replica{"records": p.records, "rings": p.rings},
		Events:     p, Log: logrus.NewEntry(log),
	})
	if err != nil {
		return nil, err
	}
	p.gossip = g
	w.peers = append(w.peers, p)
	w.net.add(p)
	w.tasks.Go(func() {
		if err := g.Run(ctx); err != nil {
			w.fail(err)
		}
	})
	return p, nil
}

// Up implements gossip.Events. As the transport would, it makes a session with
// the new member, which hears from us thereby.
func (p *peer) Up(m gossip.Member) {
	p.members.Add(1)
	p.world.net.meet(p, m.ID)
}

// Down implements gossip.Events.
func (p *peer) Down(gossip.Member) {
	p.members.Add(-1)
	p.world.downs.Add(1)
}

// Update implements gossip.Events.
func (p *peer) Update(gossip.Member) {}

// has tells whether a peer knows all records that another one does.
func (p *peer) has(other *peer) bool {
	return other.records.Missing(p.records.Digest()) == nil && string(p.rings.Digest()) == string(other.rings.Digest())
}

// living is the number of the other members.
func (p *peer) living() int { return int(p.members.Load()) }

func (p *peer) packet(from id.PeerID, kind wire.Kind, body []byte) {
	if kind == wire.KindGossip {
		p.gossip.HandlePacket(from, body)
		return
	}
	p.gossip.HandleRecords(from, body)
}

func (p *peer) stream(from id.PeerID, kind wire.StreamKind, c net.Conn) {
	if kind == wire.StreamSync {
		p.gossip.HandleSync(from, c)
		return
	}
	p.gossip.HandleStream(from, c)
}

// join joins one of the seeds, as mesh.Node does: again and again until it
// works.
func (p *peer) join(ctx context.Context) {
	for ctx.Err() == nil {
		seed := rand.IntN(min(maxSeeds, p.world.plan.Peers))
		if seed == p.index {
			continue
		}
		sleep(ctx, 4*p.world.net.delay(p.id, peerID(seed))) // the session's handshake
		trying, cancel := context.WithTimeout(ctx, joinTimeout)
		err := p.gossip.Join(trying, peerID(seed))
		cancel()
		if err == nil {
			return
		}
		sleep(ctx, joinEvery)
	}
}

// fill makes the records that a peer has from the start.
func (p *peer) fill(endpoints int) {
	p.free = 1000
	p.generations = make([]int, endpoints)
	p.records.set(kindSegment, segment, value(segmentRecord{1390}))
	p.records.set(kindFree, segment, value(freeRecord{p.free}))
	for n := range p.generations {
		key, record := endpoint(p.index, n, 0, true)
		p.records.set(kindEndpoint, key, record)
	}
}

// replace has one container go and another come in its place. What is told of
// it is what the plugin tells: the endpoint goes, its address is free, an
// address is leased, an endpoint comes, and later the name of its container.
func (p *peer) replace(ctx context.Context, n int) {
	p.records.publish.Lock()
	old := p.generations[n]
	p.generations[n]++
	p.records.publish.Unlock()
	key, _ := endpoint(p.index, n, old, true)
	p.tell(kindEndpoint, key, nil)
	p.tellFree(+1)
	sleep(ctx, 2*time.Second)
	p.tellFree(-1)
	key, record := endpoint(p.index, n, old+1, false)
	p.world.changes.add(key, len(p.world.peers)-1)
	p.tell(kindEndpoint, key, record)
	sleep(ctx, 500*time.Millisecond)
	key, record = endpoint(p.index, n, old+1, true)
	p.tell(kindEndpoint, key, record)
}

func (p *peer) tellFree(more int) {
	p.records.publish.Lock()
	defer p.records.publish.Unlock()
	p.free += uint64(more)
	p.gossip.Broadcast("records", p.records.set(kindFree, segment, value(freeRecord{p.free})))
}

func (p *peer) tell(kind, key string, value []byte) {
	p.records.publish.Lock()
	defer p.records.publish.Unlock()
	p.gossip.Broadcast("records", p.records.set(kind, key, value))
}
