package gossip

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"maps"
	"slices"

	"weave/mesh/id"
)

// maxMessage is the longest message that is sent as a datagram or broadcast,
// in bytes: what memberlist finds room for beside its own headers.
const maxMessage = packetSize - 32

// maxReplicaName bounds a replica's name, in bytes.
const maxReplicaName = 32

const messageFormat = 1

// Types of messages.
const (
	typeDelta = 1 // something changed: the change itself
	typeSum   = 2 // what the sender has, to see who lacks something
	typeNews  = 3 // the same, of a sender with news too large for a delta
)

var errMessage = errors.New("gossip: malformed message")

// message is what members tell each other, by datagram, by memberlist's
// broadcasts, and as user state of its push/pull:
//
//	format(1 byte: 1) type(1) origin(16)
//	then, for a delta: length(1) replica delta...
//	      for a sum, and for news: sum(8)
type message struct {
	kind    byte
	origin  id.PeerID // who made it; a claim, if it was passed on by others
	replica string
	delta   []byte // aliases the input
	sum     sum
}

// sum is a hash over the digests of all replicas: equal sums, equal state.
type sum [8]byte

// sumOf hashes the digests of all replicas.
func sumOf(replicas map[string]Replica) sum {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(replicas)) {
		digest := replicas[name].Digest()
		for _, part := range [][]byte{[]byte(name), digest} {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
			h.Write(part)
		}
	}
	return sum(h.Sum(nil)[:len(sum{})])
}

func (m message) encode() []byte {
	out := append(make([]byte, 0, 64+len(m.delta)), messageFormat, m.kind)
	out = append(out, m.origin[:]...)
	if m.kind != typeDelta {
		return append(out, m.sum[:]...)
	}
	out = append(append(out, byte(len(m.replica))), m.replica...)
	return append(out, m.delta...)
}

func parseMessage(b []byte) (message, error) {
	var m message
	const header = 2 + len(m.origin)
	if len(b) < header || b[0] != messageFormat {
		return m, errMessage
	}
	m.kind = b[1]
	copy(m.origin[:], b[2:])
	switch b = b[header:]; m.kind {
	case typeSum, typeNews:
		if len(b) != len(m.sum) {
			return m, errMessage
		}
		copy(m.sum[:], b)
	case typeDelta:
		if len(b) < 1 || int(b[0]) > maxReplicaName || len(b) < 1+int(b[0]) {
			return m, errMessage
		}
		m.replica, m.delta = string(b[1:1+b[0]]), b[1+b[0]:]
	default:
		return m, errMessage
	}
	return m, nil
}

// seen remembers the messages that came by lately, bounded by forgetting the
// older half. It is not safe for concurrent use.
type seen struct {
	seed     maphash.Seed
	now, old map[uint64]struct{}
}

// seenHalf is how many messages half of seen holds.
const seenHalf = 2048

func newSeen() *seen {
	return &seen{seed: maphash.MakeSeed(), now: map[uint64]struct{}{}}
}

// add reports whether the message is new.
func (s *seen) add(b []byte) bool {
	h := maphash.Bytes(s.seed, b)
	_, inNow := s.now[h]
	_, inOld := s.old[h]
	if inNow || inOld {
		return false
	}
	if len(s.now) >= seenHalf {
		s.now, s.old = make(map[uint64]struct{}, seenHalf), s.now
	}
	s.now[h] = struct{}{}
	return true
}
