package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func newLab(t *testing.T) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	lab, err := New(UniqueName())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
		left, err := filepath.Glob(filepath.Join(netnsDir, lab.Name()+"-*"))
		if err != nil || len(left) > 0 {
			t.Errorf("namespaces left: %v %v", left, err)
		}
	})
	return lab
}

func addHost(t *testing.T, lab interface{ AddHost(int) (*Host, error) }, n int) *Host {
	t.Helper()
	h, err := lab.AddHost(n)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// send carries one datagram from a to b and returns what b got.
func send(t *testing.T, a, b *Host, to netip.Addr, payload []byte, wait time.Duration) ([]byte, error) {
	t.Helper()
	var server, client net.PacketConn
	listen := func(h *Host, c *net.PacketConn) {
		err := h.Do(func() (err error) {
			*c, err = net.ListenPacket("udp", ":0")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*c).Close() })
	}
	listen(b, &server)
	listen(a, &client)
	port := server.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	if _, err := client.WriteTo(payload, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, port))); err != nil {
		return nil, err
	}
	if err := server.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	n, _, err := server.ReadFrom(buf)
	return buf[:n], err
}

func TestHostsReachEachOther(t *testing.T) {
	lab := newLab(t)
	a, b := addHost(t, lab, 1), addHost(t, lab, 2)
	payload := []byte("over the wire")
	for _, to := range []netip.Addr{b.IP4(), b.IP6()} {
		got, err := send(t, a, b, to, payload, 5*time.Second)
		if err != nil || !bytes.Equal(got, payload) {
			t.Errorf("to %s: %q, %v", to, got, err)
		}
	}
}

// TestOnly holds that a host of one family reaches others by that alone, and gets
// no routes of the other one later.
func TestOnly(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	dual, four, six := addHost(t, lab, 1), addHost(t, lab, 2), addHost(t, lab, 3)
	must(t, four.Only(IPv4))
	must(t, six.Only(IPv6))
	if four.IP6().IsValid() || six.IP4().IsValid() {
		t.Errorf("the hosts have %s and %s still", four.IP6(), six.IP4())
	}
	addRouter(t, lab.Network, 4, 104)
	both(t, func(t *testing.T, by6 bool) {
		has, lacks := four, six
		if by6 {
			has, lacks = six, four
		}
		if !passes(open(t, has, by6, 0), open(t, dual, by6, 0), true) || !passes(open(t, dual, by6, 0), open(t, has, by6, 0), true) {
			t.Error("the host and one with both families do not reach each other")
		}
		_, err := lacks.route(address(dual, by6))
		if !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("the host without that family: %v", err)
		}
	})
}

// route returns the routes by which the host sends to an address.
func (h *Host) route(to netip.Addr) (routes []netlink.Route, err error) {
	err = h.Do(func() error {
		routes, err = netlink.RouteGet(to.AsSlice())
		return err
	})
	return routes, err
}

func TestCutAndHeal(t *testing.T) {
	lab := newLab(t)
	a, b := addHost(t, lab, 1), addHost(t, lab, 2)
	if err := b.Cut(); err != nil {
		t.Fatal(err)
	}
	if _, err := send(t, a, b, b.IP4(), []byte("x"), 200*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a datagram crossed a cut wire: %v", err)
	}
	if err := b.Heal(); err != nil {
		t.Fatal(err)
	}
	if _, err := send(t, a, b, b.IP4(), []byte("x"), 5*time.Second); err != nil {
		t.Errorf("after healing: %v", err)
	}
}

// TestOutsideKeepsItsAddress: hosts that come and go do not make the others
// forget who stands for the world outside.
func TestOutsideKeepsItsAddress(t *testing.T) {
	lab := newLab(t)
	address := func() (mac string) {
		t.Helper()
		err := inNamespace(lab.wires(), func() error {
			link, err := netlink.LinkByName(bridge)
			if err == nil {
				mac = link.Attrs().HardwareAddr.String()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return mac
	}
	before := address()
	for n := range 8 { // each with a random address, the lowest of which the bridge would take
		h := addHost(t, lab, n+1)
		if now := address(); now != before {
			t.Fatalf("with %d hosts the bridge has %s, it had %s", n+1, now, before)
		}
		if n%2 == 0 {
			if err := lab.RemoveHost(h); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCaptureSeesWholeFrames(t *testing.T) {
	lab := newLab(t)
	a, b := addHost(t, lab, 1), addHost(t, lab, 2)
	capture, err := lab.Capture()
	if err != nil {
		t.Fatal(err)
	}
	payload := bytes.Repeat([]byte("known payload "), 100)
	if _, err := send(t, a, b, b.IP4(), payload, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	frames, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	for _, frame := range frames {
		if bytes.Contains(frame, payload) {
			return
		}
	}
	t.Errorf("payload in none of %d frames", len(frames))
}

func TestDeadLabs(t *testing.T) {
	const nobody = 1 << 30 // above any pid_max
	lab := newLab(t)
	dead := fmt.Sprintf("%s%d-1", prefix, nobody)
	if _, err := New(dead); err != nil {
		t.Fatal(err)
	}
	found, err := Dead()
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	for _, name := range found {
		seen = seen || name == dead
		if name == lab.Name() {
			t.Error("a living lab counts as dead")
		}
	}
	if !seen {
		t.Errorf("%s is not in %v", dead, found)
	}
	halfMade := filepath.Join(netnsDir, dead+"-h1")
	if err := os.WriteFile(halfMade, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dead); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(halfMade); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a name that was half made is left: %v", err)
	}
	if !OwnerAlive("something-else") {
		t.Error("a name without a process counts as dead")
	}
}

// ownMounts in the environment says that the process has a mount namespace of
// its own.
const ownMounts = "WEAVE_TEST_OWN_MOUNTS"

// TestCoveredNames: `ip netns add` mounts the directory upon itself. That is
// done where no other lab sees it.
func TestCoveredNames(t *testing.T) {
	lab := newLab(t)
	if os.Getenv(ownMounts) == "" {
		again := exec.Command("/proc/self/exe", "-test.run=^TestCoveredNames$")
		again.Env = append(os.Environ(), ownMounts+"=1")
		again.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		if out, err := again.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if err := unix.Mount(netnsDir, netnsDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	if err := Remove(lab.Name()); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(netnsDir, lab.Name()+"*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

func TestLinks(t *testing.T) {
	lab := newLab(t)
	h := addHost(t, lab, 7)
	if links, err := h.Links(); err != nil || len(links) != 0 {
		t.Errorf("links of a new host: %v %v", links, err)
	}
	if err := h.Do(func() error { return addDummyPair("left", "right") }); err != nil {
		t.Fatal(err)
	}
	if links, err := h.Links(); err != nil || len(links) != 2 {
		t.Errorf("links: %v %v", links, err)
	}
	if err := lab.RemoveHost(h); err != nil {
		t.Fatal(err)
	}
	again := addHost(t, lab, 7)
	if links, err := again.Links(); err != nil || len(links) != 0 {
		t.Errorf("links of a host made anew: %v %v", links, err)
	}
}

func addDummyPair(a, b string) error {
	return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: a}, PeerName: b})
}
