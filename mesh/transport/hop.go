package transport

import (
	"net/netip"

	"weave/mesh/id"
)

// hop is where a datagram goes to or came from: an address of the underlay, a pipe,
// or else a peer to or from which others pass it on.
type hop struct {
	addr netip.AddrPort // by UDP
	pipe *pipe
	peer id.PeerID // if there is neither
}

func direct(a netip.AddrPort) hop { return hop{addr: a} }

func relayed(p id.PeerID) hop { return hop{peer: p} }

func (h hop) udp() bool { return h.addr.IsValid() }

// direct tells that no other peer is on the way.
func (h hop) direct() bool { return h.udp() || h.pipe != nil }

// of tells whether a peer's datagrams may come by this hop: a pipe is of one peer.
func (h hop) of(p id.PeerID) bool { return h.pipe == nil || h.pipe.peer == p }

// rank is the larger the better. Of several kinds of addresses both ends must
// prefer the same: else each would follow the other to the one that it leaves. It
// is IPv4, on which VXLAN runs where hosts have both; link-local ones are last, on
// which it does not.
func (h hop) rank() int {
	switch {
	case h.udp() && h.addr.Addr().Is4():
		return 4
	case h.udp() && h.addr.Addr().Zone() == "":
		return 3
	case h.udp():
		return 2
	case h.pipe != nil:
		return 1
	}
	return 0
}

// host is what to count by who is behind a hop: its address, or for a peer behind
// relays one that follows from its ID, a unique local one.
func (h hop) host() netip.Addr {
	switch {
	case h.udp():
		return h.addr.Addr()
	case h.pipe != nil:
		return h.pipe.remote.Addr()
	}
	a := [16]byte{0xfd}
	copy(a[1:], h.peer[:])
	return netip.AddrFrom16(a)
}

func (h hop) String() string {
	switch {
	case h.udp():
		return h.addr.String()
	case h.pipe != nil:
		return "TCP"
	}
	return "relays to " + h.peer.Short()
}
