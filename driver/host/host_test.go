package host

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestBridge(t *testing.T) {
	k := enterHost(t)
	const name = "wv00000001"
	must(t, k.EnsureBridge(Bridge{Name: name, MTU: 1300}))
	br := link(t, name).(*netlink.Bridge)
	mac := br.HardwareAddr.String()
	must(t, k.CreateVeth("wvl00000001", "wvc00000001", 1400, net.HardwareAddr{2, 0x57, 0, 0, 0, 1}))
	must(t, k.AttachPort(name, "wvl00000001"))
	// Disturbed, it is put right again.
	must(t, netlink.LinkSetDown(br))
	must(t, netlink.LinkSetMTU(br, 1200))
	must(t, netlink.LinkSetHardwareAddr(br, net.HardwareAddr{2, 0, 0, 0, 0, 9}))
	must(t, k.EnsureBridge(Bridge{Name: name, MTU: 1350}))

	br = link(t, name).(*netlink.Bridge)
	if br.MTU != 1350 || br.HardwareAddr.String() != mac || br.Flags&net.FlagUp == 0 || *br.MulticastSnooping {
		t.Errorf("bridge: %+v", br)
	}
	if addrs, err := netlink.AddrList(br, netlink.FAMILY_ALL); err != nil || len(addrs) > 0 {
		t.Errorf("addresses: %v, %v", addrs, err)
	}
	for sysctl, want := range map[string]string{
		"ipv4/conf/" + name + "/arp_ignore": "8", "ipv4/conf/" + name + "/forwarding": "0",
		"ipv6/conf/" + name + "/disable_ipv6": "1", "ipv6/conf/" + name + "/addr_gen_mode": "1",
		"ipv6/conf/wvl00000001/addr_gen_mode": "1",
	} {
		if got := getSysctl(t, sysctl); got != want {
			t.Errorf("%s is %s", sysctl, got)
		}
	}
	if out := run(t, "ip -d link show "+name); !strings.Contains(out, "forward_delay 0 ") || !strings.Contains(out, "stp_state 0 ") {
		t.Errorf("options: %s", out)
	}
	for range 2 {
		must(t, k.RemoveBridge(name))
	}
	if ok, err := k.HasLink(name); ok || err != nil {
		t.Errorf("HasLink: %v, %v", ok, err)
	}
}

func TestBridgeSmallMTU(t *testing.T) {
	k := enterHost(t)
	for range 2 { // a link below 1280 has no IPv6 at all
		must(t, k.EnsureBridge(Bridge{Name: "wv00000001", MTU: 68}))
	}
	must(t, k.CreateVeth("wvl00000001", "wvc00000001", 68, net.HardwareAddr{2, 0x57, 0, 0, 0, 1}))
	must(t, k.AttachPort("wv00000001", "wvl00000001"))
}

func TestVeth(t *testing.T) {
	k := enterHost(t)
	must(t, k.EnsureBridge(Bridge{Name: "wv00000001", MTU: 1400}))
	mac := net.HardwareAddr{2, 0x57, 10, 32, 0, 5}
	for range 2 { // the second replaces the first
		must(t, k.CreateVeth("wvl00000001", "wvc00000001", 1400, mac))
		for range 2 {
			must(t, k.AttachPort("wv00000001", "wvl00000001"))
		}
	}
	host, peer := link(t, "wvl00000001"), link(t, "wvc00000001")
	if host.Attrs().MTU != 1400 || host.Attrs().Flags&net.FlagUp == 0 ||
		host.Attrs().MasterIndex != link(t, "wv00000001").Attrs().Index {
		t.Errorf("host side: %+v", host.Attrs())
	}
	if peer.Attrs().MTU != 1400 || peer.Attrs().HardwareAddr.String() != mac.String() {
		t.Errorf("container side: %+v", peer.Attrs())
	}
	names, err := k.ListLinks(Prefix)
	slices.Sort(names)
	if err != nil || !slices.Equal(names, []string{"wv00000001", "wvc00000001", "wvl00000001"}) {
		t.Errorf("links: %v, %v", names, err)
	}
	for range 2 {
		must(t, k.DeleteLink("wvl00000001"))
	}
	if ok, err := k.HasLink("wvc00000001"); ok || err != nil {
		t.Errorf("HasLink: %v, %v", ok, err)
	}
}

