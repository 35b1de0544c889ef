package neigh

import (
	"encoding/binary"
	"net/netip"

	"weave/mesh/fdb"
)

// Neighbour solicitations and advertisements, after the IPv6 header:
//
//	0      1      2          4                8        24
//	+------+------+----------+----------------+--------+-------------+
//	| type | code | checksum | flags/reserved | target | options ... |
//	+------+------+----------+----------------+--------+-------------+
//
// An option is its type, its length in units of eight bytes, and its content.
const (
	ipv6Len      = 40
	neighborLen  = 24
	linkAddrLen  = 8 // option with a link-layer address of Ethernet
	advertLen    = neighborLen + linkAddrLen
	protoICMPv6  = 58
	hopLimit     = 255 // no router passed it on: RFC 4861, section 7.1
	typeSolicit  = 135
	typeAdvert   = 136
	optionSource = 1
	optionTarget = 2

	flagSolicited = 0x40
	flagOverride  = 0x20
)

// parseSolicitation holds the frame to RFC 4861, section 7.1.1. Solicitations
// behind extension headers are left to their addressee.
func parseSolicitation(frame []byte) (Message, error) {
	ip := frame[ethernetLen:]
	if len(ip) < ipv6Len+1 || ip[0]>>4 != 6 || ip[6] != protoICMPv6 || ip[ipv6Len] != typeSolicit {
		return Message{}, nil
	}
	n := int(binary.BigEndian.Uint16(ip[4:]))
	if n < neighborLen || len(ip) < ipv6Len+n || ip[7] != hopLimit {
		return Message{}, ErrMalformed
	}
	ip = ip[:ipv6Len+n] // the rest is padding
	icmp := ip[ipv6Len:]
	from, to := netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	m := Message{Op: Request, Target: netip.AddrFrom16([16]byte(icmp[8:])), asker: source(frame), askerIP: from}
	hasSource, ok := scanOptions(icmp[neighborLen:])
	if !ok || icmp[1] != 0 || from.IsMulticast() || m.Target.IsMulticast() || checksum(ip) != 0 {
		return Message{}, ErrMalformed
	}
	if from.IsUnspecified() {
		m.Op = Probe
		if hasSource || !solicitedNode(to) {
			return Message{}, ErrMalformed
		}
	}
	return m, nil
}

// scanOptions walks through the options and reports whether the source's
// link-layer address is among them, and whether all lengths are right.
func scanOptions(b []byte) (hasSource, ok bool) {
	for len(b) > 0 {
		if len(b) < 2 || b[1] == 0 || len(b) < int(b[1])*8 {
			return hasSource, false
		}
		hasSource = hasSource || b[0] == optionSource
		b = b[int(b[1])*8:]
	}
	return hasSource, true
}

// solicitedNode reports whether a is in ff02::1:ff00:0/104.
func solicitedNode(a netip.Addr) bool {
	b := a.As16()
	return [13]byte(b[:13]) == [13]byte{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff}
}

// appendAdvert appends an advertisement that owner holds target. The router
// flag stays clear: whether a container routes is not announced.
func appendAdvert(dst []byte, owner fdb.MAC, target netip.Addr, toMAC fdb.MAC, to netip.Addr, flags byte) []byte {
	dst = appendEthernet(dst, toMAC, owner, etherTypeIPv6)
	start := len(dst)
	from16, to16 := target.As16(), to.As16()
	dst = append(dst, 6<<4, 0, 0, 0, 0, advertLen, protoICMPv6, hopLimit)
	dst = append(dst, from16[:]...)
	dst = append(dst, to16[:]...)
	dst = append(dst, typeAdvert, 0, 0, 0, flags, 0, 0, 0)
	dst = append(dst, from16[:]...)
	dst = append(dst, optionTarget, linkAddrLen/8)
	dst = append(dst, owner[:]...)
	ip := dst[start:]
	binary.BigEndian.PutUint16(ip[ipv6Len+2:], checksum(ip))
	return dst
}

// checksum sums up an ICMPv6 message and its pseudo header, of which ip, the
// whole packet, has all parts. Over a message that holds its checksum the
// result is 0.
func checksum(ip []byte) uint16 {
	sum := uint32(len(ip)-ipv6Len) + protoICMPv6
	for b := ip[8:]; len(b) > 0; b = b[min(2, len(b)):] {
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
			break
		}
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
