package mesh

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weave/mesh/id"
	"weave/mesh/state"
	"weave/mesh/tap"
	"weave/mesh/tunnel"
)

// tapped is a node whose TAPs are in a namespace of their own; its sockets are
// where the test is.
type tapped struct {
	*node
	t  testing.TB
	ns *namespace
}

func startTapped(t testing.TB, ip string, peers ...string) *tapped {
	ns := newNamespace(t)
	return &tapped{node: start(t, configure(t, ip, peers...)), t: t, ns: ns}
}

func (n *tapped) again() *tapped { return &tapped{node: n.restart(n.t), t: n.t, ns: n.ns} }

func (n *tapped) tryJoin(key string, mtu int) (link string, got int, err error) {
	err = n.ns.do(func() error { link, got, err = n.JoinSegment(key, mtu); return err })
	return link, got, err
}

func (n *tapped) join(key string, want int) (mtu int) {
	n.t.Helper()
	link, mtu, err := n.tryJoin(key, want)
	must(n.t, err)
	if link != PortName(key) || n.linkMTU(key) != mtu {
		n.t.Errorf("joined %s by %s with MTU %d, the link has %d", key, link, mtu, n.linkMTU(key))
	}
	return mtu
}

func (n *tapped) leave(key string) error {
	return n.ns.do(func() error { return n.LeaveSegment(key) })
}

// linkMTU is that of a segment's TAP, or 0 if there is none.
func (n *tapped) linkMTU(key string) (mtu int) {
	n.t.Helper()
	must(n.t, n.ns.do(func() error {
		link, err := netlink.LinkByName(PortName(key))
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err == nil {
			mtu = link.Attrs().MTU
		}
		return err
	}))
	return mtu
}

func (n *tapped) segment(key string) (s SegmentStatus) {
	for _, x := range n.Segments() {
		if x.Key == key {
			s = x
		}
	}
	return s
}

const blue, red = "10.1.0.0/16", "10.2.0.0/16"

func web() Endpoint {
	return Endpoint{
		ID: "e1", Segment: blue, MAC: MAC{2, 0, 0, 0, 0, 1},
		Addrs: []netip.Addr{addr("10.1.0.1"), addr("fd00::1")}, Container: "web",
	}
}

// TestSegment follows a segment with an endpoint through two hosts.
func TestSegment(t *testing.T) {
	t.Parallel()
	a := startTapped(t, "127.0.20.1")
	if mtu := a.join(blue, 1300); mtu != 1300 {
		t.Errorf("the first host's MTU is %d", mtu)
	}
	if mtu := a.join(blue, 1200); mtu != 1300 {
		t.Errorf("joined again, the MTU is %d", mtu)
	}
	must(t, a.Announce(web()))
	b := startTapped(t, "127.0.20.2", a.addr)
	await(t, "b to hear of the endpoint", func() bool { _, ok := b.Holder(blue, addr("10.1.0.1")); return ok })
	if mtu := b.join(blue, 1400); mtu != 1300 {
		t.Errorf("the second host's MTU is %d", mtu)
	}
	if s := b.segment(blue); s.Stats.Endpoints != 1 || s.Stats.Members != 1 || !slices.Equal(s.Members, []id.PeerID{a.self}) {
		t.Errorf("b's segment does not have what was known before: %+v", s)
	}
	await(t, "a to count b in", func() bool { return slices.Equal(a.segment(blue).Members, []id.PeerID{b.self}) })
	checkHolder(t, b)

	moved := web()
	moved.Addrs, moved.Container = moved.Addrs[:1], "web2"
	must(t, a.Announce(moved))
	await(t, "b to hear of the change", func() bool {
		e, ok := b.Holder(blue, addr("10.1.0.1"))
		_, still := b.Holder(blue, addr("fd00::1"))
		return ok && !still && e.Container == "web2"
	})
	a.Withdraw("e1")
	a.Withdraw("e1")
	await(t, "b to hear that it is gone", func() bool { return len(b.Endpoints()) == 0 && b.segment(blue).Stats.Endpoints == 0 })
	must(t, a.leave(blue))
	must(t, a.leave(blue))
	if a.linkMTU(blue) != 0 || len(a.Segments()) != 0 {
		t.Errorf("left, but there are %v", a.Segments())
	}
	await(t, "b to be alone", func() bool { s := b.segment(blue); return len(s.Members) == 0 && s.Stats.Members == 0 })
	if got := a.SegmentKeys(); !slices.Equal(got, []string{blue}) {
		t.Errorf("segments anywhere: %v", got)
	}
	if err := a.Announce(web()); !errors.Is(err, ErrNoSegment) {
		t.Errorf("announce where we are not: %v", err)
	}
}

