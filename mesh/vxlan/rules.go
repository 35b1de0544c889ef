package vxlan

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// chain is a chain of the guard, with its rules.
type chain struct {
	*nftables.Chain
	rules []*nftables.Rule
}

// beforeFilter comes before the priority that nft calls filter in the family
// bridge.
const beforeFilter = nftables.ChainPriority(-201)

// chains returns those of both tables. The first's rule asks for the port first,
// since most packets are for another, and for the protocol last, which only
// packets from strangers get to.
func (f *Firewall) chains(port uint16, near []netip.Addr) []chain {
	accept := nftables.ChainPolicyAccept
	base := func(family nftables.TableFamily, priority nftables.ChainPriority) *nftables.Chain {
		return &nftables.Chain{
			Name: "input", Table: guardOf(family), Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
			Priority: nftables.ChainPriorityRef(priority), Policy: &accept,
		}
	}
	input := base(f.family(), *nftables.ChainPriorityFilter-1)
	bridged := base(nftables.TableFamilyBridge, beforeFilter)
	rule := func(c *nftables.Chain, what string, parts ...[]expr.Any) *nftables.Rule {
		comment := fmt.Sprintf("weave: %s, port %d", what, port)
		return &nftables.Rule{
			Table: c.Table, Chain: c, Exprs: slices.Concat(parts...),
			UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
		}
	}
	return []chain{
		{input, []*nftables.Rule{rule(input, "VXLAN from strangers", toPort(port), f.notFromPeer(near), isUDP(), drop())}},
		{bridged, []*nftables.Rule{rule(bridged, "VXLAN from containers", isUDP(), toPort(port), notByPort(), drop())}},
	}
}

func isUDP() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
	}
}

// toPort matches datagrams to a port, and what else has the same bytes there.
func toPort(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// notFromPeer matches packets with another address than that of a peer. Those of
// near are in the set as well.
func (f *Firewall) notFromPeer(near []netip.Addr) []expr.Any {
	offset, length := uint32(12), uint32(4)
	if f.ours.Is6() {
		offset, length = 8, 16
	}
	parts := []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}}
	for _, a := range near {
		parts = append(parts, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: a.AsSlice()})
	}
	return append(parts, &expr.Lookup{SourceRegister: 1, SetName: peerSet, Invert: true})
}

// notByPort matches frames that came by a port that is not spared.
func notByPort() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: portSet, Invert: true},
	}
}

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
