package transport

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"weave/mesh/fragment"
	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/wire"
)

// lossy returns a lose function that drops each datagram for which pick is
// true the first n times.
func lossy(n int, pick func(wire.Type) bool) func([]byte) bool {
	return func(b []byte) bool {
		if h, err := wire.ParseHeader(b); err == nil && pick(h.Type) && n > 0 {
			n--
			return true
		}
		return false
	}
}

func TestLostHandshakeMessages(t *testing.T) {
	is := func(want wire.Type) func(wire.Type) bool {
		return func(got wire.Type) bool { return got == want }
	}
	for _, tt := range []struct {
		name string
		a, b func([]byte) bool // what the initiator and the responder lose
	}{
		{"message 1 twice", lossy(2, is(wire.TypeHandshake1)), nil},
		{"message 2", nil, lossy(1, is(wire.TypeHandshake2))},
		{"message 3", lossy(1, is(wire.TypeHandshake3)), nil},
		{"the confirmation", nil, lossy(1, is(wire.TypeSealed))},
		{"one of each", lossy(1, is(wire.TypeHandshake3)), lossy(1, is(wire.TypeHandshake2))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			quick := func(c *Config) { c.tune.minBackoff = 20 * time.Millisecond; c.PingInterval = time.Minute }
			a, b := start(t, "127.0.0.1", quick), start(t, "127.0.0.2", quick)
			a.wire.setLose(tt.a)
			b.wire.setLose(tt.b)
			connect(t, a, b)
			exchange(t, a, b)
		})
	}
}

func TestRandomLoss(t *testing.T) {
	quick := func(c *Config) {
		c.tune.minBackoff, c.tune.maxBackoff = 10*time.Millisecond, 20*time.Millisecond
		c.PingInterval = 50 * time.Millisecond
	}
	a, b := start(t, "127.0.0.1", quick), start(t, "127.0.0.2", quick)
	half := func([]byte) bool { return rand.IntN(2) == 0 }
	for range 5 {
		a.wire.setLose(half)
		b.wire.setLose(half)
		connect(t, a, b)
	}
	a.wire.setLose(nil)
	b.wire.setLose(nil)
	// Whatever sessions were left, those that are used now work.
	awaitExchange(t, a, b)
}

// What a stranger can send changes nothing, is counted, and is answered with
// less than it cost.
func TestJunk(t *testing.T) {
	a, b, s := start(t, "127.0.0.1"), start(t, "127.0.0.2"), plug(t, "127.0.0.3")
	connect(t, a, b)
	exchange(t, a, b)
	for _, sealed := range b.wire.all() { // all that b ever said, from elsewhere
		if _, err := s.WriteToUDPAddrPort(sealed.b, a.addr); err != nil {
			t.Fatal(err)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		d := make([]byte, random.IntN(600))
		for i := range d {
			d[i] = byte(random.Uint32())
		}
		if len(d) > 1 {
			d[0], d[1] = byte(random.IntN(7)), byte(random.IntN(3))
		}
		if _, err := s.WriteToUDPAddrPort(d, a.addr); err != nil {
			t.Fatal(err)
		}
	}
	exchange(t, a, b)
	if a.dropped(dropReplay) == 0 || a.dropped(dropMalformed) == 0 || a.dropped(dropUnknownSession) == 0 {
		t.Errorf("drops: %v", a.Drops())
	}
	if got := a.status(b.self).Addr; got != b.addr {
		t.Errorf("replays moved the peer to %s", got)
	}
	stranger := s.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
	for _, d := range a.wire.all() {
		if h, _ := wire.ParseHeader(d.b); d.to == stranger && h.Type != wire.TypeReject && h.Type != wire.TypeHandshake2 {
			t.Errorf("a stranger got a datagram of type %d", h.Type)
		}
	}
}

func TestForgedFirstMessages(t *testing.T) {
	a, b, s := start(t, "127.0.0.1"), start(t, "127.0.0.2"), plug(t, "127.0.0.3")
	const flood = 4 * floodBound // the kernel drops some of it
	for i := range flood {
		msg := make([]byte, handshake.Len1)
		wire.Header{Type: wire.TypeHandshake1, Version: wire.Version, Counter: uint64(i)}.Put(msg)
		if _, err := s.WriteToUDPAddrPort(msg, a.addr); err != nil {
			t.Fatal(err)
		}
	}
	connect(t, b, a)
	await(t, "the flood to be counted", func() bool { return a.dropped(dropPassword) >= floodBound })
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.pendings.byIndex); n != 0 {
		t.Errorf("%d pending handshakes of strangers", n)
	}
	rejects := 0
	for _, d := range a.wire.all() {
		if h, _ := wire.ParseHeader(d.b); h.Type == wire.TypeReject {
			rejects++
		}
	}
	if rejects == 0 || rejects > 20 {
		t.Errorf("%d rejections sent", rejects)
	}
}

