package lan

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"weave/mesh/id"
	"weave/test/netlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newLab(t *testing.T) *netlab.Lab {
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
	return lab
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// announced is an Announcer on a host, and whom it was to meet.
type announced struct {
	*Announcer
	*netlab.Host

	mu  sync.Mutex
	met []netip.AddrPort
}

var errNotMet = errors.New("not met")

// announce runs an Announcer on a host until the test ends. It meets nobody, so
// that it goes on trying.
func announce(t *testing.T, h *netlab.Host, number byte, change ...func(*Config)) *announced {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	x := &announced{Host: h}
	cfg := Config{
		Self: id.PeerID{number}, Key: rightKey, Port: 7000 + uint16(number), Listen: netip.IPv6Unspecified(), do: h.Do, Log: logrus.NewEntry(log),
		Wanted: func(id.PeerID) bool { return true },
		Meet: func(_ context.Context, at netip.AddrPort) (id.PeerID, error) {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.met = append(x.met, at)
			return id.PeerID{}, errNotMet
		},
	}
	for _, f := range change {
		f(&cfg)
	}
	x.Announcer = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); x.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return x
}

// seldom has a host announce itself twice in half a minute if there is no reason.
func seldom(c *Config) { c.wait = lastWait }

// tried are the addresses that it was to meet, each time.
func (x *announced) tried() []netip.AddrPort {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.SortedFunc(slices.Values(x.met), netip.AddrPort.Compare)
}

// where are the addresses that others should try.
func (x *announced) where() []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(x.IP4(), x.cfg.Port), netip.AddrPortFrom(x.IP6(), x.cfg.Port)}
}

// TestLabFind holds that hosts on one link find each other by both families, soon,
// but none of another cluster, and none beyond a router; and that what they send goes
// no further than the link.
func TestLabFind(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	capture, err := lab.Capture()
	must(t, err)
	var hosts []*netlab.Host
	for n := range 3 {
		h, err := lab.AddHost(n + 1)
		must(t, err)
		hosts = append(hosts, h)
	}
	router, err := lab.AddRouter(4, 7)
	must(t, err)
	inside, err := router.Inside.AddHost(9)
	must(t, err)
	stranger, beyond := announce(t, hosts[2], 3, func(c *Config) { c.Key = wrongKey }), announce(t, inside, 9)
	a := announce(t, hosts[0], 1, seldom)
	for _, x := range []*announced{a, stranger, beyond} {
		await(t, "the first announcements", func() bool { return slices.Equal(x.Status().Links, []string{"eth0"}) })
	}
	began := time.Now()
	b := announce(t, hosts[1], 2)
	await(t, "the two to find each other", func() bool {
		return slices.Equal(a.tried(), b.where()) && slices.Equal(b.tried(), a.where())
	})
	t.Logf("after %s", time.Since(began))
	if took := time.Since(began); took > 5*time.Second { // 1.2 s at most, where other tests leave it time
		t.Errorf("it took %s: newcomers are not answered", took)
	}
	await(t, "the stranger to be noticed", func() bool {
		return a.Status().Foreign > 0 && b.Status().Foreign > 0 && stranger.Status().Foreign > 0
	})
	if len(stranger.tried())+len(beyond.tried()) > 0 || beyond.Status().Foreign > 0 {
		t.Errorf("a stranger tried %v, one beyond a router %v", stranger.tried(), beyond.tried())
	}
	frames, err := capture.Stop()
	must(t, err)
	checkHops(t, frames)
	if !slices.Equal(a.tried(), b.where()) || !slices.Equal(b.tried(), a.where()) {
		t.Errorf("tried again too soon: %v, %v", a.tried(), b.tried())
	}
}

