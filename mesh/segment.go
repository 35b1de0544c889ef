package mesh

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"weave/mesh/tap"
	"weave/mesh/tunnel"
	"weave/mesh/vxlan"
	"weave/mesh/wire"
)

// segment is one segment this host is on.
type segment struct {
	key  string
	id   wire.SegmentID
	mtu  int
	vni  uint32 // when it was joined
	link string
}

// SegmentIDOf returns the wire's number for a segment key.
func SegmentIDOf(key string) wire.SegmentID {
	sum := sha256.Sum256([]byte(key))
	return wire.SegmentID(binary.BigEndian.Uint64(sum[:]))
}

// PortName is the name of the TAP by which this host's bridge of a segment
// reaches the mesh.
func PortName(key string) string { return fmt.Sprintf("wvt%08x", uint32(SegmentIDOf(key)>>32)) }

// JoinSegment puts this host on a segment. It returns the link to plug into
// the segment's bridge and the MTU of the segment: the one its other hosts use
// if there are any, else the one wanted. Joining twice is harmless. After an
// error this host is not on the segment.
func (n *Node) JoinSegment(key string, wantMTU int) (link string, mtu int, err error) {
	n.publish.Lock()
	defer n.publish.Unlock()
	found := n.fast.Found(fastName(key))
	n.mu.Lock()
	s, joined := n.segments[key]
	if !joined {
		s = &segment{key: key, id: SegmentIDOf(key), link: PortName(key), mtu: wantMTU, vni: n.settleVNI(key, found)}
		if others := n.index.mtu(key, n.cfg.Identity.ID); others != 0 {
			s.mtu = others
		}
	}
	n.mu.Unlock()
	if joined {
		return s.link, s.mtu, nil
	}
	ready, err := n.enter(s)
	if err != nil {
		return "", 0, fmt.Errorf("join segment %s: %w", key, err)
	}
	if err := n.set(kindSegment, key, recordValue(segmentRecord{MTU: s.mtu, VNI: s.vni, VXLAN: ready})); err != nil {
		return "", 0, fmt.Errorf("join segment %s: %w", key, errors.Join(err, n.leave(key)))
	}
	return s.link, s.mtu, nil
}

// enter opens a segment's TAP and has the tunnel and the fast path serve it. It
// tells whether the latter does already. The caller holds publish.
func (n *Node) enter(s *segment) (ready bool, err error) {
	if s.mtu < tunnel.MinMTU || s.mtu > tunnel.MaxMTU {
		return false, fmt.Errorf("%w: %d, want %d to %d", tunnel.ErrMTU, s.mtu, tunnel.MinMTU, tunnel.MaxMTU)
	}
	dev, err := tap.Open(tap.Options{Name: s.link, MTU: s.mtu, Queues: queues(runtime.GOMAXPROCS(0))})
	if err != nil {
		return false, err
	}
	// The tunnel takes no segment only when it has ended: the link stays for
	// the next run.
	if err := n.tunnel.AddSegment(tunnel.Segment{ID: s.id, Key: s.key, MTU: s.mtu, Device: dev}); err != nil {
		return false, errors.Join(err, dev.Close())
	}
	ready = n.fast.AddSegment(vxlan.Segment{Key: s.key, VNI: s.vni, MTU: s.mtu, Link: fastName(s.key), TAP: s.link})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.segments[s.key] = s
	n.setMembers(s.key)
	if known := n.index.segments[s.key]; known != nil {
		for _, e := range known.endpoints {
			n.setEndpoint(e)
		}
	}
	return ready, nil
}

// queues is into how many queues frames for the mesh go, and so how many of them
// are sealed at once. Two CPUs are busy with one, as the other works for the
// containers; with more, half of them seal. Past four there is nothing to gain:
// a peer opens all in one goroutine.
func queues(cpus int) int { return min(max(cpus/2, 1), 4) }

// LeaveSegment takes this host off a segment and deletes its links, also those
// that an earlier run left. After an error it can be repeated; this host is
// off the segment all the same.
func (n *Node) LeaveSegment(key string) error {
	n.publish.Lock()
	defer n.publish.Unlock()
	n.remove(kindSegment, key)
	if err := n.leave(key); err != nil {
		return fmt.Errorf("leave segment %s: %w", key, err)
	}
	return nil
}

// leave is the reverse of enter. The caller holds publish.
func (n *Node) leave(key string) error {
	link := PortName(key)
	n.mu.Lock()
	delete(n.segments, key)
	for _, other := range n.segments {
		if other.link == link { // names are short: it has always been the other's
			link = ""
		}
	}
	n.mu.Unlock()
	err := n.tunnel.RemoveSegment(key)
	if link != "" {
		err = errors.Join(err, n.fast.RemoveSegment(key, fastName(key)), tap.Remove(link))
	}
	return err
}

// Announce publishes an endpoint of this host, or what changed of it.
func (n *Node) Announce(e Endpoint) error {
	value, err := e.encode()
	if err != nil {
		return fmt.Errorf("announce endpoint %s: %w", e.ID, err)
	}
	n.publish.Lock()
	defer n.publish.Unlock()
	n.mu.Lock()
	_, joined := n.segments[e.Segment]
	n.mu.Unlock()
	if !joined {
		return fmt.Errorf("announce endpoint %s on %s: %w", e.ID, e.Segment, ErrNoSegment)
	}
	if err := n.set(kindEndpoint, e.ID, value); err != nil {
		return fmt.Errorf("announce endpoint %s: %w", e.ID, err)
	}
	return nil
}

// Withdraw takes back what Announce published. An unknown ID is harmless.
func (n *Node) Withdraw(endpointID string) {
	n.publish.Lock()
	defer n.publish.Unlock()
	n.remove(kindEndpoint, endpointID)
}

// Holder returns the endpoint of another host that announced an address on a
// segment.
func (n *Node) Holder(segment string, addr netip.Addr) (OwnedEndpoint, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.index.holder(segment, addr.Unmap(), n.cfg.Identity.ID)
}

// Endpoints lists what all hosts announced, in the order of hosts and IDs.
func (n *Node) Endpoints() []OwnedEndpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.index.all()
}
