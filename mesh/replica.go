package mesh

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"weave/mesh/gossip"
	"weave/mesh/id"
	"weave/mesh/state"
	"weave/mesh/tunnel"
)

// tombstoneAge is how long a deletion is remembered for peers that missed it.
const tombstoneAge = 10 * time.Minute

// staleAge is how long a peer that starts anew has to tell all that it has, by
// announcements or, where one was lost, by a pull. If it ends meanwhile, most have
// noticed by then.
const staleAge = 10 * time.Second

// set publishes a record of our own, whose value makes sense. The caller holds
// publish, not mu.
func (n *Node) set(kind, key string, value []byte) error {
	n.mu.Lock()
	delta, err := n.records.Set(kind, key, value)
	if delta != nil {
		_ = n.apply(state.Change{Owner: n.cfg.Identity.ID, Kind: kind, Key: key, New: value})
	}
	n.mu.Unlock()
	n.gossip.Broadcast(replicaRecords, delta)
	n.tell(kind)
	return err
}

// remove takes a record of our own back, if there is one. The caller holds
// publish, not mu.
func (n *Node) remove(kind, key string) {
	n.mu.Lock()
	delta := n.records.Delete(kind, key, time.Now())
	if delta != nil {
		_ = n.apply(state.Change{Owner: n.cfg.Identity.ID, Kind: kind, Key: key})
	}
	n.mu.Unlock()
	n.gossip.Broadcast(replicaRecords, delta)
	n.tell(kind)
}

// tell calls Config.Changed if records of a kind are what it is for.
func (n *Node) tell(kinds ...string) {
	isOf := func(kind string) bool {
		return kind == kindEndpoint || kind == kindGone || strings.HasPrefix(kind, kindNote)
	}
	if n.cfg.Changed != nil && slices.ContainsFunc(kinds, isOf) {
		n.cfg.Changed()
	}
}

// ErrGap is returned by a Replica that lacks what comes before a delta.
var ErrGap = gossip.ErrGap

// recordsReplica is the Node's own records as gossip sees them.
type recordsReplica struct{ n *Node }

// Digest implements Replica.
func (r recordsReplica) Digest() []byte {
	r.n.mu.Lock()
	defer r.n.mu.Unlock()
	return r.n.records.Digest()
}

// Missing implements Replica.
func (r recordsReplica) Missing(digest []byte) []byte {
	r.n.mu.Lock()
	defer r.n.mu.Unlock()
	delta, err := r.n.records.Missing(digest)
	if err != nil {
		r.n.log.WithError(err).Warn("a peer's digest makes no sense")
	}
	return delta
}

// maxAnnouncement is how many datagrams what is our own may take.
const maxAnnouncement = 16

// Announcement implements gossip.Announcer.
func (r recordsReplica) Announcement(size int) [][]byte {
	r.n.mu.Lock()
	defer r.n.mu.Unlock()
	return r.n.records.AnnounceIn(size, maxAnnouncement)
}

// Merge implements Replica. The tunnel learns what changed before mu is let
// go, so that it never sees two changes in the wrong order.
func (r recordsReplica) Merge(_ id.PeerID, delta []byte) error {
	n := r.n
	n.mu.Lock()
	result, err := n.records.Merge(delta, time.Now())
	done := n.applyAll(result.Changes)
	n.mu.Unlock()
	done()
	if result.Raised {
		n.raise()
	}
	if err == nil && result.Gap {
		return ErrGap
	}
	return err
}

// applyAll is apply for many changes. What it returns is to be called when mu is
// free.
func (n *Node) applyAll(changes []state.Change) (done func()) {
	var bad []error
	var kinds []string
	for _, c := range changes {
		kinds = append(kinds, c.Kind)
		if err := n.apply(c); err != nil {
			bad = append(bad, fmt.Errorf("%s %.64q of peer %s: %w", c.Kind, c.Key, c.Owner.Short(), err))
		}
	}
	return func() {
		n.tell(kinds...)
		if len(bad) > 0 {
			n.log.WithField("count", len(bad)).WithError(bad[0]).Warn("peers published what makes no sense")
		}
	}
}

// dropStale forgets what members that started anew did not tell again.
func (n *Node) dropStale() {
	members := n.Alive()
	alive := func(p id.PeerID) bool { return slices.Contains(members, p) }
	n.mu.Lock()
	done := n.applyAll(n.records.DropStale(time.Now(), n.cfg.tune.staleAge, alive))
	n.mu.Unlock()
	done()
}

// raise has announceAgain run, by tend: Merge must not wait for a Broadcast.
func (n *Node) raise() {
	select {
	case n.raised <- struct{}{}:
	default: // it will run anyway
	}
}

// announceAgain tells all peers our records under the incarnation that Merge
// raised: somebody knew a later run of ours than we do.
func (n *Node) announceAgain() {
	n.publish.Lock()
	defer n.publish.Unlock()
	n.mu.Lock()
	incarnation, delta := n.records.Incarnation(), n.records.Announce()
	n.mu.Unlock()
	if err := putIncarnation(n.cfg.Store, incarnation); err != nil {
		n.log.WithError(err).Error("the incarnation is not on disk: peers may ignore this host after its next start")
	}
	n.gossip.Broadcast(replicaRecords, delta)
}

// apply takes one changed record into the index, and tells the tunnel of it if
// it concerns a segment of this host. The error is that the record makes no
// sense; then it counts as deleted. The caller holds mu.
func (n *Node) apply(c state.Change) error {
	if n.index.isGone(c.Owner) && c.Kind != kindGone {
		c.New = nil
	}
	switch c.Kind {
	case kindSegment:
		err := n.index.setSegment(c.Owner, c.Key, c.New)
		if n.segments[c.Key] != nil {
			n.setMembers(c.Key)
		}
		n.recheck() // a clash of VNIs can be with any segment
		return err
	case kindEndpoint:
		return n.applyEndpoint(c)
	case kindFree:
		return n.index.setFree(c.Owner, c.Key, c.New)
	case kindLinks:
		n.routes.change()
		return n.index.setLinks(c.Owner, c.Key, c.New)
	case kindHost:
		return n.index.setHost(c.Owner, c.Key, c.New)
	case kindGone:
		return n.applyGone(c)
	}
	return nil // of a later version
}

func (n *Node) applyEndpoint(c state.Change) error {
	old, now, err := n.index.setEndpoint(c.Owner, c.Key, c.New)
	if old != nil && (now == nil || old.Segment != now.Segment) {
		n.removeEndpoint(old)
	}
	if now != nil {
		n.setEndpoint(now)
	}
	return err
}

func (e *OwnedEndpoint) tunnel() tunnel.Endpoint {
	return tunnel.Endpoint{ID: e.ID, MAC: e.MAC, IPs: e.Addrs, Peer: e.Owner}
}
