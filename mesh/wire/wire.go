// Package wire lays out what crosses the underlay: the header of a datagram,
// and the items inside a sealed one. It parses hostile bytes and does no IO
// and no cryptography.
//
// Every datagram starts with a header of 16 bytes, integers big-endian:
//
//	 0       1         2          4                 8                  16
//	+-------+---------+----------+-----------------+------------------+
//	| type  | version | reserved | receiver index  | counter          |
//	+-------+---------+----------+-----------------+------------------+
//
// In a datagram of type TypeSealed the header is followed by ciphertext and a
// tag of 16 bytes; the header is authenticated with it. The plaintext is a
// sequence of items:
//
//	 0      1          3
//	+------+----------+-----------+
//	| kind | length   | body ...  |
//	+------+----------+-----------+
//
// An item of KindFrame carries one Ethernet frame, or one piece of a run:
//
//	 0                 8       9        10          11       12
//	+-----------------+-------+--------+-----------+--------+-----------+
//	| segment         | flags | hdrlen | csumstart | csumof | frame ... |
//	+-----------------+-------+--------+-----------+--------+-----------+
//
// An item of KindRelay carries a whole datagram, sealed or of a handshake, from
// one peer to another through others. On each hop it is in a sealed datagram of
// the two peers at its ends:
//
//	 0      1         17        33
//	+------+---------+---------+--------------+
//	| hops | to      | from    | datagram ... |
//	+------+---------+---------+--------------+
//
// A sealed datagram that is longer than a path takes crosses it in fragments, each
// a datagram of type TypeFragment. Its header is not authenticated, the whole is:
//
//	 0       1         2        3       4                8    12      14         16
//	+-------+---------+--------+-------+----------------+----+-------+----------+-----------+
//	| type  | version | number | count | receiver index | id | total | reserved | piece ... |
//	+-------+---------+--------+-------+----------------+----+-------+----------+-----------+
//
// All fragments of a datagram are equally long: what the last one has behind the
// datagram's total length is padding.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"weave/mesh/id"
)

// Version is the protocol version in every header.
const Version = 2

// Sizes in bytes.
const (
	HeaderLen      = 16
	IndexAt        = 4 // in a header
	TagLen         = 16
	ItemHeaderLen  = 3
	FrameHeaderLen = 12
	RelayHeaderLen = 33
	// Overhead is what a sealed datagram with one frame adds to that frame.
	Overhead = HeaderLen + ItemHeaderLen + FrameHeaderLen + TagLen
	// TunnelOverhead is what the MTU of a segment must stay below the MTU of
	// the underlay: Overhead, the inner Ethernet header, and the outer UDP and
	// IPv6 headers, rounded up to 110.
	TunnelOverhead = 110
	// RelayOverhead is what a relay's way adds to a datagram, on each hop anew.
	RelayOverhead = HeaderLen + ItemHeaderLen + RelayHeaderLen + TagLen
)

// Type tells what a datagram is.
type Type uint8

// Types of datagrams. The handshake's are numbered by its messages.
const (
	TypeHandshake1 Type = 1
	TypeHandshake2 Type = 2
	TypeHandshake3 Type = 3
	TypeReject     Type = 4
	TypeSealed     Type = 5
	TypeFragment   Type = 6 // FragmentHeader and a part of a sealed datagram
)

// Header is the clear part of a datagram.
type Header struct {
	Type    Type
	Version uint8
	Index   uint32 // the receiver's number for the session or handshake
	Counter uint64
}

// ErrShort is returned for input that ends before it should.
var ErrShort = errors.New("wire: short input")

// Put writes h to the first HeaderLen bytes of b.
func (h Header) Put(b []byte) {
	_ = b[HeaderLen-1]
	b[0], b[1], b[2], b[3] = byte(h.Type), h.Version, 0, 0
	binary.BigEndian.PutUint32(b[4:], h.Index)
	binary.BigEndian.PutUint64(b[8:], h.Counter)
}

// ParseHeader reads the header of a datagram. It does not judge the version.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, ErrShort
	}
	return Header{
		Type:    Type(b[0]),
		Version: b[1],
		Index:   binary.BigEndian.Uint32(b[4:]),
		Counter: binary.BigEndian.Uint64(b[8:]),
	}, nil
}

