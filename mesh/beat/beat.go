// Package beat decides whether the fast path to one peer carries frames, from
// heart-beats along it.
//
// A host sends the peer probes by the fast path, each with a number that nobody
// can guess. The peer tells by the sealed path which number it heard last: its
// report. So a path is judged by what arrived at its far end, each direction on
// its own, and nobody between can pretend that it works. A peer that reports
// nothing says nothing: its plugin may be down while its kernel works on, and
// then the fast path is all there is. Hence only reports change a verdict.
//
//	         hits in a row: firstHits, or more after a fall
//	down ───────────────────────────────────────────────────> up
//	     <───────────────────────────────────────────────────
//	    maxMisses in a row, or no full probe for fullPatience
//
// A report that names a probe sent just now is a hit, else it is a miss. While a
// path is steady, fewer probes are sent; a report is due when a probe came, or
// when one should have. Some
// probes are full: as long as the longest frame. What lets only short ones
// through is no path either, so a path that is down rises by full ones. The way
// up is longer after each fall, so that a path that comes and goes is left
// alone.
//
// The package is pure: time and randomness are arguments. It sends nothing and
// does not know what a path is made of.
package beat

import "time"

const (
	// Interval is how often Probe is to be asked, and whether a report is due.
	Interval = 400 * time.Millisecond
	// Overdue is how long after a probe the next must have come: who has heard
	// none for so long reports that each Interval.
	Overdue = (steadyEvery + 1) * Interval
)

// A path that is cut is given up within Overdue, maxMisses reports and the way of
// one: less than 3 s.
const (
	// steadyEvery is how many intervals a probe is for if a path has been up for
	// settled, and without a miss for calm.
	steadyEvery = 3
	settled     = 30 * time.Second

	// fresh is how old the probe in a report may be: the way there and back and
	// two intervals fit in. freshFull is the same for full ones.
	fresh     = time.Second
	freshFull = 2 * time.Second

	maxMisses    = 3
	fullPatience = 4 * time.Second // and until then every second probe is full
	fullEvery    = 10              // intervals, while all is well

	firstHits  = 3
	backHits   = 12              // 5 s
	maxHits    = 150             // a minute
	calm       = 5 * time.Minute // up for so long, a path has a clean record
	remembered = 16              // probes
)

// Probe is one to be sent.
type Probe struct {
	Seq  uint64
	Full bool // as long as the longest frame
}

// Report is what a peer heard last: the numbers of a probe of any length, and
// of a full one; 0 for none.
type Report struct{ Any, Full uint64 }

// State tells how a path is, and why.
type State uint8

// States.
const (
	Unproven State = iota // no report yet
	Silent                // probes do not arrive
	Cut                   // short ones do, full ones do not
	Back                  // they do again, but not for long enough
	Up
)

// Path is the judgement of one direction to one peer. It is not safe for
// concurrent use.
type Path struct {
	state State
	next  uint64
	sent  [remembered]sent
	count int // of the probes sent
	ticks int // of the intervals

	misses, hits, need int
	upSince            time.Time
	missed             time.Time // when it was last up without a hit
	told               time.Time // when the peer last said anything

	// unheard is when the first full probe was sent that is not known to have
	// arrived, nor any after it; zero for none.
	unheard time.Time
}

type sent struct {
	Probe
	at time.Time
}

// New returns the judgement of a path that is up if an earlier run of ours left
// it so. first is a random number.
func New(first uint64, up bool, now time.Time) *Path {
	p := &Path{next: first, need: firstHits}
	if up {
		p.rise(now)
	}
	return p
}

// Up reports whether frames are to take the path.
func (p *Path) Up() bool { return p.state == Up }

// State tells more.
func (p *Path) State() State { return p.state }

// Quiet reports whether the peer should have reported by now. That is no verdict,
// but a reason to see whether its reports can get here.
func (p *Path) Quiet(now time.Time) bool { return now.Sub(p.told) > Overdue }

// Probe returns the probe to be sent now, false if there is none this time.
func (p *Path) Probe(now time.Time) (_ Probe, due bool) {
	p.ticks++
	steady := p.Up() && now.Sub(p.upSince) >= settled && now.Sub(p.missed) >= calm
	if steady && p.ticks%steadyEvery != 0 {
		return Probe{}, false
	}
	if p.next == 0 {
		p.next++ // 0 is none
	}
	every := 2
	switch {
	case !p.Up() || !p.unheard.IsZero():
	case steady:
		every = fullEvery / steadyEvery
	default:
		every = fullEvery
	}
	out := Probe{Seq: p.next, Full: p.count%every == 0}
	if out.Full && p.unheard.IsZero() {
		p.unheard = now
	}
	p.sent[p.count%remembered] = sent{out, now}
	p.next++
	p.count++
	return out, true
}

// Report takes what the peer says.
func (p *Path) Report(now time.Time, r Report) {
	short, full := p.within(now, r.Any, fresh), p.within(now, r.Full, freshFull)
	if full {
		p.unheard = time.Time{}
	}
	away := r.Any == 0 || now.Sub(p.told) > Overdue // what it says of full probes may be old
	p.told = now
	if p.Up() {
		p.whileUp(now, short, away)
	} else {
		p.whileDown(now, short, full)
	}
}

func (p *Path) whileUp(now time.Time, short, away bool) {
	if away {
		p.unheard = time.Time{}
	}
	if !short {
		p.missed = now
		if p.misses++; p.misses == maxMisses {
			p.fall(now, Silent)
		}
		return
	}
	p.misses = 0
	if !p.unheard.IsZero() && now.Sub(p.unheard) >= fullPatience {
		p.fall(now, Cut)
	}
}

func (p *Path) whileDown(now time.Time, short, full bool) {
	switch {
	case short && full:
		p.hits++
		p.state = Back
	case short:
		p.hits, p.state = 0, Cut
	default:
		p.hits, p.state = 0, Silent
	}
	if p.hits >= p.need {
		p.rise(now)
	}
}

// within reports whether a number is that of a probe sent not long ago.
func (p *Path) within(now time.Time, seq uint64, age time.Duration) bool {
	if seq == 0 {
		return false
	}
	for _, s := range p.sent {
		if s.Seq == seq {
			return now.Sub(s.at) <= age
		}
	}
	return false
}

func (p *Path) rise(now time.Time) {
	p.state, p.upSince = Up, now
	p.hits, p.misses, p.unheard = 0, 0, time.Time{}
}

func (p *Path) fall(now time.Time, to State) {
	if p.need *= 2; p.need < backHits || now.Sub(p.upSince) >= calm {
		p.need = backHits
	}
	p.need = min(p.need, maxHits)
	p.state, p.hits, p.misses, p.unheard = to, 0, 0, time.Time{}
}
