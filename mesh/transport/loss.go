package transport

import (
	"sync"
	"time"
)

const (
	// lossWindow is how many pings of late tell the loss of a path.
	lossWindow = 100
	// pongDue is how long after a ping its pong is overdue, or two round trips if
	// that is longer. Until then nobody can tell whether it is lost.
	pongDue = 2 * time.Second
)

// pings are the latest that went by the path in use, for its loss. Knocking is not
// among them: most doors stay shut. Its methods are safe for concurrent use.
type pings struct {
	mu       sync.Mutex
	sent     [lossWindow]int64 // a ring of their stamps; 0: none
	answered [lossWindow]bool
	next     int // the oldest, to be overwritten
}

// forget is for a new path, of which nothing is known.
func (p *pings) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = [lossWindow]int64{}
}

// send notes a ping that is about to leave: its pong may be faster than we are.
func (p *pings) send(stamp int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent[p.next], p.answered[p.next] = stamp, false
	p.next = (p.next + 1) % lossWindow
}

// unsend takes one back that did not leave this host: that is no loss of the path.
func (p *pings) unsend(stamp int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.sent {
		if s == stamp {
			p.sent[i] = 0
		}
	}
}

// answer notes a pong, in time or not.
func (p *pings) answer(stamp int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.sent {
		if s == stamp {
			p.answered[i] = true
		}
	}
}

// lost tells how many pings there are whose pong is due by now, and how many of
// them have none. Later ones do not count, answered or not: among those, only what
// is not lost would be known.
func (p *pings) lost(now int64, rtt time.Duration) (lost, of int) {
	due := now - int64(max(pongDue, 2*rtt))
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.sent {
		if s == 0 || s > due {
			continue
		}
		of++
		if !p.answered[i] {
			lost++
		}
	}
	return lost, of
}
