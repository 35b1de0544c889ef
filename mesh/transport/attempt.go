package transport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/id"
)

// attempt is a handshake that we began. Guarded by Transport.mu.
type attempt struct {
	index   uint32
	peer    *peer // nil: with whoever answers, for Connect
	to      []hop // where message 1 goes
	tries   int
	machine *handshake.Machine
	msg1    []byte

	// Once message 2 came:
	entry *entry
	msg3  []byte
	via   hop // where message 2 came from

	began, sent, next time.Time
	wait              time.Duration
	hint              error      // why it goes wrong, as far as we can tell
	done              chan error // buffered; for Connect
}

// begin starts a handshake with p, or with whoever is at to.
func (t *Transport) begin(p *peer, to []hop, now time.Time) (*attempt, error) {
	if len(t.attempts) >= maxAttempts {
		return nil, ErrBusy
	}
	index, ok := t.table.reserve()
	if !ok {
		return nil, ErrBusy
	}
	cfg := handshake.Config{Identity: t.cfg.Identity, Keys: t.keys, Medium: handshake.Datagrams, Index: index}
	wait := t.cfg.tune.minBackoff
	if p != nil {
		cfg.Want, wait = p.id, p.wait
	}
	machine, msg1, err := handshake.Initiate(cfg)
	if err != nil {
		t.table.release(index)
		return nil, err
	}
	a := &attempt{
		index: index, peer: p, to: to, machine: machine, msg1: msg1,
		began: now, wait: wait, done: make(chan error, 1),
	}
	t.attempts[index] = a
	if p != nil {
		p.attempt = a
	}
	t.resend(a, now)
	return a, nil
}

// resend sends what the other side has not answered yet, and sets the time of
// the next try.
func (t *Transport) resend(a *attempt, now time.Time) {
	if a.entry != nil {
		_ = t.write(a.msg3, a.via) // counted; to be sent again anyway
	} else {
		t.resend1(a, now)
	}
	a.sent = now
	a.next = now.Add(a.wait*3/4 + rand.N(a.wait/2+1))
	a.wait = min(2*a.wait, t.cfg.tune.maxBackoff)
}

func (t *Transport) resend1(a *attempt, now time.Time) {
	if a.peer != nil {
		a.to = a.peer.targets(now, a.tries == 0)
		a.peer.wanted.Store(false)
	}
	a.tries++
	for _, to := range a.to {
		if err := t.write(a.msg1, to); err != nil && a.hint == nil {
			a.hint = err
		}
	}
}

// end forgets an attempt. The index stays reserved if a session has it.
func (t *Transport) end(a *attempt, err error) {
	delete(t.attempts, a.index)
	if a.entry == nil || !a.entry.confirmed.Load() {
		t.table.release(a.index)
	}
	if p := a.peer; p != nil && p.attempt == a {
		p.attempt = nil
		if err != nil {
			p.lastErr = err
			p.wait, p.nextTry = a.wait, a.next
		}
	}
	a.done <- err
}

// handle2 takes message 2. From then on the session can open datagrams, and
// the first of them confirms it.
func (t *Transport) handle2(j job, now time.Time) {
	a := t.attempts[j.header.Index]
	if a == nil {
		t.drops.add(dropHandshake)
		return
	}
	if a.entry != nil { // resent: message 3 was lost
		_ = t.write(a.msg3, j.from)
		return
	}
	msg3, res, err := a.machine.Answer(j.msg, t.cfg.hello(j.from.addr, t.port))
	if err == nil {
		err = t.answered(a, &res, now)
	}
	if err != nil {
		t.drops.add(dropHandshake)
		t.answeredWrong(a, j.from, err)
		return
	}
	a.msg3, a.via, a.wait = msg3, j.from, t.cfg.tune.minBackoff
	t.resend(a, now)
}

func (t *Transport) answered(a *attempt, res *handshake.Result, now time.Time) error {
	p, err := t.know(res.Peer)
	if err != nil {
		return err
	}
	e, err := t.newEntry(p, a.index, res, true, now)
	if err != nil {
		return err
	}
	a.entry, a.machine = e, nil
	t.table.put(e)
	if a.peer == nil && p.attempt == nil {
		a.peer, p.attempt = p, a // no second one is needed beside it
	}
	return nil
}

// answeredWrong ends an attempt if its machine is of no more use. A candidate
// where somebody else answers is none.
func (t *Transport) answeredWrong(a *attempt, from hop, err error) {
	if unharmed(err) {
		return
	}
	if p := a.peer; p != nil && (errors.Is(err, handshake.ErrPeer) || errors.Is(err, handshake.ErrSelf)) {
		p.dropCandidate(from.addr)
	}
	t.end(a, err)
}

