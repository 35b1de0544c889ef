package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Router is a host that has a Network of its own behind it, and passes packets
// on between that and its uplink. To the Network it is the gateway, with number
// 254. Its methods may be called concurrently.
type Router struct {
	*Host
	Inside *Network

	mu       sync.Mutex
	nat      NAT                // guarded by mu
	forwards map[forward]target // guarded by mu
	path     int                // guarded by mu: the MTU of SetMTU
}

// AddRouter makes host number n a router, with network number inside (1 to 250)
// behind it. Two routers may have networks of the same number, as homes have the
// same private addresses: those are only good behind a NAT, each. The router
// begins as Routed, and the hosts of the network around it know the way in; those
// further away do not.
func (n *Network) AddRouter(number, inside int) (*Router, error) {
	if inside < 1 || inside > maxHost || inside == n.index {
		return nil, fmt.Errorf("lab %s: network number %d is not in 1..%d, or is that around it", n.lab, inside, maxHost)
	}
	h, err := n.addHost(number, inside)
	if err != nil {
		return nil, err
	}
	r := &Router{
		Host: h, Inside: h.inside,
		forwards: map[forward]target{}, path: mtu,
	}
	err = h.Do(func() error {
		if err := r.Inside.setUp(); err != nil {
			return err
		}
		return errors.Join(
			writeSysctl("net/ipv4/ip_forward", "1"),
			writeSysctl("net/ipv6/conf/all/forwarding", "1"))
	})
	if err == nil {
		err = r.publish()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("router %s: %w", h.name, err), n.RemoveHost(h))
	}
	return r, nil
}

// SetNAT makes the router translate and filter in another way. All mappings are
// dropped.
func (r *Router) SetNAT(n NAT) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nat = n
	if err := errors.Join(r.writeNAT(), r.publish(), r.flush()); err != nil {
		return fmt.Errorf("NAT of %s: %w", r.name, err)
	}
	return nil
}

// forward is a port of the router's outside address.
type forward struct {
	what Protocol
	port uint16
}

// target is where what comes in there goes.
type target struct {
	host *Host
	port uint16
}

// Forward has what comes for a port of the router's outside address, by UDP or
// TCP, go to a port of a host inside, whoever sends it: as an operator sets it
// up. It holds with the kinds of NAT that translate.
func (r *Router) Forward(what Protocol, port uint16, to *Host, toPort uint16) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forwards[forward{what, port}] = target{to, toPort}
	if err := r.writeNAT(); err != nil {
		return fmt.Errorf("forward port %d of %s: %w", port, r.name, err)
	}
	return nil
}

// DropMappings forgets who talks to whom, as a NAT does that is switched off and
// on again. Forwarded ports stay.
func (r *Router) DropMappings() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := errors.Join(r.writeNAT(), r.flush()); err != nil {
		return fmt.Errorf("drop mappings of %s: %w", r.name, err)
	}
	return nil
}

// Renumber gives the router the outside addresses of another number, as a
// provider does: see Host.Renumber. Mappings end with the addresses.
func (r *Router) Renumber(number int) error {
	if err := r.Host.Renumber(number); err != nil {
		return err
	}
	r.mu.Lock()
	err := errors.Join(r.publish(), r.writePath())
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("renumber %s: %w", r.name, err)
	}
	return r.DropMappings()
}

// SetMTU makes packets longer than mtu not pass the router, either way, though
// all links have 1500. If tell, their senders hear of it as usual, by ICMP;
// otherwise the packets vanish in a black hole. Those of IPv4 without DF go on in
// fragments. Kernels remember for ten minutes what they have been told.
func (r *Router) SetMTU(mtu int, tell bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.path = mtu
	err := errors.Join(r.writePath(), r.Do(func() error {
		if tell {
			return writeTable(nftables.TableFamilyINet, hushTable, nil)
		}
		return writeTable(nftables.TableFamilyINet, hushTable, func(t *table) {
			output := t.chain("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, 0, "")
			t.add(output, protocol(unix.IPPROTO_ICMP), transport(0, []byte{3, 4}), drop())
			t.add(output, protocol(unix.IPPROTO_ICMPV6), transport(0, []byte{2}), drop())
		})
	}))
	if err != nil {
		return fmt.Errorf("MTU of %s: %w", r.name, err)
	}
	return nil
}

const hushTable = "hush"

// writePath sets the MTU of all routes, which then is that of what they pass on;
// under r.mu.
func (r *Router) writePath() error {
	return r.Do(func() error {
		for _, name := range []string{uplink, bridge} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)
			if err != nil {
				return fmt.Errorf("routes of %s: %w", name, err)
			}
			for _, route := range routes {
				if ip := route.Dst; ip != nil && (ip.IP.IsLinkLocalUnicast() || ip.IP.IsMulticast()) {
					continue
				}
				route.MTU = r.path
				if err := netlink.RouteReplace(&route); err != nil {
					return fmt.Errorf("route %s: %w", route.Dst, err)
				}
			}
		}
		return nil
	})
}

// publish has the network around know the way in, where addresses are not
// translated; under r.mu.
func (r *Router) publish() error {
	vias, kinds := []netip.Addr{r.IP4(), r.IP6()}, []NATKind{r.nat.IPv4, r.nat.IPv6}
	var errs []error
	for i, to := range r.Inside.prefixes() {
		if kinds[i].translates() {
			errs = append(errs, r.net.conceal(to, r.Host))
		} else {
			errs = append(errs, r.net.publish(to, way{r.Host, vias[i]}))
		}
	}
	return errors.Join(errs...)
}

// flush ends what the kernel holds of connections; under r.mu.
func (r *Router) flush() error {
	return r.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// writeNAT writes the tables anew, without what they learned; under r.mu.
func (r *Router) writeNAT() error {
	return r.Do(func() error {
		seconds := fmt.Sprint(int64(max(r.nat.timeout(), time.Second) / time.Second))
		return errors.Join(
			r.writeFamily(family4, r.nat.IPv4),
			r.writeFamily(family6, r.nat.IPv6),
			writeSysctl("net/netfilter/nf_conntrack_udp_timeout", seconds),
			writeSysctl("net/netfilter/nf_conntrack_udp_timeout_stream", seconds))
	})
}

func (r *Router) writeFamily(f family, kind NATKind) error {
	if kind == Routed {
		return writeTable(f.nft, natTable, nil)
	}
	return writeTable(f.nft, natTable, func(t *table) {
		fillFilter(t, f)
		if kind.translates() {
			(&translation{t, f, kind, r.nat.timeout(), f.of(r.Host)}).fill(r.forwardElements(f))
		}
	})
}

func (r *Router) forwardElements(f family) (elements []nftables.SetElement) {
	for from, to := range r.forwards {
		elements = append(elements, nftables.SetElement{
			Key: append([]byte{byte(from.what), 0, 0, 0}, pad(port16(from.port))...),
			Val: append(f.of(to.host).AsSlice(), pad(port16(to.port))...),
		})
	}
	return elements
}
