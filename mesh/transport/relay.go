package transport

import (
	"errors"
	"sync/atomic"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// A datagram for a peer that is not reached directly goes to the next peer on the
// way as an item of KindRelay, in a datagram of the session with that one. It
// passes it on alike, under the session with the next. So only members relay and
// are relayed for, and none of them can read what it passes on: the datagram
// inside is sealed, or a handshake's, between the two ends.
//
// Nothing goes in circles for long, or back: see relay.pass.

// maxHops is how many links a datagram may go at most.
const maxHops = 32

// relayRoom holds a train of full-sized datagrams of a usual underlay.
const relayRoom = 64 << 10

// ErrNoRoute: the peer is not reached directly, and others do not reach it either.
var ErrNoRoute = errors.New("no way to the peer")

// send sends datagrams that stand one after the other in buf, each size bytes
// long, the last maybe shorter.
func (t *Transport) send(buf []byte, size int, to hop) error {
	switch {
	case to.udp():
		return t.conn.Write(buf, size, to.addr)
	case to.pipe != nil:
		return to.pipe.send(buf, size)
	}
	next := t.next(to.peer)
	if next == nil {
		return ErrNoRoute
	}
	train := t.trains.Get().(*relayTrain)
	defer func() {
		train.reset()
		t.trains.Put(train)
	}()
	h := wire.RelayHeader{Hops: maxHops - 1, To: to.peer, From: t.cfg.Identity.ID}
	for len(buf) > 0 {
		n := min(size, len(buf))
		if err := train.add(next, h, buf[:n]); err != nil {
			return err
		}
		buf = buf[n:]
	}
	return train.send()
}

// next returns the link to the next peer on the way to p, or nil. Such a link is
// direct: a relay's way is never made of other ways.
func (t *Transport) next(p id.PeerID) *Link {
	if t.cfg.Next == nil {
		return nil
	}
	via, ok := t.cfg.Next(p)
	if !ok || via == p { // of a direct way the transport itself knows best
		return nil
	}
	if l := t.Link(via); l != nil && l.proven() {
		return l
	}
	return nil
}

// relayTrain gathers datagrams that go to one next hop with one call. One
// goroutine owns it at a time.
type relayTrain struct {
	link *Link
	buf  []byte
	size int  // of each datagram
	full bool // the last is shorter, so that none can follow
}

func newRelayTrain() *relayTrain { return &relayTrain{buf: make([]byte, 0, relayRoom)} }

// add wraps and seals a datagram; a train that it does not fit is sent before.
func (r *relayTrain) add(l *Link, h wire.RelayHeader, datagram []byte) error {
	n := wire.RelayOverhead + len(datagram)
	if n > cap(r.buf) {
		return ErrTooBig
	}
	if r.link != l || r.full || n > r.size || len(r.buf)+n > cap(r.buf) {
		if err := r.send(); err != nil {
			return err
		}
	}
	d := r.buf[len(r.buf) : len(r.buf)+n]
	text := d[wire.HeaderLen:]
	body := wire.RelayHeaderLen + len(datagram)
	text[0], text[1], text[2] = byte(wire.KindRelay), byte(body>>8), byte(body)
	h.Put(text[wire.ItemHeaderLen:])
	copy(text[wire.ItemHeaderLen+wire.RelayHeaderLen:], datagram)
	if err := l.Seal(d, n); err != nil {
		return err
	}
	if len(r.buf) == 0 {
		r.link, r.size = l, n
	}
	r.buf, r.full = r.buf[:len(r.buf)+n], n < r.size
	return nil
}

// send sends what there is; the train is empty then.
func (r *relayTrain) send() error {
	if len(r.buf) == 0 {
		return nil
	}
	l, buf, size := r.link, r.buf, r.size
	r.reset()
	path := l.path.Load()
	if path == nil || !path.direct() {
		return ErrNoRoute
	}
	l.use()
	return l.sendTo(buf, size, *path)
}

func (r *relayTrain) reset() { r.link, r.buf, r.size, r.full = nil, r.buf[:0], 0, false }

// Relayed counts what this peer passed on for others, since New.
type Relayed struct {
	Datagrams uint64
	Bytes     uint64 // of the datagrams inside
}

type relayedCounters struct{ datagrams, bytes atomic.Uint64 }

// Relayed returns what was passed on.
func (t *Transport) Relayed() Relayed {
	return Relayed{t.relayed.datagrams.Load(), t.relayed.bytes.Load()}
}

// relay takes an item of KindRelay from the peer that l is of. It is for us, and
// then the datagram inside is taken like any other, or to be passed on.
func (r *receiver) relay(l *Link, body []byte) {
	t := r.t
	l.use()
	h, datagram, err := wire.ParseRelay(body)
	switch {
	case err != nil || !r.from.direct(): // none is inside another
		t.drops.add(dropMalformed)
	case h.To == t.cfg.Identity.ID && h.From == h.To:
		t.drops.add(dropMalformed)
	case h.To == t.cfg.Identity.ID:
		outer := r.from
		r.datagram(datagram, relayed(h.From))
		r.from = outer
	default:
		r.pass(l, h, datagram)
	}
}

// pass sends a datagram on to the next peer on its way. Never to the one that it
// came from, or to the one that sent it first: they think that we are nearer,
// and soon one of us will know better. What goes in a larger circle meanwhile
// ends with its hops.
func (r *receiver) pass(l *Link, h wire.RelayHeader, datagram []byte) {
	t := r.t
	if h.Hops == 0 {
		t.drops.add(dropHops)
		return
	}
	next := t.towards(h.To)
	if next == nil || next == l || next.id == h.From {
		t.drops.add(dropNoRoute)
		return
	}
	h.Hops = min(h.Hops, maxHops) - 1
	if err := r.onward.add(next, h, datagram); err != nil {
		t.drops.add(dropNoRoute)
		return
	}
	t.relayed.datagrams.Add(1)
	t.relayed.bytes.Add(uint64(len(datagram)))
}

// towards is next, for a relay: the peer itself, if we reach it directly.
func (t *Transport) towards(p id.PeerID) *Link {
	if l := t.Link(p); l != nil && l.proven() {
		return l
	}
	return t.next(p)
}
