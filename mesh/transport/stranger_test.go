package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/wire"
)

// said is something that a stranger can send.
type said struct {
	name     string
	d        []byte
	answered bool
}

// junkOf is a message that nothing but its header is right of.
func junkOf(h wire.Header, n int) []byte {
	d := make([]byte, n)
	h.Put(d)
	return d
}

// sayings are what can be sent by UDP and by TCP.
func sayings() []said {
	first := wire.Header{Type: wire.TypeHandshake1, Version: wire.Version, Counter: 1}
	other := wire.Header{Type: wire.TypeHandshake1, Version: wire.Version + 1, Counter: 1}
	return []said{
		{"nothing", nil, false},
		{"a header", junkOf(first, wire.HeaderLen), false},
		{"junk", junkOf(first, handshake.Len1), true},
		{"another version, short", junkOf(other, wire.HeaderLen), false},
		{"another version, a byte more", junkOf(other, wire.HeaderLen+1), false},
		{"another version", junkOf(other, handshake.Len1), true},
		{"message 2", junkOf(wire.Header{Type: wire.TypeHandshake2, Version: wire.Version}, handshake.Len2), false},
		{"message 3", junkOf(wire.Header{Type: wire.TypeHandshake3, Version: wire.Version}, handshake.Len3), false},
		{"a rejection", handshake.Reject(other, handshake.ErrPassword), false},
		{"unknown session", junkOf(wire.Header{Type: wire.TypeSealed, Version: wire.Version, Index: 77}, 100), false},
		{"unknown type", junkOf(wire.Header{Type: 9, Version: wire.Version}, 100), false},
	}
}

// answersTo counts the bytes that a host answers to a datagram. A true first message
// follows it, and when that is answered the one before was judged.
func answersTo(t *testing.T, a *node, ip string, d []byte) (answers int) {
	t.Helper()
	s := plug(t, ip)
	const number = 4711
	_, probe, err := handshake.Initiate(handshake.Config{Identity: testIdentity(t), Keys: rightKeys, Medium: handshake.Datagrams, Index: number})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{d, probe} {
		if _, err := s.WriteToUDPAddrPort(b, a.addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 2000); ; {
		n, _, err := s.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := wire.ParseHeader(buf[:n]); err == nil && h.Type == wire.TypeHandshake2 && h.Index == number {
			return answers
		}
		answers += n
	}
}

// Whatever a stranger sends by UDP, made up or recorded, the answer is shorter.
func TestNoAmplification(t *testing.T) {
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, b, a)
	exchange(t, a, b)
	all := append(sayings(), said{"recorded", firstMessages(t, rightKeys, 1)[0], true})
	for _, d := range b.wire.all() { // messages 1 and 3, and sealed ones
		h, err := wire.ParseHeader(d.b)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, said{fmt.Sprint("a recorded one of type ", h.Type), d.b, h.Type != wire.TypeSealed})
	}
	for i, c := range all {
		got := answersTo(t, a, net.IPv4(127, 0, 1, byte(i+1)).String(), c.d) // each has a limit of its own
		if got > 0 && got >= len(c.d) || (got > 0) != c.answered {
			t.Errorf("%s: %d bytes are answered with %d", c.name, len(c.d), got)
		}
	}
}

// The same by TCP, where a recorded message is answered once.
func TestNoAmplificationByTCP(t *testing.T) {
	a := start(t, "127.0.0.1")
	_, recorded, err := handshake.Initiate(handshake.Config{Identity: testIdentity(t), Keys: rightKeys, Medium: handshake.Stream, Index: 1})
	if err != nil {
		t.Fatal(err)
	}
	all := append(sayings(), said{"recorded", recorded, true}, said{"recorded", recorded, false}, said{"too long", make([]byte, handshake.Len1+1), false})
	for _, c := range all {
		if sent, got := askByTCP(t, a, c.d); got >= sent || (got > 0) != c.answered {
			t.Errorf("%s: %d bytes are answered with %d", c.name, sent, got)
		}
	}
}

// askByTCP sends a message to a host's TCP port, and counts all that comes back.
func askByTCP(t *testing.T, a *node, d []byte) (sent, got int) {
	t.Helper()
	c, err := net.Dial("tcp", a.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := append(binary.BigEndian.AppendUint16(nil, uint16(len(d))), d...)
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) { // it was reset
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(2 * handshakeTimeout)); err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(c) // a host that has not read all resets the connection
	return len(b), len(answer)
}

// A relay passes nothing on for who has no session with it, neither datagrams nor
// streams.
func TestNothingIsRelayedForStrangers(t *testing.T) {
	a, b, s := start(t, "127.0.0.1"), start(t, "127.0.0.2"), plug(t, "127.0.0.3")
	connect(t, a, b)
	await(t, "a direct way", func() bool { return a.towards(b.self) != nil })
	body := make([]byte, wire.RelayHeaderLen+handshake.Len1)
	wire.RelayHeader{Hops: 3, To: b.self, From: testIdentity(t).ID}.Put(body)
	copy(body[wire.RelayHeaderLen:], firstMessages(t, wrongKeys, 1)[0])
	item := wire.AppendItem(nil, wire.KindRelay, body)
	unsealed := wire.AppendItem(junkOf(wire.Header{Type: wire.TypeSealed, Version: wire.Version}, wire.HeaderLen), wire.KindRelay, body)
	forged := append(bytes.Clone(unsealed), make([]byte, wire.TagLen)...)
	for _, d := range b.wire.all() {
		if h, err := wire.ParseHeader(d.b); err == nil && h.Type == wire.TypeSealed { // a true session, and a counter to come
			h.Counter += 1000
			h.Put(forged)
		}
	}
	judged := func() uint64 {
		return a.dropped(dropMalformed) + a.dropped(dropUnknownSession) + a.dropped(dropForged)
	}
	before := judged()
	for _, d := range [][]byte{item, unsealed, forged} {
		if _, err := s.WriteToUDPAddrPort(d, a.addr); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "all to be dropped", func() bool { return judged() == before+3 })
	if a.dropped(dropForged) == 0 {
		t.Error("the forged one had no true number")
	}
	askByTCP(t, a, append([]byte{byte(wire.StreamRelay)}, body[:wire.RelayHeaderLen]...)) // without a handshake
	outsider := start(t, "127.0.0.4", func(c *Config) { c.Keys = &wrongKeys })
	if c, err := outsider.dial(within(t, 10*time.Second), a.self, direct(a.addr), wire.StreamRelay); err == nil {
		t.Error("a stranger has a stream")
		_ = c.Close()
	}
	if got := a.Relayed(); got != (Relayed{}) || a.passing.count() != 0 {
		t.Errorf("passed on for a stranger: %+v", got)
	}
	c, cw := startRouted(t, "127.0.0.5")
	connect(t, c, a)
	cw.set(b, a)
	c.AddCandidates(b.self)
	await(t, "a member to be relayed for", func() bool { return a.Relayed().Datagrams > 0 })
}
