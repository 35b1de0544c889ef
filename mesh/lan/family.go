package lan

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weave/mesh/id"
)

const (
	// A peer that was not heard for newcomerAge is a newcomer: it may not have
	// heard us either.
	newcomerAge = 3 * time.Minute
	// maxHeard bounds the peers of which that is known.
	maxHeard = 1024
)

// family announces and hears by IPv4, or by IPv6.
type family struct {
	*Announcer
	name  string
	group netip.Addr
	open  func() (socket, error)

	news  chan struct{}        // buffered: a newcomer was heard
	links atomic.Pointer[view] // that the socket is on
	state atomic.Pointer[state]

	joining error                   // speak's: why a link is not among links
	heard   map[id.PeerID]time.Time // hear's: when a peer was heard last
}

// view is the links by their index.
type view map[int]link

// state is for people.
type state struct {
	links []string // that announcements go out by
	err   error    // of the others, or of the socket
}

func newFamily(a *Announcer, name string, group netip.Addr, open func() (socket, error)) *family {
	f := &family{Announcer: a, name: name, group: group, open: open, news: make(chan struct{}, 1), heard: map[id.PeerID]time.Time{}}
	f.links.Store(&view{})
	f.state.Store(&state{})
	return f
}

// serve works until ctx ends.
func (f *family) serve(ctx context.Context) {
	for {
		err := f.run(ctx)
		if ctx.Err() != nil {
			return
		}
		f.tell(nil, err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryInterval):
		}
	}
}

// run works on one socket until ctx ends, or the socket fails.
func (f *family) run(ctx context.Context) error {
	var s socket
	if err := f.cfg.do(func() (err error) { s, err = f.open(); return err }); err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	f.links.Store(&view{})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var ear sync.WaitGroup
	ear.Go(func() { cancel(f.hear(s)) })
	f.speak(ctx, s)
	err := errors.Join(context.Cause(ctx), s.Close())
	ear.Wait()
	return err
}

// speak announces this host until ctx ends.
func (f *family) speak(ctx context.Context, s socket) {
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	f.look(s)
	due := newPace(time.Now(), f.cfg.wait)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.news:
			due.answer(time.Now())
		case <-look.C:
			if f.look(s) {
				due = newPace(time.Now(), f.cfg.wait)
			}
		case <-timer.C:
			if f.announce(s) {
				due.sent(time.Now())
			} else {
				due.next = time.Now().Add(lookInterval)
			}
		}
		timer.Reset(time.Until(due.next))
	}
}

// look takes in which links there are now, and reports whether one came, or has
// another address.
func (f *family) look(s socket) (came bool) {
	var found []link
	err := f.cfg.do(func() (err error) { found, err = links(f.group.Is4(), f.cfg.Listen); return err })
	if err != nil {
		f.tell(nil, err)
		return false
	}
	old, now := *f.links.Load(), view{}
	f.joining = nil
	for _, l := range found {
		was, there := old[l.index]
		if !there {
			if err := s.join(l.index); err != nil {
				f.joining = errors.Join(f.joining, fmt.Errorf("%s: %w", l.name, err))
				continue
			}
		}
		came = came || was != l
		now[l.index] = l
	}
	for index := range old {
		if _, stays := now[index]; !stays {
			_ = s.leave(index) // fails where the link is gone, and the membership with it
		}
	}
	f.links.Store(&now)
	if len(now) == 0 {
		f.tell(nil, f.joining)
	}
	return came
}

// announce sends on all links, and reports whether it did on any.
func (f *family) announce(s socket) bool {
	errs := []error{f.joining}
	var names []string
	for _, l := range *f.links.Load() {
		if err := s.send(f.sealer.seal(announcement{f.cfg.Self, f.cfg.Port}), l); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.name, err))
		} else {
			names = append(names, l.name)
		}
	}
	f.tell(names, errors.Join(errs...))
	return len(names) > 0
}

// tell keeps what people are to know, and logs what is new.
func (f *family) tell(links []string, err error) {
	slices.Sort(links)
	next := &state{links, err}
	old := f.state.Swap(next)
	log := f.cfg.Log.WithField("family", f.name)
	if !slices.Equal(old.links, links) {
		log.WithField("links", links).Info("announcing this host on the LAN")
	}
	if err != nil && (old.err == nil || old.err.Error() != err.Error()) {
		log.WithError(err).Warn("cannot announce this host everywhere on the LAN")
	}
}

// hear takes what others announce until the socket is closed.
func (f *family) hear(s socket) error {
	b := make([]byte, messageLen+1) // to see that one is longer
	for {
		d, err := s.receive(b)
		if err != nil {
			return err
		}
		f.take(b[:d.n], d, time.Now())
	}
}

func (f *family) take(b []byte, d datagram, now time.Time) {
	l, ok := (*f.links.Load())[d.link]
	from := d.from.Addr()
	if !ok || d.hops > hops || d.to != f.group || !l.own.Contains(from) {
		return
	}
	a, foreign, ok := f.sealer.open(b)
	if foreign {
		f.foreign.Add(1)
	}
	if !ok || a.peer == f.cfg.Self {
		return
	}
	if f.isNew(a.peer, now) {
		select {
		case f.news <- struct{}{}:
		default:
		}
	}
	if f.cfg.Wanted(a.peer) {
		f.finds.add(find{a.peer, netip.AddrPortFrom(from, a.port)}, now)
	}
}

// isNew tells whether a peer is a newcomer, and takes note of it.
func (f *family) isNew(p id.PeerID, now time.Time) bool {
	at, known := f.heard[p]
	if !known && len(f.heard) >= maxHeard {
		for one := range f.heard {
			delete(f.heard, one)
			break
		}
	}
	f.heard[p] = now
	return !known || now.Sub(at) >= newcomerAge
}
