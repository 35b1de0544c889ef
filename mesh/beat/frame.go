package beat

import (
	"encoding/binary"
	"errors"

	"weave/mesh/fdb"
	"weave/mesh/id"
)

// A probe is an Ethernet frame, integers big-endian:
//
//	 0    6      12          14        18      19       27            43
//	+----+------+-----------+---------+-------+--------+-------------+-------+
//	| to | from | EtherType | "wvb1"  | flags | number | sender's ID | zeros |
//	+----+------+-----------+---------+-------+--------+-------------+-------+
//
// A report is the two numbers.
const (
	// EtherType is the one that IEEE 802 keeps for experiments within one
	// network.
	EtherType = 0x88b5

	headerLen = 14
	magic     = "wvb1"
	flagFull  = 1

	// ProbeLen is the length of a probe that is not full, in bytes.
	ProbeLen = headerLen + len(magic) + 1 + 8 + len(id.PeerID{})
	// ReportLen is that of a report.
	ReportLen = 16
)

// ErrMalformed is returned for what is no probe to us, or no report.
var ErrMalformed = errors.New("beat: malformed")

// MAC is the address that probes to a peer, and from it, bear. It follows from
// the ID; containers and bridges have other prefixes.
func MAC(p id.PeerID) fdb.MAC { return fdb.MAC{0x0a, p[0], p[1], p[2], p[3], p[4]} }

// AppendProbe appends a probe to dst; a full one has length bytes in all, if
// that is more than ProbeLen.
func AppendProbe(dst []byte, p Probe, from, to id.PeerID, length int) []byte {
	toMAC, fromMAC := MAC(to), MAC(from)
	start := len(dst)
	dst = append(append(dst, toMAC[:]...), fromMAC[:]...)
	dst = binary.BigEndian.AppendUint16(dst, EtherType)
	dst = append(dst, magic...)
	flags := byte(0)
	if p.Full {
		flags = flagFull
	}
	dst = append(dst, flags)
	dst = binary.BigEndian.AppendUint64(dst, p.Seq)
	dst = append(dst, from[:]...)
	if rest := length - (len(dst) - start); p.Full && rest > 0 {
		dst = append(dst, make([]byte, rest)...)
	}
	return dst
}

// ParseProbe reads a frame that came for self.
func ParseProbe(frame []byte, self id.PeerID) (from id.PeerID, p Probe, err error) {
	if len(frame) < ProbeLen || fdb.MAC(frame[:6]) != MAC(self) ||
		binary.BigEndian.Uint16(frame[12:]) != EtherType || string(frame[headerLen:headerLen+len(magic)]) != magic {
		return id.PeerID{}, Probe{}, ErrMalformed
	}
	rest := frame[headerLen+len(magic):]
	p = Probe{Full: rest[0]&flagFull != 0, Seq: binary.BigEndian.Uint64(rest[1:])}
	from = id.PeerID(rest[9 : 9+len(from)])
	if fdb.MAC(frame[6:12]) != MAC(from) {
		return id.PeerID{}, Probe{}, ErrMalformed
	}
	return from, p, nil
}

// AppendReport appends a report to dst.
func AppendReport(dst []byte, r Report) []byte {
	dst = binary.BigEndian.AppendUint64(dst, r.Any)
	return binary.BigEndian.AppendUint64(dst, r.Full)
}

// ParseReport reads a report. A longer one, of a later version, is read as far
// as we know it.
func ParseReport(b []byte) (Report, error) {
	if len(b) < ReportLen {
		return Report{}, ErrMalformed
	}
	return Report{Any: binary.BigEndian.Uint64(b), Full: binary.BigEndian.Uint64(b[8:])}, nil
}
