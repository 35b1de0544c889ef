package vxlan

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"weave/mesh/beat"
	"weave/mesh/id"
)

// Run keeps the fast path until ctx ends. The devices and their tables stay, so
// that frames flow until the next run. It can be called once.
func (s *Switch) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if s.cfg.Off != "" {
		s.op.Lock()
		s.sweepHost() // there may be no segment that would
		s.op.Unlock()
		<-ctx.Done()
	} else {
		g.Go(func() error { s.hear(ctx); return nil })
		g.Go(func() error {
			s.work(ctx)
			return s.cfg.Probes.Close() // ends hear
		})
	}
	err := g.Wait()
	s.op.Lock()
	defer s.op.Unlock()
	return errors.Join(err, s.cfg.Kernel.Close(), s.cfg.Guard.Close())
}

// work does what the mesh, the peers and time bring.
func (s *Switch) work(ctx context.Context) {
	tick := time.NewTicker(beat.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case r := <-s.reports:
			if !s.judge(r) {
				continue
			}
		case <-tick.C:
			s.tick(s.cfg.Clock())
		}
		s.op.Lock()
		s.flush()
		s.op.Unlock()
	}
}

// tick does what time brings.
func (s *Switch) tick(now time.Time) {
	s.mu.Lock()
	idle := len(s.segments) == 0
	for _, x := range s.peers {
		s.look(x, now)
		if x.linked && x.path != nil && x.path.Up() && x.path.Quiet(now) {
			s.cfg.Mesh.Watch(x.id) // its plugin is down, or the way there is cut
		}
	}
	s.mu.Unlock()
	if idle {
		return
	}
	s.op.Lock()
	due := now.Sub(s.lastTend) >= tendEvery
	s.reconsider(now, due)
	if due {
		s.lastTend = now
		s.tendAll(now)
	} else {
		if s.cfg.Guard.Touched() { // perhaps somebody flushed all tables
			s.raiseHost()
		}
		s.tendNew(now)
	}
	s.op.Unlock()
	s.beat(now)
}

// beginGrace notes that tables of an earlier run were taken over. mu is held.
func (s *Switch) beginGrace() {
	now := s.cfg.Clock()
	s.graceEnd, s.awayEnd, s.moved = now.Add(grace), now.Add(graceAway), true
}

