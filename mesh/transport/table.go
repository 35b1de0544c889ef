package transport

import (
	"math/rand/v2"
	"sync/atomic"
)

// table finds sessions by the index in a datagram's header. An index is a slot
// number in its low bits and random in the others, so that a datagram for a
// session that is gone (of a former run, say) does not hit the slot's next
// owner. Reading takes no lock; all else is guarded by Transport.mu.
type table struct {
	slots [tableSize]atomic.Pointer[entry]
	used  [tableSize]bool
	count int
}

// get returns the session with that index, or nil.
func (t *table) get(index uint32) *entry {
	e := t.slots[index%tableSize].Load()
	if e == nil || e.index != index {
		return nil
	}
	return e
}

// reserve takes a free index; false if there is none. One half of the table
// stays free so that random probing ends soon.
func (t *table) reserve() (uint32, bool) {
	if t.count >= tableSize/2 {
		return 0, false
	}
	for {
		index := rand.Uint32() // crypto-grade ChaCha8, though nothing rests on that
		if slot := index % tableSize; index != 0 && !t.used[slot] {
			t.used[slot] = true
			t.count++
			return index, true
		}
	}
}

// put makes e, whose index is reserved, known to the receive path.
func (t *table) put(e *entry) { t.slots[e.index%tableSize].Store(e) }

// release gives a reserved index back.
func (t *table) release(index uint32) {
	slot := index % tableSize
	t.slots[slot].Store(nil)
	t.used[slot] = false
	t.count--
}
