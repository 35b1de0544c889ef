package fdb

import (
	"net"

	"weave/mesh/id"
)

// MAC is an Ethernet address; it serves as a map key.
type MAC [6]byte

// String returns the usual form, like 02:42:0a:20:00:01.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Multicast reports whether m is a group address; broadcast is one too.
func (m MAC) Multicast() bool { return m[0]&1 != 0 }

// Broadcast reports whether m is that of all hosts.
func (m MAC) Broadcast() bool { return m == MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// Place is where a MAC address lives: on this host or at another peer.
type Place struct {
	Local bool
	Peer  id.PeerID // zero when Local
}

// Here is this host.
func Here() Place { return Place{Local: true} }

// At is another peer.
func At(p id.PeerID) Place { return Place{Peer: p} }