// reconsider marks what an earlier run left, if something has changed, or may
// have, in what we know of the hosts that it is for.
func (s *Switch) reconsider(now time.Time, due bool) {
	s.mu.Lock()
	over := !s.graceEnd.IsZero() && !now.Before(s.graceEnd)
	if over {
		s.graceEnd = time.Time{}
	}
	ask := s.inherits() && (due || over || s.moved)
	patient := now.Before(s.awayEnd)
	s.moved = false
	s.mu.Unlock()
	if !ask {
		return
	}
	var away []netip.Addr
	if patient {
		away = s.cfg.Mesh.Away()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range away {
		s.away[a.Unmap()] = now
	}
	maps.DeleteFunc(s.away, func(_ netip.Addr, last time.Time) bool { return !patient || now.Sub(last) >= grace })
	s.remark()
}

// inherits reports whether something of an earlier run is not decided on. mu is
// held.
func (s *Switch) inherits() bool {
	for _, g := range s.segments {
		if len(g.table.inherited) > 0 {
			return true
		}
	}
	return len(s.host.inherited) > 0
}

// remark marks what stayed because too little was known. mu is held.
func (s *Switch) remark() {
	tables := []*table{&s.host}
	for _, g := range s.segments {
		tables = append(tables, &g.table)
	}
	for _, t := range tables {
		for x := range t.inherited {
			t.mark(x)
		}
	}
}

// tendAll looks after all devices, and tries again what failed. op is held.
func (s *Switch) tendAll(now time.Time) {
	s.raiseHost()
	s.mu.Lock()
	s.host.retry()
	segments := make([]*segment, 0, len(s.segments))
	for _, g := range s.segments {
		g.stale = g.stale || len(g.table.failed) > 0
		g.table.retry()
		segments = append(segments, g)
	}
	s.mu.Unlock()
	for _, g := range segments {
		s.tend(g, now)
	}
}

// tendNew looks after the segments that wait for something. op is held.
func (s *Switch) tendNew(now time.Time) {
	s.mu.Lock()
	var segments []*segment
	for _, g := range s.segments {
		if g.waiting {
			segments = append(segments, g)
		}
	}
	s.mu.Unlock()
	for _, g := range segments {
		s.tend(g, now)
	}
}

// letter is what one peer is sent in a tick: either, or both.
type letter struct {
	to     id.PeerID
	probe  *beat.Probe
	report *beat.Report
}

// letter returns what a peer is to be sent now. mu is held.
func (x *peer) letter(now time.Time) letter {
	l := letter{to: x.id}
	if p, due := x.path.Probe(now); due {
		l.probe = &p
	}
	if x.heard != x.told || now.Sub(x.heardAt) >= beat.Overdue {
		r := x.heard
		x.told, l.report = r, &r
	}
	return l
}

// beat sends probes and reports to all peers that may be on the fast path.
func (s *Switch) beat(now time.Time) {
	s.mu.Lock()
	length := 0
	var letters []letter
	for _, x := range s.peers {
		if x.path != nil && x.linked && s.bound && s.mayBeFast(x) {
			letters = append(letters, x.letter(now))
		}
	}
	for _, g := range s.segments {
		length = max(length, g.MTU)
	}
	s.mu.Unlock()
	length += ethernetLen
	frame := make([]byte, 0, length)
	var body [beat.ReportLen]byte
	for _, l := range letters {
		if l.probe != nil { // what cannot be sent is as good as lost
			_ = s.cfg.Probes.Send(beat.AppendProbe(frame, *l.probe, s.cfg.Self, l.to, length))
		}
		if l.report != nil {
			s.cfg.Mesh.SendReport(l.to, beat.AppendReport(body[:0], *l.report))
		}
	}
}

const ethernetLen = 14

// mayBeFast reports whether it depends on the way there only. mu is held.
func (s *Switch) mayBeFast(x *peer) bool {
	for _, g := range s.segments {
		if s.agreed(g, x.id) == "" {
			return true
		}
	}
	return false
}

// Heard takes a report that came in a sealed datagram. It never blocks: a report
// too many is dropped.
func (s *Switch) Heard(from id.PeerID, body []byte) {
	if s.cfg.Off != "" {
		return
	}
	r, err := beat.ParseReport(body)
	if err != nil {
		return
	}
	select {
	case s.reports <- report{from, r}:
	default:
	}
}

// judge takes a report, and tells whether that moves the peer's frames to the
// other path.
func (s *Switch) judge(r report) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.peers[r.from]
	if x == nil || x.path == nil {
		return false
	}
	was := x.path.Up()
	x.path.Report(s.cfg.Clock(), r.Report)
	if x.path.Up() == was {
		return false
	}
	log := s.cfg.Log.WithField("peer", x.id.Short())
	if was {
		log.WithField("reason", s.describe(x.path.State())).Warn("frames to the peer go by the tunnel")
	} else {
		log.WithField("address", x.addr).Info("frames to the peer go by VXLAN")
	}
	s.markPeer(x)
	return true
}

// maxProbe is the longest frame that is read.
const maxProbe = 64 << 10

// hear reads what the peers send, until ctx ends. What cannot be read from is
// bound again, by tend.
func (s *Switch) hear(ctx context.Context) {
	buf := make([]byte, maxProbe)
	for {
		n, err := s.cfg.Probes.Receive(buf)
		if err == nil {
			s.take(buf[:n])
			continue
		}
		if ctx.Err() != nil {
			return
		}
		s.cfg.Log.WithError(err).Warn("heart-beats not heard: listening anew")
		s.deaf.Store(true)
		select {
		case <-ctx.Done():
			return
		case <-time.After(tendEvery):
		}
	}
}

// take notes a probe, for the next report to its sender.
func (s *Switch) take(frame []byte) {
	from, p, err := beat.ParseProbe(frame, s.cfg.Self)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.peers[from]
	if x == nil {
		return
	}
	x.heardAt = s.cfg.Clock()
	if x.heard.Any = p.Seq; p.Full {
		x.heard.Full = p.Seq
	}
}
