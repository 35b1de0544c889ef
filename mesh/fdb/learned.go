package fdb

import "time"

// Limits of what is learned from traffic.
const (
	// MaxAge is how long an address stays known after its last frame.
	MaxAge = 5 * time.Minute
	// MaxLearned and MaxLearnedPerPlace bound the entries of a segment, and
	// those that one peer, or this host, may fill.
	MaxLearned         = 4096
	MaxLearnedPerPlace = 1024
)

const (
	// refreshAfter keeps known addresses from taking the write lock each time.
	refreshAfter = time.Second
	// holdLocal is the silence after which an address that was seen on this
	// host may move away. Less than the three seconds after which a VRRP backup
	// takes over, and enough that a busy address cannot be taken from afar.
	holdLocal = 2500 * time.Millisecond
	// sweepEvery bounds the work that a flood of new addresses can cause.
	sweepEvery = 30 * time.Second
)

type learnedEntry struct {
	at   Place
	seen time.Time // at most refreshAfter before the last frame
}

func (e learnedEntry) expired(now time.Time) bool { return now.Sub(e.seen) >= MaxAge }

// learnedTable holds the addresses that no endpoint announced.
type learnedTable struct {
	entries   map[MAC]learnedEntry
	perPlace  map[Place]int // of entries; no zero counts
	lastSweep time.Time
}

func newLearnedTable() learnedTable {
	return learnedTable{entries: make(map[MAC]learnedEntry), perPlace: make(map[Place]int)}
}

func (l *learnedTable) lookup(mac MAC, now time.Time) (Place, bool) {
	e, known := l.entries[mac]
	if !known || e.expired(now) {
		return Place{}, false
	}
	return e.at, true
}

func (l *learnedTable) check(mac MAC, from Place, now time.Time) Verdict {
	e, known := l.entries[mac]
	switch {
	case !known:
		return Unseen
	case e.at == from && now.Sub(e.seen) < refreshAfter:
		return Accept
	case e.at.Local && !from.Local && now.Sub(e.seen) < holdLocal:
		return Refuse
	}
	return Unseen
}

// learn puts mac to a place, if there is room. An address that moves to a
// place without room is forgotten: where it was, it is no more.
func (l *learnedTable) learn(mac MAC, from Place, now time.Time) {
	if e, known := l.entries[mac]; known && e.at == from {
		l.entries[mac] = learnedEntry{at: from, seen: now}
		return
	}
	l.forget(mac)
	l.sweep(now)
	if len(l.entries) >= MaxLearned || l.perPlace[from] >= MaxLearnedPerPlace {
		return
	}
	l.entries[mac] = learnedEntry{at: from, seen: now}
	l.perPlace[from]++
}

func (l *learnedTable) sweep(now time.Time) {
	if now.Sub(l.lastSweep) < sweepEvery {
		return
	}
	l.lastSweep = now
	for mac, e := range l.entries {
		if e.expired(now) {
			l.forget(mac)
		}
	}
}

func (l *learnedTable) forget(mac MAC) {
	e, known := l.entries[mac]
	if !known {
		return
	}
	delete(l.entries, mac)
	if l.perPlace[e.at]--; l.perPlace[e.at] == 0 {
		delete(l.perPlace, e.at)
	}
}
