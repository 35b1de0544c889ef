package mesh

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"weave/mesh/id"
)

// bucketPeers keeps the peers that were ever in our membership.
const bucketPeers = "peers"

// maxKnown bounds the peers remembered.
const maxKnown = 10_000

// knownPeer is what is remembered of a peer.
type knownPeer struct {
	Nickname   string           `json:"nickname"`
	Candidates []netip.AddrPort `json:"candidates"`
}

func (k knownPeer) equal(o knownPeer) bool {
	return k.Nickname == o.Nickname && slices.Equal(k.Candidates, o.Candidates)
}

// known remembers every peer met, over restarts: so a restarted host finds its
// cluster again, and a majority is one of all peers, not of those alive. Its
// methods are safe for concurrent use.
type known struct {
	store Store

	mu      sync.Mutex
	peers   map[id.PeerID]knownPeer
	unsaved map[id.PeerID]bool // those of peers that the disk has not taken yet
}

func loadKnown(store Store, self id.PeerID) (*known, error) {
	raw, err := store.Load(bucketPeers)
	if err != nil {
		return nil, fmt.Errorf("load peers: %w", err)
	}
	k := &known{store: store, peers: map[id.PeerID]knownPeer{}, unsaved: map[id.PeerID]bool{}}
	for key, value := range raw {
		p, err := id.Parse(key)
		if err != nil {
			return nil, fmt.Errorf("state bucket %q: %w", bucketPeers, err)
		}
		var kp knownPeer
		if err := json.Unmarshal(value, &kp); err != nil {
			return nil, fmt.Errorf("state bucket %q, key %q: %w", bucketPeers, key, err)
		}
		if p != self {
			k.peers[p] = kp
		}
	}
	return k, nil
}

// remember keeps a peer, on disk unless it returns an error; save tries that
// again.
func (k *known) remember(p id.PeerID, kp knownPeer) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	old, ok := k.peers[p]
	if ok && old.equal(kp) {
		return nil
	}
	if !ok && len(k.peers) >= maxKnown {
		return fmt.Errorf("remember peer %s: more than %d peers", p.Short(), maxKnown)
	}
	k.peers[p], k.unsaved[p] = kp, true
	return k.saveLocked()
}

// save puts on disk what remember could not.
func (k *known) save() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.saveLocked()
}

func (k *known) saveLocked() error {
	if len(k.unsaved) == 0 {
		return nil
	}
	changes := map[string][]byte{}
	for p := range k.unsaved {
		changes[p.String()] = recordValue(k.peers[p])
	}
	if err := k.store.Apply(bucketPeers, changes); err != nil {
		return fmt.Errorf("store %d peers: %w", len(changes), err)
	}
	clear(k.unsaved)
	return nil
}

// drop forgets a peer, on disk before it returns.
func (k *known) drop(p id.PeerID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.store.Apply(bucketPeers, map[string][]byte{p.String(): nil}); err != nil {
		return fmt.Errorf("forget peer %s: %w", p.Short(), err)
	}
	delete(k.peers, p)
	delete(k.unsaved, p)
	return nil
}

// list returns all remembered peers in the order of their IDs.
func (k *known) list() []id.PeerID {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]id.PeerID, 0, len(k.peers))
	for p := range k.peers {
		out = append(out, p)
	}
	slices.SortFunc(out, id.PeerID.Compare)
	return out
}

func (k *known) get(p id.PeerID) (knownPeer, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	kp, ok := k.peers[p]
	return kp, ok
}
