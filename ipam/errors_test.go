package ipam

import (
	"errors"
	"testing"

	"weave/ipam/ring"
)

// TestWords pins what a user of docker reads.
func TestWords(t *testing.T) {
	n, hosts := newNet(t, "a", "b")
	a, b := hosts[0], hosts[1]
	a.pool(t, small, "")
	b.pool(t, small, "")
	if _, err := a.request(small, "10.40.0.1", KindGateway); err != nil {
		t.Fatal(err)
	}
	mine := a.lease(t, small)
	for range 12 {
		b.lease(t, small)
	}
	says := func(h *host, addr string, kind error, text string) {
		t.Helper()
		if _, err := h.request(small, addr, KindLease); err == nil || err.Error() != text || !errors.Is(err, kind) {
			t.Errorf("got:  %v\nwant: %s", err, text)
		}
	}
	says(b, "", ErrFull, "pool 10.40.0.0/28 is full: all 14 addresses are in use, 12 of them by containers of this host; remove containers, or make a network with a larger subnet")
	says(b, mine.String(), ErrInUse, "address "+mine.String()+": in use on host host-a; choose another")
	says(a, mine.String(), ErrInUse, "address "+mine.String()+": in use on this host; choose another")
	says(b, "10.40.0.1", ErrInUse, "address 10.40.0.1: in use as a gateway or auxiliary address of a network, says host host-a; choose another")
	says(a, "10.40.0.1", ErrInUse, "address 10.40.0.1: in use as a gateway or auxiliary address of a network; choose another")
	says(a, "10.40.0.15", ErrInvalid, "address 10.40.0.15 is the network or broadcast address of subnet 10.40.0.0/28; use one from 10.40.0.1 to 10.40.0.14")
	n.partition(map[ring.Peer]int{"a": 1})
	says(b, "", ErrNoAnswer, "pool 10.40.0.0/28: no free address on this host, and no answer from host-a, where others may be free; start weave there, or use another subnet")
}
