package run

import (
	"encoding/binary"
	"fmt"
)

// Lengths in bytes, and offsets into headers.
const (
	ethLen  = 14
	vlanLen = 4
	ipv4Len = 20
	ipv6Len = 40
	tcpLen  = 20
	udpLen  = 8

	ipv4TotalLen = 2
	ipv4ID       = 4
	ipv4Fragment = 6
	ipv4Protocol = 9
	ipv4Csum     = 10

	ipv6PayloadLen = 4
	ipv6Next       = 6

	tcpSeq   = 4
	tcpData  = 12
	tcpFlags = 13
	tcpCsum  = 16

	udpLength = 4
	udpCsum   = 6
)

const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100
	etherQinQ = 0x88a8

	ipv4DF = 0x40 // in the byte at ipv4Fragment

	protoTCP = 6
	protoUDP = 17

	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// layout says where the headers of a run, or of a piece, begin.
type layout struct {
	l3, l4, hdrLen int
	v6, udp        bool
}

// parseLayout finds the headers of a frame that holds one TCP segment or UDP
// datagram, or a run of them, whose transport header is at l4. It accepts only
// what series can describe: lengths that agree, and no IP fragment.
func parseLayout(frame []byte, l4 int, udp bool) (layout, error) {
	l := layout{l4: l4, udp: udp}
	ether, l3, err := etherType(frame)
	if err != nil {
		return layout{}, err
	}
	l.l3 = l3
	switch ether {
	case etherIPv4:
		err = l.checkIPv4(frame)
	case etherIPv6:
		l.v6 = true
		err = l.checkIPv6(frame)
	default:
		err = fmt.Errorf("%w: run of EtherType %#04x", ErrMalformed, ether)
	}
	if err != nil {
		return layout{}, err
	}
	if err := l.measure(frame); err != nil {
		return layout{}, err
	}
	return l, nil
}

// etherType returns the EtherType behind up to two VLAN tags, and where what
// it announces begins.
func etherType(frame []byte) (ether uint16, l3 int, err error) {
	for l3 = ethLen; l3 <= ethLen+2*vlanLen && l3 <= len(frame); l3 += vlanLen {
		ether = binary.BigEndian.Uint16(frame[l3-2:])
		if ether != etherVLAN && ether != etherQinQ {
			return ether, l3, nil
		}
	}
	return 0, 0, fmt.Errorf("%w: no EtherType in %d bytes", ErrMalformed, len(frame))
}

func (l *layout) proto() byte {
	if l.udp {
		return protoUDP
	}
	return protoTCP
}

func (l *layout) checkIPv4(frame []byte) error {
	if len(frame) < l.l3+ipv4Len {
		return fmt.Errorf("%w: IPv4 header cut off", ErrMalformed)
	}
	ip := frame[l.l3:]
	ihl := int(ip[0]&0x0f) * 4
	switch {
	case ip[0]>>4 != 4, ihl < ipv4Len, l.l3+ihl != l.l4, ip[ipv4Protocol] != l.proto():
		return fmt.Errorf("%w: IPv4 header does not lead to the checksum", ErrMalformed)
	case binary.BigEndian.Uint16(ip[ipv4Fragment:])&0x3fff != 0:
		return fmt.Errorf("%w: run in an IPv4 fragment", ErrMalformed)
	case int(binary.BigEndian.Uint16(ip[ipv4TotalLen:])) != len(ip):
		return fmt.Errorf("%w: IPv4 length is not the frame's", ErrMalformed)
	}
	return nil
}

func (l *layout) checkIPv6(frame []byte) error {
	if len(frame) < l.l3+ipv6Len {
		return fmt.Errorf("%w: IPv6 header cut off", ErrMalformed)
	}
	ip := frame[l.l3:]
	if ip[0]>>4 != 6 || int(binary.BigEndian.Uint16(ip[ipv6PayloadLen:])) != len(ip)-ipv6Len {
		return fmt.Errorf("%w: IPv6 length is not the frame's", ErrMalformed)
	}
	next, at := ip[ipv6Next], ipv6Len
	for l.l3+at < l.l4 && isExtension(next) && at+8 <= len(ip) {
		next, at = ip[at], at+8+8*int(ip[at+1])
	}
	if l.l3+at != l.l4 || next != l.proto() {
		return fmt.Errorf("%w: IPv6 headers do not lead to the checksum", ErrMalformed)
	}
	return nil
}

// isExtension knows the IPv6 extension headers of the common format that may
// stand before a run: hop-by-hop, routing, destination options, mobility.
func isExtension(next byte) bool {
	return next == 0 || next == 43 || next == 60 || next == 135
}

// measure finds the end of the transport header.
func (l *layout) measure(frame []byte) error {
	l.hdrLen = l.l4 + udpLen
	if !l.udp {
		if len(frame) < l.l4+tcpLen {
			return fmt.Errorf("%w: TCP header cut off", ErrMalformed)
		}
		n := int(frame[l.l4+tcpData]>>4) * 4
		if n < tcpLen {
			return fmt.Errorf("%w: TCP header of %d bytes", ErrMalformed, n)
		}
		l.hdrLen = l.l4 + n
	}
	if len(frame) <= l.hdrLen {
		return fmt.Errorf("%w: no payload behind %d bytes of headers", ErrMalformed, l.hdrLen)
	}
	if l.udp && int(binary.BigEndian.Uint16(frame[l.l4+udpLength:])) != len(frame)-l.l4 {
		return fmt.Errorf("%w: UDP length is not the frame's", ErrMalformed)
	}
	return nil
}

// csumOffset is where the checksum stands in the transport header.
func (l *layout) csumOffset() int {
	if l.udp {
		return udpCsum
	}
	return tcpCsum
}
