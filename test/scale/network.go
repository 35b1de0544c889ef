package scale

import (
	"container/heap"
	"context"
	"hash/maphash"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"weave/mesh/id"
	"weave/mesh/transport"
	"weave/mesh/wire"
)

// One-way delays between two peers, the same for all their traffic.
const (
	minDelay = time.Millisecond
	maxDelay = 20 * time.Millisecond
)

// network carries datagrams and streams between peers, and counts them. One
// goroutine delivers all datagrams, in their order.
type network struct {
	loss  float64
	seed  maphash.Seed
	wake  chan struct{}  // buffered: there is an earlier event
	tasks sync.WaitGroup // delivering, and serving streams

	mu     sync.Mutex // guards what follows
	peers  map[id.PeerID]*peer
	counts []count // by the peers' indices
	events events
	serial uint64
}

// event is something that happens at a time; of the same time, the one that
// was caused first.
type event struct {
	at     time.Time
	serial uint64
	do     func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].serial < e[j].serial
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	(*e)[last] = event{}
	*e = (*e)[:last]
	return x
}

func newNetwork(loss float64) *network {
	return &network{
		loss: loss, seed: maphash.MakeSeed(), wake: make(chan struct{}, 1),
		peers: map[id.PeerID]*peer{},
	}
}

func (n *network) add(p *peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.peers[p.id] = p
	n.counts = append(n.counts, count{})
}

// delay between two peers, either way.
func (n *network) delay(a, b id.PeerID) time.Duration {
	if a.Compare(b) > 0 {
		a, b = b, a
	}
	steps := uint64((maxDelay - minDelay) / time.Millisecond)
	return minDelay + time.Duration(maphash.Comparable(n.seed, [2]id.PeerID{a, b})%(steps+1))*time.Millisecond
}

// later has something done after a while.
func (n *network) later(d time.Duration, do func()) {
	at := time.Now().Add(d)
	n.mu.Lock()
	first := len(n.events) == 0 || at.Before(n.events[0].at)
	n.serial++
	heap.Push(&n.events, event{at, n.serial, do})
	n.mu.Unlock()
	if first {
		select {
		case n.wake <- struct{}{}:
		default:
		}
	}
}

// start delivers until the context ends.
func (n *network) start(ctx context.Context) {
	n.tasks.Go(func() {
		timer := time.NewTimer(time.Hour)
		defer timer.Stop()
		for ctx.Err() == nil {
			if do, wait := n.next(); do != nil {
				do()
				continue
			} else {
				timer.Reset(wait)
			}
			select {
			case <-ctx.Done():
			case <-n.wake:
			case <-timer.C:
			}
		}
	})
}

// next takes the event that is due, or tells when the next one will be.
func (n *network) next() (do func(), wait time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.events) == 0 {
		return nil, time.Hour
	}
	if wait := time.Until(n.events[0].at); wait > 0 {
		return nil, wait
	}
	return heap.Pop(&n.events).(event).do, 0
}

// port is one peer's gossip.Carrier. Sessions with all peers are there.
type port struct {
	net *network
	*peer
}

// Send implements gossip.Carrier.
func (p port) Send(to id.PeerID, kind wire.Kind, body []byte) error {
	size := datagram(len(body))
	p.net.mu.Lock()
	other := p.net.peers[to]
	if other != nil {
		p.net.counts[p.index].datagram(kind, body, size)
	}
	p.net.mu.Unlock()
	switch {
	case other == nil:
		return transport.ErrUnknownPeer
	case len(body) > transport.MaxBody:
		return transport.ErrTooBig
	case rand.Float64() < p.net.loss:
		return nil
	}
	body = append([]byte(nil), body...)
	p.net.later(p.net.delay(p.id, to), func() {
		p.net.received(other, size)
		other.packet(p.id, kind, body)
	})
	return nil
}

// meet tells a peer that there is a session with another one, after three messages.
func (n *network) meet(p *peer, with id.PeerID) {
	n.mu.Lock()
	other := n.peers[with]
	n.mu.Unlock()
	n.later(3*n.delay(p.id, with), func() { other.gossip.PeerReachable(p.id) })
}

func (n *network) received(p *peer, bytes uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.counts[p.index].in += bytes
}

// Dial implements gossip.Carrier. It takes two round trips, for TCP and for
// the first two of the three messages of the handshake.
func (p port) Dial(ctx context.Context, to id.PeerID, kind wire.StreamKind) (net.Conn, error) {
	p.net.mu.Lock()
	other := p.net.peers[to]
	p.net.mu.Unlock()
	if other == nil {
		return nil, transport.ErrUnknownPeer
	}
	delay := p.net.delay(p.id, to)
	sleep(ctx, 4*delay)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	ours, theirs := newStream(p.net, kind, p.peer, other, delay)
	p.net.later(delay, func() {
		p.net.tasks.Go(func() { other.stream(p.id, kind, theirs) })
	})
	return ours, nil
}
