package mesh

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/sirupsen/logrus"

	"weave/mesh/fdb"
	"weave/mesh/id"
	"weave/mesh/vxlan"
	"weave/mesh/wire"
)

// fastName is the name of the VXLAN device of a segment; see PortName.
func fastName(key string) string { return fmt.Sprintf("wvx%08x", uint32(SegmentIDOf(key)>>32)) }

// newFast builds the fast path. Where there is a password there is none: VXLAN
// would carry frames in the clear.
func (n *Node) newFast() *vxlan.Switch {
	links := vxlan.NewLinks()
	cfg := vxlan.Config{
		Self: n.cfg.Identity.ID, Local: n.cfg.main(), Port: n.cfg.VXLANPort, MeshPort: n.transport.Port(),
		Off: n.cfg.noFast(), Mesh: sealed{n}, Tunnel: n.tunnel, Changed: n.recheck, Clock: time.Now, Log: n.log,
		Kernel: links, Guard: vxlan.NewFirewall(n.cfg.main(), links), Probes: vxlan.NewSocket(),
	}
	return vxlan.New(cfg)
}

// noFast says why there is no fast path; empty if there is one.
func (c Config) noFast() string {
	switch {
	case len(c.Password) > 0:
		return "a password is set"
	case c.VXLANPort == 0:
		return "it has no port on this host"
	case !c.main().IsValid() || c.main().Zone() != "":
		return "this host has no underlay address that fits"
	}
	return ""
}

// sealed is the mesh as the fast path sees it.
type sealed struct{ n *Node }

// Path implements vxlan.Mesh.
func (s sealed) Path(p id.PeerID) (netip.AddrPort, bool) {
	if link := s.n.transport.Link(p); link != nil {
		return link.Path()
	}
	return netip.AddrPort{}, false
}

// Away implements vxlan.Mesh.
func (s sealed) Away() (away []netip.Addr) {
	for _, p := range s.n.known.list() {
		if _, linked := s.Path(p); linked { // by others too
			continue
		}
		kp, _ := s.n.known.get(p)
		for _, c := range kp.Candidates {
			away = append(away, c.Addr())
		}
	}
	return away
}

// Watch implements vxlan.Mesh.
func (s sealed) Watch(p id.PeerID) {
	if link := s.n.transport.Link(p); link != nil {
		link.Watch()
	}
}

// SendReport implements vxlan.Mesh. One that is lost is followed by others.
func (s sealed) SendReport(p id.PeerID, body []byte) {
	if link := s.n.transport.Link(p); link != nil {
		_ = link.Transmit(wire.KindReport, body)
	}
}

// setMembers tells both paths who is on a segment of ours. The caller holds mu.
func (n *Node) setMembers(key string) {
	peers := n.index.members(key, n.cfg.Identity.ID)
	n.tunnel.SetMembers(key, peers)
	members := make([]vxlan.Member, 0, len(peers))
	for _, p := range peers {
		rec, _ := n.index.use(key, p)
		members = append(members, vxlan.Member{Peer: p, VNI: rec.VNI, Ready: rec.VXLAN})
	}
	n.fast.SetMembers(key, members)
}

// setEndpoint tells both paths of an endpoint. The caller holds mu.
func (n *Node) setEndpoint(e *OwnedEndpoint) {
	n.tunnel.SetEndpoint(e.Segment, e.tunnel())
	n.fast.SetEndpoint(e.Segment, fdb.Endpoint{At: n.place(e.Owner), ID: e.ID, MAC: e.MAC, IPs: e.Addrs})
}

// removeEndpoint is the reverse of setEndpoint.
func (n *Node) removeEndpoint(e *OwnedEndpoint) {
	n.tunnel.RemoveEndpoint(e.Segment, e.Owner, e.ID)
	n.fast.RemoveEndpoint(e.Segment, n.place(e.Owner), e.ID)
}

func (n *Node) place(p id.PeerID) fdb.Place {
	if p == n.cfg.Identity.ID {
		return fdb.Here()
	}
	return fdb.At(p)
}

// settleVNI returns the number that a segment is to have if this host claims
// one that an earlier run left in the kernel, or none if that is 0. The caller
// holds mu.
func (n *Node) settleVNI(key string, found uint32) uint32 {
	self := n.cfg.Identity.ID
	n.index.vnis.Set(self, key, found)
	defer n.index.vnis.Set(self, key, 0)
	return n.index.vnis.Settle(key)
}

// recheck has tend compare what we publish of our segments with what is.
func (n *Node) recheck() {
	select {
	case n.rechecked <- struct{}{}:
	default: // it will anyway
	}
}

// checkSegments publishes what has changed about our segments: the number that
// the hosts agree on, and whether we take VXLAN frames.
func (n *Node) checkSegments() {
	n.publish.Lock()
	defer n.publish.Unlock()
	type change struct {
		key      string
		old, now segmentRecord
	}
	var changes []change
	n.mu.Lock()
	for key, s := range n.segments {
		old, published := n.index.use(key, n.cfg.Identity.ID)
		now := segmentRecord{MTU: s.mtu, VNI: n.index.vnis.Settle(key)}
		now.VXLAN = now.VNI == old.VNI && n.fast.Ready(key)
		if published && now != old {
			changes = append(changes, change{key, old, now})
		}
	}
	n.mu.Unlock()
	for _, c := range changes {
		log := n.log.WithFields(logrus.Fields{"segment": c.key, "vni": c.now.VNI})
		if c.now.VNI != c.old.VNI {
			log.WithField("old", c.old.VNI).Warn("segment changes its VNI: two that were made apart met")
			n.fast.SetVNI(c.key, c.now.VNI)
		}
		if err := n.set(kindSegment, c.key, recordValue(c.now)); err != nil {
			log.WithError(err).Error("segment not published as it is: others may send frames where we do not listen")
		}
	}
}
