package transport

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weave/mesh/wire"
)

func noDiscovery(c *Config) { c.NoDiscovery = true }

// begun counts the handshakes that a node sent to an address.
func (n *node) begun(to netip.AddrPort) (count int) {
	for _, s := range n.wire.all() {
		if h, err := wire.ParseHeader(s.b); err == nil && h.Type == wire.TypeHandshake1 && s.to == to {
			count++
		}
	}
	return count
}

// TestNoDiscoveryOfWhoCame holds that a peer that came is talked to, and not looked
// for when it is gone.
func TestNoDiscoveryOfWhoCame(t *testing.T) {
	advertised := netip.MustParseAddr("127.0.0.9")
	a := start(t, "127.0.0.1", func(c *Config) { c.Advertise = advertised })
	b := start(t, "127.0.0.2", noDiscovery)
	connect(t, a, b)
	exchange(t, a, b)
	await(t, "a ping to be answered", func() bool { return b.status(a.self).RTT > 0 })
	if got := b.status(a.self).Candidates; len(got) != 0 {
		t.Errorf("b would look for a at %v", got)
	}
	if _, err := b.dialDirect(context.Background(), a.self, wire.StreamGossip); !errors.Is(err, ErrNoCandidate) {
		t.Errorf("b dials a: %v", err)
	}
	a.stop()
	await(t, "a to be missed", func() bool { return b.status(a.self).State == StateDown })
	for range 5 {
		_ = b.Send(a.self, wire.KindGossip, nil)
		b.tick(time.Now())
	}
	if n := b.begun(a.addr) + b.begun(netip.AddrPortFrom(advertised, a.addr.Port())); n != 0 {
		t.Errorf("b looked for a: %d handshakes", n)
	}
}

// TestNoDiscoveryOfWhoWasNamed holds that a peer is looked for at the address by
// which it was connected to, and no other, until that is forgotten.
func TestNoDiscoveryOfWhoWasNamed(t *testing.T) {
	identity := testIdentity(t)
	same := func(c *Config) { c.Identity, c.Advertise = identity, netip.MustParseAddr("127.0.0.9") }
	a := start(t, "127.0.0.1", same)
	b := start(t, "127.0.0.2", noDiscovery)
	connect(t, b, a)
	exchange(t, a, b)
	await(t, "a ping to be answered", func() bool { return b.status(a.self).RTT > 0 })
	if got := b.status(a.self).Candidates; !slices.Equal(got, []netip.AddrPort{a.addr}) {
		t.Errorf("b would look for a at %v", got)
	}
	a.stop()
	again := start(t, "127.0.0.1", same, func(c *Config) { c.Listen, c.Incarnation = a.addr, 2 })
	awaitExchange(t, b, again)

	b.Forget(a.addr)
	if got := b.status(a.self).Candidates; len(got) != 0 {
		t.Errorf("b would look for a at %v", got)
	}
	exchange(t, b, again) // that goes on
}
