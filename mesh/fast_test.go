package mesh

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weave/mesh/vni"

	"weave/test/netlab"
)

// TestFastPath follows a connection between containers through all that may
// happen to the fast path.
func TestFastPath(t *testing.T) {
	t.Parallel()
	l := newFastLab(t, 3)
	var boxes []*container
	for i, h := range l.hosts {
		h.join(blue, "wv1")
		h.call("run")
		boxes = append(boxes, h.run(blue, "wv1", fmt.Sprint("c", i+1), fmt.Sprintf("10.1.0.%d", i+1)))
	}
	a, b := l.hosts[0], l.hosts[1]
	group := addr("239.1.2.3")
	var ears []*listener
	for _, c := range boxes {
		c.echo()
		ears = append(ears, c.listen(group))
	}
	l.awaitFast(l.hosts...)
	s := boxes[0].talk(boxes[1])
	defer s.end(t)
	t.Run("kernel only", func(t *testing.T) {
		tunneled, before := a.status().Segments[blue].Tunneled, a.sent("wvx")
		s.awaitAnswers(t, 50)
		if n := a.sent("wvx") - before; n < 50 {
			t.Errorf("%d packets by the VXLAN device", n)
		}
		if n := a.status().Segments[blue].Tunneled - tunneled; n > 1000 {
			t.Errorf("%d bytes by the tunnel", n)
		}
		once(t, "fast", boxes[0], group, ears[1:]...)
		boxes[0].bulk(boxes[1])
	})
	t.Run("blocked", func(t *testing.T) { blocked(t, a, b, s, boxes, ears, group) })
	t.Run("relayed", func(t *testing.T) {
		s.longest()
		must(t, l.net.CutLink(a.Host, b.Host, netlab.AllIP))
		await(t, "frames to go by the third host", func() bool {
			_, why := a.fast(b)
			return why == "it is reached through other hosts"
		})
		s.awaitAnswers(t, 10)
		t.Logf("the connection stood still for %s", s.longest()) // of it TCP alone makes up to a half
		must(t, l.net.HealLink(a.Host, b.Host))
		l.awaitFast(l.hosts...)
		s.awaitAnswers(t, 10)
	})
	t.Run("plugin killed", func(t *testing.T) { killed(t, l, s, boxes) })
	t.Run("another peer leaves", func(t *testing.T) {
		l.hosts[2].call("leave", blue)
		await(t, "its entries to go", func() bool {
			_, why := a.fast(l.hosts[2])
			return why == "no segment in common"
		})
		links, err := l.hosts[2].Links()
		must(t, err)
		if slices.ContainsFunc(links, func(name string) bool { return strings.HasPrefix(name, "wvx") || strings.HasPrefix(name, "wvt") }) {
			t.Errorf("left behind: %v", links)
		}
		s.awaitAnswers(t, 10)
	})
}

// blocked cuts VXLAN between two hosts, both ways, and mends it.
func blocked(t *testing.T, a, b *fastHost, s *stream, boxes []*container, ears []*listener, group netip.Addr) {
	s.longest()
	a.block(b, true)
	b.block(a, true)
	await(t, "both to fall back", func() bool {
		one, why := a.fast(b)
		two, _ := b.fast(a)
		if !one && !strings.Contains(why, fmt.Sprint(fastPort+1)) {
			t.Errorf("reason %q", why)
		}
		return !one && !two
	})
	s.awaitAnswers(t, 50)
	// TCP waits twice as long with each loss, so it may come back later than the path.
	if gap := s.longest(); gap > 5*time.Second {
		t.Errorf("the connection stood still for %s", gap)
	} else {
		t.Logf("the connection stood still for %s", gap)
	}
	before := a.status().Segments[blue].Tunneled
	s.awaitAnswers(t, 20)
	if n := a.status().Segments[blue].Tunneled - before; n < 1000 {
		t.Errorf("%d bytes by the tunnel", n)
	}
	once(t, "mixed", boxes[0], group, ears[1:]...)
	boxes[0].bulk(boxes[1])
	a.block(b, false)
	b.block(a, false)
	await(t, "both to return", func() bool {
		one, _ := a.fast(b)
		two, _ := b.fast(a)
		return one && two
	})
	if gap := s.longest(); gap > time.Second {
		t.Errorf("the return cost the connection %s", gap)
	}
	once(t, "back", boxes[0], group, ears[1:]...)
}

