package gossip

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// Limits of memberlist's traffic.
const (
	packetSize     = 1200     // bytes of our packets
	packetQueue    = 512      // received and not yet taken by memberlist
	maxStreamBytes = 32 << 20 // read from one stream
)

// placeholderPort completes the addresses that memberlist wants.
const placeholderPort = 1

// placeholder is the address that memberlist knows a member by. Peers are
// reached by ID, so it only has to follow from the ID: then no two members can
// clash, and one that moves to another address stays the same member.
func placeholder(p id.PeerID) netip.AddrPort {
	addr := [16]byte{0xfd} // a unique local address
	copy(addr[1:], p[:])
	return netip.AddrPortFrom(netip.AddrFrom16(addr), placeholderPort)
}

// peerAddr is a peer's address as a net.Addr.
type peerAddr netip.AddrPort

func (peerAddr) Network() string  { return "weave" }
func (a peerAddr) String() string { return netip.AddrPort(a).String() }

// peerTransport carries memberlist's packets and streams between peers, by
// their names. It implements memberlist.NodeAwareTransport.
type peerTransport struct {
	self    id.PeerID
	carrier Carrier
	packets chan *memberlist.Packet
	streams chan net.Conn
	life    *lifetime
}

var errNoName = errors.New("gossip: a peer is reached by name only")

func newPeerTransport(self id.PeerID, carrier Carrier, life *lifetime) *peerTransport {
	return &peerTransport{
		self: self, carrier: carrier, life: life,
		packets: make(chan *memberlist.Packet, packetQueue),
		streams: make(chan net.Conn),
	}
}

// FinalAdvertiseAddr returns our placeholder.
func (t *peerTransport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	addr := placeholder(t.self)
	return addr.Addr().AsSlice(), int(addr.Port()), nil
}

// WriteTo is for peers without a name: memberlist does not call it.
func (t *peerTransport) WriteTo([]byte, string) (time.Time, error) { return time.Time{}, errNoName }

// DialTimeout is for peers without a name: memberlist does not call it.
func (t *peerTransport) DialTimeout(string, time.Duration) (net.Conn, error) { return nil, errNoName }

// WriteToAddress sends a packet to a peer by its name. A carrier's error is
// dressed as one of the network: memberlist takes no other as a sign that the
// peer is away.
func (t *peerTransport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	to, err := id.Parse(a.Name)
	if err != nil {
		return time.Time{}, fmt.Errorf("send gossip: %w", err)
	}
	if err := t.carrier.Send(to, wire.KindGossip, b); err != nil {
		return time.Time{}, &net.OpError{Op: "write", Net: "udp", Addr: peerAddr(placeholder(to)), Err: err}
	}
	return time.Now(), nil
}

// DialAddressTimeout opens a stream to a peer by its name.
func (t *peerTransport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	to, err := id.Parse(a.Name)
	if err != nil {
		return nil, fmt.Errorf("dial gossip: %w", err)
	}
	c, err := t.life.dial(t.carrier, to, wire.StreamGossip, timeout)
	if err != nil {
		return nil, err
	}
	return &boundedConn{heldConn: c, left: maxStreamBytes}, nil
}

// PacketCh implements memberlist.Transport.
func (t *peerTransport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *peerTransport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown closes all streams, so that memberlist's goroutines end.
func (t *peerTransport) Shutdown() error {
	t.life.end()
	return nil
}

// ingestPacket hands a packet to memberlist. It copies b, and drops it if
// memberlist is behind.
func (t *peerTransport) ingestPacket(from id.PeerID, b []byte, now time.Time) {
	packet := &memberlist.Packet{
		Buf:       append([]byte(nil), b...),
		From:      peerAddr(placeholder(from)),
		Timestamp: now,
	}
	select {
	case t.packets <- packet:
	default:
	}
}

// ingestStream hands a stream to memberlist and waits until it has done with it.
func (t *peerTransport) ingestStream(c *heldConn) {
	select {
	case t.streams <- &boundedConn{heldConn: c, left: maxStreamBytes}:
		<-c.closed
	case <-t.life.ctx.Done():
		_ = c.Close()
	}
}

// boundedConn ends a stream after a number of bytes read: memberlist has
// limits for parts of a message, not for all of it.
type boundedConn struct {
	*heldConn
	left int
}

func (c *boundedConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.heldConn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

// addressOf is how memberlist's Join wants a peer: name/host:port.
func addressOf(p id.PeerID) string {
	addr := placeholder(p)
	return p.String() + "/" + net.JoinHostPort(addr.Addr().String(), strconv.Itoa(int(addr.Port())))
}
