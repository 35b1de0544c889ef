package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/wire"
)

// dialTimeout bounds the try of one candidate.
const dialTimeout = 3 * time.Second

// Dial opens a stream to a peer: TCP to a candidate, sealed. It tries the
// candidates one after the other, the address in use first. The stream is the
// caller's to close; closing it tells the other side, which reads io.EOF then.
// The error wraps ErrUnknownPeer, ErrNoCandidate, or what came of each try.
func (t *Transport) Dial(ctx context.Context, p id.PeerID, kind wire.StreamKind) (net.Conn, error) {
	addrs, err := t.dialAddrs(p)
	if err != nil {
		return nil, fmt.Errorf("dial peer %s: %w", p.Short(), err)
	}
	var errs []error
	for _, addr := range addrs {
		c, err := t.dial(ctx, p, addr, kind)
		if err == nil {
			return c, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("dial peer %s: %w", p.Short(), errors.Join(errs...))
}

func (t *Transport) dialAddrs(p id.PeerID) ([]netip.AddrPort, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	peer := t.peers[p]
	if peer == nil {
		return nil, ErrUnknownPeer
	}
	addrs := slices.Clone(peer.candidates)
	if path := peer.path.Load(); path != nil {
		addrs = slices.DeleteFunc(addrs, func(a netip.AddrPort) bool { return a == *path })
		addrs = slices.Insert(addrs, 0, *path)
	}
	if len(addrs) == 0 {
		return nil, ErrNoCandidate
	}
	return addrs, nil
}

func (t *Transport) dial(ctx context.Context, p id.PeerID, addr netip.AddrPort, kind wire.StreamKind) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	s, err := t.openStream(c, p, addr, kind)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return s, nil
}

// openStream is the initiator's half of a stream's handshake.
func (t *Transport) openStream(c net.Conn, p id.PeerID, addr netip.AddrPort, kind wire.StreamKind) (*stream, error) {
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
		t.refuse(addr.Addr(), true, reason)
		return nil, reason
	}
	msg3, res, err := m.Answer(msg2, t.cfg.hello(addr, t.port))
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
