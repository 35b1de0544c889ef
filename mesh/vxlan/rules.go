package vxlan

import (
	"fmt"
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

// chains returns those of both tables.
func (f *Firewall) chains(port uint16) []chain {
	accept := nftables.ChainPolicyAccept
	base := func(family nftables.TableFamily, priority nftables.ChainPriority) *nftables.Chain {
		return &nftables.Chain{
			Name: "input", Table: guardOf(family), Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
			Priority: nftables.ChainPriorityRef(priority), Policy: &accept,
		}
	}
	check := &nftables.Chain{Name: "check", Table: guardOf(nftables.TableFamilyINet)}
	input := base(nftables.TableFamilyINet, *nftables.ChainPriorityFilter-1)
	bridged := base(nftables.TableFamilyBridge, beforeFilter)
	rule := func(c *nftables.Chain, what string, parts ...[]expr.Any) *nftables.Rule {
		comment := fmt.Sprintf("weave: %s, port %d", what, port)
		return &nftables.Rule{
			Table: c.Table, Chain: c, Exprs: slices.Concat(parts...),
			UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
		}
	}
	return []chain{
		{check, []*nftables.Rule{
			rule(check, "VXLAN from a peer", f.fromPeer(), verdict(expr.VerdictReturn, "")),
			rule(check, "VXLAN from others", verdict(expr.VerdictDrop, "")),
		}},
		{input, []*nftables.Rule{rule(input, "VXLAN", toPort(port), verdict(expr.VerdictJump, check.Name))}},
		{bridged, []*nftables.Rule{rule(bridged, "VXLAN from containers", toPort(port), notByPort(), verdict(expr.VerdictDrop, ""))}},
	}
}

// toPort matches UDP datagrams to a port.
func toPort(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// fromPeer matches packets with the address of a peer.
func (f *Firewall) fromPeer() []expr.Any {
	family, offset, length := byte(unix.NFPROTO_IPV4), uint32(12), uint32(4)
	if f.ours.Is6() {
		family, offset, length = unix.NFPROTO_IPV6, 8, 16
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Lookup{SourceRegister: 1, SetName: peerSet},
	}
}

// notByPort matches frames that came by a port that is not spared.
func notByPort() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: portSet, Invert: true},
	}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}