// killed ends a host's plugin without a word, and starts it again.
func killed(t *testing.T, l *fastLab, s *stream, boxes []*container) {
	a, b := l.hosts[0], l.hosts[1]
	s.longest()
	b.kill()
	s.awaitAnswers(t, 100)
	forgetNeighbours(t, boxes[1])
	conn, err := boxes[1].dial(boxes[0], time.Second)
	if err != nil {
		t.Errorf("a new connection while the plugin is away: %v", err)
	} else {
		_ = conn.Close()
	}
	time.Sleep(4 * time.Second) // longer than a path without heart-beats lasts
	if fast, why := a.fast(b); !fast {
		t.Errorf("the path to a host without a plugin is given up: %s", why)
	}
	b.start()
	b.join(blue, "wv1")
	boxes[1].announce(b, blue)
	b.call("run")
	awaitUp := func() bool {
		n := 0
		for _, p := range b.status().Peers {
			if p.Alive && p.Fast {
				n++
			}
		}
		return n == 2
	}
	await(t, "the plugin to be back", awaitUp)
	s.awaitAnswers(t, 100)
	if gap := s.longest(); gap > 500*time.Millisecond {
		t.Errorf("the connection stood still for %s", gap)
	}
}

// forgetNeighbours empties a container's neighbour cache.
func forgetNeighbours(t *testing.T, c *container) {
	t.Helper()
	must(t, c.do(func() error {
		all, err := netlink.NeighList(0, netlink.FAMILY_V4)
		for _, n := range all {
			if n.State&netlink.NUD_NOARP == 0 {
				err = errors.Join(err, netlink.NeighDel(&n))
			}
		}
		return err
	}))
}

// TestFastPathIsolation holds that VXLAN brings nothing from segment to segment,
// whatever a container sends.
func TestFastPathIsolation(t *testing.T) {
	t.Parallel()
	l := newFastLab(t, 2)
	a, b := l.hosts[0], l.hosts[1]
	for _, h := range l.hosts {
		h.join(blue, "wv1")
		h.join(red, "wv2")
		h.call("run")
	}
	victim, evil := b.run(blue, "wv1", "victim", "10.1.0.2"), a.run(red, "wv2", "evil", "10.2.0.1")
	friend := a.run(blue, "wv1", "friend", "10.1.0.1")
	b.run(red, "wv2", "other", "10.2.0.2")
	a.giveWayOut(t, evil)
	group := addr("239.1.2.3")
	ear := victim.listen(group)
	l.awaitFast(l.hosts...)
	n := b.status().Segments[blue].VNI
	if n == 0 || n == b.status().Segments[red].VNI || n != a.status().Segments[blue].VNI {
		t.Fatalf("VNIs %d and %d", n, b.status().Segments[red].VNI)
	}
	frame := ethernetUDP(victim, evil, "evil")
	must(t, evil.do(func() error { return rawFrame(frame) })) // as is, into its own segment
	packet := append([]byte{8, 0, 0, 0, byte(n >> 16), byte(n >> 8), byte(n), 0}, frame...)
	for _, to := range []netip.Addr{a.IP4(), b.IP4(), addr("172.30.0.254")} {
		for _, source := range []netip.Addr{addr("172.30.0.1"), a.IP4(), b.IP4()} { // its own, and forged
			must(t, evil.do(func() error { return rawUDP(source, to, packet) }))
		}
	}
	time.Sleep(300 * time.Millisecond)
	friend.cast(group, "end")
	if got := ear.count(t, "evil", "end"); got != 0 {
		t.Errorf("%d frames got from one segment into another", got)
	}
	// And the proof that such a packet is well made: from a host it gets in, and
	// from the container where nothing stands guard.
	must(t, a.Do(func() error { return rawUDP(a.IP4(), b.IP4(), packet) }))
	friend.cast(group, "end again")
	if got := ear.count(t, "evil", "end again"); got != 1 {
		t.Errorf("the host's own VXLAN packet was taken %d times: the test tests nothing", got)
	}
	for try := 1; ; try++ { // the guard is back within a second
		a.unguard(t)
		must(t, evil.do(func() error { return rawUDP(addr("172.30.0.1"), b.IP4(), packet) }))
		end := fmt.Sprintf("the end, %d", try)
		friend.cast(group, end)
		got := ear.count(t, "evil", end)
		if got == 1 {
			break
		}
		if got > 1 || try == 5 {
			t.Fatalf("without a guard the container's packet was taken %d times: the test tests nothing", got)
		}
	}
}

