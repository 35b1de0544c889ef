package session

// Window is how far behind the newest counter a datagram may be and still be
// told from a replay. Goroutines that seal for one peer overtake each other by
// some trains of 64 datagrams; one that loses its CPU between sealing and sending
// for as long as the others need for a whole window loses its train.
const Window = (windowWords - 1) * wordBits

const (
	wordBits    = 64
	windowWords = 128 // a power of two
)

// window remembers which counters were seen, as in RFC 6479: a ring of words,
// one bit per counter. Moving on clears whole words instead of shifting bits,
// so one word of the ring is always partly ahead of the newest counter.
type window struct {
	next uint64 // one more than the newest counter seen; 0: none yet
	bits [windowWords]uint64
}

// fresh reports whether counter can still be accepted.
func (w *window) fresh(counter uint64) bool {
	if counter >= w.next {
		return counter != ^uint64(0) // next would wrap
	}
	if w.next-counter > Window {
		return false
	}
	return w.bits[word(counter)]&bit(counter) == 0
}

// commit marks counter as seen; false if it is not fresh.
func (w *window) commit(counter uint64) bool {
	if !w.fresh(counter) {
		return false
	}
	if counter >= w.next {
		w.advance(counter)
	}
	w.bits[word(counter)] |= bit(counter)
	return true
}

// advance clears the words between the newest one and that of counter.
func (w *window) advance(counter uint64) {
	first := uint64(0)
	if w.next > 0 {
		first = (w.next-1)/wordBits + 1
	}
	last := counter / wordBits
	if last >= windowWords && first <= last-windowWords {
		first = last - windowWords + 1 // once round the ring is enough
	}
	for i := first; i <= last; i++ {
		w.bits[i%windowWords] = 0
	}
	w.next = counter + 1
}

func word(counter uint64) uint64 { return counter / wordBits % windowWords }

func bit(counter uint64) uint64 { return 1 << (counter % wordBits) }
