package vxlan

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The guard is two tables:
//
//	table ip weave-vxlan { # or ip6
//	  set peers { type ipv4_addr; size 8192; elements = { … } }
//	  chain input { type filter hook input priority filter - 1;
//	    th dport 6784 ip saddr != … ip saddr != @peers meta l4proto udp drop
//	  }
//	}
//	table bridge weave-vxlan {
//	  set ports { type ifname; elements = { … } }
//	  chain input { type filter hook input priority filter - 1;
//	    udp dport 6784 iifname != @ports drop
//	  }
//	}
//
// The first lets only peers in. The second stops containers, where their packets
// leave Docker's bridges for the host: what they send to the VXLAN port of this
// host might bear a peer's address, and what they send to another host's would
// be masqueraded and look like ours. Only if the underlay is itself behind a
// bridge of this host, its ports are spared. Frames of our segments meet neither
// table, and VXLAN's own packets only the first: one rule, since each of them pays
// for it. So the rule says udp dport 6784 ip saddr != @peers in the order that
// costs least, and names a few peers itself, which is cheaper than to look into
// the set. That has a size because the kernel's table of fixed size is faster.
const (
	guardTable = "weave-vxlan"
	peerSet    = "peers"
	portSet    = "ports"

	maxAllowed = 8192 // twice what the mesh takes as peers
	maxNear    = 4    // whose packets are the cheaper, all others' the dearer
)

// Firewall is the guard by nftables, in the network namespace of the thread that
// makes the first call, after New or Close. One goroutine at a time may use it.
type Firewall struct {
	ours  netip.Addr
	links *Links
	conn  *nftables.Conn
	// inOrder is how Ensure last found all as it should be; nil if it did not.
	inOrder *found
	// near are the peers that the rule names, and port is that of the rules, as
	// far as we changed them.
	near []netip.Addr
	port uint16
}

// found is what was found of the guard, and the generation of the packet filter's
// rules, whosever they are: while that is the same, so is the guard.
type found struct {
	generation uint32
	port       uint16
	names      []string
	allowed    []netip.Addr
}

// NewFirewall returns a Firewall for a host with that underlay address, and
// peers with addresses of the same family; it touches nothing yet. It shares the
// Links.
func NewFirewall(ours netip.Addr, links *Links) *Firewall {
	return &Firewall{ours: ours, links: links}
}

// Close gives the socket back. Later calls open another.
func (f *Firewall) Close() error {
	conn := f.conn
	f.inOrder = nil
	if f.conn = nil; conn == nil {
		return nil
	}
	return conn.CloseLasting()
}

// do runs g on the open connection. One that failed may have answers left that
// nobody asked for, so it is not used again.
func (f *Firewall) do(what string, g func(c *nftables.Conn) error) error {
	if f.conn == nil {
		c, err := nftables.New(nftables.AsLasting())
		if err != nil {
			return fmt.Errorf("guard of VXLAN: open nftables: %w", err)
		}
		f.conn = c
	}
	if err := g(f.conn); err != nil {
		return fmt.Errorf("guard of VXLAN: %s: %w", what, errors.Join(err, f.Close()))
	}
	return nil
}

func guardOf(family nftables.TableFamily) *nftables.Table {
	return &nftables.Table{Name: guardTable, Family: family}
}

