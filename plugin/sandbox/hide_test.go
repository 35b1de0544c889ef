package sandbox

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestHide: nobody finds a hidden device by its name, address or routes, and no
// other device than the one that was meant is touched.
func TestHide(t *testing.T) {
	r, other := newRoom(t), newRoom(t)
	var outer, inner int
	other.in(func() error {
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wvl00000001"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(r.handle)})
		if err != nil {
			return err
		}
		l, err := netlink.LinkByName("wvl00000001")
		if err != nil {
			return err
		}
		outer, inner = l.Attrs().Index, l.Attrs().ParentIndex
		return nil
	})
	r.run("ip link set lo up")
	r.run("ip link set eth0 up")
	r.run("ip addr add 10.1.0.2/24 dev eth0")
	r.run("ip addr add 10.2.0.2/24 dev eth0")
	r.run("ip -6 addr add fd01::2/64 dev eth0 nodad")
	for name, err := range map[string]error{
		"another peer":   Hide(r.path(), inner, outer+1),
		"another device": Hide(r.path(), 1, outer),
		"no device":      Hide(r.path(), inner+1000, outer),
		"no namespace":   Hide("/proc/self/status", inner, outer),
	} {
		if err == nil {
			t.Errorf("%s: hidden", name)
		}
	}
	if err := Hide("/nowhere", inner, outer); !errors.Is(err, ErrNotThere) {
		t.Errorf("nowhere: %v", err)
	}
	if out := r.run("ip -o link show eth0"); !strings.Contains(out, "UP") {
		t.Errorf("before, the device is %s", out)
	}
	for range 2 {
		must(t, Hide(r.path(), inner, outer))
	}
	r.in(func() error {
		l, err := netlink.LinkByIndex(inner)
		if err != nil {
			return err
		}
		if name, up := l.Attrs().Name, l.Attrs().RawFlags&unix.IFF_UP != 0; name == "eth0" || up {
			t.Errorf("the device is called %s, up: %v", name, up)
		}
		return nil
	})
	for _, command := range []string{"ip route show table all", "ip -6 route show table all", "ip addr"} {
		if out := r.run(command); strings.Contains(out, "10.1.0") || strings.Contains(out, "10.2.0") || strings.Contains(out, "fd01:") {
			t.Errorf("%s: %s", command, out)
		}
	}
}
