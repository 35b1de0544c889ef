package netlab

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ipHeaders is the length of the headers of a UDP datagram.
func ipHeaders(six bool) int {
	if six {
		return 48
	}
	return 28
}

// passesSized sends a packet of that length, headers and all.
func passesSized(from, to *socket, at netip.AddrPort, length int, should bool) bool {
	from.t.Helper()
	size := length - ipHeaders(at.Addr().Is6())
	if _, err := from.WriteToUDPAddrPort(make([]byte, size), at); errors.Is(err, unix.EMSGSIZE) {
		return false
	}
	wait := soon
	if !should {
		wait = never
	}
	text, _, err := to.receive(wait)
	return err == nil && len(text) == size
}

// setDF says whether the socket's packets of IPv4 may not be cut, and none by
// the sender.
func (s *socket) setDF(df bool) {
	s.t.Helper()
	discover := unix.IP_PMTUDISC_DO
	if !df {
		discover = unix.IP_PMTUDISC_DONT
	}
	if s.addr.Addr().Is6() {
		s.option(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, discover)
	} else {
		s.option(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, discover)
	}
}

// knownMTU is that of the path as the host's kernel knows it by now.
func knownMTU(t *testing.T, h *Host, to netip.AddrPort) (known int) {
	t.Helper()
	must(t, h.Do(func() error {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		defer conn.Close()
		raw, err := conn.SyscallConn()
		if err != nil {
			return err
		}
		err2 := raw.Control(func(fd uintptr) {
			if to.Addr().Is6() {
				known, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU)
			} else {
				known, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU)
			}
		})
		return errors.Join(err, err2)
	}))
	return known
}

func TestMTU(t *testing.T) {
	t.Parallel()
	for name, n := range map[string]NAT{"Routed": {}, "NAT": {IPv4: PortRestricted, IPv6: PortRestricted}} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, six bool) {
				l := newNATLab(t, six, n)
				for _, step := range []struct {
					mtu, known int
					tell       bool
				}{{1400, mtu, false}, {mtu, mtu, true}, {1400, 1400, true}, {1280, 1280, true}} {
					must(t, l.router.SetMTU(step.mtu, step.tell))
					s := open(t, l.inside, six, 0)
					s.send(l.a1.addr, "out")
					at := l.a1.get("out")
					for _, way := range []struct {
						host     *Host
						from, to *socket
						at       netip.AddrPort
					}{{l.inside, s, l.a1, l.a1.addr}, {l.a, l.a1, s, at}} {
						way.from.setDF(true)
						longer := step.mtu < mtu
						if longer && passesSized(way.from, way.to, way.at, step.mtu+1, false) {
							t.Errorf("%+v: to %s a longer packet passed", step, way.at)
						}
						if known := knownMTU(t, way.host, way.at); known != step.known {
							t.Errorf("%+v: to %s the MTU is thought to be %d", step, way.at, known)
						}
						if !passesSized(way.from, way.to, way.at, step.mtu, true) {
							t.Errorf("%+v: to %s nothing passed", step, way.at)
						}
						way.from.setDF(false)
						if !six && !passesSized(way.from, way.to, way.at, mtu, true) {
							t.Errorf("%+v: to %s nothing passed in fragments", step, way.at)
						}
					}
				}
			})
		})
	}
}

// TestForward: strangers get in by a forwarded port, by UDP and TCP.
func TestForward(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, six bool) {
		l := newNATLab(t, six, NAT{IPv4: Symmetric, IPv6: Symmetric})
		s := open(t, l.inside, six, 5000)
		at := netip.AddrPortFrom(l.outside(), 6783)
		must(t, l.router.Forward(UDP, 6783, l.inside, 5000))
		if dials(l.a, at, false) {
			t.Error("TCP is forwarded before it is asked for")
		}
		must(t, l.router.Forward(TCP, 6783, l.inside, 5001))
		must(t, l.router.DropMappings())
		for _, from := range []*socket{l.b1, l.a1} {
			from.send(at, "in")
			s.send(s.get("in"), "back")
			if from := from.get("back"); from != at {
				t.Errorf("the answer came from %s, not %s", from, at)
			}
		}
		listener := listen(t, l.inside, 5001)
		defer listener.Close()
		if !dials(l.b, at, true) {
			t.Error("no TCP connection")
		}
		if other := netip.AddrPortFrom(l.outside(), 6784); dials(l.b, other, false) {
			t.Error("another port is open")
		}
	})
}