// First messages that were recorded (or are made by an insider) have a right
// MAC: what they make us do and keep is bounded, and others get through.
func TestReplayedFirstMessages(t *testing.T) {
	a, b, s := start(t, "127.0.0.1"), start(t, "127.0.0.2"), plug(t, "127.0.0.3")
	insider := testIdentity(t)
	for range 260 {
		_, msg1, err := handshake.Initiate(handshake.Config{Identity: insider, Keys: rightKeys, Medium: handshake.Datagrams, Index: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.WriteToUDPAddrPort(msg1, a.addr); err != nil {
			t.Fatal(err)
		}
	}
	connect(t, b, a)
	await(t, "the flood to be limited", func() bool { return a.dropped(dropRate)+a.dropped(dropBusy) > 0 })
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := a.pendings.bySite[netip.MustParseAddr("127.0.0.3")]; n > maxPendingsOfOne {
		t.Errorf("%d pending handshakes of one address", n)
	}
}

func TestPendingsAreBounded(t *testing.T) {
	ps := newPendings()
	now := time.Unix(1000, 0)
	for i := range uint32(5 * maxPendings) {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(i % 3)})
		if i%2 == 0 {
			addr = netip.AddrFrom4([4]byte{10, 9, 9, 9})
		}
		if old := ps.surplus(addr); old != nil {
			ps.remove(old)
		}
		ps.add(&pending{
			index: i, msg1: [16]byte{byte(i), byte(i >> 8), byte(i >> 16)},
			from: direct(netip.AddrPortFrom(addr, 1)), began: now.Add(time.Duration(i)),
		})
		if n := ps.bySite[addr]; n > maxPendingsOfOne {
			t.Fatalf("%d of one address", n)
		}
		if len(ps.byIndex) > maxPendings || len(ps.byMsg1) != len(ps.byIndex) {
			t.Fatalf("%d pendings, %d by message", len(ps.byIndex), len(ps.byMsg1))
		}
		if ps.byIndex[i] == nil {
			t.Fatal("the newest was not kept")
		}
	}
	for _, p := range ps.byIndex {
		ps.remove(p)
	}
	if len(ps.bySite)+len(ps.byMsg1) != 0 {
		t.Error("left behind")
	}
}

func TestRefusalsAreBounded(t *testing.T) {
	r := refusals{}
	now := time.Unix(1000, 0)
	for i := range 3 * maxRefusals {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		r.add(addr, false, handshake.ErrPassword, now.Add(time.Duration(i)))
		if len(r) > maxRefusals || r[refusalKey{addr, false}].Count != 1 {
			t.Fatalf("%d kept", len(r))
		}
	}
}

// What strangers make up must not fill the log.
func TestRefusalsInLog(t *testing.T) {
	r, now := refusals{}, time.Unix(1000, 0)
	host := netip.MustParseAddr("10.0.0.1")
	steps := []struct {
		after  time.Duration
		reason error
		news   bool
	}{
		{0, handshake.ErrPassword, true},
		{2 * refusalLogGap, handshake.ErrPassword, false},
		{0, handshake.ErrVersion, true},
		{1, handshake.ErrPassword, false},
		{refusalLogGap, handshake.ErrVersion, true},
	}
	for i, s := range steps {
		now = now.Add(s.after)
		if news := r.add(host, false, s.reason, now); news != s.news {
			t.Errorf("step %d: news %v", i, news)
		}
	}
	logged := 0
	for i := range 3 * maxRefusals {
		if r.add(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), false, handshake.ErrVersion, now) {
			logged++
		}
	}
	if logged >= maxRefusals {
		t.Errorf("%d lines about forged addresses", logged)
	}
}

func TestLimiter(t *testing.T) {
	l := newLimiter(1000, 1, 5)
	now := time.Unix(1000, 0)
	one := netip.MustParseAddr("2001:db8::1")
	allowed := 0
	for i := range 100 {
		one = one.Next()
		if i%2 == 0 && l.allow(one, now) {
			allowed++
		}
	}
	if allowed != 5 {
		t.Errorf("%d allowed to one IPv6 /64, want 5", allowed)
	}
	if !l.allow(netip.MustParseAddr("10.0.0.1"), now) {
		t.Error("another address is limited too")
	}
	if !l.allow(one, now.Add(time.Second)) || l.allow(one, now.Add(time.Second)) {
		t.Error("not one a second")
	}
	for i := range 2 * maxLimited {
		l.allow(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), now)
	}
	if len(l.by) > maxLimited {
		t.Errorf("%d addresses kept", len(l.by))
	}
}

func TestPeersAreBounded(t *testing.T) {
	a := start(t, "127.0.0.1")
	b := start(t, "127.0.0.2")
	connect(t, a, b)
	for i := range maxPeers + 10 {
		var p [16]byte
		p[0], p[1], p[2] = 1, byte(i>>8), byte(i)
		a.AddCandidates(p) // no address: no handshake
	}
	if n := len(a.Peers()); n != maxPeers {
		t.Errorf("%d peers, want %d", n, maxPeers)
	}
	exchange(t, a, b) // the one with a session was not pushed out
}

