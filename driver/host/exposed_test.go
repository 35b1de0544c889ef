package host

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

const exposedBridge = "wv0000000a"

var exposedMAC = net.HardwareAddr{6, 1, 2, 3, 4, 5}

// town is a host with two segments, a container on each, and what is outside of
// the host. Docker's policy drops what is forwarded.
type town struct {
	t       *testing.T
	k       *Kernel
	in      *container // 192.168.0.2, on the exposed bridge
	inToo   *container // 192.168.0.3, on the same
	other   *container // 192.168.1.2, on another bridge
	outside *container // 203.0.113.2, beyond the host's 203.0.113.1
}

func newTown(t *testing.T, bridged bool) *town {
	t.Helper()
	k := enterHost(t)
	if bridged {
		bridgeFilter(t)
	}
	dockerFirewall(t, "iptables-nft")
	dockerFirewall(t, "ip6tables-nft")
	must(t, k.EnsureBridge(Bridge{Name: exposedBridge, MTU: 1400}))
	must(t, k.EnsureBridge(Bridge{Name: "wv0000000b", MTU: 1400}))
	w := &town{t: t, k: k}
	w.in = startContainer(t, k, exposedBridge, "0000000a", "192.168.0.2/24", "fd00::2/64")
	w.inToo = startContainer(t, k, exposedBridge, "0000000c", "192.168.0.3/24", "fd00::3/64")
	w.other = startContainer(t, k, "wv0000000b", "0000000b", "192.168.1.2/24")
	run(t, "ip link add up0 type veth peer name far0")
	w.outside = moveInto(t, "far0", link(t, "far0").Attrs().HardwareAddr, "203.0.113.2/24")
	sysctl(t, "ipv6/conf/up0/disable_ipv6", "1") // it would have an address sooner or later
	run(t, "ip link set up0 up")
	run(t, "ip addr add 203.0.113.1/24 dev up0")
	sysctl(t, "ipv4/ip_forward", "1")
	ensureFirewall(t, k)
	return w
}

func exposure(addr string) Exposed {
	return Exposed{Bridge: exposedBridge, MAC: exposedMAC, Addr: netip.MustParsePrefix(addr)}
}

// expose gives the host addresses.
func (w *town) expose(all ...Exposed) {
	w.t.Helper()
	b := Bridge{Name: exposedBridge, MTU: 1400, MAC: exposedMAC}
	for _, x := range all {
		b.Addrs = append(b.Addrs, x.Addr)
	}
	if blocked, err := w.k.EnsureFirewall(all...); err != nil || len(blocked) > 0 {
		w.t.Fatalf("EnsureFirewall: %v, %v", blocked, err)
	}
	must(w.t, w.k.EnsureBridge(b))
}

// traces is all that exposing may leave behind.
func (w *town) traces() string {
	return run(w.t, "nft -s list ruleset") + run(w.t, "ip addr show dev "+exposedBridge) + run(w.t, "ip route") + run(w.t, "ip -6 route")
}

// from sends to an address out of a container, or out of the host.
func from(t *testing.T, c *container, to, text string) func() {
	if c == nil {
		return func() { say(t, to, text) }
	}
	return func() { c.do(func() { say(t, to, text) }) }
}

func at(t *testing.T, c *container, addr string) (l *net.UDPConn) {
	t.Helper()
	if c == nil {
		return listen(t, addr)
	}
	c.do(func() { l = listen(t, addr) })
	return l
}

// hearFrom returns who sent the text, once it is heard.
func hearFrom(t *testing.T, c *net.UDPConn, send func()) string {
	t.Helper()
	if !reaches(t, c, "hello", send) {
		return "nobody"
	}
	send()
	_, addr, err := c.ReadFromUDPAddrPort(make([]byte, 100))
	must(t, err)
	return addr.Addr().Unmap().String()
}

