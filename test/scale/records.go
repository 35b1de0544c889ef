package scale

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"weave/ipam/ring"
	"weave/mesh/gossip"
	"weave/mesh/id"
	"weave/mesh/state"
)

// segment is the network that all endpoints are on.
const segment = "10.32.0.0/12"

// Kinds of records, as mesh.Node publishes them.
const (
	kindSegment  = "segment"
	kindEndpoint = "endpoint"
	kindFree     = "free"
)

// Values of records, as mesh.Node writes them; a test shows them to one.
type (
	segmentRecord struct {
		MTU int `json:"mtu"`
	}
	endpointRecord struct {
		Segment   string       `json:"segment"`
		MAC       string       `json:"mac"`
		Addrs     []netip.Addr `json:"addrs"`
		Container string       `json:"container,omitempty"`
	}
	freeRecord struct {
		Free uint64 `json:"free"`
	}
)

func value(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // these types always marshal
	}
	return b
}

// peerID makes up the ID of peer number i, as random as real ones.
func peerID(i int) id.PeerID {
	sum := sha256.Sum256(fmt.Appendf(nil, "peer %d", i))
	return id.PeerID(sum[:16])
}

// endpoint makes up the record of endpoint number n of a peer; its key changes
// with the generation, as Docker's IDs do with each container.
func endpoint(peer, n, generation int, named bool) (key string, record []byte) {
	sum := sha256.Sum256(fmt.Appendf(nil, "endpoint %d %d %d", peer, n, generation))
	addr := [4]byte{10, 32}
	binary.BigEndian.PutUint16(addr[2:], uint16(peer*20+n))
	e := endpointRecord{
		Segment: segment, Addrs: []netip.Addr{netip.AddrFrom4(addr)},
		MAC: fmt.Sprintf("0a:57:%02x:%02x:%02x:%02x", addr[0], addr[1], addr[2], addr[3]),
	}
	if named {
		e.Container = fmt.Sprintf("project_service_%d", n)
	}
	return hex.EncodeToString(sum[:]), value(e)
}

// records are a peer's copy of the records of all, and a gossip.Replica as
// mesh.Node's is one.
type records struct {
	publish sync.Mutex // keeps our deltas in the order of their versions
	learnt  func(key string)

	mu    sync.Mutex
	table *state.Table
}

// Digest implements gossip.Replica.
func (r *records) Digest() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.table.Digest()
}

func (r *records) digest() string { return string(r.Digest()) }

// Missing implements gossip.Replica.
func (r *records) Missing(digest []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	delta, err := r.table.Missing(digest)
	if err != nil {
		panic(err) // no peer is hostile here
	}
	return delta
}

// Announcement implements gossip.Announcer, as mesh.Node does.
func (r *records) Announcement(size int) [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.table.AnnounceIn(size, 16)
}

// Merge implements gossip.Replica.
func (r *records) Merge(_ id.PeerID, delta []byte) error {
	r.mu.Lock()
	result, err := r.table.Merge(delta, time.Now())
	r.mu.Unlock()
	for _, c := range result.Changes {
		if c.Kind == kindEndpoint && c.Old == nil {
			r.learnt(c.Key)
		}
	}
	if err == nil && result.Gap {
		return gossip.ErrGap
	}
	return err
}

// set changes a record of our own, or deletes it if the value is nil, and
// returns the delta.
func (r *records) set(kind, key string, value []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if value == nil {
		return r.table.Delete(kind, key, time.Now())
	}
	delta, err := r.table.Set(kind, key, value)
	if err != nil {
		panic(err) // all of them are small
	}
	return delta
}

// rings are a peer's copy of the pool's ring, and a gossip.Replica that says
// what ipam.Allocator would. It does not change once it is there.
type rings struct {
	mu     sync.Mutex
	ring   *ring.Ring
	digest []byte
}

// ringDelta is what allocators send each other, as far as it is needed here.
type ringDelta struct {
	Rings []ring.Chunk `json:"rings,omitempty"`
}

// newRing makes the ring of a pool that all peers founded.
func newRing(peers int) (*ring.Ring, error) {
	owners := make([]ring.Peer, peers)
	for i := range owners {
		owners[i] = ring.Peer(peerID(i).String())
	}
	return ring.New(netip.MustParsePrefix(segment), ring.SeedID{1}, owners)
}

// put makes a ring the one that is known.
func (r *rings) put(to *ring.Ring) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(to)
}

func (r *rings) set(to *ring.Ring) {
	digest := to.Digest()
	r.ring, r.digest = to, value(map[string]string{segment: hex.EncodeToString(digest[:])})
}

// Digest implements gossip.Replica.
func (r *rings) Digest() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.digest
}

// Missing implements gossip.Replica.
func (r *rings) Missing(digest []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ring == nil || string(digest) == string(r.digest) {
		return nil
	}
	return value(ringDelta{[]ring.Chunk{r.ring.Chunk()}})
}

// Merge implements gossip.Replica.
func (r *rings) Merge(_ id.PeerID, delta []byte) error {
	var d ringDelta
	if err := json.Unmarshal(delta, &d); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range d.Rings {
		merged, err := ring.FromChunk(c)
		if err != nil {
			return err
		}
		r.set(merged)
	}
	return nil
}
