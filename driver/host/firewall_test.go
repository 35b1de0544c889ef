package host

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dockerFirewall sets up what Docker does: a policy that drops, and a chain
// for the user.
func dockerFirewall(t *testing.T, iptables string) {
	t.Helper()
	for _, args := range []string{
		"-P FORWARD DROP", "-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-A FORWARD -j DOCKER-USER",
	} {
		run(t, iptables+" "+args)
	}
}

// bridgeFilter sends bridged frames to the firewall, as Docker's host does.
func bridgeFilter(t *testing.T) {
	t.Helper()
	sysctl(t, "bridge/bridge-nf-call-iptables", "1")
	sysctl(t, "bridge/bridge-nf-call-ip6tables", "1")
}

func ensureFirewall(t *testing.T, k *Kernel) {
	t.Helper()
	blocked, err := k.EnsureFirewall()
	if err != nil || len(blocked) > 0 {
		t.Fatalf("EnsureFirewall: %v, %v", blocked, err)
	}
}

const ownRule = `-A DOCKER-USER -i wv+ -o wv+ -m comment --comment "weave: within its bridges" -j ACCEPT`

func TestFirewallRules(t *testing.T) {
	k := enterHost(t)
	dockerFirewall(t, "iptables-nft")
	ensureFirewall(t, k)

	lines := strings.Split(run(t, "iptables-nft -S DOCKER-USER"), "\n")
	if len(lines) < 3 || lines[1] != ownRule || lines[2] != "-A DOCKER-USER -j RETURN" {
		t.Errorf("iptables shows %q", lines)
	}
	before := run(t, "nft -a list ruleset")
	for _, want := range []string{"table bridge weave", `iifname "wv*" drop`, `oifname "wv*" drop`} {
		if !strings.Contains(before, want) {
			t.Errorf("nft does not show %q:\n%s", want, before)
		}
	}
	ensureFirewall(t, k)
	if after := run(t, "nft -a list ruleset"); after != before {
		t.Errorf("changed what was right:\n%s\nto\n%s", before, after)
	}
	// Whatever is taken away or added comes right again.
	plain := run(t, "nft list ruleset")
	for _, damage := range []string{
		"nft flush chain bridge weave output", "nft delete table bridge weave", "nft insert rule bridge weave input accept",
		"nft add chain bridge weave other", "iptables-nft -D DOCKER-USER 1", "nft chain bridge weave input { policy drop ; }",
	} {
		run(t, damage)
		ensureFirewall(t, k)
		if after := run(t, "nft list ruleset"); sorted(after) != sorted(plain) {
			t.Errorf("after %q:\n%s", damage, after)
		}
	}
	run(t, "nft delete table bridge weave")
	run(t, "nft add table inet weave") // of an old version
	ensureFirewall(t, k)
	if now := run(t, "nft list ruleset"); sorted(now) != sorted(plain) {
		t.Errorf("after an upgrade:\n%s", now)
	}
	for range 2 {
		must(t, k.RemoveFirewall())
	}
	if now := run(t, "nft list ruleset"); strings.Contains(now, "weave") {
		t.Errorf("left behind:\n%s", now)
	}
}

// sorted makes listings comparable whose tables were made in another order.
func sorted(listing string) string {
	tables := strings.Split(listing, "table ")
	for i := range tables {
		for j := range i {
			if tables[i] < tables[j] {
				tables[i], tables[j] = tables[j], tables[i]
			}
		}
	}
	return strings.Join(tables, "")
}

// A rule that iptables has saved and restored is still known as ours.
func TestFirewallAfterIptablesRestore(t *testing.T) {
	k := enterHost(t)
	dockerFirewall(t, "iptables-nft")
	ensureFirewall(t, k)
	saved := filepath.Join(t.TempDir(), "rules")
	must(t, os.WriteFile(saved, []byte(run(t, "iptables-nft-save")), 0o600))
	run(t, "iptables-nft -F DOCKER-USER")
	run(t, "iptables-nft-restore "+saved)
	ensureFirewall(t, k)
	if out := run(t, "iptables-nft -S DOCKER-USER"); strings.Count(out, ownRule) != 1 {
		t.Errorf("rules: %s", out)
	}
	must(t, k.RemoveFirewall())
	if out := run(t, "iptables-nft -S DOCKER-USER"); strings.Contains(out, "wv+") {
		t.Errorf("rules: %s", out)
	}
}

