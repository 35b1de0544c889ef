package netlab

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// natLab has one host behind a router and two outside, a with two ports.
type natLab struct {
	lab        *Lab
	router     *Router
	inside     *Host
	a, b       *Host
	a1, a2, b1 *socket
	six        bool
}

func newNATLab(t *testing.T, six bool, n NAT) *natLab {
	t.Helper()
	lab := newLab(t)
	l := &natLab{lab: lab, six: six, a: addHost(t, lab, 1), b: addHost(t, lab, 2), router: addRouter(t, lab.Network, 3, 8)}
	must(t, l.router.SetNAT(n))
	l.inside = addHost(t, l.router.Inside, 1)
	l.a1, l.a2, l.b1 = open(t, l.a, six, 0), open(t, l.a, six, 0), open(t, l.b, six, 0)
	return l
}

func (l *natLab) outside() netip.Addr { return address(l.router.Host, l.six) }

// TestNATKinds is what RFC 4787 calls mapping and filtering behaviour.
func TestNATKinds(t *testing.T) {
	kinds := []struct {
		name                              string
		kind                              NATKind
		translates, sameMapping, samePort bool
		otherPort, otherHost              bool // may answer
	}{
		{"Routed", Routed, false, true, true, true, true},
		{"Stateful", Stateful, false, true, true, false, false},
		{"FullCone", FullCone, true, true, false, true, true},
		{"AddressRestricted", AddressRestricted, true, true, false, true, false},
		{"PortRestricted", PortRestricted, true, true, false, false, false},
		{"Preserving", Preserving, true, true, true, false, false},
		{"Symmetric", Symmetric, true, false, false, false, false},
	}
	t.Parallel()
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			both(t, func(t *testing.T, six bool) {
				l := newNATLab(t, six, NAT{IPv4: k.kind, IPv6: k.kind})
				s := open(t, l.inside, six, 6783)
				var seen [3]netip.AddrPort
				if k.kind == Preserving { // a packet that nobody waits for changes nothing
					l.a1.send(netip.AddrPortFrom(l.outside(), 6783), "too early")
				}
				for i, to := range []*socket{l.a1, l.a2, l.b1} {
					s.send(to.addr, "out")
					seen[i] = to.get("out")
				}
				if same := seen[0] == seen[1] && seen[1] == seen[2]; same != k.sameMapping {
					t.Errorf("seen as %v", seen)
				}
				if translated := seen[0].Addr() == l.outside(); translated != k.translates {
					t.Errorf("seen as %v; the router is %s", seen[0], l.outside())
				}
				if (seen[0].Port() == 6783) != k.samePort {
					t.Errorf("seen as %v", seen[0])
				}

				if at := l.streams(); (at[0] == at[1]) != k.sameMapping {
					t.Errorf("by TCP seen as %v", at)
				}
				own := open(t, l.router.Host, six, 0)
				own.send(l.a1.addr, "from the router")
				if from := l.a1.get("from the router"); from != own.addr {
					t.Errorf("the router is %s, seen as %s", own.addr, from)
				}

				s = open(t, l.inside, six, 0)
				s.send(l.a1.addr, "out")
				at := l.a1.get("out")
				for _, other := range []struct {
					from *socket
					may  bool
				}{{l.a2, k.otherPort}, {l.b1, k.otherHost}, {l.a1, true}} {
					// A datagram is there when it is sent: there is nothing between
					// that waits. So what should not come would come before the last.
					other.from.send(at, "in")
					if !other.may {
						continue
					}
					if from := s.get("in"); from != other.from.addr {
						t.Errorf("from %s, not %s", from, other.from.addr)
					}
				}
			})
		})
	}
}

// mapping is one of a socket inside, as host a sees it.
type mapping struct {
	*natLab
	s  *socket
	at netip.AddrPort
}