// TestRouters: TCP goes out by each kind, in by none that filters; a router may be
// behind another, and two networks may have the same addresses.
func TestRouters(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	outside := addHost(t, lab, 1)
	left, right := addRouter(t, lab.Network, 2, 8), addRouter(t, lab.Network, 3, 8)
	nested := addRouter(t, left.Inside, 2, 9)
	a, b, deep := addHost(t, left.Inside, 1), addHost(t, right.Inside, 1), addHost(t, nested.Inside, 1)
	if a.IP4() != b.IP4() || deep.Name() != "h2-2-1" {
		t.Errorf("%s, %s; %s", a.IP4(), b.IP4(), deep.Name())
	}
	for _, kind := range []NATKind{Routed, Stateful, FullCone, AddressRestricted, PortRestricted, Preserving, Symmetric} {
		for _, r := range []*Router{left, right, nested} {
			must(t, r.SetNAT(NAT{IPv4: kind, IPv6: kind}))
		}
		both(t, func(t *testing.T, six bool) {
			at := netip.AddrPortFrom(address(outside, six), 7000)
			if kind.translates() {
				for _, h := range []*Host{a, b, deep} {
					if !connects(t, h, outside, at, true) {
						t.Errorf("kind %d: no TCP from %s", kind, h.Name())
					}
				}
				s, o := open(t, deep, six, 0), open(t, outside, six, 0)
				s.send(o.addr, "out")
				from := o.get("out")
				o.send(from, "in")
				if s.get("in"); from.Addr() != address(left.Host, six) {
					t.Errorf("kind %d: seen as %s", kind, from)
				}
			}
			in := netip.AddrPortFrom(address(b, six), 7000)
			if open := kind == Routed; connects(t, outside, b, in, open) != open {
				t.Errorf("kind %d: TCP from outside: %v", kind, !open)
			}
		})
	}
	must(t, left.Inside.RemoveHost(a))
	must(t, lab.RemoveHost(left.Host))
	if behind, err := filepath.Glob(left.NamespacePath() + "*"); err != nil || len(behind) > 0 {
		t.Errorf("left behind a router: %v %v", behind, err)
	}
	must(t, right.SetNAT(NAT{}))
	inside := address(b, false).String()
	if via := gatewayOf(t, outside, inside); via != right.IP4().String() {
		t.Errorf("the way in is by %s", via)
	}
	must(t, lab.RemoveHost(right.Host))
	for _, h := range []*Host{outside, addHost(t, lab, 5)} {
		if via := gatewayOf(t, h, inside); via != Outside4.String() {
			t.Errorf("from %s the way in to a router that is gone is by %s", h.Name(), via)
		}
	}
	if _, err := lab.AddRouter(4, 0); err == nil {
		t.Error("a router has the network around it inside")
	}
}

// TestReady: a host that was made has no address that it must try out first.
func TestReady(t *testing.T) {
	t.Parallel()
	h := addHost(t, newLab(t), 1)
	must(t, h.Do(func() error {
		all, err := netlink.AddrList(nil, netlink.FAMILY_V6)
		for _, a := range all {
			if a.Flags&unix.IFA_F_TENTATIVE != 0 {
				t.Errorf("%s is tentative", a.IP)
			}
		}
		return err
	}))
}

// TestRenumber: a host that roams has new addresses, and its routes; what led to
// a router leads to its new address.
func TestRenumber(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	a, r := addHost(t, lab, 1), addRouter(t, lab.Network, 2, 8)
	b := addHost(t, r.Inside, 1)
	must(t, r.SetMTU(1400, true))
	must(t, r.Renumber(20))
	must(t, a.Renumber(10))
	if via := gatewayOf(t, a, "192.0.2.1"); via != Outside4.String() {
		t.Errorf("the default route is by %s", via)
	}
	if _, via := lab.address(gateway); gatewayOf(t, a, "2001:db8::1") != via.String() {
		t.Error("the default route of IPv6 is another")
	}
	c := addHost(t, lab, 3) // learns the way as it is now
	both(t, func(t *testing.T, six bool) {
		if was, _ := lab.address(1); a.IP4() == was {
			t.Errorf("it has %s still", was)
		}
		for _, h := range []*Host{a, c} {
			x, y := open(t, h, six, 0), open(t, b, six, 0)
			x.send(y.addr, "in")
			y.send(y.get("in"), "out")
			if from := x.get("out"); from != y.addr {
				t.Errorf("from %s", from)
			}
			if y.setDF(true); passesSized(y, x, x.addr, mtu, false) {
				t.Error("the router has forgotten its MTU")
			}
		}
	})
}
