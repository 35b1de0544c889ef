package transport

import (
	"encoding/binary"
	"testing"

	"weave/mesh/handshake"
	"weave/mesh/wire"
)

func macOfNumber(i uint32) (mac [handshake.MACLen]byte) {
	binary.BigEndian.PutUint32(mac[:], i)
	return mac
}

// Copies of a first message are taken for as long as its sender may send them, and
// as many; those of a recorded one never again, as long as it is known.
func TestFirsts(t *testing.T) {
	var f firsts
	mac := macOfNumber(1)
	for i := range maxCopies {
		if f.stale(mac, int64(i)) {
			t.Fatalf("copy %d is stale", i)
		}
		f.add(mac, int64(i))
	}
	if !f.stale(mac, maxCopies) {
		t.Error("too many copies are taken")
	}
	late := macOfNumber(2)
	f.add(late, 0)
	if f.stale(late, int64(firstAge)) || !f.stale(late, int64(firstAge)+1) {
		t.Error("a copy in time is stale, or a late one not")
	}
	for i := range uint32(5 * maxFirsts) {
		f.add(macOfNumber(10+i), 0)
		if n := len(f.recent) + len(f.older); n > 2*maxFirsts {
			t.Fatalf("%d are remembered", n)
		}
		if i == maxFirsts-10 && !f.stale(late, int64(firstAge)+1) {
			t.Errorf("forgotten after %d others", i)
		}
	}
}

// A recorded first message is answered as often as a true one might need, at each
// try with less than it took.
func TestReplayIsAnsweredForAWhile(t *testing.T) {
	a, s := start(t, "127.0.0.1"), plug(t, "127.0.0.3")
	_, msg1, err := handshake.Initiate(handshake.Config{Identity: testIdentity(t), Keys: rightKeys, Medium: handshake.Datagrams, Index: 1})
	if err != nil {
		t.Fatal(err)
	}
	const copies = 150
	for range copies {
		if _, err := s.WriteToUDPAddrPort(msg1, a.addr); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "all copies to be judged", func() bool { return a.dropped(dropReplay) == copies-maxCopies })
	await(t, "the answers", func() bool { return len(a.wire.all()) == maxCopies })
	for _, d := range a.wire.all() {
		if h, err := wire.ParseHeader(d.b); err != nil || h.Type != wire.TypeHandshake2 || len(d.b) >= len(msg1) {
			t.Errorf("answer %x of %d bytes to %d", d.b[:2], len(d.b), len(msg1))
		}
	}
	a.receiver.mu.Lock() // as if time had passed
	defer a.receiver.mu.Unlock()
	for mac, m := range a.receiver.firsts.recent {
		if !a.receiver.firsts.stale(mac, m.at+int64(firstAge)+1) {
			t.Error("it would be answered again")
		}
	}
}
