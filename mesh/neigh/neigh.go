// Package neigh answers for hosts that are far away: it reads ARP requests
// (RFC 826, 5227) and IPv6 neighbour solicitations (RFC 4861, 4862), and builds
// the answers and the announcements that heal stale caches. Frames are
// Ethernet without a VLAN tag.
//
// The package is pure. It parses hostile bytes, and neither knows who holds an
// address nor decides what is answered: that is the tunnel.
package neigh

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"weave/mesh/fdb"
)

// MaxFrame is the length of the longest frame that this package builds.
const MaxFrame = ethernetLen + ipv6Len + advertLen

const (
	ethernetLen = 14

	etherTypeARP  = 0x0806
	etherTypeIPv6 = 0x86dd
)

// ErrMalformed is returned for ARP and neighbour solicitations that break the
// rules of their RFC, which also tells receivers to discard them.
var ErrMalformed = errors.New("neigh: malformed message")

// Op is what a message wants.
type Op uint8

// Ops.
const (
	// None is every other frame, answers and announcements too.
	None Op = iota
	// Request asks who holds Target.
	Request
	// Probe asks it to find out if Target is free: an ARP probe from 0.0.0.0,
	// or duplicate address detection from ::.
	Probe
)

// Message is a question about Target.
type Message struct {
	Op     Op
	Target netip.Addr

	asker   fdb.MAC
	askerIP netip.Addr // unspecified in a Probe
}

// Parse reads a frame. It allocates nothing and keeps no reference to it.
func Parse(frame []byte) (Message, error) {
	if len(frame) < ethernetLen {
		return Message{}, nil
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherTypeARP:
		return parseARP(frame)
	case etherTypeIPv6:
		return parseSolicitation(frame)
	}
	return Message{}, nil
}

// AppendReply appends the frame that answers m to dst: owner holds the target,
// and is the frame's sender, so that bridges on the way learn where it lives.
// The answer to a Probe says that the address is taken. The Op must not be
// None. dst needs MaxFrame bytes of room, or it is grown.
func (m Message) AppendReply(dst []byte, owner fdb.MAC) []byte {
	if m.Target.Is4() {
		reply := arp{op: arpReply, to: m.asker, sender: owner, senderIP: m.Target, target: m.asker, targetIP: m.askerIP}
		return reply.append(dst)
	}
	if m.Op == Probe {
		return appendAdvert(dst, owner, m.Target, allNodesMAC(), netip.IPv6LinkLocalAllNodes(), flagOverride)
	}
	return appendAdvert(dst, owner, m.Target, m.asker, m.askerIP, flagSolicited|flagOverride)
}

// AppendAnnouncement appends the frame that tells everyone that owner holds
// addr now: a gratuitous ARP request, or an unsolicited advertisement. Caches
// that know addr take it, others ignore it.
func AppendAnnouncement(dst []byte, owner fdb.MAC, addr netip.Addr) []byte {
	if addr.Is4() {
		gratuitous := arp{op: arpRequest, to: broadcast(), sender: owner, senderIP: addr, targetIP: addr}
		return gratuitous.append(dst)
	}
	return appendAdvert(dst, owner, addr, allNodesMAC(), netip.IPv6LinkLocalAllNodes(), flagOverride)
}

func appendEthernet(dst []byte, to, from fdb.MAC, etherType uint16) []byte {
	dst = append(dst, to[:]...)
	dst = append(dst, from[:]...)
	return binary.BigEndian.AppendUint16(dst, etherType)
}

func source(frame []byte) fdb.MAC { return fdb.MAC(frame[6:12]) }

func broadcast() fdb.MAC { return fdb.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// allNodesMAC is where frames to ff02::1 go (RFC 2464).
func allNodesMAC() fdb.MAC { return fdb.MAC{0x33, 0x33, 0, 0, 0, 1} }