// giveWayOut does what Docker does for a container: a bridge on its host, which
// forwards and masquerades.
func (h *fastHost) giveWayOut(t *testing.T, c *container) {
	t.Helper()
	ns, err := os.Open(c.path)
	must(t, err)
	defer ns.Close()
	must(t, h.Do(func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "gwbridge"}}
		a, _ := netlink.ParseAddr("172.30.0.254/24")
		err := errors.Join(netlink.LinkAdd(br), netlink.AddrAdd(br, a), netlink.LinkSetUp(br))
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: "out", MasterIndex: br.Index})
		veth.PeerName, veth.PeerNamespace = "eth1", netlink.NsFd(ns.Fd())
		return errors.Join(err, netlink.LinkAdd(veth), netlink.LinkSetUp(veth),
			os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
	}))
	h.iptables("-t", "nat", "-A", "POSTROUTING", "-s", "172.30.0.0/24", "-j", "MASQUERADE")
	must(t, c.do(func() error {
		link, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		a, _ := netlink.ParseAddr("172.30.0.1/24")
		return errors.Join(netlink.AddrAdd(link, a), netlink.LinkSetUp(link), netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(172, 30, 0, 254)}))
	}))
}

// unguard takes a host's packet filter away.
func (h *fastHost) unguard(t *testing.T) {
	t.Helper()
	must(t, h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.DelTable(&nftables.Table{Name: "weave-vxlan", Family: nftables.TableFamilyBridge})
		return c.Flush()
	}))
}

// ethernetUDP is a datagram to castPort in a frame from one container to
// another.
func ethernetUDP(to, from *container, text string) []byte {
	frame := slices.Concat([]byte(to.mac), []byte(from.mac), []byte{8, 0})
	return append(frame, ipUDP(from.addr, to.addr, castPort, []byte(text))...)
}

func ipUDP(from, to netip.Addr, port uint16, payload []byte) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	b = binary.BigEndian.AppendUint16(b, 5555)
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

// rawFrame sends a frame by eth0.
func rawFrame(frame []byte) error {
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index})
}

// rawUDP sends a datagram to the VXLAN port from an address that need not be the
// sender's.
func rawUDP(from, to netip.Addr, payload []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, ipUDP(from, to, fastPort+1, payload), 0, &unix.SockaddrInet4{Addr: to.As4()})
}

