package netlab

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	maxHost = 250
	gateway = 254 // number of the bridge's own address
	bits4   = 24
	bits6   = 64
)

var bridgeMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0xfe}

// Network is one wire: a bridge that the uplinks of hosts are plugged into, with
// the addresses 10.99.N.0/24 and fd99:0:0:N::/64. N is 0 for the network of a
// Lab, and the Router's choice for one behind it. Its methods may be called
// concurrently, but for what ends a host while others use it.
type Network struct {
	lab   string // its name
	space string // the namespace that has the bridge
	names string // what the names of its hosts begin with
	index int    // N

	mu     sync.Mutex
	hosts  map[*Host]bool       // guarded by mu
	routes map[netip.Prefix]way // guarded by mu
	cuts   map[cut]bool         // guarded by mu
}

// way is how all hosts but the router itself get to a network behind it.
type way struct {
	router *Host
	via    netip.Addr
}

func newNetwork(lab, space, names string, index int) *Network {
	return &Network{
		lab: lab, space: space, names: names, index: index,
		hosts: map[*Host]bool{}, routes: map[netip.Prefix]way{}, cuts: map[cut]bool{},
	}
}

// AddHost makes host number n (1 to 250) with its uplink, addresses 10.99.N.n and
// fd99:0:0:N::n and a default route.
func (n *Network) AddHost(number int) (*Host, error) { return n.addHost(number, 0) }

// addHost makes a host, or with an inside other than 0 what becomes a router.
func (n *Network) addHost(number, inside int) (*Host, error) {
	if number < 1 || number > maxHost {
		return nil, fmt.Errorf("lab %s: host number %d is not in 1..%d", n.lab, number, maxHost)
	}
	h := &Host{net: n, name: fmt.Sprintf("%s%d", n.names, number), port: fmt.Sprintf("h%d", number)}
	h.ip4, h.ip6 = n.address(number)
	if inside != 0 {
		h.inside = newNetwork(n.lab, h.Namespace(), h.name+"-", inside)
	}
	if err := addNamespace(h.Namespace()); err != nil {
		return nil, fmt.Errorf("host %s: %w", h.name, err)
	}
	if err := h.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("host %s: %w", h.name, err), n.RemoveHost(h))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[h] = true
	if err := h.addWays(); err != nil {
		return nil, fmt.Errorf("host %s: %w", h.name, err)
	}
	return h, nil
}

// RemoveHost deletes the host's uplink and namespace, and the namespaces of hosts
// behind it if it is a router; its number is free again. Processes that still run
// in a namespace keep it alive without a name.
func (n *Network) RemoveHost(h *Host) error {
	behind, err := filepath.Glob(h.NamespacePath() + "-*")
	errs := []error{err, h.onPort(netlink.LinkDel), h.forgetCable(), n.forget(h)}
	for _, path := range append(behind, h.NamespacePath()) {
		errs = append(errs, deleteNamespace(filepath.Base(path)))
	}
	return errors.Join(errs...)
}

// forget drops what is kept of a host.
func (n *Network) forget(h *Host) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.hosts, h)
	var errs []error
	for to, w := range n.routes {
		if w.router == h {
			errs = append(errs, n.concealLocked(to))
		}
	}
	before := len(n.cuts)
	maps.DeleteFunc(n.cuts, func(c cut, _ bool) bool { return c.from == h || c.to == h })
	if len(n.cuts) < before {
		errs = append(errs, n.writeCuts())
	}
	return errors.Join(errs...)
}

// publish tells all hosts, those to come as well, the way to a network behind
// one of them.
func (n *Network) publish(to netip.Prefix, w way) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.routes[to] = w
	var errs []error
	for h := range n.hosts {
		errs = append(errs, h.addWays())
	}
	return errors.Join(errs...)
}

// conceal takes back what publish did for the router.
func (n *Network) conceal(to netip.Prefix, router *Host) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.routes[to].router != router {
		return nil
	}
	return n.concealLocked(to)
}

func (n *Network) concealLocked(to netip.Prefix) error {
	delete(n.routes, to)
	var errs []error
	for h := range n.hosts {
		errs = append(errs, h.deleteWay(to))
	}
	return errors.Join(errs...)
}

// address returns those of a host, or the gateway.
func (n *Network) address(number int) (ip4, ip6 netip.Addr) {
	return netip.AddrFrom4([4]byte{10, 99, byte(n.index), byte(number)}),
		netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x99, 7: byte(n.index), 15: byte(number)})
}

// prefixes returns those of all its addresses.
func (n *Network) prefixes() []netip.Prefix {
	ip4, ip6 := n.address(0)
	return []netip.Prefix{netip.PrefixFrom(ip4, bits4), netip.PrefixFrom(ip6, bits6)}
}

// setUp makes the bridge, in the namespace of the calling thread.
func (n *Network) setUp() error {
	for _, family := range []string{"ip", "ip6"} {
		// Frames between hosts pass this bridge unfiltered, like a switch.
		if err := writeSysctl("net/bridge/bridge-nf-call-"+family+"tables", "0"); err != nil {
			return err
		}
	}
	// An address of its own: one of the ports' would change as hosts come and go,
	// and hosts would go on sending to the old one.
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge, MTU: mtu, HardwareAddr: bridgeMAC}}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	ip4, ip6 := n.address(gateway)
	return bringUp(bridge, ip4, ip6)
}

// bringUp sets the link and loopback up and adds the addresses.
func bringUp(name string, addrs ...netip.Addr) error {
	// Nobody has its addresses: the link is ready without a second or two in which
	// the kernel looks for duplicates.
	if err := writeSysctl("net/ipv6/conf/"+name+"/accept_dad", "0"); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	for _, addr := range addrs {
		if err := netlink.AddrAdd(link, parsed(addr)); err != nil {
			return fmt.Errorf("add address %s: %w", addr, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("link lo: %w", err)
	}
	return errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(link))
}

// parsed is an address as netlink has it, with its network's prefix.
func parsed(addr netip.Addr) *netlink.Addr {
	if addr.Is4() {
		return &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, bits4))}
	}
	return &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, bits6)), Flags: unix.IFA_F_NODAD}
}

// ipNet does not clear the bits of the host.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
