package netlab

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Protocol is what of the traffic between two hosts is cut.
type Protocol uint8

// Protocols by their numbers in IP, and all of them together.
const (
	AllIP Protocol = 0 // ARP and neighbour discovery still pass, as to a router that drops the rest
	TCP   Protocol = unix.IPPROTO_TCP
	UDP   Protocol = unix.IPPROTO_UDP
)

// cut is what does not pass one way between two hosts of a network.
type cut struct {
	from, to *Host
	what     Protocol
}

// cutTable is where the cuts of a network are, as long as there are any:
//
//	table bridge cuts {
//	  set all { type ifname . ifname }                # from . to
//	  set some { type ifname . ifname . inet_proto }
//	  chain forward { type filter hook forward priority 0;
//	    ether type arp accept; icmpv6 type 133-137 accept
//	    iifname . oifname @all drop
//	    iifname . oifname . meta l4proto @some drop
//	  }
//	}
const cutTable = "cuts"

// Link is a pair of hosts that reach each other.
type Link struct{ A, B *Host }

// Line links each host to the next.
func Line(hosts ...*Host) (links []Link) {
	for i := 1; i < len(hosts); i++ {
		links = append(links, Link{hosts[i-1], hosts[i]})
	}
	return links
}

// Ring is a Line whose ends are linked.
func Ring(hosts ...*Host) []Link {
	return append(Line(hosts...), Link{hosts[len(hosts)-1], hosts[0]})
}

// Star links one host to each of the others.
func Star(centre *Host, others ...*Host) (links []Link) {
	for _, h := range others {
		links = append(links, Link{centre, h})
	}
	return links
}

// Full links each host to each other.
func Full(hosts ...*Host) (links []Link) {
	for i, h := range hosts {
		links = append(links, Star(h, hosts[i+1:]...)...)
	}
	return links
}

// Sites links all hosts within each of two sites, and the first of one, its
// gateway, to the first of the other.
func Sites(a, b []*Host) []Link {
	return append(append(Full(a...), Full(b...)...), Link{a[0], b[0]})
}

// CutLink cuts what between two hosts, both ways, silently; it adds to what is
// cut already. It concerns what goes from the port of one to the port of the
// other: for a router, all that is behind it as well.
func (n *Network) CutLink(a, b *Host, what Protocol) error {
	return n.setCuts(func() { n.cuts[cut{a, b, what}], n.cuts[cut{b, a, what}] = true, true })
}

// CutOneWay is CutLink for what one sends to the other.
func (n *Network) CutOneWay(from, to *Host, what Protocol) error {
	return n.setCuts(func() { n.cuts[cut{from, to, what}] = true })
}

// HealLink mends all that is cut between two hosts, either way.
func (n *Network) HealLink(a, b *Host) error {
	return n.setCuts(func() { n.heal(a, b) })
}

// Connect makes exactly the linked ones of the hosts reach each other, whatever
// was cut between them before. Other hosts of the network are not concerned.
func (n *Network) Connect(hosts []*Host, links []Link) error {
	return n.setCuts(func() {
		for _, l := range Full(hosts...) {
			n.cuts[cut{l.A, l.B, AllIP}], n.cuts[cut{l.B, l.A, AllIP}] = true, true
		}
		for _, l := range links {
			n.heal(l.A, l.B)
		}
	})
}

// heal is HealLink under n.mu, without telling the kernel.
func (n *Network) heal(a, b *Host) {
	for _, what := range []Protocol{AllIP, TCP, UDP} {
		delete(n.cuts, cut{a, b, what})
		delete(n.cuts, cut{b, a, what})
	}
}

func (n *Network) setCuts(change func()) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	return n.writeCuts()
}

// writeCuts makes the kernel do what n.cuts says; under n.mu.
func (n *Network) writeCuts() error {
	var all, some []nftables.SetElement
	for c := range n.cuts {
		for _, from := range c.from.sources() {
			key := append(ifName(from), ifName(c.to.onBridge())...)
			if c.what == AllIP {
				all = append(all, nftables.SetElement{Key: key})
			} else {
				some = append(some, nftables.SetElement{Key: append(key, byte(c.what), 0, 0, 0)})
			}
		}
	}
	fill := func(t *table) { fillCuts(t, all, some) }
	if len(n.cuts) == 0 {
		fill = nil
	}
	err := inNamespace(n.space, func() error { return writeTable(nftables.TableFamilyBridge, cutTable, fill) })
	if err != nil {
		return fmt.Errorf("links of %s: %w", n.space, err)
	}
	return nil
}

func fillCuts(t *table, all, some []nftables.SetElement) {
	pair := []nftables.SetDatatype{nftables.TypeIFName, nftables.TypeIFName}
	t.set(&nftables.Set{Name: "all", KeyType: nftables.MustConcatSetType(pair...), Concatenation: true}, all...)
	t.set(&nftables.Set{
		Name: "some", KeyType: nftables.MustConcatSetType(append(pair, nftables.TypeInetProto)...), Concatenation: true,
	}, some...)
	forward := t.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, 0, "")
	t.add(forward, etherType(unix.ETH_P_ARP), accept())
	t.add(forward, neighbours(), accept())
	ports := []expr.Any{ // each name takes four registers of four bytes
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 2},
	}
	t.add(forward, ports, []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: "all"}}, drop())
	t.add(forward, ports, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 3},
		&expr.Lookup{SourceRegister: 1, SetName: "some"},
	}, drop())
}
