package netlab

import (
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// NATKind is what a router does to addresses, and whom it lets in, in the words
// of RFC 4787: a mapping is an outside port of an inside address and port; it is
// endpoint-independent if all destinations see the same, and so is filtering if
// all may send there.
type NATKind int

const (
	// Routed passes all as it is.
	Routed NATKind = iota
	// Stateful translates nothing, and lets in only what answers: filtering is
	// address and port-dependent. It is what routers are to IPv6.
	Stateful
	// FullCone has endpoint-independent mapping and filtering.
	FullCone
	// AddressRestricted has endpoint-independent mapping, and address-dependent
	// filtering: any port of a host that was sent to may answer.
	AddressRestricted
	// PortRestricted has endpoint-independent mapping, and address and
	// port-dependent filtering: only who was sent to may answer.
	PortRestricted
	// Preserving is Linux by itself: PortRestricted, where the outside port is the
	// inside one, until two hosts have the same to one destination. All other
	// kinds never keep the port.
	Preserving
	// Symmetric has address and port-dependent mapping and filtering: each
	// destination sees another port, at random.
	Symmetric
)

func (k NATKind) translates() bool { return k > Stateful }

// independent is for the mapping; that of Preserving is what the kernel makes it.
func (k NATKind) independent() bool {
	return k == FullCone || k == AddressRestricted || k == PortRestricted
}

// NAT is what a router does. None does hairpinning, by which hosts inside reach
// each other at their outside address. To TCP all kinds but Symmetric are
// PortRestricted or Preserving.
type NAT struct {
	IPv4, IPv6 NATKind
	// Timeout is after what time without a packet a mapping of UDP, and the
	// permission to answer, ends; whole seconds. 0: two minutes.
	Timeout time.Duration
}

func (n NAT) timeout() time.Duration {
	if n.Timeout == 0 {
		return 2 * time.Minute
	}
	return n.Timeout
}

// A router's table (of IPv4; that of IPv6 is the same). Conntrack knows which
// packet answers which, and by itself that makes port-restricted NATs of all kinds
// of mapping. The maps are for what it does not do: to have one mapping for all
// destinations for as long as it lives, and to let others in.
//
//	table ip nat {
//	  map forwards { type inet_proto . inet_service : ipv4_addr . inet_service }
//	  map inward   { type inet_service : ipv4_addr . inet_service; timeout T } # outside port → inside
//	  map outward  { type ipv4_addr . inet_service : inet_service; timeout T } # and back
//	  set talked   { type inet_service . ipv4_addr; timeout T }                # outside port, to whom
//	  chain prerouting { type nat hook prerouting priority dstnat
//	    iifname eth0 dnat to meta l4proto . th dport map @forwards
//	    iifname eth0 dnat to udp dport map @inward                # FullCone
//	    … udp dport . ip saddr @talked …                          # AddressRestricted
//	  }
//	  chain postrouting { type nat hook postrouting priority srcnat
//	    oifname eth0 fib saddr type local accept
//	    oifname eth0 snat to OUTSIDE:(ip saddr . udp sport map @outward)
//	    oifname eth0 meta l4proto { tcp, udp } snat to OUTSIDE:20000-29999 # Symmetric: fully-random
//	    oifname eth0 snat to OUTSIDE # Preserving: this alone
//	  }
//	  chain learn { type filter hook postrouting priority srcnat + 1 # sees both sides
//	    oifname eth0 udp, ct original and status snat, ct reply and status dnat:
//	    update @inward   { udp sport : ct saddr . ct proto-src }
//	    update @outward  { ct saddr . ct proto-src : udp sport }
//	    update @talked   { udp sport . ip daddr }
//	  }
//	  chain input { iifname eth0 drop but ICMP and answers }
//	  chain forward { iifname eth0 drop but what prerouting let in, and answers }
//	}
//
// Input drops what nobody inside asked for: conntrack would otherwise keep it as
// a conversation with the router, and the answer of a host inside to the same
// sender would get another port. (`nft list` of Debian 12 stumbles over ct saddr in
// a map's value; chain by chain it shows the rest.)
const (
	natTable  = "nat"
	firstPort = 20000
	lastPort  = 29999
)

// Bits of a connection's status in conntrack.
const (
	statusSNAT = 1 << 4
	statusDNAT = 1 << 5
)

// family is what differs between the tables of IPv4 and IPv6.
type family struct {
	nft        nftables.TableFamily
	nf         uint32
	addr       nftables.SetDatatype
	registers  uint32 // of four bytes, for an address
	saddr, dst uint32 // where they are in the header
	icmp       byte
}

var (
	family4 = family{nftables.TableFamilyIPv4, unix.NFPROTO_IPV4, nftables.TypeIPAddr, 1, 12, 16, unix.IPPROTO_ICMP}
	family6 = family{nftables.TableFamilyIPv6, unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 4, 8, 24, unix.IPPROTO_ICMPV6}
)

func (f family) load(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addr.Bytes}
}

// of returns the host's address.
func (f family) of(h *Host) netip.Addr {
	if f.nft == nftables.TableFamilyIPv6 {
		return h.IP6()
	}
	return h.IP4()
}

// fillFilter adds the chains that let in only what is an answer or was let in by
// a mapping.
func fillFilter(t *table, f family) {
	input := t.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, 0, "")
	t.add(input, iifname(uplink), answers(), accept())
	t.add(input, iifname(uplink), protocol(f.icmp), accept())
	t.add(input, iifname(uplink), drop())
	forward := t.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, 0, "")
	t.add(forward, iifname(uplink), answers(), accept())
	t.add(forward, iifname(uplink), status(statusDNAT), accept())
	t.add(forward, iifname(uplink), drop())
}

