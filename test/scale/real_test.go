package scale

import (
	"testing"
	"time"

	"weave/mesh/transport"
	"weave/mesh/wire"
)

// The sizes that sessions are reckoned with are those of real ones.
func TestPingsAreAsReckoned(t *testing.T) {
	a, err := newEnd(10*time.Millisecond, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newEnd(10*time.Millisecond, nil)
	if err != nil {
		t.Fatal(err)
	}
	a.run(a.transport.Run)
	defer a.end()
	b.run(b.transport.Run)
	defer b.end()
	a.transport.AddCandidates(b.id, b.addr())
	status := func() (s transport.PeerStatus) {
		if peers := a.transport.Peers(); len(peers) == 1 {
			s = peers[0]
		}
		return s
	}
	var before, s transport.PeerStatus
	err = until(func() bool { before = status(); return before.MTU > 9000 }) // that of loopback: no more probes
	if err == nil {
		err = until(func() bool { s = status(); return s.TxDatagrams >= before.TxDatagrams+100 })
	}
	if err != nil {
		t.Fatal(err)
	}
	datagrams, bytes := s.TxDatagrams-before.TxDatagrams, s.TxBytes-before.TxBytes
	// Pings and pongs may differ by a few in number, and few keepalives, which are
	// empty, may be among them.
	const slack = 5*8 + 5*wire.AddrLen
	want := datagrams * (Ping + Pong - 2*ipUDP) / 2
	if bytes > want+slack || bytes < want-slack {
		t.Errorf("%d datagrams of an idle session have %d bytes, reckoned with %d", datagrams, bytes, want)
	}
	if got := datagram(0); got != ipUDP+wire.Overhead-wire.FrameHeaderLen {
		t.Errorf("an empty item takes %d bytes", got)
	}
}

// A real Node understands the records that are simulated.
func TestNodeReadsTheRecords(t *testing.T) {
	const peers, endpoints = 5, 20
	got, _, _, err := FetchedByNode(peers, endpoints)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != peers*endpoints {
		t.Fatalf("a Node knows %d endpoints, want %d", len(got), peers*endpoints)
	}
	for _, e := range got {
		if e.Segment != segment || len(e.Addrs) != 1 || e.Container == "" || len(e.ID) != 64 {
			t.Fatalf("it knows %+v", e)
		}
	}
}
