package gossip

import (
	"context"
	"slices"
	"sync"
	"time"

	"weave/mesh/id"
)

// pastSums is how many of our own sums are remembered.
const pastSums = 256

// doubts are what is not clear yet about sums that differ from ours. Among many
// members mostly nothing is lost: a change is on its way to us, or to the other,
// or a pull is under way. So a sum that was ours before is no doubt, and any
// other has some time to become ours before it is a reason to pull.
type doubts struct {
	// Set once and never changed.
	settle time.Duration
	news   chan struct{} // buffered: there is a doubt

	mu   sync.Mutex
	past [pastSums]sum // our own, the latest at last
	last int
	open map[id.PeerID]doubt
}

// doubt is the first sum of a member that is in doubt.
type doubt struct {
	from   id.PeerID
	theirs sum
	due    time.Time
}

func newDoubts(settle time.Duration) *doubts {
	return &doubts{settle: settle, news: make(chan struct{}, 1), open: map[id.PeerID]doubt{}}
}

// ours notes what our sum is: doubts about that one are settled.
func (d *doubts) ours(s sum) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.past[d.last] == s {
		return
	}
	d.last = (d.last + 1) % pastSums
	d.past[d.last] = s
	for p, x := range d.open {
		if x.theirs == s {
			delete(d.open, p)
		}
	}
}

// shown takes in the sum of a member.
func (d *doubts) shown(from id.PeerID, theirs sum, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.Contains(d.past[:], theirs) {
		delete(d.open, from) // it is no further than we are
		return
	}
	if _, waits := d.open[from]; !waits && len(d.open) < maxMembers {
		d.open[from] = doubt{from, theirs, now.Add(d.settle)}
		signal(d.news)
	}
}

// next tells when the first doubt is due.
func (d *doubts) next() (due time.Time, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range d.open {
		if !ok || x.due.Before(due) {
			due, ok = x.due, true
		}
	}
	return due, ok
}

// take returns the latest doubts that are due, up to n of different sums: what
// members have who show the same is the same. All others that are due are
// dropped; what there was to them will show again, when what the pulls bring is
// here.
func (d *doubts) take(now time.Time, n int) []doubt {
	d.mu.Lock()
	defer d.mu.Unlock()
	var due []doubt
	for p, x := range d.open {
		if !now.Before(x.due) {
			due = append(due, x)
			delete(d.open, p)
		}
	}
	slices.SortFunc(due, func(a, b doubt) int { return b.due.Compare(a.due) })
	var out []doubt
	for _, x := range due {
		same := func(o doubt) bool { return o.theirs == x.theirs }
		if len(out) < n && !slices.ContainsFunc(out, same) {
			out = append(out, x)
		}
	}
	return out
}

// settle pulls because of doubts. A few pulls mostly settle all, so others wait
// for them, for as long as a pull should take. All wait for what a join fetches,
// which is everything, twice as long.
func (g *Gossip) settle(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.doubts.news:
		}
		for due, ok := g.doubts.next(); ok && pause(ctx, time.Until(due)); due, ok = g.doubts.next() {
			waitFor(ctx, g.pulls.awaited(), 2*g.cfg.Timing.Retry)
			waitFor(ctx, g.pullDoubted(time.Now()), g.cfg.Timing.Retry)
		}
	}
}

// waitFor waits until rounds are done, but not longer than a time.
func waitFor(ctx context.Context, rounds []*round, most time.Duration) {
	enough, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for _, r := range rounds {
		select {
		case <-r.done:
		case <-enough.Done():
			return
		}
	}
}

// pullDoubted pulls from members whose sums have differed for too long.
func (g *Gossip) pullDoubted(now time.Time) (rounds []*round) {
	ours := g.ourSum()
	for _, x := range g.doubts.take(now, pullsAtOnce) {
		if !g.members.isAlive(x.from) {
			continue
		}
		if r := g.pulls.requestOnce(x.from, x.theirs, ours, now); r != nil {
			rounds = append(rounds, r)
		}
	}
	return rounds
}

// pause waits, and reports whether the context is not done.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
