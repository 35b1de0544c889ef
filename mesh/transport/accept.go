package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/wire"
)

// inbound bounds and tracks the streams that others open, or have us open.
type inbound struct {
	handlers sync.WaitGroup
	ctx      context.Context // ends with close
	cancel   context.CancelFunc

	mu       sync.Mutex // guards what follows
	closed   bool
	conns    map[net.Conn]netip.Addr // all that are open
	halfOpen int                     // of these, how many are in handshake
	bySite   map[netip.Addr]int      // the same, by address
}

func newInbound() *inbound {
	in := &inbound{conns: map[net.Conn]netip.Addr{}, bySite: map[netip.Addr]int{}}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	return in
}

// start runs f in a goroutine that wait waits for; false after close. The context
// ends with close.
func (in *inbound) start(f func(context.Context)) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return false
	}
	in.handlers.Go(func() { f(in.ctx) })
	return true
}

// adopt takes a stream that we opened as one that a peer did; false if there are
// too many.
func (in *inbound) adopt(s *stream) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed || len(in.conns) >= maxStreams {
		return false
	}
	in.conns[s.Conn] = netip.Addr{}
	s.onClose = func() { in.forget(s.Conn) }
	return true
}

// admit takes a new connection, unless that would be too many.
func (in *inbound) admit(c net.Conn, from netip.Addr) bool {
	from = site(from)
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed || len(in.conns) >= maxStreams || in.halfOpen >= maxHalfOpen || in.bySite[from] >= maxHalfOpenOfOne {
		return false
	}
	in.conns[c] = from
	in.halfOpen++
	in.bySite[from]++
	in.handlers.Add(1)
	return true
}

// opened ends a connection's handshake, well or badly.
func (in *inbound) opened(c net.Conn, from netip.Addr) {
	from = site(from)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.halfOpen--
	if in.bySite[from]--; in.bySite[from] == 0 {
		delete(in.bySite, from)
	}
}

func (in *inbound) forget(c net.Conn) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.conns, c)
}

// close closes all that is open, and lets nothing in any more.
func (in *inbound) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.cancel()
	for c := range in.conns {
		_ = c.Close()
	}
}

func (in *inbound) wait() { in.handlers.Wait() }

// acceptRetry is the pause after a failure to accept, as for want of file
// descriptors.
const acceptRetry = 100 * time.Millisecond

func (t *Transport) accept(ctx context.Context, l net.Listener) error {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			t.log.WithError(err).Warn("cannot accept streams; trying again")
			select {
			case <-ctx.Done():
			case <-time.After(acceptRetry):
			}
			continue
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if !t.inbound.admit(c, from.Addr()) {
			t.drops.add(dropBusy)
			_ = c.Close()
			continue
		}
		go t.serve(c, from)
	}
}

// serve runs one inbound stream.
func (t *Transport) serve(c net.Conn, from netip.AddrPort) {
	defer t.inbound.handlers.Done()
	s, peer, kind, err := t.acceptStream(c, direct(from))
	t.inbound.opened(c, from.Addr())
	if err != nil {
		t.log.WithField("addr", from).WithError(err).Debug("inbound stream failed")
		t.inbound.forget(c)
		_ = c.Close()
		return
	}
	s.onClose = func() { t.inbound.forget(c) }
	t.dispatch(peer, kind, s)
}

// dispatch serves a stream that came straight from a peer.
func (t *Transport) dispatch(peer id.PeerID, kind wire.StreamKind, s *stream) {
	switch kind {
	case wire.StreamRelay:
		t.relayStream(s, peer)
	case wire.StreamCallback:
		t.calledBack(peer, s)
	case wire.StreamDatagrams:
		t.runPipe(s, peer)
	default:
		t.deliver(peer, kind, s)
	}
}

// deliver hands a stream to whom it is for.
func (t *Transport) deliver(peer id.PeerID, kind wire.StreamKind, s *stream) {
	if t.cfg.Stream == nil {
		t.drops.add(dropNoHandler)
		_ = s.Close()
		return
	}
	t.cfg.Stream(peer, kind, s)
}

var errReplayed = errors.New("a first message that came before")

// acceptStream is the responder's half of a stream's handshake.
func (t *Transport) acceptStream(c net.Conn, from hop) (*stream, id.PeerID, wire.StreamKind, error) {
	var peer id.PeerID
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, peer, 0, err
	}
	msg1, err := readMessage(c)
	if err != nil {
		return nil, peer, 0, err
	}
	if _, err := handshake.Verify(t.keys, msg1); err != nil {
		t.rejectStream(c, from.host(), msg1, err)
		return nil, peer, 0, err
	}
	if t.streamFirsts.again(macOf(msg1)) {
		t.drops.add(dropReplay)
		return nil, peer, 0, errReplayed
	}
	cfg := handshake.Config{Identity: t.cfg.Identity, Keys: t.keys, Medium: handshake.Stream}
	m, msg2, err := handshake.Respond(cfg, msg1, t.cfg.hello(from.addr, t.port))
	if err != nil {
		t.drops.add(dropHandshake)
		return nil, peer, 0, err
	}
	if err := writeMessage(c, msg2); err != nil {
		return nil, peer, 0, err
	}
	msg3, err := readMessage(c)
	if err != nil {
		return nil, peer, 0, err
	}
	res, err := m.Conclude(msg3)
	if err != nil {
		t.drops.add(dropHandshake)
		return nil, peer, 0, err
	}
	s, err := newStream(c, &res.Send, &res.Receive, res.AES)
	if err != nil {
		return nil, peer, 0, err
	}
	var kind [1]byte
	if _, err := io.ReadFull(s, kind[:]); err != nil {
		return nil, peer, 0, err
	}
	return s, res.Peer, wire.StreamKind(kind[0]), c.SetDeadline(time.Time{})
}

func (t *Transport) rejectStream(c net.Conn, from netip.Addr, msg1 []byte, reason error) {
	h, _ := wire.ParseHeader(msg1) // too short a message is never told why
	b := handshake.Reject(h, reason)
	if b == nil || len(b) >= len(msg1) {
		t.drops.add(dropHandshake)
		return
	}
	t.drops.add(dropPassword)
	t.refuse(from, false, reason)
	_ = writeMessage(c, b)
}