func answers() []expr.Any {
	return append([]expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}},
		anyBit(word(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED))...)
}

func status(bit uint32) []expr.Any {
	return append([]expr.Any{&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}}, anyBit(word(bit))...)
}

// Registers of four bytes, one after the other; what is looked up, or found,
// lies in those from one on.
const register = unix.NFT_REG32_00

// translation writes the chains of a kind that translates.
type translation struct {
	*table
	family
	kind    NATKind
	timeout time.Duration
	outside netip.Addr
}

func (t *translation) fill(forwards []nftables.SetElement) {
	inside := nftables.MustConcatSetType(t.addr, nftables.TypeInetService)
	t.set(&nftables.Set{
		Name: "forwards", IsMap: true, Concatenation: true, DataType: inside,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
	}, forwards...)
	t.learned(&nftables.Set{Name: "inward", IsMap: true, KeyType: nftables.TypeInetService, DataType: inside})
	t.learned(&nftables.Set{Name: "outward", IsMap: true, KeyType: inside, Concatenation: true, DataType: nftables.TypeInetService})
	t.learned(&nftables.Set{Name: "talked", KeyType: nftables.MustConcatSetType(nftables.TypeInetService, t.addr), Concatenation: true})
	t.letIn()
	t.letOut()
	if t.kind.independent() {
		t.learn()
	}
}

// learned adds a set that rules add to.
func (t *translation) learned(s *nftables.Set) {
	s.Dynamic, s.HasTimeout, s.Timeout, s.Size = true, true, t.timeout, 1<<16
	t.set(s)
}

func (t *translation) letIn() {
	c := t.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -100, "")
	to := func(set string) []expr.Any {
		return []expr.Any{
			&expr.Lookup{SourceRegister: register, DestRegister: register, IsDestRegSet: true, SetName: set},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: t.nf, RegAddrMin: register, RegProtoMin: register + t.registers},
		}
	}
	t.add(c, iifname(uplink), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		portOf(2, register+1),
	}, to("forwards"))
	switch udp := slices.Concat(iifname(uplink), protocol(unix.IPPROTO_UDP)); t.kind {
	case AddressRestricted:
		t.add(c, udp, []expr.Any{
			portOf(2, register), t.load(t.saddr, register+1),
			&expr.Lookup{SourceRegister: register, SetName: "talked"},
		}, to("inward"))
	case FullCone:
		t.add(c, udp, []expr.Any{portOf(2, register)}, to("inward"))
	}
}

func (t *translation) letOut() {
	c := t.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100, "")
	to := func(n expr.NAT) []expr.Any { // the ports are in registers that come before those of the address
		n.Type, n.Family, n.RegAddrMin = expr.NATTypeSourceNAT, t.nf, 3
		return []expr.Any{&expr.Immediate{Register: n.RegAddrMin, Data: t.outside.AsSlice()}, &n}
	}
	out := oifname(uplink)
	const local = 2 // RTN_LOCAL
	t.add(c, out, []expr.Any{
		&expr.Fib{Register: 1, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: word(local)},
	}, accept())
	if t.kind.independent() {
		t.add(c, out, protocol(unix.IPPROTO_UDP), []expr.Any{
			t.load(t.saddr, register), portOf(0, register+t.registers),
			&expr.Lookup{SourceRegister: register, DestRegister: register, IsDestRegSet: true, SetName: "outward"},
		}, to(expr.NAT{RegProtoMin: register}))
	}
	if t.kind != Preserving {
		for _, number := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			t.add(c, out, protocol(number), []expr.Any{
				&expr.Immediate{Register: 1, Data: port16(firstPort)},
				&expr.Immediate{Register: 2, Data: port16(lastPort)},
			}, to(expr.NAT{RegProtoMin: 1, RegProtoMax: 2, FullyRandom: t.kind == Symmetric}))
		}
	}
	t.add(c, out, to(expr.NAT{}))
}

// learn keeps the maps: what leaves has the outside port by then, and conntrack
// knows what it left its host with.
func (t *translation) learn() {
	c := t.chain("learn", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, 101, "")
	ways := []struct {
		direction byte // 0: of the first packet
		status    uint32
	}{{0, statusSNAT}, {1, statusDNAT}}
	outside := register + t.registers + 1 // behind an inside address and port
	for _, way := range ways {
		of := slices.Concat(oifname(uplink), protocol(unix.IPPROTO_UDP), []expr.Any{
			&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{way.direction}},
		}, status(way.status))
		direction := uint32(way.direction) << 24 // the kernel reads the first of the four bytes that the nftables package sends
		both := []expr.Any{
			&expr.Ct{Key: expr.CtKeySRC, Direction: direction, Register: register},
			&expr.Ct{Key: expr.CtKeyPROTOSRC, Direction: direction, Register: register + t.registers},
			portOf(0, outside),
		}
		t.add(c, of, both, t.update("inward", outside, register))
		t.add(c, of, both, t.update("outward", register, outside))
		t.add(c, of, []expr.Any{portOf(0, register), t.load(t.dst, register+1)}, t.update("talked", register, 0))
	}
}

func (t *translation) update(set string, key, data uint32) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: key, SrcRegData: data, SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE}}
}

// portOf loads a port of UDP or TCP: 0 is where the source's is, 2 the destination's.
func portOf(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

func pad(b []byte) []byte { return append(b, make([]byte, 4-len(b))...) }