func TestExposed(t *testing.T) {
	for name, bridged := range map[string]bool{"bridge-nf": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t, bridged)
			before := w.traces()
			for range 2 {
				w.expose(exposure("192.168.0.1/24"), exposure("fd00::1/64"))
			}
			if got := run(t, "ip -6 addr show dev "+exposedBridge+" tentative"); got != "" {
				t.Errorf("an address waits: %s", got)
			}
			rules := run(t, "nft -s -a list ruleset")
			w.expose(exposure("fd00::1/64"), exposure("192.168.0.1/24"))
			if now := run(t, "nft -s -a list ruleset"); now != rules {
				t.Errorf("changed what was right:\n%s\nto\n%s", rules, now)
			}
			rules = run(t, "nft -s list ruleset")
			for _, damage := range []string{"nft delete table ip weave", "nft flush chain ip6 weave forward", "nft flush chain bridge weave input"} {
				run(t, damage)
				w.expose(exposure("fd00::1/64"), exposure("192.168.0.1/24"))
				if now := run(t, "nft -s list ruleset"); sorted(now) != sorted(rules) {
					t.Errorf("after %q:\n%s", damage, now)
				}
			}
			for _, addr := range []string{"192.168.0.3:9998", "[fd00::3]:9998"} {
				if l := at(t, w.inToo, addr); !reaches(t, l, "hello", from(t, w.in, addr, "hello")) {
					t.Errorf("containers do not reach each other at %s", addr)
				}
			}
			for _, addrs := range [][2]string{{"192.168.0.1:9999", "192.168.0.2:9999"}, {"[fd00::1]:9999", "[fd00::2]:9999"}} {
				if l := at(t, nil, addrs[0]); !reaches(t, l, "hello", from(t, w.in, addrs[0], "hello")) {
					t.Errorf("a container does not reach the host at %s", addrs[0])
				}
				if l := at(t, nil, strings.Replace(addrs[0], "9999", "9997", 1)); !reaches(t, l, "hello", from(t, nil, l.LocalAddr().String(), "hello")) {
					t.Errorf("the host does not reach itself at %s", l.LocalAddr())
				}
				if l := at(t, w.in, addrs[1]); !reaches(t, l, "hello", from(t, nil, addrs[1], "hello")) {
					t.Errorf("the host does not reach the container at %s", addrs[1])
				}
			}
			w.expose()
			if now := w.traces(); sorted(now) != sorted(before) {
				t.Errorf("before:\n%s\nafter:\n%s", before, now)
			}
		})
	}
}

// TestExposedIsNoWayThrough: with its address on two segments the host lets
// nothing pass between them, nor out, nor to its other addresses.
func TestExposedIsNoWayThrough(t *testing.T) {
	for name, bridged := range map[string]bool{"bridge-nf": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t, bridged)
			second := Exposed{Bridge: "wv0000000b", MAC: net.HardwareAddr{6, 1, 2, 3, 4, 6}, Addr: netip.MustParsePrefix("192.168.1.1/24")}
			first := exposure("192.168.0.1/24")
			first.Masquerade = true // the widest opening of all
			w.expose(first)
			_, err := w.k.EnsureFirewall(first, second)
			must(t, err)
			must(t, w.k.EnsureBridge(Bridge{Name: second.Bridge, MTU: 1400, MAC: second.MAC, Addrs: []netip.Prefix{second.Addr}}))
			run(t, "iptables-nft -P FORWARD ACCEPT")
			w.in.do(func() { run(t, "ip route add default via 192.168.0.1") })
			w.other.do(func() { run(t, "ip route add default via 192.168.1.1") })
			w.outside.do(func() { run(t, "ip route add 192.168.0.0/16 via 203.0.113.1") })
			// A port that is published on one address of the host alone, and a frame to
			// it that is not for the host.
			run(t, "iptables-nft -t nat -A PREROUTING -d 203.0.113.1 -p udp --dport 8080 -j DNAT --to-destination 203.0.113.2:9998")
			sysctl(t, "ipv4/conf/"+exposedBridge+"/rp_filter", "0")
			w.in.do(func() {
				run(t, "ip addr add 172.30.0.9/32 dev eth0")
				run(t, "ip neigh add 192.168.0.9 dev eth0 lladdr 02:00:00:00:00:99")
				run(t, "ip route add 203.0.113.1/32 via 192.168.0.9")
			})
			published := at(t, w.outside, "203.0.113.2:9998")

			open := at(t, nil, "192.168.1.1:9999")
			if !reaches(t, open, "hello", from(t, w.other, "192.168.1.1:9999", "hello")) {
				t.Fatal("not even the open way is open")
			}
			closed := []*net.UDPConn{
				at(t, w.other, "192.168.1.2:9999"), at(t, w.in, "192.168.0.2:9999"), open,
				at(t, nil, "203.0.113.1:9999"), at(t, nil, "192.168.0.1:9999"), at(t, nil, "0.0.0.0:9997"),
			}
			drain(t, closed...)
			for range 3 {
				for _, to := range []string{"192.168.1.2:9999", "192.168.1.1:9999", "203.0.113.1:9999", "203.0.113.1:8080", "203.0.113.255:9997"} {
					from(t, w.in, to, "from one to "+to)()
				}
				for _, to := range []string{"192.168.0.2:9999", "192.168.0.1:9999", "203.0.113.1:9999", "203.0.113.2:9999"} {
					from(t, w.other, to, "from another to "+to)()
				}
				w.in.do(func() { sayFrom(t, "172.30.0.9", "192.168.0.1:9999", "from an address of no subnet") })
				from(t, w.outside, "192.168.0.2:9999", "from outside to 192.168.0.2")()
				from(t, w.outside, "192.168.1.2:9999", "from outside to 192.168.1.2")()
				// As a container of any subnet does that sends by Docker's bridge.
				from(t, w.outside, "192.168.0.1:9999", "from outside to 192.168.0.1")()
				from(t, w.outside, "192.168.1.1:9999", "from outside to 192.168.1.1")()
			}
			for _, c := range append(closed, published) {
				if got := hear(t, c, inAWhile); got != "" {
					t.Errorf("got through: %q", got)
				}
			}
		})
	}
}

