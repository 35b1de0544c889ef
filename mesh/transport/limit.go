package transport

import (
	"net/netip"
	"time"

	"golang.org/x/time/rate"
)

// maxLimited bounds the addresses that a limiter tells apart.
const maxLimited = 1024

// limiter bounds how often others make us work: in total, and by source
// address. The receiver's mu guards it.
type limiter struct {
	total *rate.Limiter
	each  rate.Limit
	burst int
	by    map[netip.Addr]*rate.Limiter
}

func newLimiter(total, each rate.Limit, burst int) *limiter {
	return &limiter{
		total: rate.NewLimiter(total, int(total)),
		each:  each,
		burst: burst,
		by:    map[netip.Addr]*rate.Limiter{},
	}
}

// allow reports whether a is within its bounds, and counts it.
func (l *limiter) allow(a netip.Addr, now time.Time) bool {
	if l.total.TokensAt(now) < 1 { // whoever asks: a flood must not cost more than this
		return false
	}
	a = site(a)
	one, ok := l.by[a]
	if !ok {
		if len(l.by) >= maxLimited {
			l.evict()
		}
		one = rate.NewLimiter(l.each, l.burst)
		l.by[a] = one
	}
	return one.AllowN(now, 1) && l.total.AllowN(now, 1)
}

// evict forgets any one address: forged ones must not lock out true ones.
func (l *limiter) evict() {
	for a := range l.by {
		delete(l.by, a)
		return
	}
}

// site is what one host can choose addresses from: itself, or its IPv6 /64.
func site(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if p, err := a.Prefix(64); err == nil && a.Is6() {
		return p.Addr()
	}
	return a.WithZone("")
}