// checkHops looks at all announcements among some frames.
func checkHops(t *testing.T, frames [][]byte) {
	t.Helper()
	count := map[string]int{}
	for _, f := range frames {
		switch {
		case len(f) >= 34 && f[12] == 0x08 && f[13] == 0x00 && netip.AddrFrom4([4]byte(f[30:34])) == group4 && f[23] == 17:
			count["IPv4"]++
			if f[22] != 1 || len(f) != 14+20+8+messageLen {
				t.Errorf("TTL %d, %d bytes", f[22], len(f))
			}
		case len(f) >= 54 && f[12] == 0x86 && f[13] == 0xdd && netip.AddrFrom16([16]byte(f[38:54])) == group6 && f[20] == 17:
			count["IPv6"]++
			if f[21] != 1 || len(f) != 14+40+8+messageLen {
				t.Errorf("hop limit %d, %d bytes", f[21], len(f))
			}
		}
	}
	if count["IPv4"] == 0 || count["IPv6"] == 0 {
		t.Errorf("announcements: %v", count)
	}
}

// TestLabLateLink holds that a host whose link comes after the start is found, and
// that one which listens at one address is announced with that.
func TestLabLateLink(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	late, err := lab.AddHost(1)
	must(t, err)
	h, err := lab.AddHost(2)
	must(t, err)
	further := netip.MustParseAddr("10.99.0.222")
	set := func(do func(netlink.Link) error) {
		t.Helper()
		must(t, late.Do(func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return do(l)
		}))
	}
	set(netlink.LinkSetDown)
	a := announce(t, late, 1, seldom, func(c *Config) { c.Listen = further })
	b := announce(t, h, 2)
	await(t, "b to announce itself", func() bool { return len(b.Status().Links) == 1 })
	if s := a.Status(); len(s.Links) > 0 || s.Trouble == "" {
		t.Errorf("without a link: %+v", s)
	}
	set(func(l netlink.Link) error {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: further.AsSlice(), Mask: net.CIDRMask(24, 32)}}
		return errors.Join(netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
	})
	at := netip.AddrPortFrom(further, a.cfg.Port)
	await(t, "the late one to be found, and to find", func() bool {
		return slices.Equal(b.tried(), []netip.AddrPort{at}) && slices.Equal(a.tried(), b.where()[:1])
	})
	if s := a.Status(); !slices.Equal(s.Links, []string{"eth0"}) || s.Trouble != "" {
		t.Errorf("with a link: %+v", s)
	}
	set(netlink.LinkSetDown)
	await(t, "the link to be missed", func() bool { return a.Status().Trouble != "" })
	set(netlink.LinkSetUp)
	await(t, "the link to be taken again", func() bool { return a.Status().Trouble == "" })
}

// TestLabPorts holds that parts of a bridge are not announced on, and the bridge is.
func TestLabPorts(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	h, err := lab.AddHost(1)
	must(t, err)
	must(t, h.Do(func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}}
		docker := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}
		if err := errors.Join(netlink.LinkAdd(br), netlink.LinkAdd(docker)); err != nil {
			return err
		}
		var errs []error
		for i, l := range []netlink.Link{br, docker} {
			port := netlink.NewVeth(netlink.LinkAttrs{Name: []string{"port0", "port1"}[i], MasterIndex: l.Attrs().Index})
			port.PeerName = []string{"vethend0", "vethend1"}[i]
			a := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 5, byte(i), 1).To4(), Mask: net.CIDRMask(24, 32)}}
			stray := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 6, byte(i), 1).To4(), Mask: net.CIDRMask(24, 32)}}
			errs = append(errs, netlink.LinkAdd(port), netlink.AddrAdd(l, a), netlink.AddrAdd(port, stray), netlink.LinkSetUp(port), netlink.LinkSetUp(l))
			end, err := netlink.LinkByName(port.PeerName)
			if err != nil {
				return errors.Join(append(errs, err)...)
			}
			errs = append(errs, netlink.LinkSetUp(end))
		}
		return errors.Join(errs...)
	}))
	x := announce(t, h, 1)
	await(t, "announcements", func() bool { return slices.Equal(x.Status().Links, []string{"eth0", "lan0"}) })
}