// The rule moves to the better chain when that appears.
func TestFirewallBeforeDocker(t *testing.T) {
	k := enterHost(t)
	run(t, "iptables-nft -P FORWARD DROP")
	ensureFirewall(t, k)
	if out := run(t, "iptables-nft -S FORWARD"); !strings.Contains(out, "-A FORWARD -i wv+ -o wv+") {
		t.Errorf("rules: %s", out)
	}
	dockerFirewall(t, "iptables-nft")
	ensureFirewall(t, k)
	out := run(t, "iptables-nft -S")
	if strings.Contains(out, "-A FORWARD -i wv+") || !strings.Contains(out, ownRule) {
		t.Errorf("rules: %s", out)
	}
}

// Legacy iptables is a problem only while it drops our frames.
func TestFirewallLegacy(t *testing.T) {
	for _, iptables := range []string{"iptables", "ip6tables"} {
		t.Run(iptables, func(t *testing.T) {
			k := enterHost(t)
			bridgeFilter(t)
			run(t, iptables+"-legacy -P FORWARD ACCEPT")
			run(t, iptables+"-legacy -A FORWARD -i docker0 -j ACCEPT")
			ensureFirewall(t, k)
			run(t, iptables+"-legacy -P FORWARD DROP")
			blocked, err := k.EnsureFirewall()
			must(t, err)
			if len(blocked) != 1 || !strings.Contains(blocked[0].String(), blocked[0].Command) {
				t.Fatalf("blocked: %v", blocked)
			}
			if strings.Contains(blocked[0].String(), "bridge-nf-call") {
				t.Errorf("the way out takes the firewall from Docker's bridges as well: %s", blocked[0])
			}
			run(t, blocked[0].Command) // the way out that we name
			ensureFirewall(t, k)
			run(t, strings.Replace(blocked[0].Command, " -I ", " -D ", 1))
			sysctl(t, "bridge/bridge-nf-call-"+iptables, "0") // and the other one
			ensureFirewall(t, k)
		})
	}
}

func TestLegacyEntriesCutShort(t *testing.T) {
	for _, f := range families() {
		whole := make([]byte, 300)
		binary.NativeEndian.PutUint16(whole[f.layout.nextOffset:], 170)
		binary.NativeEndian.PutUint16(whole[f.layout.targetOffset:], 65000)
		for n := range whole {
			if f.layout.drops(whole[:n], 0) {
				t.Errorf("%s: %d bytes", f.name, n)
			}
		}
	}
}

// With Docker's policy and bridged frames in the firewall, containers on one
// bridge reach each other, and without our rule they would not.
func TestFramesPassWithinBridge(t *testing.T) {
	k := enterHost(t)
	bridgeFilter(t)
	must(t, k.EnsureBridge(Bridge{Name: "wv00000001", MTU: 1400}))
	a := startContainer(t, k, "wv00000001", "0000000a", "10.32.0.2/16", "fd00::2/64")
	b := startContainer(t, k, "wv00000001", "0000000b", "10.32.0.3/16", "fd00::3/64")
	addrs := []string{"10.32.0.3:9999", "[fd00::3]:9999", "10.32.255.255:9998"}
	servers := make([]*net.UDPConn, len(addrs))
	b.do(func() {
		for i, addr := range addrs {
			servers[i] = listen(t, addr)
		}
	})
	send := func(i int, text string) func() {
		return func() { a.do(func() { say(t, addrs[i], text) }) }
	}
	for i, addr := range addrs {
		if !reaches(t, servers[i], "open", send(i, "open")) {
			t.Fatalf("%s: not even without a firewall", addr)
		}
	}
	dockerFirewall(t, "iptables-nft")
	dockerFirewall(t, "ip6tables-nft")
	drain(t, servers...)
	for i, addr := range addrs {
		send(i, "blocked")()
		if got := hear(t, servers[i], inAWhile); got != "" {
			t.Fatalf("%s: heard %q: this test shows nothing", addr, got)
		}
	}
	ensureFirewall(t, k)
	for i, addr := range addrs {
		if !reaches(t, servers[i], "hello", send(i, "hello")) {
			t.Errorf("%s: not reached", addr)
		}
	}
}

