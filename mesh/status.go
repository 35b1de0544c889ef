package mesh

import (
	"maps"
	"slices"
	"strings"
	"time"

	"weave/mesh/gossip"
	"weave/mesh/id"
	"weave/mesh/transport"
	"weave/mesh/tunnel"
)

// Peer is what is known of another peer.
type Peer struct {
	ID       id.PeerID
	Nickname string
	Alive    bool      // in the membership, and answering
	Since    time.Time // of Alive; zero for a peer not heard of since the start
	Path     transport.PeerStatus
	Route    Route  // the way to it; zero if there is none
	NAT      NAT    // what it says that stands before it
	Fast     bool   // frames go by VXLAN, else by the tunnel
	FastWhy  string // why not, or not all
}

// Peers lists all peers ever met, and those that have a session without being
// members, in the order of their IDs.
func (n *Node) Peers() []Peer {
	all := map[id.PeerID]Peer{}
	for _, p := range n.known.list() {
		kp, _ := n.known.get(p)
		all[p] = Peer{ID: p, Nickname: kp.Nickname}
	}
	for _, path := range n.transport.Peers() {
		p, known := all[path.ID]
		if !known && path.State != transport.StateUp {
			continue
		}
		if p.ID, p.Path = path.ID, path; p.Nickname == "" {
			p.Nickname = path.Nickname
		}
		all[p.ID] = p
	}
	for _, m := range n.gossip.Members() {
		if p, known := all[m.ID]; known {
			p.Alive, p.Since = m.State == gossip.Alive, m.Since
			all[m.ID] = p
		}
	}
	n.mu.Lock()
	hosts := maps.Clone(n.index.hosts)
	n.mu.Unlock()
	for _, p := range all {
		p.NAT = hosts[p.ID].NAT
		p.Route, _ = n.routeTo(p.ID)
		p.Fast, p.FastWhy = n.fast.Peer(p.ID)
		all[p.ID] = p
	}
	return slices.SortedFunc(maps.Values(all), func(a, b Peer) int { return a.ID.Compare(b.ID) })
}

// Known lists the other peers ever met, alive or not.
func (n *Node) Known() []id.PeerID { return n.known.list() }

// Alive lists the other peers that answer.
func (n *Node) Alive() []id.PeerID {
	var out []id.PeerID
	for _, m := range n.gossip.Members() {
		if m.State == gossip.Alive {
			out = append(out, m.ID)
		}
	}
	return out
}

// Unmet lists the operator's addresses where no peer was ever met.
func (n *Node) Unmet() []Seed { return n.seeds.unmet() }

// Seeds lists the operator's addresses and what came of them.
func (n *Node) Seeds() []Seed { return n.seeds.snapshot() }

// Refusals lists hosts that were not let in, or did not let us in.
func (n *Node) Refusals() []transport.Refusal { return n.transport.Refusals() }

// TCPTrouble returns why Config.TCPPort is not listened on, though it should be.
func (n *Node) TCPTrouble() error { return n.transport.TCPTrouble() }

// Dropped counts what was dropped of what hosts send each other, by reason.
func (n *Node) Dropped() map[string]uint64 { return n.transport.Drops() }

// Nickname returns a peer's name, or the short form of its ID.
func (n *Node) Nickname(p id.PeerID) string {
	if p == n.cfg.Identity.ID {
		return n.cfg.Nickname
	}
	if kp, ok := n.known.get(p); ok && kp.Nickname != "" {
		return kp.Nickname
	}
	return p.Short()
}

// Broadcast sends a delta of one of Config.Replicas to all peers. Losses are
// mended by the exchange of digests.
func (n *Node) Broadcast(replica string, delta []byte) { n.gossip.Broadcast(replica, delta) }

// SegmentStatus is what is known of a segment this host is on.
type SegmentStatus struct {
	Key     string
	ID      string
	MTU     int
	Link    string
	Members []id.PeerID // other hosts on it
	VNI     uint32      // of VXLAN
	VXLAN   bool        // this host takes VXLAN frames
	Stats   tunnel.Stats
}

// Segments lists the segments this host is on, in the order of their keys.
func (n *Node) Segments() []SegmentStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []SegmentStatus
	for _, s := range n.segments {
		stats, _ := n.tunnel.Stats(s.key)
		own, _ := n.index.use(s.key, n.cfg.Identity.ID)
		out = append(out, SegmentStatus{
			Key: s.key, ID: s.id.String(), MTU: s.mtu, Link: s.link, Members: n.index.members(s.key, n.cfg.Identity.ID), Stats: stats,
			VNI: own.VNI, VXLAN: n.fast.Ready(s.key),
		})
	}
	slices.SortFunc(out, func(a, b SegmentStatus) int { return strings.Compare(a.Key, b.Key) })
	return out
}
