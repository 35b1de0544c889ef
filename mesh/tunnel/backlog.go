package tunnel

import (
	"math"
	"time"
)

// backlogInterval is how long a TAP's queue may stand before streams are slowed
// down. It is more than the scheduler makes a reader wait on a busy machine,
// and short enough to keep what waits behind the queue under a millisecond.
const backlogInterval = 3 * time.Millisecond

// backlog tells when a stream is to be slowed down. The kernel holds a stream
// back while its packets wait in its own queues, but a TAP lets go of a packet's
// socket as it takes the packet: so a stream faster than we are keeps in the
// TAP's queue all that its window allows, milliseconds of delay for everybody.
//
// One packet lost each time that the queue has not been empty for an interval,
// and sooner the longer that lasts, is enough to keep the queue short: CoDel
// (RFC 8289), with an empty queue for a target. The zero value is ready.
type backlog struct {
	standing bool
	next     time.Time // when the next packet is to be lost
	lost     int       // since the queue was empty
}

// stands is told of each batch, and whether it left something in the queue. It
// reports whether a packet is to be lost now.
func (b *backlog) stands(now time.Time, more bool) bool {
	switch {
	case !more:
		b.standing = false
		return false
	case !b.standing:
		*b = backlog{standing: true, next: now.Add(backlogInterval)}
		return false
	case now.Before(b.next):
		return false
	}
	b.lost++
	b.next = now.Add(time.Duration(float64(backlogInterval) / math.Sqrt(float64(b.lost))))
	return true
}
