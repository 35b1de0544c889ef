package transport

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Refusal tells of a host that is not let in, or that does not let us in. It
// is a hint for people: neither side of it is authenticated.
type Refusal struct {
	Addr   netip.Addr `json:"addr"`
	ByThem bool       `json:"by_them"` // they refused us, else we them
	Reason string     `json:"reason"`  // "password differs", "protocol version 3, ours is 2"
	At     time.Time  `json:"at"`      // the last time
	Count  int        `json:"count"`

	logged time.Time
}

// refusalLogGap is what lies between two lines of the log about one address:
// reasons come from strangers, who can make up a new one each time.
const refusalLogGap = time.Minute

type refusalKey struct {
	addr   netip.Addr
	byThem bool
}

// refusals keeps the latest, one per address and direction; guarded by
// Transport.mu.
type refusals map[refusalKey]Refusal

// add notes a refusal and tells whether to log it: the first for each reason,
// if it is not too soon after the last, and not when so many are noted that
// the addresses must be forged.
func (r refusals) add(addr netip.Addr, byThem bool, reason error, now time.Time) (news bool) {
	key := refusalKey{addr, byThem}
	old, known := r[key]
	if !known && len(r) >= maxRefusals {
		delete(r, r.oldest())
	}
	next := Refusal{
		Addr: addr, ByThem: byThem, Reason: reason.Error(), At: now, Count: old.Count + 1, logged: old.logged,
	}
	news = next.Reason != old.Reason && now.Sub(old.logged) >= refusalLogGap && (known || len(r)+1 < maxRefusals)
	if news {
		next.logged = now
	}
	r[key] = next
	return news
}

func (r refusals) oldest() refusalKey {
	var key refusalKey
	var at time.Time
	for k, v := range r {
		if at.IsZero() || v.At.Before(at) {
			key, at = k, v.At
		}
	}
	return key
}

// refuse notes a refusal, and logs it if it is news.
func (t *Transport) refuse(addr netip.Addr, byThem bool, reason error) {
	t.mu.Lock()
	news := t.refusals.add(addr, byThem, reason, time.Now())
	t.mu.Unlock()
	if news {
		t.logRefusal(addr, byThem, reason)
	}
}

func (t *Transport) logRefusal(addr netip.Addr, byThem bool, reason error) {
	log := t.log.WithField("addr", addr).WithError(reason)
	if byThem {
		log.Warn("a host refused us")
	} else {
		log.Warn("refused a host")
	}
}

// Refusals returns who was refused of late and why, the latest first.
func (t *Transport) Refusals() []Refusal {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Refusal, 0, len(t.refusals))
	for _, r := range t.refusals {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Refusal) int {
		return cmp.Or(b.At.Compare(a.At), a.Addr.Compare(b.Addr))
	})
	return out
}