func checkHolder(t *testing.T, b *tapped) {
	t.Helper()
	e, ok := b.Holder(blue, netip.MustParseAddr("::ffff:10.1.0.1"))
	if !ok || e.ID != "e1" || e.Container != "web" || e.MAC != web().MAC || e.Owner == b.self {
		t.Errorf("holder %+v, %v", e, ok)
	}
	if _, ok := b.Holder(red, addr("10.1.0.1")); ok {
		t.Error("an address of one segment is held on another")
	}
	own := web()
	own.ID, own.Addrs = "e2", []netip.Addr{addr("10.1.0.2")}
	must(t, b.Announce(own))
	if _, ok := b.Holder(blue, addr("10.1.0.2")); ok {
		t.Error("own endpoints are no other host's")
	}
	if len(b.Endpoints()) != 2 || b.segment(blue).Stats.Endpoints != 2 {
		t.Errorf("endpoints %+v", b.Endpoints())
	}
	b.Withdraw("e2")
}

// TestSegmentOverRestart holds that the TAP outlives the node, and that others
// lose what a host does not announce again.
func TestSegmentOverRestart(t *testing.T) {
	t.Parallel()
	a := startTapped(t, "127.0.21.1")
	b := startTapped(t, "127.0.21.2", a.addr)
	a.join(blue, 1300)
	b.join(blue, 1300)
	must(t, b.Announce(web()))
	await(t, "a to hear", func() bool { _, ok := a.Holder(blue, addr("10.1.0.1")); return ok })
	b = b.again()
	if b.linkMTU(blue) == 0 {
		t.Error("the TAP went with the node")
	}
	awaitMembers(t, a.node, b.node)
	b.join(blue, 1300)
	await(t, "a to forget the endpoint of the former run", func() bool { return len(a.Endpoints()) == 0 })
	must(t, b.Announce(web()))
	await(t, "a to hear again", func() bool { return a.segment(blue).Stats.Endpoints == 1 })

	b.stop()
	if _, _, err := b.tryJoin(red, 1300); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("join after the end: %v", err)
	}
	b = &tapped{node: start(t, b.cfg), t: t, ns: b.ns}
	must(t, b.leave(blue)) // never joined in this run
	if b.linkMTU(blue) != 0 {
		t.Error("the TAP of a former run was left behind")
	}
}

// TestJoinFails holds that a failure leaves nothing behind, and does not stand
// in the way of another try.
func TestJoinFails(t *testing.T) {
	t.Parallel()
	a := startTapped(t, "127.0.22.1")
	long := strings.Repeat("x", state.MaxKey+1)
	if _, _, err := a.tryJoin(long, 1300); !errors.Is(err, state.ErrTooLarge) {
		t.Errorf("key too long to publish: %v", err)
	}
	if a.linkMTU(long) != 0 || len(a.Segments()) != 0 || len(a.SegmentKeys()) != 0 {
		t.Errorf("a segment that was not joined left %v", a.Segments())
	}
	for _, mtu := range []int{0, tunnel.MaxMTU + 1} {
		if _, _, err := a.tryJoin(blue, mtu); !errors.Is(err, tunnel.ErrMTU) || a.linkMTU(blue) != 0 {
			t.Errorf("MTU %d: %v, link's %d", mtu, err, a.linkMTU(blue))
		}
	}
	var dev *tap.Device
	must(t, a.ns.do(func() (err error) { dev, err = tap.Open(tap.Options{Name: PortName(blue), MTU: 1300}); return err }))
	if _, _, err := a.tryJoin(blue, 1300); !errors.Is(err, tap.ErrBusy) {
		t.Errorf("another has the TAP: %v", err)
	}
	must(t, dev.Close())
	a.join(blue, 1300)
	must(t, a.leave(blue))
}

