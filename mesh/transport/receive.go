package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"weave/mesh/fragment"
	"weave/mesh/handshake"
	"weave/mesh/session"
	"weave/mesh/udp"
	"weave/mesh/wire"
)

const (
	batch     = 32
	trainRoom = 64 << 10
	// trainGap has the buffers begin in different sets of the processor's caches:
	// most hold one short datagram.
	trainGap = 9 * 64
)

// receiver is what all that receive share: the receive goroutine, and one for each
// pipe. One at a time has it, for a batch.
type receiver struct {
	t       *Transport
	mu      sync.Mutex // guards what follows
	now     time.Time  // of the batch
	from    hop        // of the datagram
	came    came       // of the train
	onward  *relayTrain
	joiner  fragment.Joiner
	gate    floodgate
	knocked int64 // when we last answered a peer that knocks; nanoseconds since epoch
	scratch [wire.HeaderLen + wire.ItemHeaderLen + maxPing + wire.AddrLen + wire.TagLen]byte
	answer  []byte

	firsts     firsts   // first messages with a right MAC
	handshakes *limiter // the same, from anywhere
	introduced *limiter // those that came through peers, or by a stream of one
	rejects    *limiter // rejections that we send
	hints      *limiter // rejections that we get
	calls      *limiter // streams that peers want opened
}

// came is what a link has received and not been told yet: counters that others
// read cost too much to touch for each datagram.
type came struct {
	link      *Link
	datagrams uint64
	bytes     uint64
}

// maxPing is the longest body of a ping that is answered.
const maxPing = 64

func newReceiver(t *Transport) *receiver {
	r := &receiver{
		t:          t,
		onward:     newRelayTrain(),
		handshakes: newLimiter(handshakeRate, 50, 100),
		introduced: newLimiter(handshakeRate, 50, 100),
		rejects:    newLimiter(50, 2, 10),
		hints:      newLimiter(50, 2, 10),
		calls:      newLimiter(500, 20, maxCallbacks),
	}
	return r
}

// receive is the data path from the socket to the handlers, run to completion.
func (t *Transport) receive(ctx context.Context) error {
	trains := make([]udp.Train, batch)
	room := make([]byte, batch*(trainRoom+trainGap))
	for i := range trains {
		begin := i * (trainRoom + trainGap)
		trains[i].Buf = room[begin : begin+trainRoom : begin+trainRoom]
	}
	for {
		n, err := t.conn.ReadBatch(trains)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("receive: %w", err)
		}
		t.receiver.batch(trains[:n])
	}
}

// batch takes what came from the socket at once.
func (r *receiver) batch(trains []udp.Train) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = time.Now()
	for i := range trains {
		r.train(&trains[i])
	}
	r.flush()
}

// flush sends on and writes what was gathered of a batch.
func (r *receiver) flush() {
	if r.onward.send() != nil {
		r.t.drops.add(dropSend)
	}
	if r.t.cfg.Frames != nil {
		r.t.cfg.Frames.Flush()
	}
}

// train takes the datagrams of one train apart.
func (r *receiver) train(tr *udp.Train) {
	rest := tr.Buf
	for len(rest) > 0 {
		n := len(rest)
		if tr.Size > 0 {
			n = min(n, tr.Size)
		}
		r.datagram(rest[:n:n], direct(tr.From))
		rest = rest[n:]
	}
	r.settle(nil)
}

// count counts an authentic datagram.
func (r *receiver) count(l *Link, size int) {
	if r.came.link != l {
		r.settle(l)
	}
	r.came.datagrams++
	r.came.bytes += uint64(size)
}

// settle brings a link's counters up to date; the next datagrams are next's.
func (r *receiver) settle(next *Link) {
	if l := r.came.link; l != nil {
		l.rxDatagrams.Add(r.came.datagrams)
		l.rxBytes.Add(r.came.bytes)
	}
	r.came = came{link: next}
}

func (r *receiver) datagram(d []byte, from hop) {
	r.from = from
	h, err := wire.ParseHeader(d)
	if err != nil {
		r.t.drops.add(dropMalformed)
		return
	}
	switch h.Type {
	case wire.TypeSealed:
		r.sealed(h, d)
	case wire.TypeHandshake1, wire.TypeHandshake2, wire.TypeHandshake3:
		r.handshake(h, d, from)
	case wire.TypeReject:
		if !r.hints.allow(from.host(), r.now) {
			r.t.drops.add(dropRate)
			return
		}
		r.t.rejected(d, from)
	case wire.TypeFragment:
		r.fragment(h, d)
	default:
		r.t.drops.add(dropMalformed)
	}
}

// session is that of a datagram's header, or nil: then the datagram is dropped.
func (t *Transport) session(h wire.Header) *entry {
	if h.Version != wire.Version {
		t.drops.add(dropVersion)
		return nil
	}
	e := t.table.get(h.Index)
	if e == nil {
		t.drops.add(dropUnknownSession)
	}
	return e
}

