package transport

import (
	"time"
)

// maxBegun bounds the handshakes that one tick begins, each of which costs a
// scalar multiplication with mu held.
const maxBegun = 16

// tick does what is due: everything that time brings is here.
func (t *Transport) tick(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range t.attempts {
		t.tickAttempt(a, now)
	}
	for _, p := range t.pendings.byIndex {
		if now.Sub(p.began) >= handshakeTimeout {
			t.drop(p)
		}
	}
	begun := 0
	t.watching, t.probes = 0, 0
	for _, p := range t.peers {
		if !t.tickPeer(p, now) {
			continue
		}
		if begun++; begun == maxBegun {
			t.kick() // go on when the others had their turn
			return
		}
	}
}

func (t *Transport) tickAttempt(a *attempt, now time.Time) {
	switch {
	case now.Sub(a.began) >= handshakeTimeout:
		t.end(a, a.outcome())
	case !now.Before(a.next):
		t.resend(a, now)
	}
}

// tickPeer reports whether it began a handshake.
func (t *Transport) tickPeer(p *peer, now time.Time) bool {
	t.expire(p, now)
	t.seekPipe(p, now)
	has := p.current.Load() != nil
	if has {
		t.observe(p, now)
	}
	if p.wanted.Load() && (!has || p.silent(now)) {
		t.hurry(p, now)
	}
	if p.attempt != nil || now.Before(p.nextTry) || !t.needsSession(p, now) {
		return false
	}
	to := p.targets(now, false)
	if len(to) == 0 {
		return false
	}
	if _, err := t.begin(p, to, now); err != nil {
		p.lastErr, p.nextTry = err, now.Add(t.cfg.tune.maxBackoff)
		return false
	}
	return true
}

// outcome is nil if the peer answered and another handshake with it, begun by
// either side, was the one that made a session.
func (a *attempt) outcome() error {
	if a.entry != nil && a.entry.link.current.Load() != nil {
		return nil
	}
	if a.hint != nil {
		return a.hint
	}
	return ErrNoAnswer
}

// needsSession reports whether new keys should be agreed on with p.
func (t *Transport) needsSession(p *peer, now time.Time) bool {
	e := p.current.Load()
	return e == nil || e.session.Due(now) || p.silent(now)
}

// hurry makes the next try happen at once, for somebody has something to send;
// but no more often than at the shortest backoff.
func (t *Transport) hurry(p *peer, now time.Time) {
	p.wait = t.cfg.tune.minBackoff
	a := p.attempt
	if a == nil {
		p.nextTry = now
		return
	}
	a.wait = t.cfg.tune.minBackoff
	if soon := a.sent.Add(a.wait); soon.Before(a.next) {
		a.next = soon
	}
}

// expire retires sessions that are too old, and superseded ones on which
// nothing comes any more. The other side may go on sending on a superseded one
// (each side's newest can differ after simultaneous handshakes).
func (t *Transport) expire(p *peer, now time.Time) {
	grace := int64(idleGrace * t.cfg.PingInterval)
	for i := len(p.sessions) - 1; i >= 0; i-- {
		e := p.sessions[i]
		idle := i > 0 && t.since(now)-e.heard.Load() > grace
		if idle || e.session.Over(now) {
			t.retire(p, i)
			if len(p.sessions) == 0 {
				t.log.WithField("peer", p.id.Short()).Info("session with peer ended")
			}
		}
	}
}
