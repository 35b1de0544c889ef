package run

import "encoding/binary"

// series derives the headers of any piece of a run, or of the run, from the
// headers of one frame of it: the run itself, or its first piece.
type series struct {
	layout
	flags byte   // TCP flags of that frame
	id    uint16 // IPv4 ID of the first piece
	seq   uint32 // TCP sequence number of the first piece
	ipSum uint64 // IPv4 header without length, ID and checksum
	l4Sum uint64 // unfinished transport checksum without the length
}

// newSeries takes what it needs from a frame that parseLayout accepted as l,
// with an unfinished transport checksum.
func newSeries(frame []byte, l layout) series {
	s := series{layout: l}
	ip, tp := frame[l.l3:l.l4], frame[l.l4:]
	if !l.v6 {
		s.id = binary.BigEndian.Uint16(ip[ipv4ID:])
		s.ipSum = sum(0, ip)
		for _, at := range [...]int{ipv4TotalLen, ipv4ID, ipv4Csum} {
			s.ipSum = less(s.ipSum, binary.BigEndian.Uint16(ip[at:]))
		}
	}
	if !l.udp {
		s.seq = binary.BigEndian.Uint32(tp[tcpSeq:])
		s.flags = tp[tcpFlags]
	}
	// The pseudo-header's length is the only part of the unfinished sum that
	// differs between pieces; to exchange it keeps the sum right even where
	// the destination is not in the IP header (IPv6 routing).
	s.l4Sum = less(uint64(binary.BigEndian.Uint16(tp[l.csumOffset():])), uint16(len(tp)))
	return s
}

// put turns hdr, the headers of any frame of the series, into those of piece
// i, which starts off bytes into the run's payload and carries n of them.
// Piece 0 with the whole payload, marked as last, is the run.
func (s *series) put(hdr []byte, i, off, n int, last bool) {
	ip, tp := hdr[s.l3:s.l4], hdr[s.l4:s.hdrLen]
	size := s.hdrLen - s.l4 + n // of the transport header and payload
	if s.v6 {
		binary.BigEndian.PutUint16(ip[ipv6PayloadLen:], uint16(len(ip)-ipv6Len+size))
	} else {
		total, id := uint16(len(ip)+size), s.id+uint16(i)
		binary.BigEndian.PutUint16(ip[ipv4TotalLen:], total)
		binary.BigEndian.PutUint16(ip[ipv4ID:], id)
		binary.BigEndian.PutUint16(ip[ipv4Csum:], ^fold(s.ipSum+uint64(total)+uint64(id)))
	}
	if s.udp {
		binary.BigEndian.PutUint16(tp[udpLength:], uint16(size))
	} else {
		binary.BigEndian.PutUint32(tp[tcpSeq:], s.seq+uint32(off))
		tp[tcpFlags] = s.pieceFlags(i, last)
	}
	binary.BigEndian.PutUint16(tp[s.csumOffset():], fold(s.l4Sum+uint64(size)))
}

// pieceFlags: the first packet says that the window was reduced, the last that
// the data is to be pushed, or is the end.
func (s *series) pieceFlags(i int, last bool) byte {
	flags := s.flags
	if i > 0 {
		flags &^= tcpCWR
	}
	if !last {
		flags &^= tcpFIN | tcpPSH
	}
	return flags
}

// sameID tells whether hdr has the ID of the first piece and may: what is not
// to be fragmented needs no ID of its own (RFC 6864), and many senders leave it
// constant.
func (s *series) sameID(hdr []byte) bool {
	if s.v6 {
		return false
	}
	ip := hdr[s.l3:]
	return ip[ipv4Fragment]&ipv4DF != 0 && binary.BigEndian.Uint16(ip[ipv4ID:]) == s.id
}
