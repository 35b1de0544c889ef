package mesh

import (
	"net/netip"

	"weave/mesh/id"
)

// Discovery tells which hosts a Node connects to by itself. Whatever it is, all
// that come are let in, and members that it has no session with are reached
// through others.
type Discovery uint8

// Kinds of Discovery.
const (
	DiscoverPeers Discovery = iota // all that are, or were, members
	DiscoverNone                   // those that Config.Peers and Connect name, and no others
)

// lookFor makes a session with a peer that others, or the disk, told of.
func (n *Node) lookFor(p id.PeerID, candidates []netip.AddrPort) {
	if n.cfg.Discovery == DiscoverNone {
		candidates = nil // the transport is to know that it is there
	}
	n.transport.AddCandidates(p, candidates...)
}

// unlist is for addresses that no seed stands for any more.
func (n *Node) unlist(gone []netip.AddrPort) {
	if n.cfg.Discovery != DiscoverNone {
		return // peers are also looked for where they say that they are
	}
	for _, a := range gone {
		n.transport.Forget(a)
	}
}
