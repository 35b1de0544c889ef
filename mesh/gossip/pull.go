package gossip

import (
	"context"
	"errors"
	"sync"
	"time"

	"weave/mesh/id"
)

// Bounds of pulling.
const (
	pullsAtOnce = 8
	pullTries   = 3
)

// errRefused marks a delta that came and that the Replica did not take.
var errRefused = errors.New("gossip: replica refused a delta")

// pulls fetches what we lack from other peers: from each, at most one pull at a
// time and at most one more that waits for it.
type pulls struct {
	// Set once and never changed.
	life   *lifetime
	pull   func(from id.PeerID) error
	again  func(from id.PeerID) bool       // worth another try
	failed func(from id.PeerID, err error) // told if nobody awaits the round
	retry  time.Duration                   // before another try
	stale  time.Duration                   // how long asked holds
	slots  chan struct{}

	mu      sync.Mutex
	running map[id.PeerID]*pulling
	// asked is what made us pull from a peer last: one pull settles what there
	// is to get.
	asked map[id.PeerID]asked
}

// asked is a pair of sums that differ.
type asked struct {
	theirs, ours sum
	at           time.Time
}

type pulling struct{ now, next *round }

// round is one pull; err may be read once done is closed.
type round struct {
	done    chan struct{}
	err     error
	awaited bool // somebody will see err
}

func newRound() *round { return &round{done: make(chan struct{})} }

// request has the missing parts fetched from a peer, by a pull that begins
// after now.
func (p *pulls) request(from id.PeerID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requestLocked(from)
}

// requestOnce is request, unless the last pull was for the same sums and not
// long ago: then it returns nil.
func (p *pulls) requestOnce(from id.PeerID, theirs, ours sum, now time.Time) *round {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.asked[from]
	if last.theirs == theirs && last.ours == ours && now.Sub(last.at) < p.stale {
		return nil
	}
	if len(p.asked) >= maxMembers {
		clear(p.asked)
	}
	p.asked[from] = asked{theirs, ours, now}
	return p.requestLocked(from)
}

// await is request, and waits for the end of the pull.
func (p *pulls) await(ctx context.Context, from id.PeerID) error {
	p.mu.Lock()
	r := p.requestLocked(from)
	r.awaited = true
	p.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// awaited returns the pulls that are not over and that somebody waits for, or did.
func (p *pulls) awaited() []*round {
	p.mu.Lock()
	defer p.mu.Unlock()
	var rounds []*round
	for _, st := range p.running {
		for _, r := range []*round{st.now, st.next} {
			if r != nil && r.awaited {
				rounds = append(rounds, r)
			}
		}
	}
	return rounds
}

func (p *pulls) requestLocked(from id.PeerID) *round {
	if st := p.running[from]; st != nil {
		if st.next == nil {
			st.next = newRound()
		}
		return st.next
	}
	st := &pulling{now: newRound()}
	if p.life.start(func(ctx context.Context) { p.work(ctx, from, st) }) {
		p.running[from] = st
	} else {
		st.now.err = ErrClosed
		close(st.now.done)
	}
	return st.now
}

// work does the rounds of one peer until none is wanted.
func (p *pulls) work(ctx context.Context, from id.PeerID, st *pulling) {
	for {
		err := p.try(ctx, from)
		p.mu.Lock()
		r := st.now
		st.now, st.next = st.next, nil
		if st.now == nil {
			delete(p.running, from)
		}
		if err != nil && !errors.Is(err, errRefused) {
			delete(p.asked, from)
		}
		r.err = err
		close(r.done)
		done, awaited := st.now == nil, r.awaited
		p.mu.Unlock()
		if err != nil && !awaited {
			p.failed(from, err)
		}
		if done {
			return
		}
	}
}

// try pulls, a few times if need be.
func (p *pulls) try(ctx context.Context, from id.PeerID) error {
	for n := 1; ; n++ {
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return ErrClosed
		}
		err := p.pull(from)
		<-p.slots
		if err == nil || n == pullTries || !p.again(from) {
			return err
		}
		select {
		case <-time.After(p.retry):
		case <-ctx.Done():
			return ErrClosed
		}
	}
}