// family is that of the underlay: a VXLAN device listens on no other.
func (f *Firewall) family() nftables.TableFamily {
	if f.ours.Is6() {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

func (f *Firewall) peers() *nftables.Set {
	set := &nftables.Set{Table: guardOf(f.family()), Name: peerSet, KeyType: nftables.TypeIPAddr, Size: maxAllowed}
	if f.ours.Is6() {
		set.KeyType = nftables.TypeIP6Addr
	}
	return set
}

func ports() *nftables.Set {
	return &nftables.Set{Table: guardOf(nftables.TableFamilyBridge), Name: portSet, KeyType: nftables.TypeIFName}
}

// Ensure implements Guard. It tries more than once, since others change their
// tables meanwhile, and looks again at what it has set up.
func (f *Firewall) Ensure(port uint16) (allowed []netip.Addr, err error) {
	for range 3 {
		if allowed, err = f.ensure(port); err == nil && f.inOrder != nil {
			break
		}
	}
	return allowed, err
}

func (f *Firewall) ensure(port uint16) (allowed []netip.Addr, err error) {
	names, err := f.links.portsOf(f.ours)
	var generation uint32
	if err == nil {
		generation, err = f.links.generation()
	}
	was := f.inOrder
	f.inOrder = nil
	if err != nil {
		return nil, fmt.Errorf("guard of VXLAN: %w", err)
	}
	if was != nil && was.generation == generation && was.port == port && slices.Equal(was.names, names) {
		f.inOrder = was
		return slices.Clone(was.allowed), nil
	}
	err = f.do("set up", func(c *nftables.Conn) error {
		keys, there, err := list(c, f.peers())
		for _, k := range keys {
			if a, ok := netip.AddrFromSlice(k); ok {
				allowed = append(allowed, a)
			}
		}
		if err != nil {
			return err
		}
		spared, also, err := list(c, ports())
		if err != nil {
			return err
		}
		slices.SortFunc(allowed, netip.Addr.Compare)
		near := slices.Clone(allowed[:min(len(allowed), maxNear)])
		want := f.chains(port, near)
		if there && also && sameKeys(spared, ifNames(names)) && installed(c, want) {
			f.inOrder = &found{generation, port, names, slices.Clone(allowed)}
		} else if err := f.install(c, want, allowed, names); err != nil {
			return fmt.Errorf("%w: %w", ErrUnguarded, err)
		}
		f.port, f.near = port, near
		return nil
	})
	return allowed, err
}

// Touched implements Guard.
func (f *Firewall) Touched() bool {
	if f.inOrder == nil {
		return false
	}
	generation, err := f.links.generation()
	return err == nil && generation != f.inOrder.generation
}

// install replaces both tables in one transaction.
func (f *Firewall) install(c *nftables.Conn, chains []chain, allowed []netip.Addr, names []string) error {
	for _, family := range []nftables.TableFamily{f.family(), nftables.TableFamilyBridge} {
		c.AddTable(guardOf(family)) // so that deleting it cannot fail
		c.DelTable(guardOf(family))
		c.AddTable(guardOf(family))
	}
	err := errors.Join(c.AddSet(f.peers(), addresses(allowed...)), c.AddSet(ports(), elements(ifNames(names))))
	if err != nil {
		return err
	}
	for _, x := range chains {
		c.AddChain(x.Chain)
	}
	for _, x := range chains {
		for _, r := range x.rules {
			c.AddRule(r)
		}
	}
	return c.Flush()
}

// list reads the keys of a set; false if there is no set of that kind.
func list(c *nftables.Conn, set *nftables.Set) (keys [][]byte, there bool, err error) {
	is, err := c.GetSetByName(set.Table, set.Name)
	if errors.Is(err, unix.ENOENT) || err == nil && is.KeyType.Bytes != set.KeyType.Bytes {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("look for set %s: %w", set.Name, err)
	}
	all, err := c.GetSetElements(set)
	if err != nil {
		return nil, false, fmt.Errorf("list set %s: %w", set.Name, err)
	}
	for _, e := range all {
		keys = append(keys, e.Key)
	}
	return keys, true, nil
}

func sameKeys(a, b [][]byte) bool {
	sort := func(keys [][]byte) [][]byte {
		return slices.SortedFunc(slices.Values(keys), bytes.Compare)
	}
	return slices.EqualFunc(sort(a), sort(b), bytes.Equal)
}

// installed tells whether the chains hold our rules.
func installed(c *nftables.Conn, want []chain) bool {
	same := func(a, b *nftables.Rule) bool {
		return bytes.Equal(a.UserData, b.UserData) && reflect.DeepEqual(a.Exprs, b.Exprs)
	}
	for _, x := range want {
		rules, err := c.GetRules(x.Table, x.Chain)
		if err != nil || !slices.EqualFunc(rules, x.rules, same) {
			return false
		}
	}
	return true
}

// Allow implements Guard.
func (f *Firewall) Allow(a netip.Addr) error {
	return f.do("let in "+a.String(), func(c *nftables.Conn) error {
		if err := c.SetAddElements(f.peers(), addresses(a)); err != nil {
			return err
		}
		return c.Flush()
	})
}

// Deny implements Guard.
func (f *Firewall) Deny(a netip.Addr) error {
	return f.do("shut out "+a.String(), func(c *nftables.Conn) error {
		if i := slices.Index(f.near, a); i >= 0 {
			near := slices.Delete(slices.Clone(f.near), i, i+1)
			input := f.chains(f.port, near)[0]
			c.FlushChain(input.Chain)
			c.AddRule(input.rules[0])
			if err := notThere(c.Flush()); err != nil {
				return err
			}
			f.near = near
		}
		if err := c.SetDeleteElements(f.peers(), addresses(a)); err != nil {
			return err
		}
		return notThere(c.Flush())
	})
}

// Remove implements Guard.
func (f *Firewall) Remove() error {
	f.inOrder = nil
	return f.do("take away", func(c *nftables.Conn) error {
		for _, family := range []nftables.TableFamily{f.family(), nftables.TableFamilyBridge} {
			tables, err := c.ListTablesOfFamily(family)
			if err != nil {
				return notThere(err)
			}
			if slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == guardTable }) {
				c.DelTable(guardOf(family))
			}
		}
		return notThere(c.Flush())
	})
}

// generation returns the number that the kernel gives the rules of all tables
// together; with each change it is another. The nftables package does not ask.
func (l *Links) generation() (n uint32, err error) {
	err = l.do("ask for the generation of", "nftables", func(*netlink.Handle) error {
		req := l.request(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, unix.NLM_F_ACK)
		req.AddData(&nl.Nfgenmsg{Version: unix.NFNETLINK_V0})
		msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if err != nil {
			return err
		}
		if len(msgs) == 0 || len(msgs[0]) < nl.SizeofNfgenmsg {
			return unix.EBADMSG
		}
		attrs, err := nl.ParseRouteAttr(msgs[0][nl.SizeofNfgenmsg:])
		if err != nil {
			return err
		}
		id := find(attrs, unix.NFTA_GEN_ID)
		if len(id) != 4 {
			return unix.EBADMSG
		}
		n = binary.BigEndian.Uint32(id)
		return nil
	})
	return n, err
}

func notThere(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func addresses(addrs ...netip.Addr) []nftables.SetElement {
	var keys [][]byte
	for _, a := range addrs {
		keys = append(keys, a.AsSlice())
	}
	return elements(keys)
}

func elements(keys [][]byte) []nftables.SetElement {
	var out []nftables.SetElement
	for _, k := range keys {
		out = append(out, nftables.SetElement{Key: k})
	}
	return out
}

func ifNames(names []string) (keys [][]byte) {
	for _, name := range names {
		key := make([]byte, unix.IFNAMSIZ)
		copy(key, name)
		keys = append(keys, key)
	}
	return keys
}
