package scale

import (
	"testing"
	"time"

	"weave/mesh/transport"
	"weave/mesh/wire"
)

// The sizes that sessions are reckoned with are those of real ones.
func TestPingsAreAsReckoned(t *testing.T) {
	const often = 60 * time.Millisecond // more often, control would not keep up
	a, err := newEnd(often, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newEnd(often, nil)
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
	var s transport.PeerStatus
	more := func(n uint64) (before transport.PeerStatus) {
		before = status()
		if err := until(func() bool { s = status(); return s.TxDatagrams >= before.TxDatagrams+n }); err != nil {
			t.Fatal(err)
		}
		return before
	}
	if err := until(func() bool { return status().MTU > 9000 }); err != nil { // that of loopback
		t.Fatal(err)
	}
	more(20) // the other probes
	before := more(60)
	// Now and then a ping is as long as the path takes, which is more than all others.
	datagrams, bytes, longest := s.TxDatagrams-before.TxDatagrams, s.TxBytes-before.TxBytes, uint64(s.MTU-ipUDP)
	checks := bytes / longest
	datagrams, bytes = datagrams-checks, bytes-checks*longest
	// Pings and pongs may differ by a few in number, and few keepalives, which are
	// empty, may be among them.
	const slack = 5*8 + 5*wire.AddrLen
	if want := datagrams * (Ping + Pong - 2*ipUDP) / 2; bytes > want+slack || bytes < want-slack {
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
