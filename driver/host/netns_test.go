package host

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// needRoot skips a test that changes the kernel where it may not.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
		t.Fatal("this test must run as root")
	}
	t.Skip("needs root")
}

// enterHost puts the test into a network namespace of its own, which ends with
// it: the thread is never unlocked, so it is thrown away with the goroutine.
func enterHost(t *testing.T) *Kernel {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() { _ = ns.Close() })
	must(t, netlink.LinkSetUp(link(t, "lo")))
	return New()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

// run runs a command in the namespace of the test.
func run(t *testing.T, command string) string {
	t.Helper()
	args := strings.Fields(command)
	if _, err := exec.LookPath(args[0]); err != nil && os.Getenv("WEAVE_REQUIRE_ROOT") != "1" {
		t.Skipf("needs %s", args[0])
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

func sysctl(t *testing.T, name, value string) {
	t.Helper()
	must(t, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
}

func getSysctl(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/" + name)
	must(t, err)
	return strings.TrimSpace(string(b))
}

// container is a namespace with one interface, eth0.
type container struct {
	t    *testing.T
	ns   netns.NsHandle
	mac  net.HardwareAddr
	addr netip.Addr
}

// startContainer connects a container to a bridge, as the driver and Docker do
// it together.
func startContainer(t *testing.T, k *Kernel, bridge, id string, addrs ...string) *container {
	t.Helper()
	last := netip.MustParsePrefix(addrs[0]).Addr().As4()
	mac := net.HardwareAddr{2, 0x57, last[0], last[1], last[2], last[3]}
	must(t, k.CreateVeth("wvl"+id, "wvc"+id, 1400, mac))
	must(t, k.AttachPort(bridge, "wvl"+id))
	return moveInto(t, "wvc"+id, mac, addrs...)
}

// moveInto makes a namespace and moves a link into it.
func moveInto(t *testing.T, name string, mac net.HardwareAddr, addrs ...string) *container {
	t.Helper()
	c := &container{t: t, mac: mac, addr: netip.MustParsePrefix(addrs[0]).Addr()}
	home, err := netns.Get()
	must(t, err)
	c.ns, err = netns.New()
	must(t, err)
	must(t, netns.Set(home))
	t.Cleanup(func() {
		_ = home.Close()
		_ = c.ns.Close()
	})
	must(t, netlink.LinkSetNsFd(link(t, name), int(c.ns)))
	c.do(func() {
		must(t, netlink.LinkSetName(link(t, name), "eth0"))
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			must(t, err)
			addr.Flags = unix.IFA_F_NODAD
			must(t, netlink.AddrAdd(link(t, "eth0"), addr))
		}
		must(t, netlink.LinkSetUp(link(t, "eth0")))
	})
	return c
}

// do runs f inside the container.
func (c *container) do(f func()) {
	c.t.Helper()
	home, err := netns.Get()
	must(c.t, err)
	defer func() { _ = home.Close() }()
	must(c.t, netns.Set(c.ns))
	defer func() { must(c.t, netns.Set(home)) }()
	f()
}

// listen opens a UDP socket where the test stands.
func listen(t *testing.T, addr string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// say sends text from where the test stands.
func say(t *testing.T, to, text string) {
	t.Helper()
	c, err := net.Dial("udp", to)
	must(t, err)
	defer func() { _ = c.Close() }()
	_, err = c.Write([]byte(text))
	must(t, err)
}

const (
	soon     = 5 * time.Second        // for what must come
	inAWhile = 100 * time.Millisecond // between tries, and for what must not come
)

// hear returns the next text, or "" if none comes in time.
func hear(t *testing.T, c *net.UDPConn, wait time.Duration) string {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(wait)))
	buf := make([]byte, 2000)
	n, err := c.Read(buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// reaches sends until the text is heard: a bridge needs a moment to see that a
// port has come up.
func reaches(t *testing.T, c *net.UDPConn, text string, send func()) bool {
	t.Helper()
	for deadline := time.Now().Add(soon); time.Now().Before(deadline); {
		send()
		if hear(t, c, inAWhile) == text {
			return true
		}
	}
	return false
}

// drain forgets what was heard so far.
func drain(t *testing.T, conns ...*net.UDPConn) {
	t.Helper()
	for _, c := range conns {
		for hear(t, c, inAWhile) != "" {
		}
	}
}

// packetSocket opens a raw socket on the container's eth0.
func (c *container) packetSocket() int {
	c.t.Helper()
	s := -1
	c.do(func() {
		proto := int(htons(unix.ETH_P_ALL))
		var err error
		s, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
		must(c.t, err)
		must(c.t, unix.Bind(s, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link(c.t, "eth0").Attrs().Index}))
		must(c.t, unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: inAWhile.Microseconds()}))
	})
	c.t.Cleanup(func() { _ = unix.Close(s) })
	return s
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
