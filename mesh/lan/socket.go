package lan

import (
	"errors"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// The groups: of IPv4 one for local use (RFC 2365), of IPv6 one of the link that
// nobody assigned (RFC 4291, 2.7; RFC 3307).
var (
	group4 = netip.MustParseAddr("239.255.67.83")
	group6 = netip.MustParseAddr("ff12::8000:6783")
)

// hops is how far an announcement goes.
const hops = 1

// datagram is one that was received.
type datagram struct {
	n    int
	link int // index
	hops int
	from netip.AddrPort
	to   netip.Addr
}

// socket sends to a group, and receives from it. Close ends what waits.
type socket interface {
	join(link int) error
	leave(link int) error
	send(b []byte, l link) error
	receive(b []byte) (datagram, error)
	Close() error
}

// listen opens a socket that others on this host may have, too: Go has the ports of
// groups be shared, and binds to no address. Each gets all that comes for the group.
func listen(network string, group netip.Addr) (net.PacketConn, error) {
	return net.ListenPacket(network, netip.AddrPortFrom(group, Port).String())
}

func udpAddr(group netip.Addr) *net.UDPAddr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(group, Port))
}

func device(index int) *net.Interface { return &net.Interface{Index: index} }

// received makes a datagram of what the packages for IP tell.
func received(n int, from net.Addr, link, hops int, to net.IP) datagram {
	d := datagram{n: n, link: link, hops: hops}
	if udp, ok := from.(*net.UDPAddr); ok {
		d.from = udp.AddrPort()
		d.from = netip.AddrPortFrom(d.from.Addr().Unmap(), d.from.Port())
	}
	if ip, ok := netip.AddrFromSlice(to); ok {
		d.to = ip.Unmap()
	}
	return d
}

type socket4 struct{ *ipv4.PacketConn }

func open4() (socket, error) {
	c, err := listen("udp4", group4)
	if err != nil {
		return nil, err
	}
	p := ipv4.NewPacketConn(c)
	err = errors.Join(
		p.SetControlMessage(ipv4.FlagTTL|ipv4.FlagInterface|ipv4.FlagDst, true),
		p.SetMulticastTTL(hops), p.SetMulticastLoopback(false))
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return socket4{p}, nil
}

func (s socket4) join(link int) error  { return s.JoinGroup(device(link), udpAddr(group4)) }
func (s socket4) leave(link int) error { return s.LeaveGroup(device(link), udpAddr(group4)) }

func (s socket4) send(b []byte, l link) error {
	_, err := s.WriteTo(b, &ipv4.ControlMessage{IfIndex: l.index, Src: l.own.Addr().AsSlice()}, udpAddr(group4))
	return err
}

func (s socket4) receive(b []byte) (datagram, error) {
	n, cm, from, err := s.ReadFrom(b)
	if err != nil || cm == nil {
		return datagram{}, err
	}
	return received(n, from, cm.IfIndex, cm.TTL, cm.Dst), nil
}

type socket6 struct{ *ipv6.PacketConn }

func open6() (socket, error) {
	c, err := listen("udp6", group6)
	if err != nil {
		return nil, err
	}
	p := ipv6.NewPacketConn(c)
	err = errors.Join(
		p.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface|ipv6.FlagDst, true),
		p.SetMulticastHopLimit(hops), p.SetMulticastLoopback(false))
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return socket6{p}, nil
}

func (s socket6) join(link int) error  { return s.JoinGroup(device(link), udpAddr(group6)) }
func (s socket6) leave(link int) error { return s.LeaveGroup(device(link), udpAddr(group6)) }

func (s socket6) send(b []byte, l link) error {
	_, err := s.WriteTo(b, &ipv6.ControlMessage{IfIndex: l.index, Src: l.own.Addr().AsSlice()}, udpAddr(group6))
	return err
}

func (s socket6) receive(b []byte) (datagram, error) {
	n, cm, from, err := s.ReadFrom(b)
	if err != nil || cm == nil {
		return datagram{}, err
	}
	return received(n, from, cm.IfIndex, cm.HopLimit, cm.Dst), nil
}
