package gossip

import (
	"encoding/binary"
	"hash/crc32"
)

// Types of memberlist's packets, from its net.go. They are part of its wire
// protocol, but it does not export them.
const (
	packetCompound = 7
	packetUser     = 8
	packetNack     = 11
	packetChecksum = 12
)

// harmless tells whether a packet may be given to memberlist. It unpacks
// compressed and compound messages by recursion, without a limit, so a small
// hostile packet could exhaust the stack, which no process survives. We send
// neither compressed nor encrypted messages and never a compound in a
// compound: nothing else is let in.
func harmless(b []byte) bool {
	if len(b) > 5 && b[0] == packetChecksum {
		if crc32.ChecksumIEEE(b[5:]) != binary.BigEndian.Uint32(b[1:5]) {
			return false
		}
		b = b[5:]
	}
	if len(b) == 0 {
		return false
	}
	if b[0] != packetCompound {
		return simple(b)
	}
	// A compound: its type, a count, a length of two bytes for each part, the
	// parts.
	if len(b) < 2 || len(b) < 2+2*int(b[1]) {
		return false
	}
	lengths, parts := b[2:2+2*int(b[1])], b[2+2*int(b[1]):]
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(parts) || !simple(parts[:n]) {
			return false
		}
		parts = parts[n:]
	}
	return true
}

// simple tells whether a message is one that contains no other: pings and
// their answers, news of members, user messages.
func simple(b []byte) bool {
	return len(b) > 0 && (b[0] < 6 || b[0] == packetUser || b[0] == packetNack)
}
