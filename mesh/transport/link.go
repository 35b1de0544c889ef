package transport

import (
	"net/netip"
	"sync/atomic"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/session"
	"weave/mesh/wire"
)

// Link is the hot path to one peer: no lock, no allocation. It is safe for
// concurrent use. While there is no session, Seal fails and asks for one. Ask
// Transport for the Link anew rather than keep it for long: the bound on peers
// may push a peer that is away out, and its Link is of no use then.
type Link struct {
	t  *Transport
	id id.PeerID

	current atomic.Pointer[entry] // what Seal uses; nil: no session
	path    atomic.Pointer[hop]   // in use; set before current
	wanted  atomic.Bool           // somebody has something to send
	mtu     pathMTU               // of the path, if it is by UDP

	up     atomic.Bool                    // the path is direct, and works both ways: see path.go
	busy   atomic.Bool                    // it carried frames of late, ours or others'
	heard  atomic.Int64                   // last authentic datagram; nanoseconds since epoch
	proved atomic.Int64                   // when the path last proved to work both ways; 0: not yet
	rtt    atomic.Int64                   // nanoseconds; 0: not measured
	seen   atomic.Pointer[netip.AddrPort] // where the peer sees us; nil: it has not told
	moved  atomic.Int64                   // when the path became what it is; nanoseconds since epoch
	pings  pings                          // by the path

	txDatagrams, txBytes atomic.Uint64 // bytes of UDP payload
	rxDatagrams, rxBytes atomic.Uint64
}

// entry is one session in the table.
type entry struct {
	index   uint32
	session *session.Session
	link    *Link
	hello   handshake.Hello
	aes     bool
	msg3    [handshake.MACLen]byte // responder: MAC of the message 3 it came from

	confirmed atomic.Bool  // the other side has shown that it has the keys
	heard     atomic.Int64 // last authentic datagram; nanoseconds since epoch
}

// Link returns the link to a peer, or nil if the peer is unknown.
func (t *Transport) Link(p id.PeerID) *Link { return (*t.links.Load())[p] }

// Seal seals the datagrams that stand one after the other in buf, each size bytes
// long, the last maybe shorter, in place: wire.HeaderLen bytes of room in front,
// items, wire.TagLen bytes of room behind. All are of one session, and their
// counters consecutive. Its error is ErrNoSession; then none is sealed.
func (l *Link) Seal(buf []byte, size int) error {
	e := l.current.Load()
	if e == nil {
		l.want()
		return ErrNoSession
	}
	err := e.session.Seal(buf, size)
	if err == session.ErrSpent {
		l.want()
		return ErrNoSession
	}
	return err
}

// Send sends sealed datagrams that stand one after the other in buf, each size
// bytes long, the last maybe shorter, by the path in use. buf is free again
// when it returns.
func (l *Link) Send(buf []byte, size int) error {
	if len(buf) == 0 || size <= 0 {
		return nil
	}
	path := l.path.Load()
	if path == nil {
		return ErrNoSession
	}
	l.use()
	return l.sendTo(buf, size, *path)
}

// sendTo is Send by another way than the one in use.
func (l *Link) sendTo(buf []byte, size int, to hop) error {
	var err error
	if size > int(l.mtu.limit.Load()) && to.udp() {
		err = l.sendFragments(buf, size, to)
	} else if err = l.t.send(buf, size, to); err != nil && to.udp() && tooLong(err) && l.shorten(size) {
		err = l.sendFragments(buf, size, to)
	}
	if err != nil {
		l.t.drops.add(dropSend)
		return err
	}
	l.txDatagrams.Add(uint64((len(buf) + size - 1) / size))
	l.txBytes.Add(uint64(len(buf)))
	return nil
}

// Path returns the address in use, which is not valid while the peer is reached
// by TCP or through others; false while there is no session, or while it is not known
// whether others reach the peer.
func (l *Link) Path() (netip.AddrPort, bool) {
	path := l.path.Load()
	if path == nil || l.current.Load() == nil || !path.direct() && l.proved.Load() == 0 {
		return netip.AddrPort{}, false
	}
	return path.addr, true
}

// Transmit seals one item and sends it in a datagram of its own, once: without a
// session it is not kept, and the error is ErrNoSession. body is free again when
// it returns, and at most MaxBody long.
func (l *Link) Transmit(kind wire.Kind, body []byte) error { return l.transmit(kind, body) }

// want asks control for a session, at once.
func (l *Link) want() {
	if !l.wanted.Swap(true) {
		l.t.kick()
	}
}

// transmit sends one item in one datagram by the path in use.
func (l *Link) transmit(kind wire.Kind, body []byte) error {
	path := l.path.Load()
	if path == nil {
		l.want()
		return ErrNoSession
	}
	return l.transmitTo(kind, body, *path)
}

func (l *Link) transmitTo(kind wire.Kind, body []byte, to hop) error {
	d := make([]byte, wire.HeaderLen, wire.HeaderLen+wire.ItemHeaderLen+len(body)+wire.TagLen)
	d = wire.AppendItem(d, kind, body)
	d = d[:len(d)+wire.TagLen]
	if err := l.Seal(d, len(d)); err != nil {
		return err
	}
	return l.sendTo(d, len(d), to)
}

// setPath has datagrams take a way from now on. How much another one takes is to
// be found out anew.
func (l *Link) setPath(by hop, now int64) {
	if old := l.path.Load(); old == nil || *old != by {
		l.mtu.reset(now)
		l.anew(now)
		l.t.kick()
	}
	l.path.Store(&by)
}

// anew notes that the path is another one than before.
func (l *Link) anew(now int64) {
	l.moved.Store(now)
	l.pings.forget()
}

// silent reports whether the peer has left two pings and a bit unanswered.
func (l *Link) silent(now time.Time) bool {
	return l.t.since(now)-l.heard.Load() > int64(l.t.cfg.PingInterval)*5/2
}

// Send sends one item in a datagram of its own under the newest session. While
// there is none it keeps the item, for as long as the bounds allow, and sends
// it as soon as there is one. body is free again when it returns. Its errors
// are ErrUnknownPeer, ErrTooBig, ErrQueueFull, and those of the socket.
func (t *Transport) Send(p id.PeerID, kind wire.Kind, body []byte) error {
	l := t.Link(p)
	switch {
	case l == nil:
		return ErrUnknownPeer
	case len(body) > MaxBody:
		return ErrTooBig
	}
	err := l.transmit(kind, body)
	if err != ErrNoSession {
		return err
	}
	return t.enqueue(p, kind, body)
}

func (t *Transport) enqueue(p id.PeerID, kind wire.Kind, body []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	peer := t.peers[p]
	if peer == nil {
		return ErrUnknownPeer
	}
	if peer.current.Load() != nil { // confirmed meanwhile
		if err := peer.transmit(kind, body); err != ErrNoSession {
			return err
		}
	}
	return peer.queue.push(kind, body)
}