// sayFrom is say from one of several addresses.
func sayFrom(t *testing.T, who, to, text string) {
	t.Helper()
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(who)}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
	must(t, err)
	defer func() { _ = c.Close() }()
	_, err = c.Write([]byte(text))
	must(t, err)
}

func TestMasquerade(t *testing.T) {
	for name, bridged := range map[string]bool{"bridge-nf": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t, bridged)
			w.in.do(func() { run(t, "ip route add default via 192.168.0.1") })
			l := at(t, w.outside, "203.0.113.2:9999")
			w.expose(exposure("192.168.0.1/24"))
			for range 3 {
				from(t, w.in, "203.0.113.2:9999", "too early")()
			}
			if got := hear(t, l, inAWhile); got != "" {
				t.Fatalf("got out without --masquerade: %q", got)
			}
			x := exposure("192.168.0.1/24")
			x.Masquerade = true
			w.expose(x)
			if who := hearFrom(t, l, from(t, w.in, "203.0.113.2:9999", "hello")); who != "203.0.113.1" {
				t.Errorf("outside hears %s", who)
			}
			echoes(t, w.in, w.outside, "203.0.113.2:9998", "203.0.113.2:9998")
			if got := run(t, "iptables-nft -S DOCKER-USER"); strings.Count(got, "-j ACCEPT") != 3 {
				t.Errorf("rules: %s", got)
			}
		})
	}
}

// echoes checks that what a client says at one address is answered from another.
func echoes(t *testing.T, client, server *container, said, heard string) {
	t.Helper()
	l := at(t, server, heard)
	go func() {
		buf := make([]byte, 100)
		for {
			n, who, err := l.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = l.WriteToUDPAddrPort(buf[:n], who)
		}
	}()
	var c *net.UDPConn
	dial := func() {
		var err error
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(said)))
		must(t, err)
		t.Cleanup(func() { _ = c.Close() })
	}
	if client == nil {
		dial()
	} else {
		client.do(dial)
	}
	if !reaches(t, c, "echo", func() { _, _ = c.Write([]byte("echo")) }) {
		t.Errorf("no answer from %s at %s", heard, said)
	}
}

