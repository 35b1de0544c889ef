package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// A stream to a peer that is not reached directly goes through a stream of kind
// StreamRelay to the next peer on the way, which opens another one to the next.
// The two ends do the handshake of a stream of their own inside: who passes it
// on sees that it is there, and nothing else.

const (
	// relayIdle ends a stream that is passed on and carries nothing.
	relayIdle = time.Minute
	// maxRelayed bounds the streams that are passed on at once.
	maxRelayed = 256
	// maxRelayedOfOne bounds those that one neighbour brings, so that it leaves room
	// for the others.
	maxRelayedOfOne = 64
	relayChunk      = 16 << 10
)

var errRelayed = errors.New("a stream inside a relayed one may not be relayed")

// dialOnward opens a stream to a neighbour for what is to be passed on.
func (t *Transport) dialOnward(ctx context.Context, next *Link, h wire.RelayHeader) (net.Conn, error) {
	c, err := t.dialNear(ctx, next, wire.StreamRelay)
	if err != nil {
		return nil, fmt.Errorf("by peer %s: %w", next.id.Short(), err)
	}
	var b [wire.RelayHeaderLen]byte
	h.Put(b[:])
	if _, err := c.Write(b[:]); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// relayStream serves an inbound stream of kind StreamRelay from a neighbour, and
// closes it.
func (t *Transport) relayStream(s *stream, from id.PeerID) {
	h, err := readRelayHeader(s)
	switch {
	case err != nil:
	case h.To == t.cfg.Identity.ID:
		if err = t.acceptRelayed(s, h); err == nil {
			return // it is whose it is for
		}
	default:
		err = t.passStream(s, from, h)
	}
	if err != nil {
		t.log.WithError(err).Debug("relayed stream failed")
	}
	_ = s.Close()
}

func readRelayHeader(s *stream) (wire.RelayHeader, error) {
	var b [wire.RelayHeaderLen]byte
	if err := s.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return wire.RelayHeader{}, err
	}
	if _, err := io.ReadFull(s, b[:]); err != nil {
		return wire.RelayHeader{}, err
	}
	h, _, err := wire.ParseRelay(b[:])
	return h, err
}

// acceptRelayed takes a stream that came through others to us.
func (t *Transport) acceptRelayed(s *stream, h wire.RelayHeader) error {
	inner, peer, kind, err := t.acceptStream(s, relayed(h.From))
	if err != nil {
		return err
	}
	switch kind {
	case wire.StreamRelay, wire.StreamCallback, wire.StreamDatagrams:
		return errors.Join(errRelayed, inner.Close())
	}
	t.deliver(peer, kind, inner)
	return nil
}

// passStream passes a stream on until either side ends it, or Close does. Like a
// datagram it does not go back.
func (t *Transport) passStream(s *stream, from id.PeerID, h wire.RelayHeader) error {
	if h.Hops == 0 {
		t.drops.add(dropHops)
		return ErrNoRoute
	}
	next := t.towards(h.To)
	if next == nil || next.id == from || next.id == h.From {
		t.drops.add(dropNoRoute)
		return ErrNoRoute
	}
	if !t.passing.take(from) {
		t.drops.add(dropBusy)
		return ErrBusy
	}
	defer t.passing.give(from)
	h.Hops = min(h.Hops, maxHops) - 1
	onward, err := t.dialOnward(t.inbound.ctx, next, h)
	if err != nil {
		return err
	}
	join(s, onward, relayIdle)
	return nil
}

// passing counts the streams that are passed on. Its methods are safe for
// concurrent use.
type passing struct {
	mu  sync.Mutex
	all int
	of  map[id.PeerID]int // by the neighbour that brought them; none is 0
}

// take reports whether there is room for one more.
func (p *passing) take(from id.PeerID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all >= maxRelayed || p.of[from] >= maxRelayedOfOne {
		return false
	}
	if p.of == nil {
		p.of = map[id.PeerID]int{}
	}
	p.all++
	p.of[from]++
	return true
}

func (p *passing) give(from id.PeerID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if p.of[from]--; p.of[from] == 0 {
		delete(p.of, from)
	}
}

func (p *passing) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all
}

// join copies both ways between two streams until one of them ends, or nothing
// has gone either way for so long; then it closes both.
func join(a, b net.Conn, idle time.Duration) {
	var both sync.WaitGroup
	var last atomic.Int64 // when something went, in nanoseconds since began
	began := time.Now()
	for _, d := range []struct{ from, to net.Conn }{{a, b}, {b, a}} {
		both.Go(func() {
			pour(d.to, d.from, idle, began, &last)
			_, _ = a.Close(), b.Close()
		})
	}
	both.Wait()
}

// pour is one half of join.
func pour(to, from net.Conn, idle time.Duration, began time.Time, last *atomic.Int64) {
	buf := make([]byte, relayChunk)
	for {
		if from.SetReadDeadline(began.Add(time.Duration(last.Load())+idle)) != nil {
			return
		}
		n, err := from.Read(buf)
		if n > 0 {
			last.Store(int64(time.Since(began)))
			if to.SetWriteDeadline(time.Now().Add(idle)) != nil {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if isTimeout(err) && time.Since(began) < time.Duration(last.Load())+idle {
			continue // the other way is in use
		}
		if err != nil {
			return
		}
	}
}
