package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/wire"
)

const (
	maxTried   = 4                      // addresses of one peer
	tryTimeout = 2 * time.Second        // for all of them
	tryAgain   = 400 * time.Millisecond // after message 1 was sent, if nothing came
)

// Tried is what came of reaching a peer at one of its addresses, afresh.
type Tried struct {
	Addr     netip.AddrPort
	UDP, TCP error // nil: it answered, and proved to be the peer
}

// Try tells whether a peer answers at its addresses to who has had nothing to do
// with it: it begins a handshake from ports that no firewall has seen yet. Nothing
// of the sessions and paths in use is changed. It takes no other address than
// those that are tried anyway, a few, and some seconds.
func (t *Transport) Try(ctx context.Context, p id.PeerID) []Tried {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	t.mu.Lock()
	var tried []Tried
	if peer := t.peers[p]; peer != nil {
		for _, a := range peer.candidates[:min(len(peer.candidates), maxTried)] {
			tried = append(tried, Tried{Addr: a})
		}
	}
	t.mu.Unlock()
	ended := make(chan struct{})
	for i := range tried {
		go func() { tried[i].UDP = t.tryUDP(ctx, p, tried[i].Addr); ended <- struct{}{} }()
		go func() { tried[i].TCP = t.tryTCP(ctx, p, tried[i].Addr); ended <- struct{}{} }()
	}
	for range 2 * len(tried) {
		<-ended
	}
	return tried
}

// tryUDP sends message 1 from a socket of its own. A right message 2 is proof
// enough, and it is left unanswered, so that no session comes of it.
func (t *Transport) tryUDP(ctx context.Context, p id.PeerID, addr netip.AddrPort) error {
	dialer := net.Dialer{}
	if own := t.cfg.Listen.Addr().Unmap(); own.IsValid() && !own.IsUnspecified() && own.Is4() == addr.Addr().Is4() {
		dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(own, 0))
	}
	c, err := dialer.DialContext(ctx, "udp", addr.String())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // nothing is lost
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	m, msg1, err := handshake.Initiate(handshake.Config{
		Identity: t.cfg.Identity, Keys: t.keys, Medium: handshake.Datagrams, Index: 1, Want: p,
	})
	if err != nil {
		return err
	}
	buf := make([]byte, handshake.Len1)
	for range tryTimeout / tryAgain { // also if rubbish comes
		_, err := c.Write(msg1)
		if err == nil {
			err = c.SetReadDeadline(time.Now().Add(tryAgain))
		}
		n := 0
		if err == nil {
			n, err = c.Read(buf)
		}
		switch {
		case ctx.Err() != nil:
			return ErrNoAnswer
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return err
		}
		if _, reason, err := handshake.ParseReject(buf[:n]); err == nil {
			return reason
		}
		if _, _, err := m.Answer(buf[:n], t.cfg.hello(addr, t.port)); !unharmed(err) {
			return err
		}
	}
	return ErrNoAnswer
}

// tryTCP opens a stream that is for nothing, by any of the ways that streams take.
func (t *Transport) tryTCP(ctx context.Context, p id.PeerID, addr netip.AddrPort) error {
	c, err := race(ctx, dialStagger, t.tcpWays(addr)...)
	if ctx.Err() != nil && err != nil {
		return ErrNoAnswer
	}
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	s, err := t.openStream(c, p, direct(addr), wire.StreamTry)
	if err != nil {
		return errors.Join(fmt.Errorf("handshake: %w", err), c.Close())
	}
	return s.Close()
}