func TestExport(t *testing.T) {
	for name, bridged := range map[string]bool{"bridge-nf": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t, bridged)
			before := w.traces()
			x := exposure("192.168.0.1/24")
			x.Exports = []Forward{
				{"udp", 8080, netip.MustParseAddrPort("192.168.0.2:80")},
				{"tcp", 8081, netip.MustParseAddrPort("192.168.0.2:81")},
			}
			w.expose(x)
			l := at(t, w.in, "192.168.0.2:80")
			if who := hearFrom(t, l, from(t, w.outside, "203.0.113.1:8080", "hello")); who != "192.168.0.1" {
				t.Errorf("the container hears %s", who)
			}
			must(t, l.Close())
			echoes(t, w.outside, w.in, "203.0.113.1:8080", "192.168.0.2:80") // from outside
			echoesAgain := func(said string) {
				t.Helper()
				c, err := net.Dial("udp", said)
				must(t, err)
				defer func() { _ = c.Close() }()
				if !reaches(t, c.(*net.UDPConn), "echo", func() { _, _ = c.Write([]byte("echo")) }) {
					t.Errorf("the host gets no answer at %s", said)
				}
			}
			echoesAgain("203.0.113.1:8080")
			echoesAgain("192.168.0.1:8080")
			w.expose()
			if now := w.traces(); sorted(now) != sorted(before) {
				t.Errorf("before:\n%s\nafter:\n%s", before, now)
			}
		})
	}
}

func TestImport(t *testing.T) {
	for name, bridged := range map[string]bool{"bridge-nf": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t, bridged)
			x := exposure("192.168.0.1/24")
			x.Imports = []Forward{
				{"udp", 5353, netip.MustParseAddrPort("203.0.113.2:53")},
				{"udp", 5354, netip.MustParseAddrPort("203.0.113.1:54")},
			}
			w.expose(x)
			echoes(t, w.in, w.outside, "192.168.0.1:5353", "203.0.113.2:53")
			echoes(t, w.in, nil, "192.168.0.1:5354", "203.0.113.1:54") // the host's own
			l := at(t, w.outside, "203.0.113.2:99")
			w.in.do(func() { run(t, "ip route add default via 192.168.0.1") })
			for range 3 {
				from(t, w.in, "203.0.113.2:99", "by no import")()
			}
			if got := hear(t, l, inAWhile); got != "" {
				t.Errorf("an import lets out %q", got)
			}
		})
	}
}

// TestExposedFamilies: an address of one family lets in nothing of the other, not
// even on a bridge that is made with it, as after a boot.
func TestExposedFamilies(t *testing.T) {
	w := newTown(t, false)
	must(t, w.k.EnsureBridge(Bridge{Name: "wv0000000c", MTU: 1400, Addrs: []netip.Prefix{netip.MustParsePrefix("192.168.3.1/24")}}))
	if got := getSysctl(t, "ipv6/conf/wv0000000c/disable_ipv6"); got != "1" {
		t.Errorf("with an IPv4 address, disable_ipv6 is %s", got)
	}
	must(t, w.k.EnsureBridge(Bridge{Name: "wv0000000d", MTU: 1400, Addrs: []netip.Prefix{netip.MustParsePrefix("fd03::1/64")}}))
	if ignore, forwards := getSysctl(t, "ipv4/conf/wv0000000d/arp_ignore"), getSysctl(t, "ipv4/conf/wv0000000d/forwarding"); ignore != "8" || forwards != "0" {
		t.Errorf("with an IPv6 address, arp_ignore is %s and forwarding %s", ignore, forwards)
	}
	w.expose(exposure("fd00::1/64"))
	run(t, "ip route add 192.168.0.0/24 dev "+exposedBridge)
	w.in.do(func() {
		run(t, "ip neigh add 192.168.0.1 dev eth0 lladdr "+exposedMAC.String())
		run(t, "ip route add default via 192.168.0.1")
	})
	l := at(t, nil, "203.0.113.1:9999")
	for range 3 {
		from(t, w.in, "203.0.113.1:9999", "by IPv4")()
	}
	if got := hear(t, l, inAWhile); got != "" {
		t.Errorf("got through: %q", got)
	}
}

func TestForwards(t *testing.T) {
	k := enterHost(t)
	for addr, setting := range map[string]string{"192.168.0.1": "ipv4/ip_forward", "fd00::1": "ipv6/conf/all/forwarding"} {
		for _, value := range []string{"0", "1"} {
			sysctl(t, setting, value)
			if on, err := k.Forwards(netip.MustParseAddr(addr)); err != nil || on != (value == "1") {
				t.Errorf("%s is %s: %v, %v", setting, value, on, err)
			}
		}
	}
}
