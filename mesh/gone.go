package mesh

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weave/mesh/id"
	"weave/mesh/state"
)

// kindGone is a record that says of a peer, its key, that its containers are
// gone, or are announced under another ID now: nobody counts the peer's own
// records any more.
const kindGone = "gone"

// bucketGone keeps the peers that this host said it of.
const bucketGone = "gone"

// NamedSegment is the prefix of the keys of segments that go by a name, not by
// their subnet.
const NamedSegment = "name:"

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
	for _, kind := range []string{kindSegment, kindEndpoint, kindFree} {
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

// gives tells whether endpoints of a segment may have addresses of a pool: it
// goes by that subnet, or by a name, or by the IPv4 subnet beside an IPv6 one.
func gives(pool netip.Prefix, segment string) bool {
	return segment == pool.String() || strings.HasPrefix(segment, NamedSegment) || pool.Addr().Is6()
}

// HolderOf returns the other peer whose container has an address of a pool.
func (n *Node) HolderOf(pool netip.Prefix, addr netip.Addr) (id.PeerID, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for key := range n.index.segments {
		if !gives(pool, key) {
			continue
		}
		if e, ok := n.index.holder(key, addr, n.cfg.Identity.ID); ok {
			return e.Owner, true
		}
	}
	return id.PeerID{}, false
}

// HoldersIn returns the addresses of a pool that containers of other peers
// have.
func (n *Node) HoldersIn(pool netip.Prefix) map[netip.Addr]id.PeerID {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[netip.Addr]id.PeerID{}
	for key, place := range n.index.segments {
		if !gives(pool, key) {
			continue
		}
		for addr := range place.holders {
			if e, ok := n.index.holder(key, addr, n.cfg.Identity.ID); ok && pool.Contains(addr) {
				out[addr] = e.Owner
			}
		}
	}
	return out
}

// ForgetPeer drops a peer that was removed from those that are remembered and
// counted. One that is alive is remembered again.
func (n *Node) ForgetPeer(p id.PeerID) error { return n.known.drop(p) }