// TestPasswordNoVXLAN holds that with a password nothing goes by VXLAN, nor by
// devices of an earlier run without one.
func TestPasswordNoVXLAN(t *testing.T) {
	t.Parallel()
	l := newFastLab(t, 2)
	for _, h := range l.hosts {
		h.join(blue, "wv1")
		h.call("run")
	}
	one, two := l.hosts[0].run(blue, "wv1", "c1", "10.1.0.1"), l.hosts[1].run(blue, "wv1", "c2", "10.1.0.2")
	two.echo()
	l.awaitFast(l.hosts...)
	s := one.talk(two)
	defer s.end(t)
	s.awaitAnswers(t, 20)
	for _, h := range l.hosts {
		h.kill()
	}
	for i, h := range l.hosts {
		h.setup.Password = "secret"
		h.start()
		h.join(blue, "wv1")
		[]*container{one, two}[i].announce(h, blue)
		h.call("run")
		links, err := h.Links()
		must(t, err)
		if slices.ContainsFunc(links, func(name string) bool { return strings.HasPrefix(name, "wvx") }) {
			t.Errorf("VXLAN devices stay: %v", links)
		}
	}
	s.awaitAnswers(t, 20)
	if fast, why := l.hosts[0].fast(l.hosts[1]); fast || !strings.Contains(why, "password") {
		t.Errorf("fast path: %v, %q", fast, why)
	}
}

// TestVNIsAreSettled holds that two segments that were given one VNI apart have
// two when their hosts meet, and that only one of them changes.
func TestVNIsAreSettled(t *testing.T) {
	t.Parallel()
	small, large := sameVNI()
	open := func(ip string, peers ...string) *tapped {
		cfg := configure(t, ip, peers...)
		cfg.Password, cfg.VXLANPort = nil, 6784
		return &tapped{ns: newNamespace(t), node: start(t, cfg), t: t}
	}
	a, b := open("127.0.31.1"), open("127.0.31.2")
	a.join(small, 1300)
	b.join(large, 1300)
	of := func(n *tapped, key string) uint32 { return n.segment(key).VNI }
	if of(a, small) != vni.Hash(small) || of(b, large) != of(a, small) {
		t.Fatalf("VNIs %d and %d, want both %d", of(a, small), of(b, large), vni.Hash(small))
	}
	if _, err := b.Connect(within(t), a.addr); err != nil {
		t.Fatal(err)
	}
	await(t, "one to give way", func() bool { return of(b, large) != of(a, small) })
	if of(a, small) != vni.Hash(small) || of(b, large) != vni.Hash(large)+1 {
		t.Errorf("VNIs %d and %d", of(a, small), of(b, large))
	}
	c := open("127.0.31.3", a.addr)
	await(t, "c to hear of both", func() bool { return len(c.SegmentKeys()) == 2 })
	c.join(large, 1300)
	if of(c, large) != of(b, large) {
		t.Errorf("a later host has VNI %d, want %d", of(c, large), of(b, large))
	}
}

// sameVNI finds two keys with one hash, the smaller first.
func sameVNI() (small, large string) {
	seen := map[uint32]string{}
	for i := 0; ; i++ {
		key := fmt.Sprintf("name:%d", i)
		other, clash := seen[vni.Hash(key)]
		if clash {
			return min(key, other), max(key, other)
		}
		seen[vni.Hash(key)] = key
	}
}

// TestOverhead holds how much room a segment's MTU leaves for the way that its
// frames will take.
func TestOverhead(t *testing.T) {
	four, six := addr("10.0.0.1"), addr("fd00::1")
	for _, test := range []struct {
		cfg  Config
		want int
	}{
		{Config{VXLANPort: 6784, Advertise: []netip.Addr{four}}, 50},
		{Config{VXLANPort: 6784, Advertise: []netip.Addr{six, four}}, 70},
		{Config{VXLANPort: 6784, Advertise: []netip.Addr{four}, Password: []byte("x")}, 110},
		{Config{Advertise: []netip.Addr{four}}, 110},
	} {
		if got := test.cfg.Overhead(); got != test.want {
			t.Errorf("on %s, port %d, password %q: %d, want %d", test.cfg.Advertise, test.cfg.VXLANPort, test.cfg.Password, got, test.want)
		}
	}
}
