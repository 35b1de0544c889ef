package mesh

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weave/mesh/id"
	"weave/mesh/state"
)

// kindGone is a record that says of a peer, its key, that its containers are
// gone, or are announced under another ID now: nobody counts the peer's own
// records any more.
const kindGone = "gone"

// bucketGone keeps the peers that this host said it of.
const bucketGone = "gone"

// MarkGone tells all peers that the containers of a removed peer are gone, or
// are announced under another ID now. It is on disk before it returns, and holds
// until this host is itself marked.
func (n *Node) MarkGone(p id.PeerID) error {
	if p == n.cfg.Identity.ID {
		return fmt.Errorf("mark peer %s gone: that is this host", p.Short())
	}
	if err := n.cfg.Store.Apply(bucketGone, map[string][]byte{p.String(): {}}); err != nil {
		return fmt.Errorf("mark peer %s gone: %w", p.Short(), err)
	}
	n.publish.Lock()
	defer n.publish.Unlock()
	return n.set(kindGone, p.String(), recordValue(struct{}{}))
}

// IsGone tells whether somebody said that of a peer.
func (n *Node) IsGone(p id.PeerID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.index.isGone(p)
}

// loadGone publishes what this host said in earlier runs.
func (n *Node) loadGone() error {
	raw, err := n.cfg.Store.Load(bucketGone)
	if err != nil {
		return fmt.Errorf("load gone peers: %w", err)
	}
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		if _, err := id.Parse(key); err != nil {
			return fmt.Errorf("state bucket %q: %w", bucketGone, err)
		}
		if err := n.set(kindGone, key, recordValue(struct{}{})); err != nil {
			return fmt.Errorf("gone peer %s: %w", key, err)
		}
	}
	return nil
}

// applyGone takes in what one peer says of another. If that changes whether the
// other's records count, they are applied anew. The caller holds mu.
func (n *Node) applyGone(c state.Change) error {
	p, err := id.Parse(c.Key)
	if err != nil || p == n.cfg.Identity.ID {
		return err // what others say of us does not hold: we are here
	}
	before := n.index.isGone(p)
	n.index.setGone(p, c.Owner, c.New != nil)
	if n.index.isGone(p) == before {
		return nil
	}
	for _, kind := range []string{kindSegment, kindEndpoint, kindFree, kindLinks, kindHost} {
		for _, r := range n.records.All(kind) {
			if r.Owner == p {
				_ = n.apply(state.Change{Owner: p, Kind: kind, Key: r.Key, New: r.Value}) // complained about when it came
			}
		}
	}
	return nil
}

// setGone notes whether one peer says that another is gone.
func (x *index) setGone(p, by id.PeerID, gone bool) {
	switch {
	case !gone:
		if delete(x.gone[p], by); len(x.gone[p]) == 0 {
			delete(x.gone, p)
		}
	case x.gone[p] == nil:
		x.gone[p] = map[id.PeerID]bool{by: true}
	default:
		x.gone[p][by] = true
	}
}

func (x *index) isGone(p id.PeerID) bool { return len(x.gone[p]) > 0 }

// HolderOf returns the other peer whose container has an address of a pool, on
// whatever segment.
func (n *Node) HolderOf(pool netip.Prefix, addr netip.Addr) (id.PeerID, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var first *OwnedEndpoint
	for _, p := range n.index.segments {
		first = p.firstHolder(first, pool, addr, n.cfg.Identity.ID)
	}
	if first == nil {
		return id.PeerID{}, false
	}
	return first.Owner, true
}

// HoldersIn returns the addresses of a pool that containers of other peers
// have.
func (n *Node) HoldersIn(pool netip.Prefix) map[netip.Addr]id.PeerID {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := map[netip.Addr]*OwnedEndpoint{}
	for _, p := range n.index.segments {
		for addr := range p.holders {
			if first := p.firstHolder(all[addr], pool, addr, n.cfg.Identity.ID); first != nil {
				all[addr] = first
			}
		}
	}
	out := make(map[netip.Addr]id.PeerID, len(all))
	for addr, e := range all {
		out[addr] = e.Owner
	}
	return out
}

// firstHolder returns the first in the order of Endpoints of those that have an
// address of a pool: first, which may be nil, and those of the peers but one.
func (p *place) firstHolder(first *OwnedEndpoint, pool netip.Prefix, addr netip.Addr, but id.PeerID) *OwnedEndpoint {
	for _, e := range p.holders[addr] {
		if e.Owner != but && e.Has(pool, addr) && (first == nil || compareEndpoints(*e, *first) < 0) {
			first = e
		}
	}
	return first
}

// ForgetPeer drops a peer that was removed from those that are remembered and
// counted. One that is alive is remembered again.
func (n *Node) ForgetPeer(p id.PeerID) error { return n.known.drop(p) }
