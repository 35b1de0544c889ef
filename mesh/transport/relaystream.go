package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

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
	relayChunk = 16 << 10
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

// relayStream serves an inbound stream of kind StreamRelay, and closes it.
func (t *Transport) relayStream(s *stream) {
	h, err := readRelayHeader(s)
	switch {
	case err != nil:
	case h.To == t.cfg.Identity.ID:
		if err = t.acceptRelayed(s, h); err == nil {
			return // it is whose it is for
		}
	default:
		err = t.passStream(s, h)
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

// passStream passes a stream on until either side ends it.
func (t *Transport) passStream(s *stream, h wire.RelayHeader) error {
	if h.Hops == 0 {
		t.drops.add(dropHops)
		return ErrNoRoute
	}
	next := t.towards(h.To)
	if next == nil || next.id == h.From {
		t.drops.add(dropNoRoute)
		return ErrNoRoute
	}
	if t.passing.Add(1) > maxRelayed {
		t.passing.Add(-1)
		t.drops.add(dropBusy)
		return ErrBusy
	}
	defer t.passing.Add(-1)
	h.Hops--
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	onward, err := t.dialOnward(ctx, next, h)
	if err != nil {
		return err
	}
	var both sync.WaitGroup
	for _, d := range []struct{ from, to net.Conn }{{s, onward}, {onward, s}} {
		both.Go(func() {
			pour(d.to, d.from)
			_, _ = s.Close(), onward.Close()
		})
	}
	both.Wait()
	return nil
}

// pour copies until there is nothing for too long, or one of the two ends.
func pour(to, from net.Conn) {
	buf := make([]byte, relayChunk)
	for {
		if from.SetReadDeadline(time.Now().Add(relayIdle)) != nil {
			return
		}
		n, err := from.Read(buf)
		if n > 0 {
			if to.SetWriteDeadline(time.Now().Add(relayIdle)) != nil {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
