package host

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Exposed is an address of the host on a bridge, and what it is for.
type Exposed struct {
	Bridge string
	MAC    net.HardwareAddr // of the bridge
	Addr   netip.Prefix     // with the length of its subnet
	// Masquerade lets the containers of the subnet out by the host's addresses.
	Masquerade bool
	Exports    []Forward // from the host's addresses to containers
	Imports    []Forward // from Addr to what the host reaches
}

// Forward sends on what comes to a port.
type Forward struct {
	Protocol string         `json:"protocol"` // tcp or udp
	Port     uint16         `json:"port"`
	To       netip.AddrPort `json:"to"`
}

// routes tells whether packets of others go through the host.
func (x Exposed) routes() bool { return x.Masquerade || len(x.Exports)+len(x.Imports) > 0 }

// Forwards tells whether the host forwards packets of the family of an address.
func (k *Kernel) Forwards(addr netip.Addr) (bool, error) {
	path := "/proc/sys/net/ipv4/ip_forward"
	if addr.Is6() {
		path = "/proc/sys/net/ipv6/conf/all/forwarding"
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("does this host forward packets: %w", err)
	}
	return strings.TrimSpace(string(raw)) != "0", nil
}

// What comes by an exposed bridge, and what goes there, meets a table of ours, "ip
// weave" or "ip6 weave", which for 192.168.0.1/24 on wv0000000a is
//
//	chain prerouting { type filter hook prerouting priority mangle;
//	  iifname "wv0000000a" ip saddr 192.168.0.0/24 ip daddr 192.168.0.1 accept
//	  iifname "wv0000000a" ip saddr 192.168.0.0/24 fib daddr type unicast accept  # masquerade
//	  iifname "wv0000000a" fib daddr type local drop
//	  iifname "wv0000000a" ether daddr 06:… drop
//	}
//	chain input { type filter hook input priority filter - 1;
//	  iifname != "wv0000000a" iifname != "lo" ip daddr 192.168.0.1 drop
//	}
//	chain forward { type filter hook forward priority filter - 1;
//	  iifname "wv0000000a" oifname "wv0000000a" accept  # within the bridge
//	  iifname "wv0000000a" oifname "wv*" drop           # never from segment to segment
//	  oifname "wv0000000a" ct state established,related accept
//	  oifname "wv0000000a" ct status dnat ip daddr … th dport … accept  # each export
//	  oifname "wv0000000a" drop
//	}
//
// and chains for the translation of addresses. So what is sent to 192.168.0.1
// gets to the host, to what is imported, and to the ports that Docker publishes on
// all addresses. A container of another segment has a way to the host by Docker's
// bridge, too: chain input keeps it, like all others, from what is exposed elsewhere.
// Where bridge-nf-call-iptables is on, frames from container to
// container pass through the chains too: they are for other MAC addresses, and
// none of them is for an address of the host, or Docker's rules would lead it
// there. What the tables accept may still be dropped by the rules of the host's
// owner; Docker's own, which drop by default, have our rules before them (see
// accept.go).

const (
	outComment    = "weave: out by the host"
	exportComment = "weave: export"
	importComment = "weave: import"
)

// mangle is the priority of that name: before addresses are translated.
const mangle = nftables.ChainPriority(-150)

func (f family) table() *nftables.Table { return &nftables.Table{Name: tableName, Family: f.nft} }

// of returns those of a family, in order.
func (f family) of(exposed []Exposed) []Exposed {
	v6 := f.nft == nftables.TableFamilyIPv6
	return slices.DeleteFunc(inOrder(exposed), func(x Exposed) bool { return is6(x.Addr) != v6 })
}

// inOrder returns the same list whatever order it comes in, so that rules can be
// compared.
func inOrder(exposed []Exposed) []Exposed {
	return slices.SortedFunc(slices.Values(exposed), func(a, b Exposed) int {
		return cmp.Or(strings.Compare(a.Bridge, b.Bridge), a.Addr.Addr().Compare(b.Addr.Addr()))
	})
}

// hostBridge is a bridge with addresses of the host.
type hostBridge struct {
	name   string
	mac    net.HardwareAddr
	v4, v6 bool // the families of its addresses
}

// bridges lists those with exposed addresses, which are in order.
func bridges(exposed []Exposed) (all []hostBridge) {
	for _, x := range exposed {
		i := slices.IndexFunc(all, func(b hostBridge) bool { return b.name == x.Bridge })
		if i < 0 {
			i, all = len(all), append(all, hostBridge{name: x.Bridge, mac: x.MAC})
		}
		all[i].v4, all[i].v6 = all[i].v4 || !is6(x.Addr), all[i].v6 || is6(x.Addr)
	}
	return all
}

// forHost match the frames that the host gets of a bridge: of the families of its
// addresses, those to its MAC address, and those by which neighbours ask for that,
// or tell theirs.
func (b hostBridge) forHost() (all [][]expr.Any) {
	if b.v4 {
		all = append(all, isEtherType(unix.ETH_P_ARP), append(isEtherType(unix.ETH_P_IP), toMAC(b.mac)...))
	}
	if b.v6 {
		is6 := isEtherType(unix.ETH_P_IPV6)
		all = append(all, slices.Concat(is6, isNeighbourDiscovery()), slices.Concat(is6, toMAC(b.mac)))
	}
	return all
}

