package mesh

import (
	"fmt"
	"maps"
	"slices"

	"weave/mesh/id"
)

// SetFree publishes how many free addresses this host has in a pool. It is a
// hint for those who look for some.
func (n *Node) SetFree(pool string, free uint64) error {
	n.publish.Lock()
	defer n.publish.Unlock()
	if err := n.set(kindFree, pool, recordValue(freeRecord{free})); err != nil {
		return fmt.Errorf("publish free space of %s: %w", pool, err)
	}
	return nil
}

// Free returns what the other peers published of a pool.
func (n *Node) Free(pool string) map[id.PeerID]uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := maps.Clone(n.index.free[pool])
	delete(out, n.cfg.Identity.ID)
	return out
}

// SegmentKeys lists the segments that any host has a network or an endpoint on,
// in their order.
func (n *Node) SegmentKeys() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.index.segments))
}