func TestQueuesForCPUs(t *testing.T) {
	for cpus, want := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 7: 3, 8: 4, 64: 4} {
		if got := queues(cpus); got != want {
			t.Errorf("%d CPUs: %d queues, want %d", cpus, got, want)
		}
	}
}

// TestLeaveFails holds that leaving can be repeated.
func TestLeaveFails(t *testing.T) {
	t.Parallel()
	a := startTapped(t, "127.0.23.1")
	a.join(blue, 1300)
	replace := func(kind func(netlink.LinkAttrs) netlink.Link) {
		must(t, a.ns.do(func() error {
			if old, err := netlink.LinkByName(PortName(blue)); err == nil {
				must(t, netlink.LinkDel(old))
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name = PortName(blue)
			return netlink.LinkAdd(kind(attrs))
		}))
	}
	replace(func(attrs netlink.LinkAttrs) netlink.Link { return &netlink.Bridge{LinkAttrs: attrs} })
	for range 2 {
		if err := a.leave(blue); !errors.Is(err, tap.ErrNotTAP) {
			t.Errorf("leave: %v", err)
		}
		if len(a.Segments())+len(a.SegmentKeys()) != 0 {
			t.Errorf("still on %v", a.Segments())
		}
	}
	replace(func(attrs netlink.LinkAttrs) netlink.Link {
		return &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP}
	})
	must(t, a.leave(blue))
	if a.linkMTU(blue) != 0 {
		t.Error("the link is still there")
	}
	a.join(blue, 1300)
}

// alone runs the calling test in a process and a network namespace of its own.
// It tells whether this is that process.
func alone(t *testing.T) bool {
	t.Helper()
	const mark = "WEAVE_TEST_ALONE"
	if os.Getenv(mark) == t.Name() {
		return true
	}
	needRoot(t)
	t.Parallel()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), mark+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig goes by the thread
	defer runtime.UnlockOSThread()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// TestPartition holds that both sides of a cut go on alone, and know all of
// each other again soon after it is mended.
func TestPartition(t *testing.T) {
	if !alone(t) {
		return
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	at := func(ip string) *netlink.Addr {
		return &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ip), Mask: net.CIDRMask(32, 32)}}
	}
	for _, ip := range []string{"10.9.0.1", "10.9.0.2", "10.9.0.3"} {
		must(t, netlink.AddrAdd(lo, at(ip)))
	}
	a := start(t, configure(t, "10.9.0.1"))
	b := start(t, configure(t, "10.9.0.2", a.addr))
	c := start(t, configure(t, "10.9.0.3", a.addr))
	awaitMembers(t, a, b, c)

	must(t, netlink.AddrDel(lo, at("10.9.0.3")))
	await(t, "the cut to be seen", func() bool { return len(a.Alive()) == 1 && len(b.Alive()) == 1 && len(c.Alive()) == 0 })
	must(t, a.SetFree("10.0.0.0/8", 1))
	must(t, c.SetFree("10.0.0.0/8", 3))
	await(t, "b to hear from its side", func() bool { return b.Free("10.0.0.0/8")[a.self] == 1 })
	if len(c.Known()) != 2 || len(c.Free("10.0.0.0/8")) != 0 {
		t.Errorf("cut off, c knows %v and of %v", c.Known(), c.Free("10.0.0.0/8"))
	}
	must(t, netlink.AddrAdd(lo, at("10.9.0.3")))
	awaitMembers(t, a, b, c)
	await(t, "both sides to hear what they missed", func() bool {
		return a.Free("10.0.0.0/8")[c.self] == 3 && b.Free("10.0.0.0/8")[c.self] == 3 && c.Free("10.0.0.0/8")[a.self] == 1
	})
}
