package transport

import (
	"bytes"
	"testing"

	"weave/mesh/fragment"
	"weave/mesh/wire"
)

// TestFragmentsByRelay: on each hop of a relay's way what is too long is cut.
func TestFragmentsByRelay(t *testing.T) {
	t.Parallel()
	l := startLine(t, 3, func(cfg *Config) {
		before := cfg.tune.wrapConn
		cfg.tune.wrapConn = func(inner Conn) Conn {
			c := &narrow{Conn: inner}
			c.path.Store(1280 - header4)
			c.link.Store(ethernet)
			return before(c)
		}
	})
	a, b := l.meet(t)
	for _, size := range []int{1150, 1200, 1400, 5000} {
		cross(t, a, b, 5, size)
		cross(t, b, a, 5, size)
	}
	if s := a.status(b.self); !s.Relayed || s.MTU != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestForeignFragments: fragments count only from the other end of the path, and what
// is forged is not opened.
func TestForeignFragments(t *testing.T) {
	t.Parallel()
	a, b, s := start(t, "127.0.26.1"), start(t, "127.0.26.2"), plug(t, "127.0.26.3")
	connect(t, a, b)
	exchange(t, a, b)
	sealed := func() []byte {
		d := wire.AppendItem(make([]byte, wire.HeaderLen), wire.KindGossip, bytes.Repeat([]byte("x"), 2000))
		d = append(d, make([]byte, wire.TagLen)...)
		if err := b.Link(a.self).Seal(d, len(d)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	send := func(d []byte, change func([]byte), write func([]byte) error) {
		t.Helper()
		count, size := fragment.Layout(len(d), 1200)
		for all := fragment.Append(nil, d, count, size); len(all) > 0; all = all[size:] {
			change(all[:size])
			if err := write(all[:size]); err != nil {
				t.Fatal(err)
			}
		}
	}
	keep := func([]byte) {}
	stranger := func(f []byte) error { _, err := s.WriteToUDPAddrPort(f, a.addr); return err }
	friend := func(f []byte) error { return b.conn.Write(f, len(f), a.addr) }
	send(sealed(), keep, stranger)
	await(t, "a stranger's to be dropped", func() bool { return a.dropped(dropStray) == 2 })
	send(sealed(), func(f []byte) { f[1]++ }, friend)
	await(t, "those of another version to be dropped", func() bool { return a.dropped(dropVersion) == 2 })
	send(sealed(), func(f []byte) { f[4] ^= 0x80 }, friend)
	await(t, "those of no session to be dropped", func() bool { return a.dropped(dropUnknownSession) == 2 })
	send(sealed(), func(f []byte) { f[100] ^= 1 }, friend)
	await(t, "what is forged to be dropped", func() bool { return a.dropped(dropForged) == 1 })
	before := a.dropped(dropMalformed)
	send(sealed(), func(f []byte) { f[3] = 1 }, friend)
	await(t, "what is malformed to be dropped", func() bool { return a.dropped(dropMalformed) == before+2 })
	inner := sealed()
	inner[0] = byte(wire.TypeFragment)
	send(inner, keep, friend)
	await(t, "fragments of fragments to be dropped", func() bool { return a.dropped(dropMalformed) == before+3 })
	send(sealed(), keep, friend)
	if got := take(t, "item", a.packets); len(got.body) != 2000 {
		t.Errorf("%d bytes", len(got.body))
	}
	for range 100 {
		f := fragment.Append(nil, sealed(), 2, 1200)[:1200]
		if err := friend(f); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "what is never complete to be given up", func() bool { return a.dropped(dropIncomplete) > 80 })
}
