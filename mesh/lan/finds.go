package lan

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"weave/mesh/id"
)

const (
	// maxFinds wait to be tried; then the oldest goes.
	maxFinds = 64
	// again is how long an address is left alone after a try.
	again = time.Minute
	// maxTried bounds the addresses that are left alone.
	maxTried = 1024
	// All addresses together are tried no more often than this: most of many are
	// met through others meanwhile.
	triesEvery = 200 * time.Millisecond
	triesBurst = 16
)

// find is a host that announced itself.
type find struct {
	peer id.PeerID
	at   netip.AddrPort
}

// finds are those that wait to be tried. Its methods are safe for concurrent use.
type finds struct {
	limit *rate.Limiter
	some  chan struct{} // buffered: waiting is not empty

	mu      sync.Mutex
	waiting []find // the oldest first, each address once
	tried   map[netip.AddrPort]time.Time
}

func newFinds() *finds {
	return &finds{
		limit: rate.NewLimiter(rate.Every(triesEvery), triesBurst),
		some:  make(chan struct{}, 1),
		tried: map[netip.AddrPort]time.Time{},
	}
}

// add takes a find in, unless its address was tried just now.
func (f *finds) add(x find, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at, ok := f.tried[x.at]; ok && now.Sub(at) < again {
		return
	}
	f.waiting = slices.DeleteFunc(f.waiting, func(old find) bool { return old.at == x.at })
	if len(f.waiting) >= maxFinds {
		f.waiting = slices.Delete(f.waiting, 0, 1)
	}
	f.waiting = append(f.waiting, x)
	f.signal()
}

func (f *finds) signal() {
	select {
	case f.some <- struct{}{}:
	default:
	}
}

// next takes the find that waits for longest.
func (f *finds) next(now time.Time) (find, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.waiting) == 0 {
		return find{}, false
	}
	x := f.waiting[0]
	if f.waiting = slices.Delete(f.waiting, 0, 1); len(f.waiting) > 0 {
		f.signal() // for the next who takes
	}
	for a, at := range f.tried {
		if now.Sub(at) >= again {
			delete(f.tried, a)
		}
	}
	if len(f.tried) >= maxTried {
		for a := range f.tried { // any: made-up ones must not lock out true ones
			delete(f.tried, a)
			break
		}
	}
	f.tried[x.at] = now
	return x, true
}

// take waits for a find, and for its turn; not ok when ctx has ended.
func (f *finds) take(ctx context.Context) (find, bool) {
	for {
		select {
		case <-ctx.Done():
			return find{}, false
		case <-f.some:
		}
		if f.limit.Wait(ctx) != nil {
			return find{}, false
		}
		if x, ok := f.next(time.Now()); ok {
			return x, true
		}
	}
}
