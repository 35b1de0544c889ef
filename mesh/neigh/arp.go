package neigh

import (
	"encoding/binary"
	"net/netip"

	"weave/mesh/fdb"
)

// ARP for IPv4 over Ethernet, after the Ethernet header:
//
//	0       2       4      5      6    8     14    18    24    28
//	+-------+-------+------+------+----+-----+-----+-----+-----+
//	| htype | ptype | hlen | plen | op | sha | spa | tha | tpa |
//	+-------+-------+------+------+----+-----+-----+-----+-----+
const (
	arpLen     = 28
	arpRequest = 1
	arpReply   = 2
)

// arpFixed is htype, ptype, hlen and plen: the only ones that we know.
const arpFixed = 0x0001_0800_06_04

func parseARP(frame []byte) (Message, error) {
	arp := frame[ethernetLen:]
	if len(arp) < arpLen || binary.BigEndian.Uint64(arp)>>16 != arpFixed {
		return Message{}, ErrMalformed
	}
	sender, target := netip.AddrFrom4([4]byte(arp[14:])), netip.AddrFrom4([4]byte(arp[24:]))
	if binary.BigEndian.Uint16(arp[6:]) != arpRequest || sender == target {
		return Message{}, nil // an answer, or a gratuitous request: both announce
	}
	m := Message{Op: Request, Target: target, asker: source(frame), askerIP: sender}
	if sender.IsUnspecified() {
		m.Op = Probe
	}
	return m, nil
}

// arp is a message to build. Requests name no target MAC, so the Ethernet
// header has an addressee of its own.
type arp struct {
	op                 uint16
	to                 fdb.MAC
	sender, target     fdb.MAC
	senderIP, targetIP netip.Addr // IPv4
}

func (a arp) append(dst []byte) []byte {
	dst = appendEthernet(dst, a.to, a.sender, etherTypeARP)
	dst = binary.BigEndian.AppendUint64(dst, arpFixed<<16|uint64(a.op))
	sender, target := a.senderIP.As4(), a.targetIP.As4()
	dst = append(dst, a.sender[:]...)
	dst = append(dst, sender[:]...)
	dst = append(dst, a.target[:]...)
	return append(dst, target[:]...)
}
