package mesh

import (
	"context"
	"net/netip"
	"slices"

	"weave/mesh/id"
	"weave/mesh/lan"
)

// Discovery tells which hosts a Node connects to by itself. Whatever it is, all
// that come are let in, and members that it has no session with are reached
// through others.
type Discovery uint8

// Kinds of Discovery.
const (
	DiscoverPeers Discovery = iota // all that are, or were, members
	DiscoverNone                   // those that Config.Peers and Connect name, and no others
	DiscoverLAN                    // as DiscoverPeers, and those that are found on the same LAN
)

// LANPort is the UDP port on which hosts find each other on the same LAN.
const LANPort = lan.Port

// newLAN returns nil if nobody is looked for on the LAN.
func (n *Node) newLAN() *lan.Announcer {
	if n.cfg.Discovery != DiscoverLAN {
		return nil
	}
	return lan.New(lan.Config{
		Self: n.cfg.Identity.ID, Key: n.transport.Subkey("lan v1"), Port: n.transport.Port(), Listen: n.cfg.Listen.Addr(),
		Wanted: func(p id.PeerID) bool { return !n.isNear(p) },
		Meet: func(ctx context.Context, at netip.AddrPort) (id.PeerID, error) {
			return n.reach(ctx, []netip.AddrPort{at})
		},
		Log: n.log,
	})
}

// isNear tells whether a peer is a living member that is reached directly.
func (n *Node) isNear(p id.PeerID) bool {
	return slices.Contains(n.transport.Direct(), p) && slices.Contains(n.Alive(), p)
}

// LAN tells how it goes with those on the LAN; not ok if they are not looked for.
func (n *Node) LAN() (s lan.Status, ok bool) {
	if n.lan == nil {
		return s, false
	}
	return n.lan.Status(), true
}

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