// unharmed tells the errors after which a handshake.Machine goes on.
func unharmed(err error) bool {
	return errors.Is(err, handshake.ErrMalformed) && !errors.Is(err, handshake.ErrFailed) ||
		errors.Is(err, handshake.ErrPassword) || errors.Is(err, handshake.ErrVersion)
}

// confirm is called by the receive goroutine with the first authentic datagram
// of a session that we began.
func (t *Transport) confirm(e *entry, from hop, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.attempts[e.index]
	if a == nil || a.entry != e {
		return // timed out meanwhile
	}
	if p := t.peers[e.link.id]; p == nil || &p.Link != e.link {
		t.end(a, ErrBusy) // pushed out meanwhile
		return
	}
	t.install(e, from, now)
	t.end(a, nil)
}

// rejected takes a rejection from where we sent message 1 to.
func (t *Transport) rejected(b []byte, from hop) {
	index, reason, err := handshake.ParseReject(b)
	if err != nil {
		t.drops.add(dropMalformed)
		return
	}
	t.mu.Lock()
	a := t.attempts[index]
	known := a != nil && a.entry == nil && slices.Contains(a.to, from)
	// It is noted before Connect returns: who is told looks there.
	news := known && t.refusals.add(from.host(), true, reason, time.Now())
	if known && a.peer == nil {
		t.end(a, reason) // Connect wants to know
	} else if known {
		a.hint, a.peer.lastErr = reason, reason // another candidate may still do
	}
	t.mu.Unlock()
	if !known {
		t.drops.add(dropHandshake)
	}
	if news {
		t.logRefusal(from.host(), true, reason)
	}
}

// Connect makes a session with whoever listens at addr, and returns who that
// is once the session is confirmed. The error wraps ErrPassword, ErrVersion or
// ErrSelf of package handshake, or ErrNoAnswer (after 5 s, or when ctx ends;
// then it wraps the error of ctx too).
func (t *Transport) Connect(ctx context.Context, addr netip.AddrPort) (id.PeerID, error) {
	p, err := t.connect(ctx, netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()))
	if err != nil {
		return id.PeerID{}, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return p, nil
}

func (t *Transport) connect(ctx context.Context, addr netip.AddrPort) (id.PeerID, error) {
	if !usable(addr) {
		return id.PeerID{}, errors.New("not the address of a host")
	}
	t.mu.Lock()
	a, err := t.begin(nil, []hop{direct(addr)}, time.Now())
	t.mu.Unlock()
	if err != nil {
		return id.PeerID{}, err
	}
	t.kick() // control may be in no hurry
	byPipe, cancel := t.connectLater(ctx, addr)
	defer cancel()
	for {
		select {
		case err = <-a.done:
			if err == nil {
				p := a.entry.link.id
				t.AddCandidates(p, addr)
				return p, nil
			}
			return id.PeerID{}, err
		case r := <-byPipe:
			if r.err != nil {
				byPipe = nil
				if wontDo(r.err) {
					t.abandon(a, r.err)
				}
				continue
			}
			t.abandon(a, ErrNoAnswer)
			return r.peer, nil
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", ErrNoAnswer, ctx.Err())
			t.abandon(a, err)
			return id.PeerID{}, err
		case <-t.closed:
			return id.PeerID{}, ErrClosed
		}
	}
}

// wontDo tells the errors that UDP would bring as well, if it were answered.
func wontDo(err error) bool {
	return errors.Is(err, handshake.ErrPassword) || errors.Is(err, handshake.ErrVersion) || errors.Is(err, handshake.ErrSelf)
}

type connected struct {
	peer id.PeerID
	err  error
}

// connectLater makes a session by a pipe, if UDP takes long. It is to be
// cancelled, which waits for it.
func (t *Transport) connectLater(ctx context.Context, addr netip.AddrPort) (result <-chan connected, cancel func()) {
	ctx, stop := context.WithCancel(ctx)
	out, ended := make(chan connected, 1), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-time.After(pipeAfter):
		case <-ctx.Done():
			return
		case <-t.closed:
			return
		}
		p, err := t.connectPipe(ctx, addr)
		out <- connected{p, err}
	}()
	return out, func() { stop(); <-ended }
}

// abandon ends an attempt whose caller waits no more; one that was answered
// goes on, since the other side may be using it already.
func (t *Transport) abandon(a *attempt, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.attempts[a.index] == a && a.entry == nil {
		t.end(a, err)
	}
}
