package sim

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weave/ipam"
	"weave/ipam/ring"
	"weave/ipam/space"
)

// Buckets and keys of the Store that tell who owns and holds what. What is on
// disk counts, whether or not its host runs.
const (
	bucketRings   = "ipam-rings"
	bucketLeases  = "ipam-leases"
	bucketRemoved = "ipam-removed"
)

// seeded is one ring of a pool. Peers whose rings were seeded apart are no
// concern of each other.
type seeded struct {
	pool netip.Prefix
	seed ring.SeedID
}

// grant is under what an address on a disk is held: by which peer, of which
// ring. Clusters apart may each have granted it, and so may a removed peer and
// its heir.
type grant struct {
	kind  ipam.Kind
	seed  ring.SeedID
	by    ring.Peer
	owner ring.Peer // of a shared address: who reserves it
	lost  bool      // of a lease: the range went to another peer, as it may
}

// removal is what was on all disks when a peer was first said to be gone.
type removal struct {
	at    time.Time
	rings map[ring.Peer]map[netip.Prefix]*ring.Ring
}

// inheritance is a range that was taken over from removed peers, or from those
// that had given it to them.
type inheritance struct {
	space.Range
	from  []ring.Peer
	by    ring.Peer // nobody if it is not known
	apart bool      // taken over twice, by clusters apart
}

// truth is what all disks together say. Guarded by world.mu.
type truth struct {
	parsed      map[string]*ring.Ring // by what is stored
	rings       map[seeded]*ring.Ring // what peers would come to if they all talked
	dirty       map[seeded]bool       // since the last check
	votes       map[proposal]votes
	foundings   map[netip.Prefix]map[ring.SeedID]map[ring.Peer]bool
	removals    map[ring.Peer]removal
	heritage    map[seeded]map[ring.Peer]*space.Set // all that was ever taken over of what a peer had
	inheritance map[seeded][]inheritance            // on which some disks do not agree yet
}

func newTruth() truth {
	return truth{
		parsed: map[string]*ring.Ring{}, rings: map[seeded]*ring.Ring{}, dirty: map[seeded]bool{},
		foundings: map[netip.Prefix]map[ring.SeedID]map[ring.Peer]bool{}, votes: map[proposal]votes{}, removals: map[ring.Peer]removal{},
		heritage: map[seeded]map[ring.Peer]*space.Set{}, inheritance: map[seeded][]inheritance{},
	}
}

// written notes what a peer has written. w.mu is held.
func (w *world) written(p *peer, bucket string, changes map[string][]byte) {
	switch bucket {
	case bucketRings:
		for key, value := range changes {
			if !strings.Contains(key, " ") {
				w.noteRing(p, netip.MustParsePrefix(key), value)
			}
		}
	case bucketLeases:
		for key, value := range changes {
			if !strings.HasPrefix(key, "wish ") {
				w.noteGrant(p, parseKey(key), value)
			}
		}
	case bucketRemoved:
		for key, value := range changes {
			w.noteRemoved(p, ring.Peer(key), value)
		}
	case bucketVotes:
		for key, value := range changes {
			w.noteVote(p, key, value)
		}
	}
}

func parseKey(s string) key {
	pool, addr, _ := strings.Cut(s, " ")
	return key{netip.MustParsePrefix(pool), netip.MustParseAddr(addr)}
}

// noteGrant notes a lease, or a shared address once its owner has agreed.
func (w *world) noteGrant(p *peer, k key, value []byte) {
	d := p.disk
	if value == nil {
		delete(d.grants, k)
		return
	}
	var r struct {
		Kind ipam.Kind
		At   struct {
			Seed        ring.SeedID
			Owner, Self ring.Peer
		}
		Asking bool
		Count  int
	}
	if err := json.Unmarshal(value, &r); err != nil {
		w.fail("%s stores %s: %w", p.id, value, err)
	}
	old := d.grants[k]
	switch {
	case r.Kind == ipam.KindLease && old != nil && old.kind == r.Kind:
	case r.Kind == ipam.KindLease:
		d.grants[k] = &grant{kind: r.Kind, seed: d.rings[k.pool].Seed(), by: p.id}
	case r.Count > 0 && !r.Asking:
		d.grants[k] = &grant{kind: r.Kind, seed: r.At.Seed, by: r.At.Self, owner: r.At.Owner}
	}
}

// parse reads a ring; most are written by many peers.
func (w *world) parse(value []byte) *ring.Ring {
	if r := w.truth.parsed[string(value)]; r != nil {
		return r
	}
	c, err := ring.Decode(value)
	if err == nil {
		var r *ring.Ring
		if r, err = ring.FromChunk(c); err == nil {
			w.truth.parsed[string(value)] = r
			return r
		}
	}
	w.fail("a bad ring is stored: %w", err)
	return nil
}