func TestErrorsNameTheLink(t *testing.T) {
	k := enterHost(t)
	must(t, k.CreateVeth("wv00000001", "wvc00000001", 1400, nil))
	for want, err := range map[string]error{
		"wv00000001": k.EnsureBridge(Bridge{Name: "wv00000001", MTU: 1400}), // no bridge
		"wv00000002": k.AttachPort("wv00000002", "wvc00000001"),
		"wvl0000009": k.AttachPort("wv00000001", "wvl0000009"),
		"wvl0000003": k.CreateVeth("wvl0000003", "wvc0000003", 7, nil),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
}

func TestRoutes(t *testing.T) {
	k := enterHost(t)
	if _, err := k.DefaultAddrs(); !errors.Is(err, ErrNoDefaultRoute) || strings.Count(err.Error(), ErrNoDefaultRoute.Error()) != 1 {
		t.Errorf("DefaultAddrs: %v", err)
	}
	for _, cmd := range []string{
		"ip link add up0 mtu 1450 type veth peer name far0", "ip link set far0 up", "ip link set up0 up",
		"ip link add up1 mtu 1300 type veth peer name far1", "ip link set far1 up", "ip link set up1 up",
		"ip addr add 192.0.2.5/24 dev up0", "ip addr add 198.51.100.5/24 dev up1",
		"ip addr add fd01::5/64 dev up1 nodad",
		"ip route add default via 198.51.100.1 metric 200", "ip route add default via 192.0.2.1 metric 100",
		"ip route add blackhole 10.99.0.0/16",
	} {
		run(t, cmd)
	}
	routes, err := k.Routes()
	must(t, err)
	for _, want := range []Route{
		{netip.MustParsePrefix("0.0.0.0/0"), "up0"},
		{netip.MustParsePrefix("192.0.2.0/24"), "up0"},
		{netip.MustParsePrefix("10.99.0.0/16"), ""},
		{netip.MustParsePrefix("fd01::/64"), "up1"},
	} {
		if !slices.Contains(routes, want) {
			t.Errorf("%v is not among %v", want, routes)
		}
	}
	four, six := netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("fd01::5")
	if addrs, err := k.DefaultAddrs(); err != nil || !slices.Equal(addrs, []netip.Addr{four}) {
		t.Errorf("DefaultAddrs: %v, %v", addrs, err)
	}
	run(t, "ip route add default via fd01::1 dev up1")
	if addrs, err := k.DefaultAddrs(); err != nil || !slices.Equal(addrs, []netip.Addr{four, six}) {
		t.Errorf("DefaultAddrs, with IPv6: %v, %v", addrs, err)
	}
	for addr, want := range map[netip.Addr]int{
		{}: 1450, netip.MustParseAddr("198.51.100.5"): 1300, netip.MustParseAddr("fd01::5"): 1300,
	} {
		if mtu, err := k.UnderlayMTU(addr); err != nil || mtu != want {
			t.Errorf("UnderlayMTU(%v): %d, %v", addr, mtu, err)
		}
	}
	if _, err := k.UnderlayMTU(netip.MustParseAddr("203.0.113.1")); err == nil || !strings.Contains(err.Error(), "203.0.113.1") {
		t.Errorf("UnderlayMTU: %v", err)
	}
}

func TestDefaultRouteIPv6(t *testing.T) {
	k := enterHost(t)
	for _, cmd := range []string{
		"ip link add up0 mtu 1450 type veth peer name far0", "ip link set far0 up", "ip link set up0 up",
		"ip addr add fd01::5/64 dev up0 nodad",
		"ip route add default via fd01::1 mtu 1400",
	} {
		run(t, cmd)
	}
	if addrs, err := k.DefaultAddrs(); err != nil || !slices.Equal(addrs, []netip.Addr{netip.MustParseAddr("fd01::5")}) {
		t.Errorf("DefaultAddrs: %v, %v", addrs, err)
	}
	if mtu, err := k.UnderlayMTU(netip.Addr{}); err != nil || mtu != 1400 {
		t.Errorf("UnderlayMTU: %d, %v", mtu, err)
	}
}

// As in a managed plugin, /proc/sys is a mount of its own and read-only.
func TestSysctls(t *testing.T) {
	k := enterHost(t)
	must(t, unix.Unshare(unix.CLONE_NEWNS))
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(t, unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""))
	must(t, unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	must(t, k.EnsureBridge(Bridge{Name: "wv00000001", MTU: 1400})) // works all the same
	if got := getSysctl(t, "ipv6/conf/wv00000001/disable_ipv6"); got != "0" {
		t.Fatalf("disable_ipv6 is %s: /proc/sys is not read-only", got)
	}
	for range 2 {
		must(t, k.EnsureSysctls())
	}
	must(t, k.EnsureBridge(Bridge{Name: "wv00000001", MTU: 1400}))
	if got := getSysctl(t, "ipv6/conf/wv00000001/disable_ipv6"); got != "1" {
		t.Errorf("disable_ipv6 is %s", got)
	}
}

func TestRetry(t *testing.T) {
	calls := 0
	err := retry(func() error {
		if calls++; calls < 3 {
			return []error{unix.EINTR, netlink.ErrDumpInterrupted}[calls-1]
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("%d calls, %v", calls, err)
	}
	if err := retry(func() error { return unix.EINTR }); !errors.Is(err, unix.EINTR) {
		t.Errorf("endless: %v", err)
	}
	if err := retry(func() error { return unix.EPERM }); !errors.Is(err, unix.EPERM) {
		t.Errorf("other: %v", err)
	}
}
