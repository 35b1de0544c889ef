package vxlan

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"weave/mesh/beat"
	"weave/mesh/fdb"
	"weave/mesh/id"
	"weave/test/netlab"
)

// lab is some hosts in namespaces, each with a bridge br that has a TAP wvta.
func newLab(t *testing.T, n int) []*netlab.Host {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	lab, err := netlab.New(netlab.UniqueName())
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	var hosts []*netlab.Host
	for i := range n {
		h, err := lab.AddHost(i + 1)
		must(t, err)
		must(t, h.Do(func() error {
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}}); err != nil {
				return err
			}
			return addTAP("wvta", "br")
		}))
		hosts = append(hosts, h)
	}
	return hosts
}

func addTAP(name, bridge string) error {
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP}
	if err := netlink.LinkAdd(tap); err != nil {
		return err
	}
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(tap, br), netlink.LinkSetUp(br), netlink.LinkSetUp(tap))
}

func testDevice(h *netlab.Host) Device {
	return Device{Name: "wvxa", VNI: 100, MTU: 1390, Local: h.IP4(), Port: vxlanPort}
}

func sortEntries(all []Entry) []Entry {
	slices.SortFunc(all, func(a, b Entry) int {
		if a.Kind != b.Kind {
			return int(a.Kind) - int(b.Kind)
		}
		return slices.Compare(a.MAC[:], b.MAC[:])*2 + a.Addr.Compare(b.Addr)
	})
	return all
}

// TestTables holds that the kernel has what Set put in and nothing after Delete,
// and that both can be repeated.
func TestTables(t *testing.T) {
	h := newLab(t, 1)[0]
	l := NewLinks()
	defer l.Close()
	must(t, h.Do(func() error { _, err := l.Find("wvxa"); return err })) // from now on it is in there
	d := testDevice(h)
	for _, want := range []bool{true, false} {
		if fresh, err := l.Make(d); err != nil || fresh != want {
			t.Fatalf("Make: fresh %v, %v", fresh, err)
		}
		if plugged, fresh, err := l.Plug("wvxa", "wvta"); err != nil || !plugged || fresh != want {
			t.Fatalf("Plug: %v, fresh %v, %v", plugged, fresh, err)
		}
	}
	one, two := fdb.MAC{2, 0, 0, 0, 0, 1}, fdb.MAC{2, 0, 0, 0, 0, 2}
	ip, first, second := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("10.99.0.3")
	want := []Entry{
		{Kind: Remote, MAC: one, Addr: second}, {Kind: Remote, MAC: two, Addr: h.IP4()},
		{Kind: Neighbour, MAC: one, Addr: ip}, {Kind: Flood, Addr: first}, {Kind: Flood, Addr: second},
		{Kind: Port, MAC: one, Fast: true}, {Kind: Port, MAC: two},
	}
	before := []Entry{ // what the others replace
		{Kind: Remote, MAC: one, Addr: first}, {Kind: Neighbour, MAC: two, Addr: ip}, {Kind: Port, MAC: one}, {Kind: Port, MAC: two, Fast: true},
	}
	for _, e := range slices.Concat(before, want, want) {
		if err := l.Set("wvxa", "wvta", e); err != nil {
			t.Fatalf("set %+v: %v", e, err)
		}
	}
	got, err := l.Entries("wvxa", "wvta")
	must(t, err)
	if !slices.Equal(sortEntries(got), want) {
		t.Errorf("entries\n%v, want\n%v", got, want)
	}
	if _, err := l.Make(Device{Name: "wvxa", VNI: 100, MTU: 1300, Local: h.IP4(), Port: vxlanPort}); err != nil {
		t.Error(err)
	}
	for range 2 {
		for _, e := range want {
			if err := l.Delete("wvxa", "wvta", e); err != nil {
				t.Fatalf("delete %+v: %v", e, err)
			}
		}
	}
	if got, err := l.Entries("wvxa", "wvta"); err != nil || len(got) != 0 {
		t.Errorf("left behind: %v, %v", got, err)
	}
	must(t, l.Set("wvxa", "wvta", Entry{Kind: Port, MAC: two}))
	must(t, l.Set("wvxa", "wvta", want[2]))
	for range 2 {
		must(t, l.Remove("wvxa"))
		must(t, l.Clear("wvta"))
		must(t, l.Clear("no such link"))
		for _, e := range want {
			if err := l.Delete("wvxa", "wvta", e); err != nil {
				t.Fatalf("delete %+v without a device: %v", e, err)
			}
		}
	}
	must(t, h.Do(func() error {
		neighbours, err := netlink.NeighList(0, netlink.FAMILY_V4)
		for _, n := range neighbours {
			if n.IP.Equal(net.IP(ip.AsSlice())) {
				t.Errorf("the bridge still answers for %s", ip)
			}
		}
		return err
	}))
}