// noteRing notes a ring that was stored, and verifies that what is new in it is
// its peer's to say.
func (w *world) noteRing(p *peer, pool netip.Prefix, value []byte) {
	old, now := p.disk.rings[pool], w.parse(value)
	if now == nil || now == old {
		return
	}
	p.disk.rings[pool] = now
	s := seeded{pool, now.Seed()}
	if old != nil && old.Seed() != s.seed {
		p.left[seeded{pool, old.Seed()}] = old
	}
	w.truth.dirty[s] = true
	for k, g := range p.disk.grants {
		if k.pool != pool || g.kind != ipam.KindLease {
			continue
		}
		if owner, _ := now.Owner(k.addr); owner == p.id {
			g.seed, g.by, g.lost = now.Seed(), p.id, false
		}
	}
	all := w.truth.rings[s]
	w.noteFounding(p, s)
	w.noteHeir(p, old, now)
	if !w.gone(p.id) {
		w.truth.rings[s] = w.join(all, now)
	}
}

// join is what two peers' rings of one seed come to.
func (w *world) join(all, more *ring.Ring) *ring.Ring {
	if all == nil || all == more {
		return more
	}
	next, err := all.Merge("", more.Chunk())
	if err != nil {
		w.fail("two peers contradict each other: %w", err)
		return all
	}
	if slices.Equal(next.Chunk().Tokens, more.Chunk().Tokens) {
		return more // so that those who agree have the very same
	}
	return next
}

// joinRings makes the rings anew, after some disk has come or gone. What a peer
// said of a ring that it has left since was true: others may still have it so.
func (w *world) joinRings() {
	clear(w.truth.rings)
	for _, h := range w.hosts {
		if w.gone(h.peer.id) {
			continue
		}
		for pool, r := range h.peer.disk.rings {
			w.joinRing(seeded{pool, r.Seed()}, r)
		}
		for s, r := range h.peer.left {
			w.joinRing(s, r)
		}
	}
}

func (w *world) joinRing(s seeded, r *ring.Ring) {
	w.truth.rings[s] = w.join(w.truth.rings[s], r)
	w.truth.dirty[s] = true
}

// noteHeir looks for ranges that a peer has just taken over from removed ones: an
// heir does so in a write of its own, after it has learnt all that there is to
// learn.
func (w *world) noteHeir(p *peer, old, now *ring.Ring) {
	if old == nil || old.Seed() != now.Seed() {
		return
	}
	var from []ring.Peer
	for _, t := range tokens(now) {
		if t.Owner != p.id || !t.Inherited() {
			continue
		}
		for _, before := range tokens(old) {
			part, ok := before.Intersect(t.Range)
			if !ok || before.Owner == p.id || !w.gone(before.Owner) || epoch(before.Token) >= epoch(t.Token) {
				continue
			}
			if from == nil {
				from = w.inheritsFrom(p)
			}
			if slices.Contains(from, before.Owner) {
				w.noteInherited(p, old, now, inheritance{Range: part, from: from, by: p.id})
			}
		}
	}
}

// token is one with the range that it starts.
type token struct {
	ring.Token
	space.Range
}

func tokens(r *ring.Ring) []token {
	chunk := r.Chunk().Tokens
	all := make([]token, len(chunk))
	for i, t := range chunk {
		all[i] = token{t, space.Range{First: t.Start, Last: space.Of(r.Pool()).Last}}
		if i+1 < len(chunk) {
			all[i].Last = chunk[i+1].Start.Prev()
		}
	}
	return all
}

func epoch(t ring.Token) uint64 { return t.Version >> 32 }

// inheritsFrom lists the removed peers whose heir a peer takes itself for.
func (w *world) inheritsFrom(p *peer) (from []ring.Peer) {
	heirs := map[ring.Peer]ring.Peer{}
	for id, value := range p.disk.buckets[bucketRemoved] {
		var i struct{ Heir ring.Peer }
		if err := json.Unmarshal(value, &i); err != nil {
			w.fail("%s stores of the removed %s: %w", p.id, id, err)
		}
		heirs[ring.Peer(id)] = i.Heir
	}
	for id := range heirs {
		heir := id
		for range heirs {
			if next, removed := heirs[heir]; removed {
				heir = next
			}
		}
		if heir == p.id {
			from = append(from, id)
		}
	}
	slices.Sort(from)
	return from
}

// noteInherited verifies that an heir takes nothing over that, as a peer which
// it knows of knew when the last one was removed, had been given away.
func (w *world) noteInherited(p *peer, old, now *ring.Ring, i inheritance) {
	s := seeded{now.Pool(), now.Seed()}
	w.log("inherits", p.id, s.pool, i.Range, i.from)
	known := old
	for gone := range p.disk.buckets[bucketRemoved] { // each has had it ask anew
		for id, rings := range w.truth.removals[ring.Peer(gone)].rings {
			r := rings[s.pool]
			asked := p.known[id] && !p.disk.tellsRemoved(id) && !w.peers[id].wiped
			if asked && r != nil && r.Seed() == s.seed {
				known = w.join(known, r)
			}
		}
	}
	w.noteApart(p, s, i)
	w.noteTaken(s, i)
	w.noteUnheard(p, s, i)
	w.noteGhosts(p, s.pool, i)
	for _, t := range tokens(known) {
		part, ok := t.Intersect(i.Range)
		if !ok || t.Owner == p.id || slices.Contains(i.from, t.Owner) {
			continue
		}
		if at, _ := now.Token(part.First); t.Version+1<<32 > at.Version { // not known to who inherited
			w.fail("pool %s: %s inherits %s from %v, though peers that it knows know that %s owns %s", s.pool, p.id, i.Range, i.from, t.Owner, part)
		}
	}
}