func TestCandidatesAreBounded(t *testing.T) {
	p := &peer{}
	for i := range 3 * maxCandidates {
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1)
		if !p.addCandidates(a, a, netip.AddrPort{}, netip.MustParseAddrPort("0.0.0.0:1"), netip.MustParseAddrPort("224.0.0.1:1")) {
			t.Error("new one not noticed")
		}
		if len(p.candidates) > maxCandidates || p.candidates[0] != a {
			t.Fatalf("candidates %v", p.candidates)
		}
		if p.addCandidates(a) {
			t.Error("known one taken for new")
		}
	}
}

func TestTable(t *testing.T) {
	var tb table
	kept := map[uint32]*entry{}
	for {
		index, ok := tb.reserve()
		if !ok {
			break
		}
		kept[index] = &entry{index: index}
		tb.put(kept[index])
	}
	if len(kept) != tableSize/2 {
		t.Fatalf("%d indices", len(kept))
	}
	for index, e := range kept {
		if tb.get(index) != e || tb.get(index+tableSize) != nil {
			t.Fatal("wrong entry")
		}
		tb.release(index)
		if tb.get(index) != nil {
			t.Fatal("released, and there")
		}
	}
	if tb.count != 0 {
		t.Fatalf("count %d", tb.count)
	}
}

// The peer's address changes under a session: the next authentic datagram
// moves the path, with no handshake.
func TestRoaming(t *testing.T) {
	still := func(c *Config) { c.PingInterval = time.Hour }
	a, b, s := start(t, "127.0.0.1", still), start(t, "127.0.0.2", still), plug(t, "127.0.0.3")
	connect(t, a, b)
	exchange(t, a, b)
	await(t, "all pongs", func() bool { return a.status(b.self).RTT > 0 && b.status(a.self).RTT > 0 })
	await(t, "the path MTUs", func() bool { return a.status(b.self).MTU > usualMTU && b.status(a.self).MTU > usualMTU })
	d := make([]byte, wire.HeaderLen+wire.ItemHeaderLen+wire.TagLen)
	moved := s.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
	await(t, "the new address in use", func() bool { // an answer to a probe may be on its way from the old one
		wire.AppendItem(d[:wire.HeaderLen], wire.KindKeepalive, nil)
		if err := b.Link(a.self).Seal(d, len(d)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.WriteToUDPAddrPort(d, a.addr); err != nil {
			t.Fatal(err)
		}
		return a.status(b.self).Addr == moved
	})
	if err := a.Send(b.self, wire.KindGossip, nil); err != nil {
		t.Fatal(err)
	}
	if n, from, err := s.ReadFromUDPAddrPort(d); err != nil || n != len(d) || from != a.addr {
		t.Errorf("%d bytes from %s, %v", n, from, err)
	}
}

// FuzzDatagram gives the receive path hostile datagrams, and hostile items
// under a session's keys.
func FuzzDatagram(f *testing.F) {
	a, b := start(f, "127.0.0.1"), start(f, "127.0.0.2")
	connect(f, a, b)
	for _, d := range b.wire.all() {
		f.Add(d.b)
	}
	f.Add(wire.AppendItem(nil, wire.KindFrame, make([]byte, 20)))
	f.Add(wire.AppendItem(nil, wire.KindPing, make([]byte, 100)))
	f.Add(wire.AppendItem(nil, wire.KindPong, make([]byte, 8)))
	for _, to := range []id.PeerID{a.self, {1}} {
		body := make([]byte, wire.RelayHeaderLen+40)
		wire.RelayHeader{Hops: 3, To: to, From: b.self}.Put(body)
		f.Add(wire.AppendItem(nil, wire.KindRelay, body))
	}
	d := wire.AppendItem(make([]byte, wire.HeaderLen), wire.KindGossip, make([]byte, 500))
	d = append(d, make([]byte, wire.TagLen)...)
	if err := b.Link(a.self).Seal(d, len(d)); err != nil {
		f.Fatal(err)
	}
	f.Add(fragment.Append(nil, d, 2, wire.HeaderLen+len(d)/2+1)[:wire.HeaderLen+len(d)/2+1])
	b.stop() // what it sent would be opened beside what follows
	a.stop()
	r := newReceiver(a.Transport)
	from := direct(netip.MustParseAddrPort("127.0.0.2:9"))
	f.Fuzz(func(_ *testing.T, d []byte) {
		r.now = time.Now()
		r.from = from
		r.items(a.Link(b.self), 1, d)
		r.datagram(bytes.Clone(d), direct(b.addr)) // the path: fragments count
		r.datagram(d, from)
		for len(a.packets) > 0 {
			<-a.packets
		}
	})
}
