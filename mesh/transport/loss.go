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
	// lossyFrom is how many lost ones of the window are not chance any more: 5 %.
	lossyFrom = lossWindow / 20
)

// pings are the latest that went by the path in use while it worked, for its loss.
// Knocking is not among them: most doors stay shut. Its methods are safe for
// concurrent use.
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

// loss is what became of pings.
type loss struct {
	lost, of int
	// lasting: many are lost, and those among the earlier half and the later half,
	// so it is neither a moment's trouble nor over.
	lasting bool
}

// loss tells how many pings there are whose pong is due by now, and how many of
// them have none. Later ones do not count, answered or not: among those, only what
// is not lost would be known.
func (p *pings) loss(now int64, rtt time.Duration) (l loss) {
	due := now - int64(max(pongDue, 2*rtt))
	p.mu.Lock()
	defer p.mu.Unlock()
	first, last := 0, 0 // places of lost ones among those that count
	for n := range lossWindow {
		i := (p.next + n) % lossWindow
		if p.sent[i] == 0 || p.sent[i] > due {
			continue
		}
		if !p.answered[i] {
			if last = l.of; l.lost == 0 {
				first = l.of
			}
			l.lost++
		}
		l.of++
	}
	l.lasting = l.lost >= lossyFrom && first < l.of/2 && last >= l.of/2
	return l
}