// FragmentHeader is the header of a datagram of type TypeFragment.
type FragmentHeader struct {
	Version uint8
	Number  uint8  // of the fragment; the first is 0
	Count   uint8  // how many there are
	Index   uint32 // that of the datagram inside
	ID      uint32 // the same in all fragments of a datagram
	Total   uint16 // bytes of the datagram inside
}

// Put writes h to the first HeaderLen bytes of b.
func (h FragmentHeader) Put(b []byte) {
	_ = b[HeaderLen-1]
	b[0], b[1], b[2], b[3] = byte(TypeFragment), h.Version, h.Number, h.Count
	binary.BigEndian.PutUint32(b[4:], h.Index)
	binary.BigEndian.PutUint32(b[8:], h.ID)
	binary.BigEndian.PutUint16(b[12:], h.Total)
	b[14], b[15] = 0, 0
}

// ParseFragment reads the header of a datagram of type TypeFragment. It does not
// judge the version. The piece aliases b.
func ParseFragment(b []byte) (h FragmentHeader, piece []byte, err error) {
	if len(b) < HeaderLen {
		return FragmentHeader{}, nil, ErrShort
	}
	return FragmentHeader{
		Version: b[1], Number: b[2], Count: b[3],
		Index: binary.BigEndian.Uint32(b[4:]),
		ID:    binary.BigEndian.Uint32(b[8:]),
		Total: binary.BigEndian.Uint16(b[12:]),
	}, b[HeaderLen:], nil
}

// Kind tells what an item is.
type Kind uint8

// Kinds of items.
const (
	KindKeepalive Kind = 1  // empty: shows that the session works
	KindFrame     Kind = 2  // FrameHeader and frame
	KindGossip    Kind = 3  // one packet of memberlist
	KindPing      Kind = 4  // opaque body, returned in a KindPong
	KindPong      Kind = 5  // the ping's body, and where the ping came from (AppendAddr)
	KindRecords   Kind = 6  // delta of a replica, pushed to peers at once
	KindReport    Kind = 7  // what was heard last on the fast path, see package beat
	KindRelay     Kind = 8  // RelayHeader and a datagram for another peer
	KindCallback  Kind = 9  // asks for a stream of kind StreamCallback with this number of 8 bytes
	KindPadding   Kind = 10 // means nothing: makes a datagram as long as it is to be
)

// AppendItem appends an item to dst. The body may be at most 65535 bytes.
func AppendItem(dst []byte, kind Kind, body []byte) []byte {
	dst = append(dst, byte(kind), byte(len(body)>>8), byte(len(body)))
	return append(dst, body...)
}

// NextItem takes the first item off b. The body and the rest alias b.
func NextItem(b []byte) (kind Kind, body, rest []byte, err error) {
	if len(b) < ItemHeaderLen {
		return 0, nil, nil, ErrShort
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	if len(b) < ItemHeaderLen+n {
		return 0, nil, nil, ErrShort
	}
	return Kind(b[0]), b[ItemHeaderLen : ItemHeaderLen+n], b[ItemHeaderLen+n:], nil
}

// AddrLen is the length of an address in a KindPong, in bytes.
const AddrLen = 18

// AppendAddr appends an address and port: 16 bytes, IPv4 ones mapped, and 2, all
// zero if there is none.
func AppendAddr(dst []byte, a netip.AddrPort) []byte {
	var ip [16]byte
	if a.IsValid() {
		ip = a.Addr().As16()
	}
	return binary.BigEndian.AppendUint16(append(dst, ip[:]...), a.Port())
}

// ParseAddr reads what AppendAddr wrote; not ok if it is no address, or none of a
// host.
func ParseAddr(b []byte) (a netip.AddrPort, ok bool) {
	if len(b) != AddrLen {
		return netip.AddrPort{}, false
	}
	ip := netip.AddrFrom16([16]byte(b[:16])).Unmap()
	a = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[16:]))
	return a, a.Port() != 0 && !ip.IsUnspecified() && !ip.IsMulticast()
}

