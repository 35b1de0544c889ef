package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
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

func addHost(t *testing.T, lab *Lab, n int) *Host {
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
	if err := Remove(dead); err != nil {
		t.Error(err)
	}
	if !OwnerAlive("something-else") {
		t.Error("a name without a process counts as dead")
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