// hostTable is the table of a family; exposed are the addresses of that family.
func (f family) hostTable(exposed []Exposed) *ruleset {
	r := newRuleset(f.nft)
	addPrerouting(r, exposed)
	addInput(r, exposed)
	addForward(r, exposed)
	addTranslation(r, exposed)
	return r
}

func addPrerouting(r *ruleset, exposed []Exposed) {
	c := r.chain("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, mangle)
	accept, drop := verdict(expr.VerdictAccept), verdict(expr.VerdictDrop)
	for _, x := range exposed {
		r.add(c, "weave: to "+x.Addr.String(), byBridge(x), srcIn(x.Addr), dstIs(x.Addr.Addr()), accept)
		if x.Masquerade {
			r.add(c, outComment, byBridge(x), srcIn(x.Addr), dstElsewhere(), accept)
		}
	}
	for _, b := range bridges(exposed) {
		from := isLink(expr.MetaKeyIIFNAME, b.name)
		if b.v6 {
			r.add(c, "weave: neighbour discovery", from, isNeighbourDiscovery(), accept)
		}
		r.add(c, "weave: to other addresses of the host", from, dstLocal(), drop)
		r.add(c, "weave: to others by the host", from, toMAC(b.mac), drop)
	}
}

// addInput leaves an address to those who come by its bridge, and to the host. It
// stands behind the routing, where bridge-nf shows no frames that only pass by.
func addInput(r *ruleset, exposed []Exposed) {
	c := r.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter-1)
	for _, x := range exposed {
		r.add(c, "weave: to "+x.Addr.String()+" by another way", isNotLink(expr.MetaKeyIIFNAME, x.Bridge), isNotLink(expr.MetaKeyIIFNAME, "lo"),
			dstIs(x.Addr.Addr()), verdict(expr.VerdictDrop))
	}
}

func addForward(r *ruleset, exposed []Exposed) {
	c := r.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter-1)
	accept, drop := verdict(expr.VerdictAccept), verdict(expr.VerdictDrop)
	for _, b := range bridges(exposed) {
		from, to := isLink(expr.MetaKeyIIFNAME, b.name), isLink(expr.MetaKeyOIFNAME, b.name)
		r.add(c, "weave: within a bridge", from, to, accept)
		r.add(c, "weave: between segments", from, ifName(expr.MetaKeyOIFNAME), drop)
		r.add(c, "weave: answers", to, isAnswer(), accept)
		for _, x := range exposed {
			for _, e := range x.Exports {
				if x.Bridge == b.name {
					r.add(c, exportComment, to, isRedirected(), dstIs(e.To.Addr()), toPort(e.Protocol, e.To.Port()), accept)
				}
			}
		}
		r.add(c, "weave: to a bridge", to, drop)
	}
}

// addTranslation adds the chains that translate addresses. An export's client
// gets the host's address on the segment, for the container would answer
// it by another way; so does an import's, for the segment is known to this host
// alone.
func addTranslation(r *ruleset, exposed []Exposed) {
	if !slices.ContainsFunc(exposed, Exposed.routes) {
		return
	}
	pre := r.chain("dnat", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest)
	out := r.chain("dnat-output", nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest)
	post := r.chain("snat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
	leaves, local := notByBridge(expr.MetaKeyOIFNAME), dstLocal()
	for _, x := range exposed {
		for _, e := range x.Exports {
			to := redirect(e.To)
			r.add(pre, exportComment, notByBridge(expr.MetaKeyIIFNAME), local, toPort(e.Protocol, e.Port), to)
			r.add(out, exportComment, local, notLoopback(x.Addr.Addr()), toPort(e.Protocol, e.Port), to)
			r.add(post, exportComment, isLink(expr.MetaKeyOIFNAME, x.Bridge), isRedirected(),
				dstIs(e.To.Addr()), toPort(e.Protocol, e.To.Port()), source(x.Addr.Addr()))
		}
		for _, i := range x.Imports {
			r.add(pre, importComment, byBridge(x), srcIn(x.Addr), dstIs(x.Addr.Addr()), toPort(i.Protocol, i.Port), redirect(i.To))
			r.add(post, importComment, leaves, isRedirected(), srcIn(x.Addr), dstIs(i.To.Addr()), toPort(i.Protocol, i.To.Port()), masquerade())
		}
		if x.Masquerade {
			r.add(post, outComment, leaves, srcIn(x.Addr), masquerade())
		}
	}
}

// through are the rules by which Docker's chains let pass what our own table
// does.
func through(exposed []Exposed) (all []accept) {
	for _, b := range bridges(slices.DeleteFunc(inOrder(exposed), func(x Exposed) bool { return !x.routes() })) {
		all = append(all,
			accept{throughComment + "from " + b.name, isLink(expr.MetaKeyIIFNAME, b.name)},
			accept{throughComment + "to " + b.name, isLink(expr.MetaKeyOIFNAME, b.name)})
	}
	return all
}

func protocol(name string) byte {
	if name == "udp" {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}