// SegmentID tells segments apart on the wire: the first eight bytes of the
// SHA-256 of the segment's key, so that no two hosts can disagree about it.
type SegmentID uint64

func (s SegmentID) String() string { return fmt.Sprintf("%016x", uint64(s)) }

// FrameFlags describe a frame's offload state and its place in a run.
type FrameFlags uint8

// Flags of a frame.
const (
	FlagNeedsCsum FrameFlags = 1 << iota // checksum at csumstart+csumof is unfinished (virtio VIRTIO_NET_HDR_F_NEEDS_CSUM)
	FlagTCP                              // piece of a TCP run (v4 or v6 by the frame's EtherType)
	FlagUDP                              // piece of a UDP run
	FlagMore                             // another piece of this run follows in the next datagram
	FlagContinues                        // follows directly on the piece before, in the datagram before
	FlagCsumValid                        // checksums were verified by the sender's kernel (VIRTIO_NET_HDR_F_DATA_VALID)
)

// FrameHeader precedes the frame in an item of KindFrame. The compiler keeps
// structs of up to four fields in registers, this one thanks to Offsets; through
// memory each costs the hot path some 15 cycles.
type FrameHeader struct {
	Segment SegmentID
	Flags   FrameFlags
	Offsets
}

// Offsets are places in a frame, in bytes from its start.
type Offsets struct {
	HdrLen     uint8 // end of the headers, for pieces of a run
	CsumStart  uint8
	CsumOffset uint8 // from CsumStart on
}

// Put writes h to the first FrameHeaderLen bytes of b.
func (h FrameHeader) Put(b []byte) {
	_ = b[FrameHeaderLen-1]
	binary.BigEndian.PutUint64(b, uint64(h.Segment))
	b[8], b[9], b[10], b[11] = byte(h.Flags), h.HdrLen, h.CsumStart, h.CsumOffset
}

// ParseFrame reads the body of an item of KindFrame. The frame aliases body.
func ParseFrame(body []byte) (FrameHeader, []byte, error) {
	if len(body) < FrameHeaderLen {
		return FrameHeader{}, nil, ErrShort
	}
	return FrameHeader{
		Segment: SegmentID(binary.BigEndian.Uint64(body)),
		Flags:   FrameFlags(body[8]),
		Offsets: Offsets{HdrLen: body[9], CsumStart: body[10], CsumOffset: body[11]},
	}, body[FrameHeaderLen:], nil
}

// RelayHeader precedes the datagram in an item of KindRelay. Nothing proves From:
// the datagram itself is authenticated between the two.
type RelayHeader struct {
	Hops     uint8 // how many more the datagram may go
	To, From id.PeerID
}

// Put writes h to the first RelayHeaderLen bytes of b.
func (h RelayHeader) Put(b []byte) {
	_ = b[RelayHeaderLen-1]
	b[0] = h.Hops
	copy(b[1:], h.To[:])
	copy(b[17:], h.From[:])
}

// ParseRelay reads the body of an item of KindRelay. The datagram aliases body.
func ParseRelay(body []byte) (RelayHeader, []byte, error) {
	if len(body) < RelayHeaderLen {
		return RelayHeader{}, nil, ErrShort
	}
	return RelayHeader{Hops: body[0], To: id.PeerID(body[1:17]), From: id.PeerID(body[17:33])}, body[RelayHeaderLen:], nil
}

// StreamKind is the first byte of a sealed stream: what it is for.
type StreamKind uint8

// Kinds of streams.
const (
	StreamGossip    StreamKind = 1 // memberlist's push/pull
	StreamSync      StreamKind = 2 // the missing parts of a replica
	StreamAsk       StreamKind = 3 // one request to a peer's allocator, one answer
	StreamRelay     StreamKind = 4 // RelayHeader, then a stream of its own between two peers
	StreamDatagrams StreamKind = 6 // sealed datagrams where UDP is blocked, each behind its length of 2 bytes
	StreamTry       StreamKind = 7 // nothing: it is only to be seen whether TCP gets through
	StreamCallback  StreamKind = 5 // a number that was asked for, then the asker's stream, of another kind
)
