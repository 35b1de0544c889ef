// Package vni gives each segment its number on VXLAN, the same one on all
// hosts, without anybody to ask.
//
// Each host on a segment publishes the number that it uses: its claim. A
// number that is in use stays: who comes later follows it. Claims clash when
// two parts of a cluster that did not see each other made segments, and then
// meet. Whoever sees all claims settles that by rules which need nothing else:
//
//   - of two segments with one number, the one with the smaller key keeps it
//   - a segment with several numbers takes the one that most of its hosts claim,
//     and of several such ones the lowest
//   - a segment that is left without one takes the first that nobody claims,
//     counted from the hash of its key
//
// Hosts that publish what Settle says, and see each other's claims, come to
// agree.
//
// The package is pure. It makes no devices and publishes nothing; the caller
// guards a Claims.
package vni

import (
	"crypto/sha256"
	"encoding/binary"

	"weave/mesh/id"
)

// Numbers on VXLAN have 24 bits.
const (
	// Beat is kept for the probes between hosts: no segment has it.
	Beat = 1
	// First and Last are the range of the segments.
	First = 2
	Last  = 1<<24 - 1
)

const span = Last - First + 1

// Valid reports whether a segment can have this number.
func Valid(n uint32) bool { return n >= First && n <= Last }

// Hash is the number that a segment has if no other claimed it before.
func Hash(key string) uint32 {
	sum := sha256.Sum256([]byte("vni " + key))
	return First + binary.BigEndian.Uint32(sum[:])%span
}

// Claims is what the hosts say. The zero value is not ready: use New.
type Claims struct {
	byKey map[string]map[id.PeerID]uint32 // none is empty
	byVNI map[uint32]map[string]int       // how many claims for each key; no zeros
}

// New returns Claims without any.
func New() *Claims {
	return &Claims{byKey: map[string]map[id.PeerID]uint32{}, byVNI: map[uint32]map[string]int{}}
}

// Set takes in what a host claims for a segment in place of what it claimed
// before; 0 is no claim.
func (c *Claims) Set(owner id.PeerID, key string, n uint32) {
	if old, had := c.byKey[key][owner]; had {
		c.drop(owner, key, old)
	}
	if !Valid(n) {
		return
	}
	if c.byKey[key] == nil {
		c.byKey[key] = map[id.PeerID]uint32{}
	}
	c.byKey[key][owner] = n
	if c.byVNI[n] == nil {
		c.byVNI[n] = map[string]int{}
	}
	c.byVNI[n][key]++
}

func (c *Claims) drop(owner id.PeerID, key string, n uint32) {
	if delete(c.byKey[key], owner); len(c.byKey[key]) == 0 {
		delete(c.byKey, key)
	}
	if c.byVNI[n][key]--; c.byVNI[n][key] == 0 {
		if delete(c.byVNI[n], key); len(c.byVNI[n]) == 0 {
			delete(c.byVNI, n)
		}
	}
}

// Settle returns the number that a segment is to have. A segment that nobody
// claims one for is answered too.
func (c *Claims) Settle(key string) uint32 {
	best, most := uint32(0), 0
	for _, n := range c.byKey[key] {
		votes := c.byVNI[n][key]
		if votes < most || votes == most && n >= best || c.lost(key, n) {
			continue
		}
		best, most = n, votes
	}
	if most > 0 {
		return best
	}
	return c.free(key)
}

// lost reports whether another segment goes before this one.
func (c *Claims) lost(key string, n uint32) bool {
	for other := range c.byVNI[n] {
		if other < key {
			return true
		}
	}
	return false
}

func (c *Claims) free(key string) uint32 {
	start := Hash(key)
	for i := range uint32(span) {
		n := First + (start-First+i)%span
		if others := c.byVNI[n]; len(others) == 0 || len(others) == 1 && others[key] > 0 {
			return n
		}
	}
	return start // every number is taken: nobody keeps so many records
}