// newMapping makes one that host a has made use of.
func newMapping(t *testing.T, six bool, n NAT) *mapping {
	t.Helper()
	m := &mapping{natLab: newNATLab(t, six, n)}
	m.s = open(t, m.inside, six, 0)
	m.s.send(m.a1.addr, "out")
	m.at = m.a1.get("out")
	m.a1.send(m.at, "in")
	m.s.get("in")
	return m
}

// ended fails if the mapping still holds; it returns the one after it.
func (m *mapping) ended() (now netip.AddrPort) {
	m.s.t.Helper()
	m.b1.send(m.at, "too late")
	m.a1.send(m.at, "too late")
	m.s.send(m.a1.addr, "again")
	now = m.a1.get("again")
	m.a1.send(now, "in again")
	m.s.get("in again")
	return now
}

// streams returns who two TCP connections to the hosts outside come from, which
// have one address and port inside.
func (l *natLab) streams() (seen [2]netip.AddrPort) {
	t := l.a1.t
	t.Helper()
	for i, to := range []*Host{l.a, l.b} {
		listener := listen(t, to, 7000)
		defer listener.Close()
		conn, err := dialFrom(l.inside, 6785, netip.AddrPortFrom(address(to, l.six), 7000), soon)
		must(t, err)
		defer conn.Close()
		there, err := listener.Accept()
		must(t, err)
		defer there.Close()
		seen[i] = there.RemoteAddr().(*net.TCPAddr).AddrPort()
	}
	return seen
}

// TestMappingLives: a mapping is one for all, and lives as long as there is
// traffic for any, also such as began outside.
func TestMappingLives(t *testing.T) {
	t.Parallel()
	m := newMapping(t, false, NAT{IPv4: FullCone, Timeout: time.Second})
	for range 3 {
		m.b1.send(m.at, "in")
		m.s.get("in")
		m.s.send(m.b1.addr, "out")
		m.b1.get("out")
		time.Sleep(500 * time.Millisecond)
	}
	m.a2.send(m.at, "in")
	m.s.get("in")
	must(t, m.router.Do(func() error { // in its own time the kernel does the same
		first := &netlink.ConntrackFilter{}
		err := first.AddIP(netlink.ConntrackOrigSrcIP, m.inside.IP4().AsSlice())
		if err == nil {
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, first)
		}
		return err
	}))
	m.s.send(m.a1.addr, "out")
	if at := m.a1.get("out"); at != m.at {
		t.Errorf("seen as %s, and before as %s", at, m.at)
	}
}

// TestTimeoutOfStreams: Linux has another for what has gone both ways for two
// seconds.
func TestTimeoutOfStreams(t *testing.T) {
	t.Parallel()
	m := newMapping(t, false, NAT{IPv4: Preserving, Timeout: time.Second})
	for range 4 {
		time.Sleep(600 * time.Millisecond)
		m.s.send(m.a1.addr, "out")
		m.a1.get("out")
		m.a1.send(m.at, "in")
		m.s.get("in")
	}
	time.Sleep(1100 * time.Millisecond)
	m.ended()
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	var all []*mapping
	for _, kind := range []NATKind{FullCone, AddressRestricted, Preserving} {
		for _, six := range []bool{false, true} {
			all = append(all, newMapping(t, six, NAT{IPv4: kind, IPv6: kind, Timeout: time.Second}))
		}
	}
	time.Sleep(1100 * time.Millisecond) // whoever looks before whether it is over prolongs it
	for _, m := range all {
		m.ended()
	}
}

func TestDropMappings(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, six bool) {
		m := newMapping(t, six, NAT{IPv4: FullCone, IPv6: FullCone})
		must(t, m.router.DropMappings())
		m.ended()
	})
}

// TestRenumberNAT: the mappings of a router end with its address.
func TestRenumberNAT(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, six bool) {
		m := newMapping(t, six, NAT{IPv4: FullCone, IPv6: FullCone})
		must(t, m.router.Renumber(77))
		if now := m.ended(); now.Addr() == m.at.Addr() || now.Addr() != m.outside() {
			t.Errorf("seen as %s, before as %s; the router is %s", now, m.at, m.outside())
		}
	})
}