// rival is what stands on a second bridge, at the host and outside of it, and
// how frames from the first bridge may try to get there.
type rival struct {
	k          *Kernel
	a, b, out  *container
	toB, toOut *net.UDPConn // listens in b, on the other bridge; outside
	toHost     *net.UDPConn // of the host itself
	toA        *net.UDPConn
	sock       int // of a
}

// newRival builds two bridges on a host that forwards everything and knows the
// way to both: the worst that its owner could set up.
func newRival(t *testing.T) *rival {
	t.Helper()
	r := &rival{k: enterHost(t)}
	bridgeFilter(t)
	for _, br := range []string{"wv00000001", "wv00000002"} {
		must(t, r.k.EnsureBridge(Bridge{Name: br, MTU: 1400}))
	}
	r.a = startContainer(t, r.k, "wv00000001", "0000000a", "10.32.0.2/16")
	r.b = startContainer(t, r.k, "wv00000002", "0000000b", "10.33.0.2/16")
	run(t, "ip link add up0 type veth peer name far0")
	r.out = moveInto(t, "far0", link(t, "far0").Attrs().HardwareAddr, "203.0.113.2/24")
	r.out.do(func() { run(t, "ip route add default via 203.0.113.1") })
	for _, cmd := range []string{
		"ip link set up0 up", "ip addr add 203.0.113.1/24 dev up0", "ip addr add 192.0.2.1/32 dev lo",
		"ip route add 10.32.0.0/16 dev wv00000001", "ip route add 10.33.0.0/16 dev wv00000002",
		"ip neigh add 10.32.0.2 dev wv00000001 lladdr " + r.a.mac.String(),
		"ip neigh add 10.33.0.2 dev wv00000002 lladdr " + r.b.mac.String(),
		"iptables-nft -t nat -A PREROUTING -d 192.0.2.1 -p udp --dport 8080 -j DNAT --to-destination 10.33.0.2:9999",
	} {
		run(t, cmd)
	}
	sysctl(t, "ipv4/ip_forward", "1")
	for _, dev := range []string{"all", "wv00000001", "wv00000002"} {
		sysctl(t, "ipv4/conf/"+dev+"/forwarding", "1")
		sysctl(t, "ipv4/conf/"+dev+"/rp_filter", "0")
	}
	r.toHost = listen(t, "192.0.2.1:9999")
	r.a.do(func() { r.toA = listen(t, "10.32.0.2:9999") })
	r.b.do(func() { r.toB = listen(t, "10.33.0.2:9999") })
	r.out.do(func() { r.toOut = listen(t, "203.0.113.2:9999") })
	r.sock = r.a.packetSocket()
	return r
}

// forge sends a UDP packet from a, to any MAC and IP address.
func (r *rival) forge(t *testing.T, mac net.HardwareAddr, to, text string) {
	t.Helper()
	dst := netip.MustParseAddrPort(to)
	_, err := unix.Write(r.sock, udpFrame(r.a.mac, mac, netip.AddrPortFrom(r.a.addr, 7777), dst, text))
	must(t, err)
}

func udpFrame(from, to net.HardwareAddr, src, dst netip.AddrPort, text string) []byte {
	f := append(append(append([]byte{}, to...), from...), 0x08, 0x00)
	ip := make([]byte, 28)
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(text)))
	copy(ip[12:], src.Addr().AsSlice())
	copy(ip[16:], dst.Addr().AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum&0xffff+sum>>16))
	binary.BigEndian.PutUint16(ip[20:], src.Port())
	binary.BigEndian.PutUint16(ip[22:], dst.Port())
	binary.BigEndian.PutUint16(ip[24:], uint16(8+len(text))) // no checksum: allowed
	return append(append(f, ip...), text...)
}

