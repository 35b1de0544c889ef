package daemon

import (
	"context"
	"net/netip"
	"strings"

	"github.com/sirupsen/logrus"

	"weave/ipam/ring"
	"weave/mesh"
	"weave/mesh/id"
)

// replicaRings is the name under which gossip spreads the rings.
const replicaRings = "rings"

// cluster is the mesh as the allocator sees it: peers are opaque strings, the
// full form of their IDs.
type cluster struct {
	self ring.Peer
	log  *logrus.Entry
	node *mesh.Node // set before the allocator is used
}

func peers(ids []id.PeerID) []ring.Peer {
	out := make([]ring.Peer, len(ids))
	for i, p := range ids {
		out[i] = ring.Peer(p.String())
	}
	return out
}

// Known implements ipam.Cluster.
func (c *cluster) Known() []ring.Peer { return append(peers(c.node.Known()), c.self) }

// Alive implements ipam.Cluster.
func (c *cluster) Alive() []ring.Peer { return append(peers(c.node.Alive()), c.self) }

// Unmet implements ipam.Cluster: each address with the reason, as people read
// it.
func (c *cluster) Unmet() []string {
	var out []string
	for _, s := range c.node.Unmet() {
		text := s.Addr
		if s.Error != "" {
			text += " (" + strings.TrimPrefix(s.Error, "connect to "+s.Addr+": ") + ")"
		}
		out = append(out, text)
	}
	return out
}

// Ask implements ipam.Cluster.
func (c *cluster) Ask(ctx context.Context, to ring.Peer, request []byte) ([]byte, error) {
	p, err := id.Parse(string(to))
	if err != nil {
		return nil, err
	}
	return c.node.Ask(ctx, p, request)
}

// Broadcast implements ipam.Cluster.
func (c *cluster) Broadcast(delta []byte) { c.node.Broadcast(replicaRings, delta) }

// Name implements ipam.Cluster.
func (c *cluster) Name(p ring.Peer) string {
	parsed, err := id.Parse(string(p))
	if err != nil {
		return string(p)
	}
	return c.node.Nickname(parsed)
}

// SetFree implements ipam.Cluster.
func (c *cluster) SetFree(pool netip.Prefix, free uint64) {
	if err := c.node.SetFree(pool.String(), free); err != nil {
		c.log.WithField("pool", pool.String()).WithError(err).Warn("free space not published: others may not find it")
	}
}

// Free implements ipam.Cluster.
func (c *cluster) Free(pool netip.Prefix) map[ring.Peer]uint64 {
	out := map[ring.Peer]uint64{}
	for p, free := range c.node.Free(pool.String()) {
		out[ring.Peer(p.String())] = free
	}
	return out
}
