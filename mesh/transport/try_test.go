package transport

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"weave/mesh/handshake"
)

// TestTry: a peer that answers is told from one that does not, by UDP and TCP each,
// and sessions stay what they were.
func TestTry(t *testing.T) {
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	before := a.Peers()[0].Established
	for range 2 {
		tried := a.Try(t.Context(), b.self)
		if len(tried) != 1 || tried[0] != (Tried{Addr: b.addr}) {
			t.Errorf("tried %+v", tried)
		}
	}
	if after := a.Peers()[0]; !after.Established.Equal(before) || after.State != StateUp {
		t.Errorf("the session is another one: %+v", after)
	}
	b.wire.setLose(func([]byte) bool { return true })
	began := time.Now()
	tried := a.Try(t.Context(), b.self)
	if !errors.Is(tried[0].UDP, ErrNoAnswer) || tried[0].TCP != nil {
		t.Errorf("without UDP: %+v", tried)
	}
	if took := time.Since(began); took > 2*tryTimeout {
		t.Errorf("took %s", took)
	}
	if got := a.Try(t.Context(), testIdentity(t).ID); len(got) != 0 {
		t.Errorf("a stranger was tried: %+v", got)
	}
}

// TestTryFindsAnother: whoever answers must be the peer, and no more than a few
// addresses are tried.
func TestTryFindsAnother(t *testing.T) {
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	odd := start(t, "127.0.0.3", func(c *Config) { c.Keys = &wrongKeys })
	silent, err := net.ListenPacket("udp", "127.0.0.4:0")
	if err != nil {
		t.Fatal(err)
	}
	p := testIdentity(t).ID
	closed := netip.MustParseAddrPort(silent.LocalAddr().String())
	if err := silent.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.tryUDP(t.Context(), p, b.addr); !errors.Is(err, handshake.ErrPeer) {
		t.Errorf("UDP of another: %v", err)
	}
	if err := a.tryTCP(t.Context(), p, b.addr); !errors.Is(err, handshake.ErrPeer) {
		t.Errorf("TCP of another: %v", err)
	}
	if err := a.tryUDP(t.Context(), p, odd.addr); !errors.Is(err, handshake.ErrPassword) {
		t.Errorf("UDP of a stranger: %v", err)
	}
	if err := a.tryTCP(t.Context(), p, odd.addr); !errors.Is(err, handshake.ErrPassword) {
		t.Errorf("TCP of a stranger: %v", err)
	}
	if err := a.tryUDP(t.Context(), p, closed); err == nil || errors.Is(err, ErrNoAnswer) {
		t.Errorf("a closed port: %v", err)
	}
	var many []netip.AddrPort
	for port := range uint16(10) {
		many = append(many, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.5"), port+1))
	}
	a.AddCandidates(p, many...)
	if tried := a.Try(t.Context(), p); len(tried) != maxTried {
		t.Errorf("%d addresses were tried", len(tried))
	}
}
