package sim

import (
	"container/heap"
	"time"
)

// post has what happens later happen, one after the other: messages arrive by
// it. A timer and a goroutine for each of them would cost more than all that
// they bring about. Guarded by world.mu, but for what later does.
type post struct {
	due   dues
	sent  uint64
	timer *time.Timer
}

type due struct {
	at     time.Time
	number uint64
	f      func()
}

type dues []due

func (d dues) Len() int { return len(d) }
func (d dues) Less(i, j int) bool {
	if !d[i].at.Equal(d[j].at) {
		return d[i].at.Before(d[j].at)
	}
	return d[i].number < d[j].number
}
func (d dues) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d *dues) Push(x any)   { *d = append(*d, x.(due)) }
func (d *dues) Pop() any {
	all := *d
	last := all[len(all)-1]
	all[len(all)-1] = due{}
	*d = all[:len(all)-1]
	return last
}

// later has f called in a while, without w.mu, which is held now. f takes no
// time.
func (p *post) later(in time.Duration, f func()) {
	p.sent++
	heap.Push(&p.due, due{time.Now().Add(in), p.sent, f})
	if p.due[0].number == p.sent {
		p.timer.Reset(in)
	}
}

// deliver runs what is due, until the world ends.
func (w *world) deliver(end <-chan struct{}) {
	for {
		select {
		case <-end:
			return
		case <-w.post.timer.C:
		}
		for f := w.nextDue(); f != nil; f = w.nextDue() {
			begin := time.Now()
			f()
			if took := time.Since(begin); took > 0 {
				w.failed("what a message brings about waits for %s: it holds up all others", took)
			}
		}
	}
}

// nextDue is what is to happen now; nil if nothing is.
func (w *world) nextDue() func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.post.due) == 0 {
		return nil
	}
	if in := time.Until(w.post.due[0].at); in > 0 {
		w.post.timer.Reset(in)
		return nil
	}
	return heap.Pop(&w.post.due).(due).f
}
