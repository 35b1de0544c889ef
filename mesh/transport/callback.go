package transport

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// A peer behind a NAT or a firewall cannot be dialled, but can dial: so who wants a
// stream with it asks it by a datagram to open one, of kind StreamCallback, with a
// number by which the asker knows it again. From then on it is the asker's stream,
// who says what kind it is.

const (
	// callbackAfter is how long TCP has to connect before the peer is asked, too.
	callbackAfter = 300 * time.Millisecond
	// maxCallbacks bounds the streams that we open for others at once.
	maxCallbacks = 64
	tokenLen     = 8
)

var errUncalled = errors.New("a stream that nobody asked for")

// callbacks are the streams that we wait for. Its methods are safe for concurrent
// use.
type callbacks struct {
	mu      sync.Mutex
	waiting map[uint64]callback
}

type callback struct {
	peer id.PeerID
	got  chan *stream // buffered
}

func newCallbacks() *callbacks { return &callbacks{waiting: map[uint64]callback{}} }

// expect returns the number of a stream that is to come from a peer.
func (c *callbacks) expect(p id.PeerID) (token uint64, got chan *stream) {
	var b [tokenLen]byte
	_, _ = rand.Read(b[:]) // never fails
	token, got = binary.BigEndian.Uint64(b[:]), make(chan *stream, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting[token] = callback{p, got}
	return token, got
}

// forget ends the waiting. A stream that came and was not taken is closed.
func (c *callbacks) forget(token uint64) {
	c.mu.Lock()
	w := c.waiting[token]
	delete(c.waiting, token)
	c.mu.Unlock()
	select {
	case s := <-w.got:
		_ = s.Close()
	default:
	}
}

// came hands a stream to who waits for it.
func (c *callbacks) came(p id.PeerID, token uint64, s *stream) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, ok := c.waiting[token]
	if !ok || w.peer != p {
		return errUncalled
	}
	select {
	case w.got <- s:
		return nil
	default: // there is one already
		return errUncalled
	}
}

// askBack gets a stream from a peer that opens it.
func (t *Transport) askBack(ctx context.Context, l *Link, kind wire.StreamKind) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	token, got := t.callbacks.expect(l.id)
	defer t.callbacks.forget(token)
	if err := l.transmit(wire.KindCallback, binary.BigEndian.AppendUint64(nil, token)); err != nil {
		return nil, err
	}
	select {
	case s := <-got:
		if _, err := s.Write([]byte{byte(kind)}); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		return s, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("asked it to dial: %w", context.Cause(ctx))
	case <-t.closed:
		return nil, ErrClosed
	}
}

// calledBack takes an inbound stream of kind StreamCallback.
func (t *Transport) calledBack(p id.PeerID, s *stream) {
	var b [tokenLen]byte
	err := s.SetDeadline(time.Now().Add(handshakeTimeout))
	if err == nil {
		_, err = io.ReadFull(s, b[:])
	}
	if err == nil {
		err = s.SetDeadline(time.Time{})
	}
	if err == nil {
		err = t.callbacks.came(p, binary.BigEndian.Uint64(b[:]), s)
	}
	if err != nil {
		t.log.WithField("peer", p.Short()).WithError(err).Debug("inbound stream failed")
		_ = s.Close()
	}
}

// callback takes an item of KindCallback: it dials the peer that wants a stream.
func (r *receiver) callback(l *Link, body []byte) {
	t, peer := r.t, l.id
	if len(body) != tokenLen {
		t.drops.add(dropMalformed)
		return
	}
	if !r.calls.allow(relayed(peer).host(), r.now) { // each has us try all addresses that the peer names
		t.drops.add(dropRate)
		return
	}
	if t.calling.Add(1) > maxCallbacks {
		t.calling.Add(-1)
		t.drops.add(dropBusy)
		return
	}
	token := binary.BigEndian.Uint64(body)
	if !t.inbound.start(func(ctx context.Context) {
		s, kind, err := t.callBack(ctx, peer, token)
		t.calling.Add(-1)
		if err != nil {
			t.log.WithField("peer", peer.Short()).WithError(err).Debug("could not open the stream that a peer wants")
			return
		}
		t.dispatch(peer, kind, s)
	}) {
		t.calling.Add(-1)
	}
}

// callBack opens a stream for a peer, which is to be served like one that the peer
// opened.
func (t *Transport) callBack(ctx context.Context, p id.PeerID, token uint64) (*stream, wire.StreamKind, error) {
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := t.dialDirect(dialing, p, wire.StreamCallback)
	if err != nil {
		return nil, 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	s, kind := c.(*stream), [1]byte{}
	err = s.SetDeadline(time.Now().Add(handshakeTimeout))
	if err == nil {
		_, err = s.Write(binary.BigEndian.AppendUint64(nil, token))
	}
	if err == nil {
		_, err = io.ReadFull(s, kind[:])
	}
	if err == nil {
		err = s.SetDeadline(time.Time{})
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil && !t.inbound.adopt(s) {
		err = ErrClosed
	}
	if err != nil {
		return nil, 0, errors.Join(err, s.Close())
	}
	return s, wire.StreamKind(kind[0]), nil
}
