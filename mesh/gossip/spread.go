package gossip

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/sirupsen/logrus"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// Broadcast spreads a delta of a replica, which must have the change already.
// It does not keep the delta, and calls no method of the Replica.
func (g *Gossip) Broadcast(replica string, delta []byte) {
	if len(delta) == 0 {
		return
	}
	defer signal(g.changed)
	m := message{kind: typeDelta, origin: g.cfg.Self, replica: replica, delta: delta}
	if b := m.encode(); len(b) <= maxMessage {
		g.tellAll(b)
		return
	}
	signal(g.announce)
}

// signal leaves word in a channel of one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// tellAll sends a message to all living members, and on as a rumour.
func (g *Gossip) tellAll(b []byte) {
	g.isNew(b)
	g.send(g.members.in(Alive), b)
	g.spreadRumour(b)
}

// send sends a message. What is lost is found by sums later.
func (g *Gossip) send(to []id.PeerID, b []byte) {
	for _, p := range to {
		if err := g.cfg.Carrier.Send(p, wire.KindRecords, b); err != nil {
			g.cfg.Log.WithField("peer", p.Short()).WithError(err).Debug("message was not sent")
		}
	}
}

// rumour is a message that memberlist passes on.
type rumour []byte

// Invalidates implements memberlist.Broadcast.
func (rumour) Invalidates(memberlist.Broadcast) bool { return false }

// Message implements memberlist.Broadcast.
func (r rumour) Message() []byte { return r }

// Finished implements memberlist.Broadcast.
func (rumour) Finished() {}

// UniqueBroadcast implements memberlist.UniqueBroadcast: no rumour takes the
// place of another.
func (rumour) UniqueBroadcast() {}

func (g *Gossip) spreadRumour(b []byte) {
	g.rumours.QueueBroadcast(rumour(b))
	g.rumours.Prune(maxRumours)
}

// isNew reports whether a message comes by for the first time.
func (g *Gossip) isNew(b []byte) bool {
	g.seenMu.Lock()
	defer g.seenMu.Unlock()
	return g.seen.add(b)
}

// ourSum is the sum as it is now, which it notes.
func (g *Gossip) ourSum() sum {
	s := sumOf(g.cfg.Replicas)
	g.doubts.ours(s)
	return s
}

// mySum encodes the message that shows our sum, or that has all pull.
func (g *Gossip) mySum(kind byte) []byte {
	return message{kind: kind, origin: g.cfg.Self, sum: g.ourSum()}.encode()
}

// tend shows our sum to those who should see it.
func (g *Gossip) tend(ctx context.Context) {
	var greet <-chan time.Time // while members wait for it
	compare := time.NewTicker(g.cfg.Timing.Sum)
	defer compare.Stop()
	retry := time.NewTicker(g.cfg.Timing.Rejoin)
	defer retry.Stop()
	for {
		var to []id.PeerID
		select {
		case <-ctx.Done():
			return
		case <-g.announce:
			g.tellAll(g.mySum(typeNews))
		case <-g.members.came:
			if greet == nil {
				greet = time.After(g.cfg.Timing.Greet)
			}
		case <-greet:
			greet = time.After(g.cfg.Timing.Greet)
			if len(g.pulls.awaited()) > 0 {
				continue // what we have does not say much yet
			}
			if to = g.members.takeFresh(greetings); len(to) == 0 {
				greet = nil
			} else if g.young() {
				g.introduce(to)
			}
		case <-compare.C:
			to = g.members.some(Alive, 1)
		case <-retry.C:
			to = g.members.some(Dead, greetings)
		}
		if len(to) > 0 {
			g.send(to, g.mySum(typeSum))
		}
	}
}

// introduce tells members what is our own.
func (g *Gossip) introduce(to []id.PeerID) {
	if len(to) == 0 {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(g.cfg.Replicas)) {
		a, ok := g.cfg.Replicas[name].(Announcer)
		if !ok {
			continue
		}
		m := message{kind: typeDelta, origin: g.cfg.Self, replica: name}
		for _, m.delta = range a.Announcement(maxMessage - len(m.encode())) {
			g.send(to, m.encode())
		}
	}
}

// incoming is a message and the peer to pull from if it shows that we lack
// something.
type incoming struct {
	message
	from id.PeerID
}

// HandlePacket takes a datagram of wire.KindGossip. It copies b and does not
// block.
func (g *Gossip) HandlePacket(from id.PeerID, b []byte) {
	if g.list.Load() == nil || !harmless(b) {
		return
	}
	g.PeerReachable(from)
	g.transport.ingestPacket(from, b, time.Now())
}