// sealed opens one datagram and hands out its items.
func (r *receiver) sealed(h wire.Header, d []byte) {
	t := r.t
	e := t.session(h)
	if e == nil {
		return
	}
	size := len(d)
	plain, err := e.session.Open(d)
	if err != nil {
		t.drops.add(openDrop(err))
		return
	}
	l, now := e.link, t.since(r.now)
	if !r.from.of(l.id) {
		t.drops.add(dropMalformed)
		return
	}
	if !r.from.direct() {
		r.from.peer = l.id // who passed it on may have named another
	}
	if e.heard.Load() != now { // storing costs more
		e.heard.Store(now)
		l.heard.Store(now)
	}
	r.count(l, size)
	if !e.confirmed.Load() {
		t.confirm(e, r.from, r.now)
	} else if path := l.path.Load(); path == nil || *path != r.from {
		r.strayed(l, path)
	}
	r.items(l, h.Counter, plain)
}

func openDrop(err error) drop {
	switch err {
	case session.ErrReplay:
		return dropReplay
	case session.ErrForged:
		return dropForged
	}
	return dropMalformed
}

func (r *receiver) items(l *Link, counter uint64, plain []byte) {
	for len(plain) > 0 {
		kind, body, rest, err := wire.NextItem(plain)
		if err != nil {
			r.t.drops.add(dropMalformed)
			return
		}
		r.item(l, counter, kind, body)
		plain = rest
	}
}

func (r *receiver) item(l *Link, counter uint64, kind wire.Kind, body []byte) {
	t := r.t
	switch kind {
	case wire.KindFrame:
		l.use()
		h, frame, err := wire.ParseFrame(body)
		switch {
		case err != nil:
			t.drops.add(dropMalformed)
		case t.cfg.Frames == nil:
			t.drops.add(dropNoHandler)
		default:
			t.cfg.Frames.Receive(l.id, counter, h, frame)
		}
	case wire.KindKeepalive, wire.KindPadding:
	case wire.KindPing:
		r.pong(l, body)
	case wire.KindPong:
		r.ponged(l, body)
	case wire.KindRelay:
		r.relay(l, body)
	case wire.KindCallback:
		r.callback(l, body)
	default:
		if t.cfg.Packet == nil {
			t.drops.add(dropNoHandler)
			return
		}
		t.cfg.Packet(l.id, kind, body)
	}
}

// pong answers a ping with its body, the way that it came: so the answer proves
// that very way. It tells the peer where we see it, too.
func (r *receiver) pong(l *Link, body []byte) {
	if len(body) > maxPing {
		r.t.drops.add(dropMalformed)
		return
	}
	r.answer = wire.AppendAddr(append(r.answer[:0], body...), r.from.addr)
	d := wire.AppendItem(r.scratch[:wire.HeaderLen], wire.KindPong, r.answer)
	d = d[:len(d)+wire.TagLen]
	if l.Seal(d, len(d)) == nil {
		_ = l.sendTo(d, len(d), r.from) // counted
	}
}

// handshake passes on what costs Diffie-Hellman to control, if it is from
// somebody who knows the password; strangers cost one MAC.
func (r *receiver) handshake(h wire.Header, d []byte, from hop) {
	t := r.t
	if _, err := handshake.Verify(t.keys, d); err != nil {
		if h.Type == wire.TypeHandshake1 {
			r.shed()
		}
		r.reject(h, len(d), err, from)
		return
	}
	if h.Type == wire.TypeHandshake1 && !r.first(macOf(d), from) {
		return
	}
	select {
	case t.jobs <- job{header: h, msg: bytes.Clone(d), from: from}:
	default:
		t.drops.add(dropBusy)
	}
}

// first reports whether a first message with a right MAC is to be answered.
func (r *receiver) first(mac [handshake.MACLen]byte, from hop) bool {
	t, now, limit := r.t, r.t.since(r.now), r.handshakes
	if !from.udp() {
		limit = r.introduced // what strangers send must not keep these out
	}
	switch {
	case r.firsts.stale(mac, now):
		t.drops.add(dropReplay)
		r.shed()
		return false
	case !limit.allow(from.host(), r.now):
		t.drops.add(dropRate)
		r.shed()
		return false
	}
	r.firsts.add(mac, now)
	return true
}

// reject tells a stranger why it is not let in, as long as that is cheap.
func (r *receiver) reject(h wire.Header, size int, reason error, from hop) {
	t := r.t
	switch {
	case errors.Is(reason, handshake.ErrPassword):
		t.drops.add(dropPassword)
	case errors.Is(reason, handshake.ErrVersion):
		t.drops.add(dropVersion)
	default:
		t.drops.add(dropMalformed)
	}
	b := handshake.Reject(h, reason)
	if b == nil || len(b) >= size || !r.rejects.allow(from.host(), r.now) {
		return
	}
	t.refuse(from.host(), false, reason)
	_ = t.write(b, from)
}
