package transport

import (
	"net/netip"

	"weave/mesh/id"
)

// hop is where a datagram goes to or came from: an address of the underlay, or,
// without one, a peer to or from which others pass it on.
type hop struct {
	addr netip.AddrPort
	peer id.PeerID // if addr is not valid
}

func direct(a netip.AddrPort) hop { return hop{addr: a} }

func relayed(p id.PeerID) hop { return hop{peer: p} }

func (h hop) direct() bool { return h.addr.IsValid() }

// host is what to count by who is behind a hop: its address, or for a peer behind
// relays one that follows from its ID, a unique local one.
func (h hop) host() netip.Addr {
	if h.direct() {
		return h.addr.Addr()
	}
	a := [16]byte{0xfd}
	copy(a[1:], h.peer[:])
	return netip.AddrFrom16(a)
}

func (h hop) String() string {
	if h.direct() {
		return h.addr.String()
	}
	return "relays to " + h.peer.Short()
}
