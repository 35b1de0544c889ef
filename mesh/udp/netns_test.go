package udp

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inNamespace runs f in a network namespace of its own, on a thread that is
// thrown away afterwards; sockets opened meanwhile stay there.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.New()
		if err == nil {
			err = errors.Join(f(), ns.Close())
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestAboveMTU: datagrams above the MTU arrive, in fragments, and GSO stays in
// use for those below it.
func TestAboveMTU(t *testing.T) {
	var a, b *Conn
	inNamespace(t, func() (err error) {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetMTU(lo, 1500), netlink.LinkSetUp(lo)); err != nil {
			return err
		}
		wildcard := netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		if a, err = Listen(wildcard, Options{}); err != nil {
			return err
		}
		b, err = Listen(wildcard, Options{})
		return err
	})
	defer a.Close()
	defer b.Close()
	for _, addr := range []string{"127.0.0.1", "::1"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(addr), b.LocalAddr().Port())
		for _, size := range []int{1473, 3000, 20000, 1400} {
			buf := pattern(2*size + 100)
			if err := a.Write(buf, size, to); err != nil {
				t.Fatalf("%s, size %d: %v", addr, size, err)
			}
			got, _ := receive(t, b, 3)
			checkDatagrams(t, got, buf, size)
		}
	}
	if !a.Stats().GSO {
		t.Error("GSO is off")
	}
	if err := a.Write(pattern(10), 10, netip.MustParseAddrPort("192.0.2.1:9")); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("without a route: %v", err)
	}
}
