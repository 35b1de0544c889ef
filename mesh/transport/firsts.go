package transport

import (
	"sync"

	"weave/mesh/handshake"
)

const (
	// maxFirsts first messages at least are remembered, and twice as many at most.
	maxFirsts = 8192
	// firstAge is how long copies of a first message may be true ones. Its sender
	// gives up after handshakeTimeout, and they may be long on the way.
	firstAge = 2 * handshakeTimeout
	// maxCopies is how many of them are taken: each try sends one to each address of
	// ours, and there are some six tries.
	maxCopies = 64
)

// firsts knows first messages again, by their MACs: who recorded one can send it
// for ever, and each would cost three scalar multiplications. The receiver's mu
// guards it.
type firsts struct {
	recent, older map[[handshake.MACLen]byte]first
}

type first struct {
	at     int64 // when the first copy came; nanoseconds since epoch
	copies uint8
}

// stale reports whether a message is a copy that comes too late, or one too many.
func (f *firsts) stale(mac [handshake.MACLen]byte, now int64) bool {
	m, known := f.get(mac)
	return known && (m.copies >= maxCopies || now-m.at > int64(firstAge))
}

// add takes note of a message that is taken. What was taken longest ago may be
// forgotten for it.
func (f *firsts) add(mac [handshake.MACLen]byte, now int64) {
	m, known := f.get(mac)
	if !known {
		m.at = now
	}
	m.copies++
	if f.recent == nil || len(f.recent) >= maxFirsts {
		f.older, f.recent = f.recent, map[[handshake.MACLen]byte]first{}
	}
	f.recent[mac] = m
}

func (f *firsts) get(mac [handshake.MACLen]byte) (first, bool) {
	m, known := f.recent[mac]
	if !known {
		m, known = f.older[mac]
	}
	return m, known
}

// handshakeRate is how many first messages with a right MAC are answered in a
// second: at some 0.8 ms each with all that follows, an eighth of a processor.
const handshakeRate = 150

// streamFirsts is firsts for streams, of which each has a message of its own.
type streamFirsts struct {
	mu    sync.Mutex
	known firsts
}

// again reports whether a message came before.
func (s *streamFirsts) again(mac [handshake.MACLen]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.known.get(mac); known {
		return true
	}
	s.known.add(mac, 0)
	return false
}
