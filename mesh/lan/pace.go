package lan

import (
	"math/rand/v2"
	"time"
)

const (
	// The time between announcements is firstWait, later twice as long each time, up
	// to lastWait; each a quarter more or less, so that hosts do not keep step.
	firstWait = time.Second
	lastWait  = 45 * time.Second
	// answerGap is what lies between two announcements at least, however many
	// newcomers there are.
	answerGap = time.Second
	// answerSpread is over how long hosts spread their answers to one newcomer.
	answerSpread = 200 * time.Millisecond
)

// pace is when to announce.
type pace struct {
	next time.Time
	last time.Time     // zero: not yet
	wait time.Duration // after the next
}

func newPace(now time.Time, wait time.Duration) pace { return pace{next: now, wait: wait} }

// sent is to be called after each announcement.
func (p *pace) sent(now time.Time) {
	p.last = now
	p.next = now.Add(p.wait*3/4 + rand.N(p.wait/2))
	p.wait = min(2*p.wait, lastWait)
}

// answer makes the next announcement come soon, for a newcomer.
func (p *pace) answer(now time.Time) {
	soon := now.Add(rand.N(answerSpread))
	if gap := p.last.Add(answerGap); soon.Before(gap) {
		soon = gap
	}
	if soon.Before(p.next) {
		p.next = soon
	}
}
