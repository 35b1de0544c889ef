// Package run cuts runs into pieces and joins pieces to runs.
//
// A run is a GSO train as the kernel passes it through a TAP: one frame of up
// to 64 KiB whose headers stand for many equal packets, with a virtio-net
// header in front that says how to cut it. A piece is one of those packets, a
// complete frame that can be delivered on its own; only its TCP or UDP
// checksum is left to the receiving kernel, as in the run.
//
// The package is pure. It does not know the mesh: order and adjacency of
// pieces are the caller's to establish, and what Joiner gets is hostile bytes
// to it. It does not reassemble IP fragments and does no UDP fragmentation
// offload (UFO).
package run

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// VnetHdrLen is the length in bytes of struct virtio_net_hdr.
const VnetHdrLen = 10

// MaxFrame is the length in bytes of the longest frame: Ethernet header, two
// VLAN tags, IPv6 header, and the most that the header can announce.
const MaxFrame = ethLen + 2*vlanLen + ipv6Len + 65535

// Errors of this package. They come wrapped with what is wrong.
var (
	ErrMalformed   = errors.New("run: malformed frame")
	ErrUnsupported = errors.New("run: unsupported offload")
)

// GSO tells how the kernel is to cut a run. Values of VIRTIO_NET_HDR_GSO_*.
type GSO uint8

// Kinds of runs.
const (
	GSONone  GSO = 0 // not a run
	GSOTCPv4 GSO = 1
	GSOUFO   GSO = 3 // one UDP datagram to be fragmented: never asked for, not supported
	GSOTCPv6 GSO = 4
	GSOUDP   GSO = 5 // datagrams of equal size (UDP_L4)
)

// Bits of struct virtio_net_hdr.
const (
	vnetNeedsCsum = 1 << 0 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	vnetDataValid = 1 << 1 // VIRTIO_NET_HDR_F_DATA_VALID
	vnetECN       = 0x80   // VIRTIO_NET_HDR_GSO_ECN, in the type
)

// Meta is struct virtio_net_hdr: the offload state of a frame. Offsets and
// lengths are in bytes from the start of the Ethernet header.
type Meta struct {
	NeedsCsum  bool // the checksum at CsumStart+CsumOffset holds only the pseudo-header's sum
	CsumValid  bool // the checksums were verified
	GSO        GSO
	ECN        bool   // TCP run whose first packet has CWR
	HdrLen     uint16 // a hint: headers up to the payload
	GSOSize    uint16 // payload of each piece but the last
	CsumStart  uint16
	CsumOffset uint16
}

// IsTCP tells whether m describes a run of TCP.
func (m Meta) IsTCP() bool { return m.GSO == GSOTCPv4 || m.GSO == GSOTCPv6 }

// DecodeVnet reads the virtio-net header at the start of b, in the host's byte
// order as a TAP has it unless told otherwise.
func DecodeVnet(b []byte) (Meta, error) {
	if len(b) < VnetHdrLen {
		return Meta{}, fmt.Errorf("%w: virtio-net header of %d bytes", ErrMalformed, len(b))
	}
	m := Meta{
		NeedsCsum:  b[0]&vnetNeedsCsum != 0,
		CsumValid:  b[0]&vnetDataValid != 0,
		GSO:        GSO(b[1] &^ vnetECN),
		ECN:        b[1]&vnetECN != 0,
		HdrLen:     binary.NativeEndian.Uint16(b[2:]),
		GSOSize:    binary.NativeEndian.Uint16(b[4:]),
		CsumStart:  binary.NativeEndian.Uint16(b[6:]),
		CsumOffset: binary.NativeEndian.Uint16(b[8:]),
	}
	switch m.GSO {
	case GSONone, GSOTCPv4, GSOUFO, GSOTCPv6, GSOUDP:
		return m, nil
	}
	return Meta{}, fmt.Errorf("%w: GSO type %d", ErrUnsupported, m.GSO)
}

// EncodeVnet writes m to the first VnetHdrLen bytes of b.
func (m Meta) EncodeVnet(b []byte) {
	_ = b[VnetHdrLen-1]
	b[0], b[1] = 0, byte(m.GSO)
	if m.NeedsCsum {
		b[0] |= vnetNeedsCsum
	}
	if m.CsumValid {
		b[0] |= vnetDataValid
	}
	if m.ECN {
		b[1] |= vnetECN
	}
	binary.NativeEndian.PutUint16(b[2:], m.HdrLen)
	binary.NativeEndian.PutUint16(b[4:], m.GSOSize)
	binary.NativeEndian.PutUint16(b[6:], m.CsumStart)
	binary.NativeEndian.PutUint16(b[8:], m.CsumOffset)
}
