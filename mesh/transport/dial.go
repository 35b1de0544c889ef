package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/wire"
)

// dialTimeout bounds the try of one candidate.
const dialTimeout = 3 * time.Second

// Dial opens a stream to a peer: TCP to a candidate, sealed, or the peer opens it,
// or it goes through relays. Candidates are tried one after the other, the path in
// use first. The stream is the caller's to close; closing it tells the other side,
// which reads io.EOF then. The error wraps ErrUnknownPeer, ErrNoCandidate, or what
// came of each try.
func (t *Transport) Dial(ctx context.Context, p id.PeerID, kind wire.StreamKind) (net.Conn, error) {
	l := t.Link(p)
	if l == nil {
		return nil, fmt.Errorf("dial peer %s: %w", p.Short(), ErrUnknownPeer)
	}
	ways := []func() (net.Conn, error){
		func() (net.Conn, error) { return t.dialNear(ctx, l, kind) },
		func() (net.Conn, error) { return t.dial(ctx, p, relayed(p), kind) },
	}
	// Where there is no direct way by UDP there is hardly one by TCP.
	if path := l.path.Load(); path != nil && !path.direct() {
		slices.Reverse(ways)
	}
	var errs []error
	for _, way := range ways {
		c, err := way()
		if err == nil {
			return c, nil
		}
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("dial peer %s: %w", p.Short(), errors.Join(errs...))
}

// dialNear opens a stream to a peer without relays: we dial it, and if that takes
// long, it dials us; who is first.
func (t *Transport) dialNear(ctx context.Context, l *Link, kind wire.StreamKind) (net.Conn, error) {
	return race(ctx, callbackAfter,
		func(ctx context.Context) (net.Conn, error) { return t.dialDirect(ctx, l.id, kind) },
		func(ctx context.Context) (net.Conn, error) {
			s, err := t.askBack(ctx, l, kind)
			if err != nil {
				return nil, err // no nil *stream in an interface
			}
			return s, nil
		})
}

// dialDirect opens a stream to a peer at one of its addresses.
func (t *Transport) dialDirect(ctx context.Context, p id.PeerID, kind wire.StreamKind) (net.Conn, error) {
	addrs := t.dialAddrs(p)
	if len(addrs) == 0 {
		return nil, ErrNoCandidate
	}
	var errs []error
	for _, by := range addrs {
		c, err := t.dial(ctx, p, by, kind)
		if err == nil {
			return c, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", by, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// dialAddrs are the addresses of a peer, the one in use first.
func (t *Transport) dialAddrs(p id.PeerID) (hops []hop) {
	t.mu.Lock()
	defer t.mu.Unlock()
	peer := t.peers[p]
	if peer == nil {
		return nil
	}
	for _, a := range peer.candidates {
		hops = append(hops, direct(a))
	}
	if path := peer.path.Load(); path != nil && path.udp() && (!t.cfg.NoDiscovery || slices.Contains(hops, *path)) {
		hops = slices.DeleteFunc(hops, func(h hop) bool { return h == *path })
		hops = slices.Insert(hops, 0, *path)
	}
	return hops
}

// dial opens a stream by a hop, with that peer, or with whoever answers if it is
// zero. What it returns is a *stream.
func (t *Transport) dial(ctx context.Context, p id.PeerID, by hop, kind wire.StreamKind) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	opens := []opener{func(ctx context.Context) (net.Conn, error) { return t.dialRelay(ctx, by.peer) }}
	if by.udp() {
		opens = t.tcpWays(by.addr)
	}
	var ways []opener
	for _, open := range opens {
		ways = append(ways, func(ctx context.Context) (net.Conn, error) {
			c, err := open(ctx)
			if err != nil {
				return nil, err
			}
			stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
			s, err := t.openStream(c, p, by, kind)
			if !stop() {
				err = errors.Join(context.Cause(ctx), err)
			}
			if err != nil {
				return nil, errors.Join(err, c.Close())
			}
			return s, nil
		})
	}
	return race(ctx, dialStagger, ways...)
}

// dialRelay opens what the handshake of a stream to a peer behind relays goes
// through.
func (t *Transport) dialRelay(ctx context.Context, p id.PeerID) (net.Conn, error) {
	next := t.next(p)
	if next == nil {
		return nil, ErrNoRoute
	}
	return t.dialOnward(ctx, next, wire.RelayHeader{Hops: maxHops - 1, To: p, From: t.cfg.Identity.ID})
}

// openStream is the initiator's half of a stream's handshake.
func (t *Transport) openStream(c net.Conn, p id.PeerID, by hop, kind wire.StreamKind) (*stream, error) {
	m, msg1, err := handshake.Initiate(handshake.Config{
		Identity: t.cfg.Identity, Keys: t.keys, Medium: handshake.Stream, Want: p,
	})
	if err != nil {
		return nil, err
	}
	if err := writeMessage(c, msg1); err != nil {
		return nil, err
	}
	msg2, err := readMessage(c)
	if err != nil {
		return nil, err
	}
	if _, reason, err := handshake.ParseReject(msg2); err == nil {
		t.refuse(by.host(), true, reason)
		return nil, reason
	}
	msg3, res, err := m.Answer(msg2, t.cfg.hello(by.addr, t.port))
	if err != nil {
		return nil, err
	}
	s, err := newStream(c, &res.Send, &res.Receive, res.AES)
	if err != nil {
		return nil, err
	}
	if err := writeMessage(c, msg3); err != nil {
		return nil, err
	}
	s.peer = res.Peer
	_, err = s.Write([]byte{byte(kind)})
	return s, err
}

// writeMessage frames a handshake message: its length in two bytes, and it.
func writeMessage(w io.Writer, msg []byte) error {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	_, err := w.Write(append(b, msg...))
	return err
}

func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(length[:])
	if n > handshake.Len1 {
		return nil, handshake.ErrMalformed
	}
	msg := make([]byte, n)
	_, err := io.ReadFull(r, msg)
	return msg, err
}
