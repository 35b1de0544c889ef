package mesh

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"weave/mesh/id"
)

// NAT is what stands between this host and its peers, by the addresses at which
// they see it. The mapping is what can be told of it that way (RFC 4787, 4.1), not
// whom it lets in.
type NAT string

// Kinds of NAT.
const (
	NATUnknown   NAT = ""          // nobody has told yet
	NATNone      NAT = "none"      // all see our own address
	NATCone      NAT = "cone"      // one outside address for all: endpoint-independent mapping
	NATSymmetric NAT = "symmetric" // another port for each: address-dependent mapping
)

// maxOutside bounds the outside addresses that are told to others.
const maxOutside = 4

// behind tells what stands between us and those that see us so, and the outside
// addresses at which others may try: none of a NAT that has another port for each,
// since they would find it closed.
func behind(own, seen []netip.AddrPort) (kind NAT, outside []netip.AddrPort) {
	ports := map[netip.Addr][]uint16{}
	for _, a := range seen {
		if kind == NATUnknown {
			kind = NATNone
		}
		if !slices.Contains(own, a) {
			ports[a.Addr()] = append(ports[a.Addr()], a.Port())
		}
	}
	for ip, p := range ports {
		slices.Sort(p)
		if p = slices.Compact(p); len(p) > 1 {
			kind = NATSymmetric
			continue
		}
		a := netip.AddrPortFrom(ip, p[0])
		if kind != NATSymmetric && !isTemporary(own, a) {
			kind = NATCone
		}
		outside = append(outside, a)
	}
	slices.SortFunc(outside, netip.AddrPort.Compare)
	return kind, outside[:min(len(outside), maxOutside)]
}

// isTemporary tells whether an address is one that our kernel talks from instead of an
// advertised one, as with IPv6 privacy extensions (RFC 8981): of the same /64, which a
// NAT would change. Others may try it all the same: firewalls know us by it.
func isTemporary(own []netip.AddrPort, a netip.AddrPort) bool {
	return slices.ContainsFunc(own, func(o netip.AddrPort) bool {
		return a.Port() == o.Port() && netip.PrefixFrom(a.Addr(), 64).Masked().Contains(o.Addr())
	})
}

// NAT tells what stands between this host and its peers.
func (n *Node) NAT() NAT {
	kind, _ := behind(n.ownAddresses(), n.transport.Seen())
	return kind
}

// kindHost is a record of what its owner knows of its own host. There is one, by
// the key hostKey.
const (
	kindHost = "host"
	hostKey  = "self"
)

type hostRecord struct {
	NAT NAT `json:"nat,omitempty"`
}

// decodeHost reads what another host tells. A kind of NAT of a later version is
// unknown.
func decodeHost(value []byte) (hostRecord, error) {
	var h hostRecord
	if err := json.Unmarshal(value, &h); err != nil {
		return hostRecord{}, fmt.Errorf("record of a host: %w", err)
	}
	switch h.NAT {
	case NATNone, NATCone, NATSymmetric:
	default:
		h.NAT = NATUnknown
	}
	return h, nil
}

// setHost takes in what a peer tells of its host; a nil value is nothing.
func (x *index) setHost(owner id.PeerID, key string, value []byte) error {
	if key != hostKey {
		return nil // of a later version
	}
	delete(x.hosts, owner)
	if value == nil {
		return nil
	}
	h, err := decodeHost(value)
	if err == nil && h != (hostRecord{}) {
		x.hosts[owner] = h
	}
	return err
}

func (n *Node) publishHost(h hostRecord) {
	n.publish.Lock()
	defer n.publish.Unlock()
	if err := n.set(kindHost, hostKey, recordValue(h)); err != nil {
		n.log.WithError(err).Warn("the kind of NAT is not published: other hosts do not show it")
	}
}