// TestDevices holds that a device is replaced when its settings change, and that
// nobody else's is touched.
func TestDevices(t *testing.T) {
	h := newLab(t, 1)[0]
	l := NewLinks()
	defer l.Close()
	d := testDevice(h)
	must(t, h.Do(func() error { _, err := l.Make(d); return err }))
	if n, err := l.Find("wvxa"); n != 100 || err != nil {
		t.Errorf("Find = %d, %v", n, err)
	}
	for _, change := range []func(d *Device){
		func(d *Device) { d.VNI = 101 }, func(d *Device) { d.Port++ }, func(d *Device) { d.Local = netip.MustParseAddr("10.99.0.9") },
	} {
		change(&d)
		if fresh, err := l.Make(d); !fresh || err != nil {
			t.Errorf("Make %+v: fresh %v, %v", d, fresh, err)
		}
	}
	clash := d
	clash.Name = "wvxb"
	if _, err := l.Make(clash); err == nil || !strings.Contains(err.Error(), "another program") {
		t.Errorf("two devices with one VNI: %v", err)
	}
	if _, _, err := l.Plug("wvxa", "no such link"); err == nil {
		t.Error("plugged in beside no TAP")
	}
	must(t, h.Do(func() error {
		tap, err := netlink.LinkByName("wvta")
		if err != nil {
			return err
		}
		return netlink.LinkSetNoMaster(tap)
	}))
	if plugged, _, err := l.Plug("wvxa", "wvta"); plugged || err != nil {
		t.Errorf("TAP in no bridge: %v, %v", plugged, err)
	}
	for _, use := range []func() error{
		func() error { _, err := l.Find("wvta"); return err },
		func() error { x := d; x.Name = "wvta"; _, err := l.Make(x); return err },
		func() error { return l.Remove("wvta") },
	} {
		if err := use(); !errors.Is(err, ErrNotVXLAN) {
			t.Errorf("a TAP taken for a VXLAN device: %v", err)
		}
	}
	if n, err := l.Find("no such link"); n != 0 || err != nil {
		t.Errorf("Find = %d, %v", n, err)
	}
	var busy net.PacketConn
	must(t, h.Do(func() (err error) { busy, err = net.ListenPacket("udp4", ":6799"); return err }))
	defer busy.Close()
	d.Name, d.Port = "wvxc", 6799
	_, err := l.Make(d)
	must(t, err)
	if _, _, err := l.Plug("wvxc", ""); err == nil || !strings.Contains(err.Error(), "UDP port") {
		t.Errorf("the port is in use: %v", err)
	}
}

// TestIPv6Underlay holds that devices, entries and the guard work there too.
func TestIPv6Underlay(t *testing.T) {
	h := newLab(t, 1)[0]
	l := NewLinks()
	f := NewFirewall(h.IP6(), l)
	defer l.Close()
	defer f.Close()
	d := testDevice(h)
	d.Local = h.IP6()
	other := netip.MustParseAddr("fd99::2")
	must(t, h.Do(func() error {
		_, err := l.Make(d)
		_, plugErr := l.Make(d)
		_, guardErr := f.Ensure(vxlanPort)
		return errors.Join(err, plugErr, guardErr)
	}))
	_, _, err := l.Plug("wvxa", "wvta")
	must(t, err)
	e := Entry{Kind: Flood, Addr: other}
	must(t, l.Set("wvxa", "wvta", e))
	if got, err := l.Entries("wvxa", "wvta"); err != nil || !slices.Equal(got, []Entry{e}) {
		t.Errorf("entries %v, %v", got, err)
	}
	must(t, f.Allow(other))
	if got, err := f.Ensure(vxlanPort); err != nil || !slices.Equal(got, []netip.Addr{other}) {
		t.Errorf("allowed %v, %v", got, err)
	}
}

// TestGuard holds who gets in: peers, by the link that leads to them, and nobody
// else, and nothing that is forwarded.
func TestGuard(t *testing.T) {
	h := newLab(t, 1)[0]
	l := NewLinks()
	defer l.Close()
	f := NewFirewall(h.IP4(), l)
	defer f.Close()
	peer, other := netip.MustParseAddr("10.99.0.254"), netip.MustParseAddr("10.99.0.3")
	must(t, h.Do(func() error { _, err := f.Ensure(vxlanPort); return err }))
	for range 2 {
		must(t, f.Allow(peer))
		must(t, f.Allow(other))
		must(t, f.Deny(other))
	}
	again := NewFirewall(h.IP4(), l) // as the next run does
	defer again.Close()
	must(t, h.Do(func() error {
		got, err := again.Ensure(vxlanPort)
		if !slices.Equal(got, []netip.Addr{peer}) {
			t.Errorf("an earlier run let in %v", got)
		}
		return err
	}))
	count := func() (rules int) {
		must(t, h.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			chains, err := c.ListChains()
			for _, chain := range chains {
				list, listErr := c.GetRules(chain.Table, chain)
				rules += len(list)
				err = errors.Join(err, listErr)
			}
			return err
		}))
		return rules
	}
	if got := count(); got != 2 {
		t.Errorf("%d rules, want 2", got)
	}
	if got, err := f.Ensure(vxlanPort); err != nil || !slices.Equal(got, []netip.Addr{peer}) || f.Touched() {
		t.Errorf("let in %v, %v; touched: %v", got, err, f.Touched())
	}
	must(t, h.Do(func() error { // somebody flushes everything
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		return c.Flush()
	}))
	if !f.Touched() {
		t.Error("a flush is not noticed")
	}
	if got, err := f.Ensure(vxlanPort); err != nil || len(got) != 0 || count() != 2 || f.Touched() {
		t.Errorf("after a flush %v are let in, %v, %d rules", got, err, count())
	}
	must(t, f.Allow(peer))
	if got, err := f.Ensure(6799); err != nil || len(got) != 1 || count() != 2 { // another port
		t.Errorf("on another port %v are let in, %v, %d rules", got, err, count())
	}
	for range 2 {
		must(t, f.Remove())
	}
	if got := count(); got != 0 {
		t.Errorf("%d rules are left", got)
	}
}

