package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"weave/mesh/id"
	"weave/mesh/route"
	"weave/mesh/vni"
)

// index holds the records of all peers decoded, and answers questions about
// them without looking at more of them than concern it. Records that make no
// sense are not in it. Node.mu guards it.
type index struct {
	segments  map[string]*place // by segment key; none is empty
	endpoints map[endpointKey]*OwnedEndpoint
	free      map[string]map[id.PeerID]uint64  // by pool
	gone      map[id.PeerID]map[id.PeerID]bool // peers whose records do not count, and who says so; none is empty
	vnis      *vni.Claims                      // of the segments
	links     map[id.PeerID]route.Links        // whom each peer reaches directly
	hosts     map[id.PeerID]hostRecord
}

type endpointKey struct {
	owner id.PeerID
	id    string
}

// place is what is known of one segment.
type place struct {
	members   map[id.PeerID]segmentRecord // who has it, and what each uses
	endpoints map[endpointKey]*OwnedEndpoint
	holders   map[netip.Addr][]*OwnedEndpoint
}

func newIndex() *index {
	return &index{
		segments:  map[string]*place{},
		endpoints: map[endpointKey]*OwnedEndpoint{},
		free:      map[string]map[id.PeerID]uint64{},
		gone:      map[id.PeerID]map[id.PeerID]bool{},
		vnis:      vni.New(),
		links:     map[id.PeerID]route.Links{},
		hosts:     map[id.PeerID]hostRecord{},
	}
}

// at returns the place of a segment, and makes it if need be.
func (x *index) at(key string) *place {
	p := x.segments[key]
	if p == nil {
		p = &place{
			members:   map[id.PeerID]segmentRecord{},
			endpoints: map[endpointKey]*OwnedEndpoint{},
			holders:   map[netip.Addr][]*OwnedEndpoint{},
		}
		x.segments[key] = p
	}
	return p
}

// tidy drops the place of a segment that nothing is known of any more.
func (x *index) tidy(key string) {
	if p := x.segments[key]; p != nil && len(p.members)+len(p.endpoints) == 0 {
		delete(x.segments, key)
	}
}

// setSegment takes in that a peer has a segment; a nil value that it has not.
func (x *index) setSegment(owner id.PeerID, key string, value []byte) error {
	delete(x.at(key).members, owner)
	x.vnis.Set(owner, key, 0)
	defer x.tidy(key)
	if value == nil {
		return nil
	}
	rec, err := decodeSegment(value)
	if err == nil {
		x.at(key).members[owner] = rec
		x.vnis.Set(owner, key, rec.VNI)
	}
	return err
}

// setEndpoint takes in a peer's endpoint, or that it is gone if the value is
// nil. It returns what was known before and what is now; either may be nil.
func (x *index) setEndpoint(owner id.PeerID, key string, value []byte) (old, now *OwnedEndpoint, err error) {
	name := endpointKey{owner, key}
	if old = x.endpoints[name]; old != nil {
		x.unlink(name, old)
	}
	if value == nil {
		return old, nil, nil
	}
	e, err := decodeEndpoint(key, value)
	if err != nil {
		return old, nil, err
	}
	now = &OwnedEndpoint{Endpoint: e, Owner: owner}
	x.link(name, now)
	return old, now, nil
}

func (x *index) link(name endpointKey, e *OwnedEndpoint) {
	x.endpoints[name] = e
	p := x.at(e.Segment)
	p.endpoints[name] = e
	for _, a := range e.Addrs {
		p.holders[a] = append(p.holders[a], e)
	}
}

func (x *index) unlink(name endpointKey, e *OwnedEndpoint) {
	delete(x.endpoints, name)
	p := x.at(e.Segment)
	delete(p.endpoints, name)
	for _, a := range e.Addrs {
		p.holders[a] = slices.DeleteFunc(p.holders[a], func(o *OwnedEndpoint) bool { return o == e })
		if len(p.holders[a]) == 0 {
			delete(p.holders, a)
		}
	}
	x.tidy(e.Segment)
}

// setFree takes in how much of a pool a peer has to give.
func (x *index) setFree(owner id.PeerID, pool string, value []byte) error {
	if of := x.free[pool]; of != nil {
		if delete(of, owner); len(of) == 0 {
			delete(x.free, pool)
		}
	}
	if value == nil {
		return nil
	}
	rec, err := decodeFree(value)
	if err != nil {
		return err
	}
	if x.free[pool] == nil {
		x.free[pool] = map[id.PeerID]uint64{}
	}
	x.free[pool][owner] = rec.Free
	return nil
}

// members lists the peers that have a segment, but for one, in the order of
// their IDs.
func (x *index) members(key string, but id.PeerID) []id.PeerID {
	p := x.segments[key]
	if p == nil {
		return nil
	}
	var out []id.PeerID
	for member := range p.members {
		if member != but {
			out = append(out, member)
		}
	}
	slices.SortFunc(out, id.PeerID.Compare)
	return out
}

// use returns what a peer says of a segment; false if it does not have it.
func (x *index) use(key string, owner id.PeerID) (segmentRecord, bool) {
	p := x.segments[key]
	if p == nil {
		return segmentRecord{}, false
	}
	rec, ok := p.members[owner]
	return rec, ok
}

// mtu returns the least MTU that the peers but one use on a segment, or 0.
func (x *index) mtu(key string, but id.PeerID) int {
	least := 0
	if p := x.segments[key]; p != nil {
		for member, rec := range p.members {
			if member != but && (least == 0 || rec.MTU < least) {
				least = rec.MTU
			}
		}
	}
	return least
}

// holder returns the endpoint that has an address on a segment, of the peers
// but one; of several the first in the order of Endpoints.
func (x *index) holder(key string, addr netip.Addr, but id.PeerID) (OwnedEndpoint, bool) {
	var first *OwnedEndpoint
	if p := x.segments[key]; p != nil {
		for _, e := range p.holders[addr] {
			if e.Owner != but && (first == nil || compareEndpoints(*e, *first) < 0) {
				first = e
			}
		}
	}
	if first == nil {
		return OwnedEndpoint{}, false
	}
	return *first, true
}

// all lists the endpoints in the order of their owners and IDs.
func (x *index) all() []OwnedEndpoint {
	out := make([]OwnedEndpoint, 0, len(x.endpoints))
	for _, e := range x.endpoints {
		out = append(out, *e)
	}
	slices.SortFunc(out, compareEndpoints)
	return out
}

func compareEndpoints(a, b OwnedEndpoint) int {
	return cmp.Or(a.Owner.Compare(b.Owner), strings.Compare(a.ID, b.ID))
}
