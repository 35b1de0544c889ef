package scale

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weave/ipam/ring"
)

var errPatience = errors.New("the peers did not come to agree")

// world is one simulated cluster.
type world struct {
	plan    Plan
	net     *network
	ring    *ring.Ring
	peers   []*peer
	changes changes
	downs   atomic.Int64
	tasks   sync.WaitGroup

	mu  sync.Mutex
	err error // the first
}

// maxSeeds is how many peers the others are told to begin with.
const maxSeeds = 3

func newWorld(p Plan) (*world, error) {
	r, err := newRing(p.Peers)
	if err != nil {
		return nil, err
	}
	return &world{plan: p, net: newNetwork(p.Loss), ring: r, changes: changes{open: map[string]*change{}}}, nil
}

func (w *world) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

// end ends all peers and waits until nothing of them is left.
func (w *world) end(cancel context.CancelFunc) {
	cancel()
	w.tasks.Wait()
	w.net.tasks.Wait()
	time.Sleep(time.Minute) // memberlist's waits for answers end by themselves
}

// poll is how exactly the times of whole states are taken.
const poll = 20 * time.Millisecond

// wait waits for a condition.
func (w *world) wait(ctx context.Context, condition func() bool) error {
	for end := time.Now().Add(patience); !condition(); sleep(ctx, poll) {
		w.mu.Lock()
		err := w.err
		w.mu.Unlock()
		if err != nil {
			return err
		}
		if time.Now().After(end) {
			return errPatience
		}
	}
	return nil
}

// agree tells whether all peers know all members and the same records.
func (w *world) agree(members int) bool {
	for _, p := range w.peers {
		if p.living() != members-1 {
			return false
		}
	}
	want, rings := w.peers[0].records.digest(), string(w.peers[0].rings.Digest())
	for _, p := range w.peers[1:] {
		if p.records.digest() != want || string(p.rings.Digest()) != rings {
			return false
		}
	}
	return true
}

// changes follows new endpoints on their way to all peers.
type changes struct {
	mu        sync.Mutex
	open      map[string]*change // by key, of those that not all know yet
	most, all Spans
}

type change struct {
	began        time.Time
	knows, peers int
}

// add follows an endpoint that so many peers are to learn of.
func (c *changes) add(key string, peers int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[key] = &change{began: time.Now(), peers: peers}
}

// learnt notes that one more peer knows of an endpoint.
func (c *changes) learnt(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.open[key]
	if x == nil {
		return
	}
	x.knows++
	if x.knows == (x.peers*99+99)/100 {
		c.most = append(c.most, time.Since(x.began))
	}
	if x.knows == x.peers {
		c.all = append(c.all, time.Since(x.began))
		delete(c.open, key)
	}
}

// settled tells whether all peers know of all.
func (c *changes) settled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open) == 0
}

// spans returns the times that it took, sorted.
func (c *changes) spans() (most, all Spans) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.Sort(c.most)
	slices.Sort(c.all)
	return c.most, c.all
}