// TestGuardSparesTheUnderlay holds that the ports of a bridge that leads to the
// other hosts are no containers.
func TestGuardSparesTheUnderlay(t *testing.T) {
	h := newLab(t, 1)[0]
	l := NewLinks()
	defer l.Close()
	ours := netip.MustParseAddr("10.88.0.1")
	f := NewFirewall(ours, l)
	defer f.Close()
	spared := func() (names []string) {
		must(t, h.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			all, err := c.GetSetElements(ports())
			for _, e := range all {
				names = append(names, strings.TrimRight(string(e.Key), "\x00"))
			}
			return err
		}))
		slices.Sort(names)
		return names
	}
	ensure := func() { must(t, h.Do(func() error { _, err := f.Ensure(vxlanPort); return err })) }
	ensure()
	if got := spared(); len(got) != 0 {
		t.Errorf("spared without need: %v", got)
	}
	must(t, h.Do(func() error {
		br, err := netlink.LinkByName("br")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(ours.String() + "/24")
		return errors.Join(err, netlink.AddrAdd(br, a), addTAP("up1", "br"))
	}))
	must(t, f.Allow(netip.MustParseAddr("10.88.0.2")))
	ensure()
	if got := spared(); !slices.Equal(got, []string{"up1", "wvta"}) {
		t.Errorf("spared: %v", got)
	}
	if got, err := f.Ensure(vxlanPort); err != nil || len(got) != 1 {
		t.Errorf("let in: %v, %v", got, err)
	}
}

// TestSocket holds that a probe crosses two devices.
func TestSocket(t *testing.T) {
	hosts := newLab(t, 2)
	ids := []id.PeerID{{1}, {2}}
	var sockets []*Socket
	for i, h := range hosts {
		l, s := NewLinks(), NewSocket()
		defer l.Close()
		d := Device{Name: beatLink, VNI: 1, MTU: 1390, Local: h.IP4(), Port: vxlanPort}
		must(t, h.Do(func() error {
			_, err := l.Make(d)
			if err == nil {
				_, _, err = l.Plug(beatLink, "")
			}
			if err == nil {
				err = s.Bind(beatLink)
			}
			return err
		}))
		must(t, l.Set(beatLink, "", Entry{Kind: Remote, MAC: beat.MAC(ids[1-i]), Addr: hosts[1-i].IP4()}))
		sockets = append(sockets, s)
	}
	probe := beat.Probe{Seq: 5, Full: true}
	must(t, sockets[0].Send(beat.AppendProbe(nil, probe, ids[0], ids[1], 1390+ethernetLen)))
	buf := make([]byte, maxProbe)
	n, err := sockets[1].Receive(buf)
	must(t, err)
	from, got, err := beat.ParseProbe(buf[:n], ids[1])
	if err != nil || from != ids[0] || got != probe || n != 1390+ethernetLen {
		t.Errorf("%d bytes from %v: %+v, %v", n, from, got, err)
	}
	ended := make(chan error)
	go func() { _, err := sockets[1].Receive(buf); ended <- err }()
	idle := NewSocket()
	go func() { _, err := idle.Receive(buf); ended <- err }()
	time.Sleep(time.Millisecond) // either order is fine
	must(t, errors.Join(sockets[0].Close(), sockets[1].Close(), idle.Close()))
	for range 2 {
		if err := <-ended; err == nil {
			t.Error("Receive after Close succeeds")
		}
	}
	if err := idle.Bind(beatLink); err == nil {
		t.Error("Bind after Close succeeds")
	}
	if err := idle.Send(nil); err == nil {
		t.Error("Send after Close succeeds")
	}
}

// TestOldKernel holds that a kernel is known by the entries that it does not
// keep as they were set: one before 4.20 takes them, without the flag.
func TestOldKernel(t *testing.T) {
	e := Entry{Kind: Port, MAC: fdb.MAC{2, 0, 0, 0, 0, 1}, Fast: true}
	n := *e.port(7)
	if err := e.keptIn([]netlink.Neigh{n}); err != nil {
		t.Error(err)
	}
	n.Flags &^= netlink.NTF_STICKY
	if err := e.keptIn([]netlink.Neigh{n}); !errors.Is(err, ErrOldKernel) {
		t.Errorf("without the flag: %v", err)
	}
}
