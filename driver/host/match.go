package host

import (
	"net"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Parts of rules, as google/nftables reads them back from the kernel.

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func load(base expr.PayloadBase, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: length}
}

// isLink matches packets by the whole name of their link.
func isLink(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal(append([]byte(name), 0))}
}

func isNotLink(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: append([]byte(name), 0)}}
}

func byBridge(x Exposed) []expr.Any { return isLink(expr.MetaKeyIIFNAME, x.Bridge) }

// notByBridge matches packets whose link is none of Weave's.
func notByBridge(key expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte(Prefix)},
	}
}

func toMAC(mac net.HardwareAddr) []expr.Any {
	return []expr.Any{load(expr.PayloadBaseLLHeader, 0, 6), equal(mac)}
}

func fromMAC(mac net.HardwareAddr) []expr.Any {
	return []expr.Any{load(expr.PayloadBaseLLHeader, 6, 6), equal(mac)}
}

func isEtherType(kind uint16) []expr.Any {
	return []expr.Any{load(expr.PayloadBaseLLHeader, 12, 2), equal(binaryutil.BigEndian.PutUint16(kind))}
}

// Numbers of ICMPv6.
const (
	icmpv6Header  = 40 // behind the fixed header of IPv6: more headers are not let in
	solicitation  = 135
	advertisement = 136
)

// isNeighbourDiscovery matches what neighbours ask and tell by IPv6.
func isNeighbourDiscovery() []expr.Any {
	return []expr.Any{
		load(expr.PayloadBaseNetworkHeader, 6, 1), equal([]byte{unix.IPPROTO_ICMPV6}),
		load(expr.PayloadBaseNetworkHeader, icmpv6Header, 1),
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{solicitation}, ToData: []byte{advertisement}},
	}
}

// srcIn matches packets from the subnet of an address.
func srcIn(p netip.Prefix) []expr.Any {
	offset, length := uint32(12), uint32(4)
	if p.Addr().Is6() {
		offset, length = 8, 16
	}
	return []expr.Any{
		load(expr.PayloadBaseNetworkHeader, offset, length),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, length)},
		equal(p.Masked().Addr().AsSlice()),
	}
}

func dst(a netip.Addr) expr.Any {
	if a.Is6() {
		return load(expr.PayloadBaseNetworkHeader, 24, 16)
	}
	return load(expr.PayloadBaseNetworkHeader, 16, 4)
}

func dstIs(a netip.Addr) []expr.Any { return []expr.Any{dst(a), equal(a.AsSlice())} }

// notLoopback matches packets that are not for a loopback address of the family
// of an address: what comes back for one of those the kernel drops.
func notLoopback(a netip.Addr) []expr.Any {
	not := func(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data} }
	if a.Is6() {
		return []expr.Any{dst(a), not(netip.IPv6Loopback().AsSlice())}
	}
	return []expr.Any{
		dst(a),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{255, 0, 0, 0}, Xor: make([]byte, 4)},
		not([]byte{127, 0, 0, 0}),
	}
}

// dstLocal matches packets for an address of the host.
func dstLocal() []expr.Any { return dstKind(unix.RTN_LOCAL) }

// dstElsewhere matches packets for one address that is not of the host.
func dstElsewhere() []expr.Any { return dstKind(unix.RTN_UNICAST) }

func dstKind(kind uint32) []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, equal(binaryutil.NativeEndian.PutUint32(kind))}
}

func toPort(proto string, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{protocol(proto)}),
		load(expr.PayloadBaseTransportHeader, 2, 2), equal(binaryutil.BigEndian.PutUint16(port)),
	}
}

// hasBits matches packets by what the kernel tracks of their connection.
func hasBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func isAnswer() []expr.Any {
	return hasBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// statusDNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h: the
// connection has another destination than its client knows.
const statusDNAT = 1 << 5

func isRedirected() []expr.Any { return hasBits(expr.CtKeySTATUS, statusDNAT) }

func natFamily(a netip.Addr) uint32 {
	if a.Is6() {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

func redirect(to netip.AddrPort) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: natFamily(to.Addr()), RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}
}

func source(a netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: natFamily(a), RegAddrMin: 1},
	}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }
