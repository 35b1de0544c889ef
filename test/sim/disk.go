package sim

import (
	"errors"
	"maps"
	"net/netip"

	"weave/ipam/ring"
)

var (
	errDiskFull = errors.New("no space left on device")
	errDead     = errors.New("the process is dead")
)

// disk is a Store's content. It survives the process. Guarded by world.mu.
type disk struct {
	buckets map[string]map[string][]byte
	writes  int
	checked int // writes, at the last check
	full    bool
	rings   map[netip.Prefix]*ring.Ring // what is in buckets, as far as checks look at it
	grants  map[key]*grant
	journal []map[string]map[string][]byte // contents before the last writes, for FaultLostWrites
}

func newDisk() *disk {
	return &disk{buckets: map[string]map[string][]byte{}, rings: map[netip.Prefix]*ring.Ring{}, grants: map[key]*grant{}}
}

func (d *disk) apply(bucket string, changes map[string][]byte) {
	if d.buckets[bucket] == nil {
		d.buckets[bucket] = map[string][]byte{}
	}
	for k, v := range changes {
		if v == nil {
			delete(d.buckets[bucket], k)
		} else {
			d.buckets[bucket][k] = v
		}
	}
	d.writes++
}

// tellsRemoved says whether a peer is known here to be removed.
func (d *disk) tellsRemoved(id ring.Peer) bool { return d.buckets[bucketRemoved][string(id)] != nil }

// record keeps what undo goes back to.
func (d *disk) record() {
	before := map[string]map[string][]byte{}
	for name, bucket := range d.buckets {
		before[name] = maps.Clone(bucket)
	}
	d.journal = append(d.journal, before)
	if len(d.journal) > 3 {
		d.journal = d.journal[1:]
	}
}

func (w *world) undo(p *peer) {
	d := p.disk
	if len(d.journal) == 0 {
		return
	}
	d.buckets, d.journal = d.journal[0], nil
	d.writes++
	clear(d.rings)
	clear(d.grants)
	for _, bucket := range []string{bucketRemoved, bucketRings, bucketLeases} {
		w.written(p, bucket, d.buckets[bucket])
	}
	w.joinRings()
}

// store is the disk as one process sees it.
type store struct{ p *process }

// Load implements ipam.Store.
func (s store) Load(bucket string) (map[string][]byte, error) {
	s.p.w.mu.Lock()
	defer s.p.w.mu.Unlock()
	return maps.Clone(s.p.peer.disk.buckets[bucket]), nil
}

// Apply implements ipam.Store. A process may die in it: the write then has
// happened, or has not.
func (s store) Apply(bucket string, changes map[string][]byte) error {
	w, d := s.p.w, s.p.peer.disk
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case s.p.dead:
		return errDead
	case d.full:
		return errDiskFull
	case s.p.dieIn == 1:
		happened := mix(w.plan.Seed, uint64(s.p.host.number), uint64(d.writes))&1 == 0
		w.log("dies at", s.p.host, bucket, happened)
		if happened {
			d.apply(bucket, changes)
			w.written(s.p.peer, bucket, changes)
		}
		w.end(s.p)
		return errDead
	case s.p.dieIn > 1:
		s.p.dieIn--
	}
	if w.plan.Fault == FaultLostWrites {
		d.record()
	}
	d.apply(bucket, changes)
	w.written(s.p.peer, bucket, changes)
	return nil
}
