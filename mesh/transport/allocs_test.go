//go:build !race

package transport

import (
	"testing"
	"time"

	"weave/mesh/wire"
)

// Under the race detector a sync.Pool forgets at random.

func TestHotPathAllocatesNothing(t *testing.T) {
	bare := func(c *Config) { c.tune.wrapConn = nil }
	a, b := start(t, "127.0.0.1", bare), start(t, "127.0.0.2", bare)
	connect(t, a, b)
	body := make([]byte, 1365)
	d := make([]byte, wire.HeaderLen+wire.ItemHeaderLen+len(body)+wire.TagLen)
	// The receiving side is counted too.
	if n := testing.AllocsPerRun(500, func() {
		wire.AppendItem(d[:wire.HeaderLen], wire.KindKeepalive, body)
		l := a.Link(b.self)
		if err := l.Seal(d, len(d)); err != nil {
			t.Fatal(err)
		}
		if err := l.Send(d, len(d)); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	await(t, "the datagrams", func() bool { return b.Link(a.self).rxDatagrams.Load() > 500 })
}

// Neither end of a relayed way allocates for a datagram, nor does the relay.
func TestRelayAllocatesNothing(t *testing.T) {
	l := startLine(t, 3, func(c *Config) { c.tune.wrapConn = nil }) // what tests record is allocated
	a, b := l.meet(t)
	link := a.Link(b.self)
	d := make([]byte, 1400)
	if n := testing.AllocsPerRun(200, func() {
		if link.Seal(d, len(d)) != nil || link.Send(d, len(d)) != nil {
			t.Error("not sent")
		}
	}); n > 0 {
		t.Errorf("sending by a relay allocates %v times", n)
	}
	r := newReceiver(l.nodes[1].Transport)
	r.now = time.Now()
	body := make([]byte, wire.RelayHeaderLen+1400)
	wire.RelayHeader{Hops: 9, To: b.self, From: a.self}.Put(body)
	r.from = direct(a.addr)
	from := l.nodes[1].Link(a.self)
	if n := testing.AllocsPerRun(200, func() {
		r.relay(from, body)
		if r.onward.send() != nil {
			t.Error("not sent")
		}
	}); n > 0 {
		t.Errorf("passing on allocates %v times", n)
	}
}
