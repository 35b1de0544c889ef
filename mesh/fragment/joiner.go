package fragment

import (
	"time"

	"weave/mesh/wire"
)

// Bounds of a Joiner. Fragments of a datagram are sent at once, so those of a few
// datagrams mix at most.
const (
	maxWaiting = 64
	maxOfOne   = 16 // of one session
	patience   = 2 * time.Second
	maxKept    = 16 << 10 // a longer buffer is not kept for the next datagram
)

// Joiner puts datagrams together. It holds at most 64 that are not complete, 4 MiB
// if all are as long as can be; of one session at most 16. After two seconds one is
// given up. The zero value is ready for use. It has one caller at a time.
type Joiner struct {
	waiting [maxWaiting]partial
	last    int    // where the fragment before belonged
	begun   uint64 // datagrams
}

// partial is a datagram of which not all has come.
type partial struct {
	used      bool
	number    uint64 // in the order in which they began
	index, id uint32
	total     int
	count     int
	size      int // of each piece
	came      int // how many have
	got       [Max / 64]uint64
	began     time.Time
	buf       []byte
}

// Add takes a fragment. It returns the datagram that is complete with it, which
// is valid until the next call, or nil. Dropped tells how many others were given
// up: for they took too long, or for want of room.
func (j *Joiner) Add(h wire.FragmentHeader, piece []byte, now time.Time) (datagram []byte, dropped int, err error) {
	count, total, size := int(h.Count), int(h.Total), len(piece)
	switch {
	case count < 2 || count > Max || int(h.Number) >= count:
		return nil, 0, ErrMalformed
	case total < minDatagram || total > maxDatagram:
		return nil, 0, ErrMalformed
	case (count-1)*size >= total || count*size < total: // a fragment less would do, or that are too few
		return nil, 0, ErrMalformed
	}
	p := &j.waiting[j.last]
	if !p.is(h, size, now) {
		p, dropped = j.find(h, size, now)
	}
	word, bit := &p.got[h.Number/64], uint64(1)<<(h.Number%64)
	if *word&bit != 0 {
		return nil, dropped, nil // it came twice
	}
	*word |= bit
	copy(p.buf[int(h.Number)*size:total], piece)
	if p.came++; p.came < count {
		return nil, dropped, nil
	}
	return p.release(), dropped, nil
}

// is tells whether a fragment is part of p.
func (p *partial) is(h wire.FragmentHeader, size int, now time.Time) bool {
	return p.used && p.id == h.ID && p.index == h.Index &&
		p.total == int(h.Total) && p.count == int(h.Count) && p.size == size && now.Sub(p.began) < patience
}

// find returns the datagram that a fragment is part of, or makes it, and gives up
// what is in its way.
func (j *Joiner) find(h wire.FragmentHeader, size int, now time.Time) (p *partial, dropped int) {
	var spare, oldest, oldestOfOne, ofOne = -1, -1, -1, 0
	older := func(i, than int) bool { return than < 0 || j.waiting[i].number < j.waiting[than].number }
	for i := range j.waiting {
		p := &j.waiting[i]
		if p.is(h, size, now) {
			j.last = i
			return p, dropped
		}
		// Cut in another way it was sent again, since it did not get through.
		if p.used && (now.Sub(p.began) >= patience || p.id == h.ID && p.index == h.Index) {
			p.release()
			dropped++
		}
		switch {
		case !p.used:
			spare = i
			continue
		case older(i, oldest):
			oldest = i
		}
		if p.index == h.Index {
			ofOne++
			if older(i, oldestOfOne) {
				oldestOfOne = i
			}
		}
	}
	switch {
	case ofOne >= maxOfOne:
		j.last = oldestOfOne
	case spare >= 0:
		j.last = spare
	default:
		j.last = oldest
	}
	p = &j.waiting[j.last]
	if p.used {
		p.release()
		dropped++
	}
	j.begun++
	p.begin(j.begun, h, size, now)
	return p, dropped
}

func (p *partial) begin(number uint64, h wire.FragmentHeader, size int, now time.Time) {
	buf := p.buf
	if cap(buf) < int(h.Total) {
		buf = make([]byte, h.Total)
	}
	*p = partial{
		used: true, number: number, index: h.Index, id: h.ID, total: int(h.Total), count: int(h.Count), size: size,
		began: now, buf: buf[:h.Total],
	}
}

// release frees p and returns what it held.
func (p *partial) release() []byte {
	b := p.buf
	p.used = false
	if cap(b) > maxKept {
		p.buf = nil
	}
	return b
}