func TestIsolation(t *testing.T) {
	r := newRival(t)
	bridgeMAC := link(t, "wv00000001").Attrs().HardwareAddr
	type try struct {
		name string
		mac  net.HardwareAddr
		to   string
		at   *net.UDPConn
		open bool // gets through without the firewall
	}
	tries := []try{
		{"routed to another bridge", bridgeMAC, "10.33.0.2:9999", r.toB, true},
		{"routed to the outside", bridgeMAC, "203.0.113.2:9999", r.toOut, true},
		{"to the host itself", bridgeMAC, "192.0.2.1:9999", r.toHost, true},
		{"by the host's port forwarding", bridgeMAC, "192.0.2.1:8080", r.toB, true},
		{"to the other's MAC address", r.b.mac, "10.33.0.2:9999", r.toB, false},
		{"to the other bridge's MAC address", link(t, "wv00000002").Attrs().HardwareAddr, "10.33.0.2:9999", r.toB, false},
		{"broadcast", net.HardwareAddr{255, 255, 255, 255, 255, 255}, "10.33.0.2:9999", r.toB, false},
	}
	for i := range byte(16) {
		group := net.HardwareAddr{1, 0x80, 0xc2, 0, 0, i}
		tries = append(tries, try{"to the host by " + group.String(), group, "192.0.2.1:9999", r.toHost, false},
			try{"to the outside by " + group.String(), group, "203.0.113.2:9999", r.toOut, false})
	}
	fromOutside := func() { r.out.do(func() { say(t, "10.32.0.2:9999", "from outside") }) }
	for _, try := range tries {
		if try.open && !reaches(t, try.at, try.name, func() { r.forge(t, try.mac, try.to, try.name) }) {
			t.Fatalf("%s: not even without a firewall: this test shows nothing", try.name)
		}
	}
	if !reaches(t, r.toA, "from outside", fromOutside) {
		t.Fatal("from outside: not even without a firewall: this test shows nothing")
	}
	ensureFirewall(t, r.k)
	listeners := []*net.UDPConn{r.toA, r.toB, r.toHost, r.toOut}
	drain(t, listeners...)
	for _, try := range tries {
		r.forge(t, try.mac, try.to, try.name)
	}
	fromOutside()
	// Also by what a container's own kernel does with a route and an ARP entry.
	r.a.do(func() {
		run(t, "ip neigh add 10.32.0.1 dev eth0 lladdr "+bridgeMAC.String())
		run(t, "ip route add default via 10.32.0.1")
		for _, to := range []string{"10.33.0.2:9999", "192.0.2.1:9999", "192.0.2.1:8080", "203.0.113.2:9999"} {
			say(t, to, "by a forged route to "+to)
		}
	})
	for _, c := range listeners {
		if got := hear(t, c, inAWhile); got != "" {
			t.Errorf("got through: %q", got)
		}
	}
}

// The host answers ARP on a bridge for none of its addresses, nor as a proxy.
func TestHostAnswersNoARP(t *testing.T) {
	r := newRival(t)
	startContainer(t, r.k, "wv00000001", "0000000c", "10.32.0.3/16")
	sysctl(t, "ipv4/conf/all/proxy_arp", "1")
	sysctl(t, "ipv4/neigh/wv00000001/proxy_delay", "0")
	must(t, r.k.EnsureBridge(Bridge{Name: "wv00000001", MTU: 1400})) // undoes what newRival did to it
	for deadline := time.Now().Add(soon); time.Now().Before(deadline); {
		for _, target := range []string{"192.0.2.1", "10.33.0.2", "10.32.0.3"} { // the last is a container's
			_, err := unix.Write(r.sock, arpRequest(r.a.mac, r.a.addr, netip.MustParseAddr(target)))
			must(t, err)
		}
		switch answer := r.arpAnswer(t); answer {
		case netip.Addr{}: // none yet
		case netip.MustParseAddr("10.32.0.3"):
			return
		default:
			t.Fatalf("the host answered for %s", answer)
		}
	}
	t.Fatal("not even the container answered")
}

// arpAnswer returns for whom the next ARP answer is, or nobody if none comes.
func (r *rival) arpAnswer(t *testing.T) netip.Addr {
	t.Helper()
	buf := make([]byte, 2000)
	for {
		n, err := unix.Read(r.sock, buf)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			return netip.Addr{}
		}
		must(t, err)
		if n >= 42 && binary.BigEndian.Uint16(buf[12:]) == unix.ETH_P_ARP && binary.BigEndian.Uint16(buf[20:]) == 2 {
			return netip.AddrFrom4([4]byte(buf[28:32]))
		}
	}
}

func arpRequest(mac net.HardwareAddr, from, target netip.Addr) []byte {
	f := []byte{255, 255, 255, 255, 255, 255}
	f = append(append(f, mac...), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(append(f, mac...), from.AsSlice()...)
	return append(append(f, 0, 0, 0, 0, 0, 0), target.AsSlice()...)
}