// noteTaken notes that a range is not that of some removed peers any more.
func (w *world) noteTaken(s seeded, i inheritance) {
	if w.truth.heritage[s] == nil {
		w.truth.heritage[s] = map[ring.Peer]*space.Set{}
	}
	for _, gone := range i.from {
		if w.truth.heritage[s][gone] == nil {
			w.truth.heritage[s][gone] = &space.Set{}
		}
		w.truth.heritage[s][gone].Add(i.Range)
	}
	w.truth.inheritance[s] = append(w.truth.inheritance[s], i)
}

// noteApart notes what clusters apart have of a removed peer that was the only
// one whom both had met: another heir has taken it over there, or it was given
// to a host of whom none of those had heard who decided here. They are like
// clusters that start one pool.
func (w *world) noteApart(p *peer, s seeded, i inheritance) {
	for _, other := range w.truth.inheritance[s] {
		part, ok := i.Intersect(other.Range)
		if !ok || other.apart || other.by == "" || other.by == p.id {
			continue
		}
		for _, gone := range i.from {
			if slices.Contains(other.from, gone) && w.removedApart(gone, p, w.peers[other.by]) {
				w.noteTaken(s, inheritance{Range: part, from: []ring.Peer{gone}, apart: true})
			}
		}
	}
	for id, other := range w.peers {
		r := other.disk.rings[s.pool]
		if r == nil || r.Seed() != s.seed || p.known[id] {
			continue
		}
		for _, theirs := range r.Ranges(id) {
			part, ok := theirs.Intersect(i.Range)
			if ok && !slices.ContainsFunc(i.from, func(gone ring.Peer) bool { return w.heard(p, gone, id) }) {
				w.noteTaken(s, inheritance{Range: part, from: i.from, apart: true})
			}
		}
	}
}

// noteUnheard notes what the removed peer had given to others that the heir knows
// to be removed, too: if nobody else has heard of the gift, it is inherited with
// the rest. Only the disks of those who are gone tell of it.
func (w *world) noteUnheard(p *peer, s seeded, i inheritance) {
	for id, other := range w.peers {
		r := other.disk.rings[s.pool]
		if slices.Contains(i.from, id) || !p.disk.tellsRemoved(id) || r == nil || r.Seed() != s.seed {
			continue
		}
		for _, theirs := range r.Ranges(id) {
			if part, ok := theirs.Intersect(i.Range); ok {
				w.noteTaken(s, inheritance{Range: part, from: []ring.Peer{id}})
			}
		}
	}
}

// noteGhosts notes which containers of removed peers the heir knows of, and must
// know for ever. w.mu is held.
func (w *world) noteGhosts(p *peer, pool netip.Prefix, i inheritance) {
	for _, gone := range slices.Sorted(maps.Keys(p.proc.views)) {
		for k := range p.proc.views[gone].endpoints {
			if k.pool == pool && i.Contains(k.addr) && p.disk.tellsRemoved(gone) {
				p.ghosts[k] = gone
			}
		}
	}
}

// disputed says whether an address was taken over by clusters apart, or from a
// peer that was alive, or whose messages were still under way, when it was said
// to be gone: what it did after that may contradict its heir, until all disks
// agree. w.mu is held.
func (w *world) disputed(s seeded, a netip.Addr) bool {
	return slices.ContainsFunc(w.truth.inheritance[s], func(i inheritance) bool {
		return i.Contains(a) && (i.apart || slices.ContainsFunc(i.from, w.livedOn))
	})
}

// livedOn says whether a removed peer did anything after its removal.
func (w *world) livedOn(id ring.Peer) bool {
	p := w.peers[id]
	return p.proc != nil || !p.until.Before(w.truth.removals[id].at)
}

// inherited says whether an address was taken over from a removed peer.
func (w *world) inherited(s seeded, from ring.Peer, a netip.Addr) bool {
	set := w.truth.heritage[s][from]
	return set != nil && set.Contains(a)
}

// mayBoth says whether an address may have been granted twice: by clusters
// apart, or by a removed peer and by its heir. Whoever it is, the containers
// run on, and all but one of them are told to people. w.mu is held.
func (w *world) mayBoth(k key, x, y *grant) bool {
	if x == nil || y == nil {
		return false
	}
	s := seeded{k.pool, x.seed}
	may := x.seed != y.seed || w.disputed(s, k.addr)
	for _, g := range []*grant{x, y} {
		may = may || g.lost || w.inherited(s, g.by, k.addr)
		may = may || g.kind != ipam.KindLease && (w.gone(g.by) || w.gone(g.owner)) // the reservation is lost with either
	}
	return may
}

// grant is under what a host holds an address. w.mu is held.
func (d *docker) grant(k key) *grant { return d.host.peer.disk.grants[k] }