// HandleRecords takes a datagram of wire.KindRecords. It copies b and does not
// block.
func (g *Gossip) HandleRecords(from id.PeerID, b []byte) {
	if g.list.Load() == nil {
		return
	}
	g.PeerReachable(from)
	b = append([]byte(nil), b...)
	m, err := parseMessage(b)
	if err != nil {
		return
	}
	g.isNew(b) // so that it is not passed on as a rumour: all have got it
	g.receive(incoming{m, from})
}

// HandleStream serves a stream of wire.StreamGossip, and closes it. It returns
// at its end.
func (g *Gossip) HandleStream(from id.PeerID, c net.Conn) {
	held, err := g.life.hold(c, wire.StreamGossip)
	if err != nil {
		g.cfg.Log.WithField("peer", from.Short()).WithError(err).Debug("stream refused")
		return
	}
	g.transport.ingestStream(held)
}

// HandleSync serves a stream of wire.StreamSync, and closes it. It returns at
// its end.
func (g *Gossip) HandleSync(from id.PeerID, c net.Conn) {
	held, err := g.life.hold(c, wire.StreamSync)
	if err != nil {
		g.cfg.Log.WithField("peer", from.Short()).WithError(err).Debug("stream refused")
		return
	}
	defer func() { _ = held.Close() }()
	if err := g.serve(newPatient(held, g.cfg.Timing.IO)); err != nil {
		g.cfg.Log.WithField("peer", from.Short()).WithError(err).Debug("sync stream broke off")
	}
}

// receive queues a message. One that finds no room is made up for by a pull.
func (g *Gossip) receive(in incoming) {
	if in.from == g.cfg.Self {
		return
	}
	select {
	case g.inbox <- in:
	default:
		if g.members.isAlive(in.from) {
			g.pulls.request(in.from)
		}
	}
}

// noteAfter is how soon after a change our sum is noted: many changes at once
// would else cost one each.
const noteAfter = 10 * time.Millisecond

// intake takes in the messages, one after the other.
func (g *Gossip) intake(ctx context.Context) {
	var note <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case in := <-g.inbox:
			g.take(in)
		case <-g.changed:
			if note == nil {
				note = time.After(noteAfter)
			}
		case <-note:
			note = nil
			g.ourSum()
		}
	}
}

func (g *Gossip) take(in incoming) {
	if in.kind != typeDelta {
		g.compare(in)
		return
	}
	r := g.cfg.Replicas[in.replica]
	if r == nil {
		return
	}
	switch err := r.Merge(in.from, in.delta); {
	case errors.Is(err, ErrGap):
		if g.members.isAlive(in.from) {
			g.pulls.request(in.from)
		}
	case err != nil:
		g.cfg.Log.WithFields(logrus.Fields{"peer": in.from.Short(), "replica": in.replica}).
			WithError(err).Log(warnLevel(g.warnings), "delta was not merged")
	default:
		signal(g.changed)
	}
}

// compare takes in another's sum.
func (g *Gossip) compare(in incoming) {
	if !g.members.isAlive(in.from) {
		return
	}
	ours, now := g.ourSum(), time.Now()
	switch {
	case in.kind == typeSum:
		g.doubts.shown(in.from, in.sum, now)
	case in.sum != ours:
		g.pulls.requestOnce(in.from, in.sum, ours, now)
	}
}

// pullFailed logs a pull that nobody waits for.
func (g *Gossip) pullFailed(from id.PeerID, err error) {
	level := logrus.DebugLevel
	if errors.Is(err, errRefused) {
		level = warnLevel(g.warnings)
	}
	g.cfg.Log.WithField("peer", from.Short()).WithError(err).Log(level, "pull failed")
}

// delegate is what memberlist sees of a Gossip.
type delegate Gossip

// NodeMeta implements memberlist.Delegate.
func (d *delegate) NodeMeta(int) []byte {
	return meta{nickname: d.cfg.Nickname, candidates: *d.candidates.Load()}.encode()
}

// NotifyMsg implements memberlist.Delegate: it takes a rumour, and passes it on
// if it is news to us, because then others may have missed it as well.
func (d *delegate) NotifyMsg(b []byte) {
	g := (*Gossip)(d)
	if len(b) > maxMessage || !g.isNew(b) {
		return
	}
	b = append([]byte(nil), b...)
	m, err := parseMessage(b)
	if err != nil {
		return
	}
	g.spreadRumour(b)
	g.receive(incoming{m, m.origin})
}

// GetBroadcasts implements memberlist.Delegate.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.rumours.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate.
func (d *delegate) LocalState(bool) []byte { return (*Gossip)(d).mySum(typeSum) }

// MergeRemoteState implements memberlist.Delegate.
func (d *delegate) MergeRemoteState(b []byte, _ bool) {
	if m, err := parseMessage(b); err == nil {
		(*Gossip)(d).receive(incoming{m, m.origin})
	}
}
