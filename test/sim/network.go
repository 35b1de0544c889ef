package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"weave/ipam/ring"
)

var errUnreachable = errors.New("unreachable")

// Limits on what the draws are for.
const (
	leastDelay = 50 * time.Microsecond
	lateBy     = 6 * time.Second // at most: longer than a request waits
	shownBytes = 60              // of a request, in the trace
)

// link is one direction between two hosts.
type link struct{ from, to int }

// blocked says whether nothing gets from one peer to another. w.mu is held.
func (w *world) blocked(from, to *peer) bool {
	return w.cuts[link{from.host.number, to.host.number}]
}

// message is what the fate of a message is drawn from: so other messages, or the
// order of those that are sent at one instant, make no difference to it.
type message struct {
	from, to *peer
	loss     float64
	what     string
	content  []byte
	by       uint64 // which call of the sender's it belongs to
}

// caller is the key under which a context tells that call.
type caller struct{}

func withCaller(ctx context.Context, by uint64) context.Context {
	return context.WithValue(ctx, caller{}, by)
}

// dice are the random numbers of a message that is sent now. w.mu is held.
func (w *world) dice(m message) *rand.Rand {
	h := newHash().number(uint64(time.Since(w.start))).number(m.from.number).number(m.to.number).text(m.what).bytes(m.content).number(m.by)
	return rand.New(rand.NewPCG(w.plan.Seed, uint64(h)))
}

// draw says how long a message takes, and whether it arrives. w.mu is held.
func (w *world) draw(m message, dice *rand.Rand) (delay time.Duration, arrives bool) {
	r := w.plan.Rates
	if w.calm {
		r, m.loss = rates{delay: 2 * time.Millisecond}, 0
	}
	delay = leastDelay + time.Duration(dice.Int64N(int64(r.delay)))
	if dice.Float64() < r.late {
		delay += time.Duration(dice.Int64N(int64(lateBy)))
	}
	return delay, dice.Float64() >= m.loss && !w.blocked(m.from, m.to)
}

// send has f called with the process of a peer once a message arrives there, if
// it does. w.mu is held now, and not in f.
func (w *world) send(m message, f func(at *process)) { w.sendBy(m, w.dice(m), f) }

func (w *world) sendBy(m message, dice *rand.Rand, f func(at *process)) {
	delay, arrives := w.draw(m, dice)
	if !arrives {
		return
	}
	m.from.acts(delay)
	w.post.later(delay, func() {
		w.mu.Lock()
		at := m.to.proc
		if w.blocked(m.from, m.to) {
			at = nil
		}
		w.mu.Unlock()
		if at != nil {
			f(at)
		}
	})
}

// reply is the end of a request.
type reply struct {
	answer []byte
	err    error
}

// ask carries a request to a peer and its answer back. Either may be lost, the
// request may arrive twice, and late.
func (p *process) ask(ctx context.Context, to ring.Peer, req []byte) ([]byte, error) {
	w, replies := p.w, make(chan reply, 3)
	by, _ := ctx.Value(caller{}).(uint64)
	// A request ends at the very instant at which its caller's patience does, if
	// both began together; whether the caller asks again is then up to the
	// scheduler. It makes no difference if asking takes a moment, and so does
	// giving up: another call's patience may end with it.
	moment := func() { time.Sleep(time.Duration(1 + mix(uint64(time.Since(w.start)), p.peer.number, by)%1000)) }
	moment()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	target := w.peers[to]
	if p.dead || target == nil {
		w.mu.Unlock()
		return nil, fmt.Errorf("peer %s: %w", to, errUnreachable)
	}
	m := message{p.peer, target, w.plan.Rates.loss, "ask", req, by}
	dice := w.dice(m)
	w.log("ask", p.self, to, string(req[:min(len(req), shownBytes)]))
	if dice.IntN(2) == 0 && (target.proc == nil || w.blocked(p.peer, target)) { // a refusal comes at once; silence does not
		delay, _ := w.draw(m, dice)
		w.post.later(delay, func() { replies <- reply{err: errUnreachable} })
	}
	p.deliver(m, dice, replies)
	if !w.calm && dice.Float64() < w.plan.Rates.twice {
		p.deliver(m, dice, replies)
	}
	w.mu.Unlock()
	select {
	case r := <-replies:
		return r.answer, r.err
	case <-ctx.Done():
		moment()
		return nil, ctx.Err()
	}
}

// deliver is one copy of a request on its way. w.mu is held.
func (p *process) deliver(m message, dice *rand.Rand, replies chan<- reply) {
	w, self := p.w, p.self
	serve := func(at *process) {
		answer, err := at.answer(withCaller(at.ctx, mix(m.from.number, m.by)), self, m.content)
		if err != nil && at.ctx.Err() == nil {
			w.failed("%s cannot read a request of %s: %w", at.self, self, err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if at.dead {
			return
		}
		back := message{m.to, m.from, m.loss, "answer", answer, m.by}
		if delay, arrives := w.draw(back, w.dice(back)); arrives {
			m.to.acts(delay)
			w.post.later(delay, func() { replies <- reply{answer, err} })
		}
	}
	w.sendBy(m, dice, func(at *process) {
		if bytes.HasPrefix(m.content, []byte(asksOthers)) {
			go serve(at)
			return
		}
		serve(at)
	})
}

// answer serves a request, but for what faults make of it.
func (p *process) answer(ctx context.Context, from ring.Peer, req []byte) ([]byte, error) {
	switch {
	case p.w.plan.Fault == FaultHeirs && bytes.HasPrefix(req, []byte(`{"op":"rings"`)):
		return []byte(`{}`), nil
	case p.w.plan.Fault == FaultElectors && bytes.Contains(req, []byte(`"electors":[`)):
		all := fmt.Appendf(nil, `"electors":["%s",`, from)
		for _, known := range (cluster{p}).Known() {
			all = fmt.Appendf(all, `"%s",`, known)
		}
		req = bytes.Replace(req, []byte(`"electors":[`), all, 1)
	}
	return p.alloc.Answer(ctx, from, req)
}

// asksOthers begins the one request whose answer waits for other peers.
const asksOthers = `{"op":"inherit"`

// split cuts the hosts in two parts that do not reach each other.
func (w *world) split() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log("split")
	part := map[*host]bool{}
	for _, h := range w.hosts {
		part[h] = w.rng.IntN(2) == 0
	}
	for _, a := range w.hosts {
		for _, b := range w.hosts {
			w.cuts[link{a.number, b.number}] = part[a] != part[b]
		}
	}
}

// cut blocks one direction between two hosts.
func (w *world) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	from, to := w.hosts[w.rng.IntN(len(w.hosts))], w.hosts[w.rng.IntN(len(w.hosts))]
	w.log("cut", from, to)
	w.cuts[link{from.number, to.number}] = from != to
}

func (w *world) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log("heal")
	clear(w.cuts)
}
