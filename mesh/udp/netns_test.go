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

// TestAboveMTU: what is above the link's MTU is refused, so that nothing goes in
// fragments of IP, and GSO stays in use for what is below it.
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
	for addr, longest := range map[string]int{"127.0.0.1": 1500 - 20 - 8, "::1": 1500 - 40 - 8} {
		to := netip.AddrPortFrom(netip.MustParseAddr(addr), b.LocalAddr().Port())
		for _, n := range []int{1, 3} {
			if err := a.Write(pattern(n*(longest+1)), longest+1, to); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("%s: %d above the MTU: %v", addr, n, err)
			}
			buf := pattern(n * longest)
			if err := a.Write(buf, longest, to); err != nil {
				t.Fatal(err)
			}
			got, _ := receive(t, b, n)
			checkDatagrams(t, got, buf, longest)
		}
		for range 2 { // its socket is connected to one address after the other
			if mtu := a.RouteMTU(to); mtu != 1500 {
				t.Errorf("route to %s has MTU %d", addr, mtu)
			}
		}
	}
	if !a.Stats().GSO {
		t.Error("GSO is off")
	}
	nowhere := netip.MustParseAddrPort("192.0.2.1:9")
	if err := a.Write(pattern(10), 10, nowhere); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("without a route: %v", err)
	}
	if mtu := a.RouteMTU(nowhere); mtu != 0 {
		t.Errorf("no route has MTU %d", mtu)
	}
}
