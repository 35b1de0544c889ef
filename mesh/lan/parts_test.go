package lan

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"weave/mesh/id"
)

var (
	rightKey = [KeySize]byte{1}
	wrongKey = [KeySize]byte{2}
	sample   = announcement{id.PeerID{7, 8, 9}, 6783}
)

func TestMessage(t *testing.T) {
	s := newSealer(rightKey)
	b := s.seal(sample)
	if got, foreign, ok := s.open(b); !ok || foreign || got != sample || len(b) != messageLen {
		t.Errorf("%d bytes, read back as %+v, %t, %t", len(b), got, foreign, ok)
	}
	if bytes.Equal(b, s.seal(sample)) {
		t.Error("two announcements are the same")
	}
	if bytes.Contains(b, sample.peer[:3]) {
		t.Error("the peer's ID stands there in clear")
	}
	if _, foreign, ok := newSealer(wrongKey).open(b); ok || !foreign {
		t.Errorf("another cluster reads it: %t, foreign %t", ok, foreign)
	}
	for i := range b {
		for _, bit := range []byte{1, 0x80} {
			c := bytes.Clone(b)
			c[i] ^= bit
			if _, foreign, ok := s.open(c); ok || foreign != (i >= len(prefix)) {
				t.Errorf("byte %d changed: ok %t, foreign %t", i, ok, foreign)
			}
		}
	}
	for n := range len(b) + 2 {
		c := append(bytes.Clone(b), 0)[:min(n, len(b)+1)]
		if _, foreign, ok := s.open(c); ok != (n == len(b)) || foreign {
			t.Errorf("%d bytes: ok %t, foreign %t", n, ok, foreign)
		}
	}
	for _, a := range []announcement{{sample.peer, 0}, {id.PeerID{}, 1}} {
		if _, _, ok := s.open(s.seal(a)); ok {
			t.Errorf("%+v is taken", a)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s := newSealer(rightKey)
	f.Add(s.seal(sample))
	f.Add([]byte(prefix))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Only what stands in the corpus can be right: nobody guesses the tag.
		if a, _, ok := s.open(b); ok && a != sample {
			t.Errorf("%x is %+v", b, a)
		}
	})
}

func at(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 6783)
}

// TestFinds holds that an address is tried at most once a minute, and that the oldest
// go where there are too many.
func TestFinds(t *testing.T) {
	f, now := newFinds(), time.Unix(1000, 0)
	one, other := find{id.PeerID{1}, at(1)}, find{id.PeerID{2}, at(1)}
	f.add(one, now)
	f.add(other, now)
	if x, ok := f.next(now); !ok || x != other {
		t.Errorf("%+v, %t; want what was said last of that address", x, ok)
	}
	f.add(one, now.Add(again-1))
	if x, ok := f.next(now.Add(again - 1)); ok {
		t.Errorf("%+v is tried again too soon", x)
	}
	f.add(one, now.Add(again))
	if x, ok := f.next(now.Add(again)); !ok || x != one {
		t.Errorf("%+v, %t; want it to be tried again", x, ok)
	}

	f = newFinds()
	for i := range maxFinds + 5 {
		f.add(find{id.PeerID{1}, at(i)}, now)
	}
	for i := range maxFinds {
		if x, ok := f.next(now); !ok || x.at != at(i+5) {
			t.Fatalf("%d: %+v, %t", i, x, ok)
		}
	}
	if x, ok := f.next(now); ok {
		t.Errorf("%+v is more than may wait", x)
	}
	for i := range 2 * maxTried {
		f.add(find{id.PeerID{1}, at(i + 1000)}, now)
		f.next(now)
	}
	if len(f.tried) > maxTried {
		t.Errorf("%d addresses are kept", len(f.tried))
	}
}

// TestTake holds that finds come one by one to who waits, at a bounded rate.
func TestTake(t *testing.T) {
	f := newFinds()
	f.limit = rate.NewLimiter(rate.Every(time.Hour), 3)
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan find, 10)
	ended := make(chan struct{}, 3)
	for range cap(ended) {
		go func() {
			defer func() { ended <- struct{}{} }()
			for {
				x, ok := f.take(ctx)
				if !ok {
					return
				}
				got <- x
			}
		}()
	}
	for i := range 10 {
		f.add(find{id.PeerID{1}, at(i)}, time.Now())
	}
	var took []netip.AddrPort
	for range 3 {
		took = append(took, (<-got).at)
	}
	slices.SortFunc(took, netip.AddrPort.Compare)
	if !slices.Equal(took, []netip.AddrPort{at(0), at(1), at(2)}) {
		t.Errorf("took %v", took)
	}
	cancel()
	for range cap(ended) {
		<-ended
	}
	if len(got) > 0 {
		t.Errorf("%d more than the rate allows", len(got))
	}
}

func TestPace(t *testing.T) {
	now := time.Unix(1000, 0)
	p := newPace(now, firstWait)
	if !p.next.Equal(now) {
		t.Error("the first does not come at once")
	}
	within := func(from, to time.Duration) {
		t.Helper()
		if d := p.next.Sub(now); d < from || d > to {
			t.Errorf("the next comes after %s, want %s to %s", d, from, to)
		}
	}
	for wait := firstWait; wait < lastWait; wait *= 2 {
		p.sent(now)
		within(wait*3/4, wait*5/4)
		now = p.next
	}
	for range 20 {
		p.sent(now)
		within(30*time.Second, time.Minute)
	}
	now = p.last
	p.answer(now)
	within(answerGap, answerGap) // there was one just now
	now = now.Add(10 * time.Second)
	p.next = now.Add(20 * time.Second)
	p.answer(now)
	within(0, answerSpread)
	first := p.next
	p.answer(first.Add(-1))
	if p.next.After(first) {
		t.Error("a second newcomer puts the answer off")
	}
}

func TestLinksThatLead(t *testing.T) {
	const good = net.FlagUp | net.FlagMulticast | net.FlagRunning | net.FlagBroadcast
	for _, c := range []struct {
		name  string
		flags net.Flags
		want  bool
	}{
		{"eth0", good, true}, {"bond0.7", good, true}, {"br-lan", good, true}, {"br0", good, true}, {"dockerlan", good, true},
		{"eth0", good &^ net.FlagUp, false}, {"eth0", good &^ net.FlagRunning, false}, {"eth0", good &^ net.FlagMulticast, false},
		{"lo", good | net.FlagLoopback, false}, {"tun0", good | net.FlagPointToPoint, false},
		{"docker0", good, false}, {"docker_gwbridge", good, false}, {"br-0123456789ab", good, false},
		{"veth12ab", good, false}, {"wv0a32", good, false}, {"wvt01234567", good, false}, {"wvx-beat", good, false},
	} {
		if got := leads(&netlink.LinkAttrs{Name: c.name, Flags: c.flags}); got != c.want {
			t.Errorf("%s, %s: %t", c.name, c.flags, got)
		}
	}
}

func TestAddressesThatFit(t *testing.T) {
	for _, c := range []struct {
		addr  string
		flags int
		want  bool
	}{
		{"192.0.2.1/24", 0, true}, {"2001:db8::1/64", 0, true}, {"fd00::1/64", 0, true}, {"10.0.0.1/8", unix.IFA_F_PERMANENT, true},
		{"fe80::1/64", 0, false}, {"169.254.1.1/16", 0, false}, {"127.0.0.1/8", 0, false}, {"::1/128", 0, false},
		{"192.0.2.2/24", unix.IFA_F_SECONDARY, false}, {"2001:db8::2/64", unix.IFA_F_TEMPORARY, false},
		{"2001:db8::3/64", unix.IFA_F_TENTATIVE, false}, {"2001:db8::3/64", unix.IFA_F_DADFAILED, false}, {"2001:db8::3/64", unix.IFA_F_DEPRECATED, false},
	} {
		a, err := netlink.ParseAddr(c.addr)
		if err != nil {
			t.Fatal(err)
		}
		a.Flags = c.flags
		if own, ok := fit(*a); ok != c.want || own != netip.MustParsePrefix(c.addr) {
			t.Errorf("%s, flags %#x: %s, %t", c.addr, c.flags, own, ok)
		}
	}
}

// hearing is a family on one link that hears.
func hearing(wanted func(id.PeerID) bool) *family {
	a := New(Config{Self: id.PeerID{1}, Key: rightKey, Port: 1, Wanted: wanted})
	f := a.families[0]
	f.links.Store(&view{3: {3, "eth0", netip.MustParsePrefix("192.0.2.1/24")}})
	return f
}

// TestWhoIsHeard holds that only what comes from the link itself is a find.
func TestWhoIsHeard(t *testing.T) {
	good := datagram{n: messageLen, link: 3, hops: 1, from: netip.MustParseAddrPort("192.0.2.9:40000"), to: group4}
	for name, c := range map[string]struct {
		change  func(d *datagram)
		key     [KeySize]byte
		says    announcement
		found   bool
		foreign uint64
	}{
		"good":            {found: true},
		"other link":      {change: func(d *datagram) { d.link = 4 }},
		"from afar":       {change: func(d *datagram) { d.hops = 2 }},
		"unicast":         {change: func(d *datagram) { d.to = netip.MustParseAddr("192.0.2.1") }},
		"other subnet":    {change: func(d *datagram) { d.from = netip.MustParseAddrPort("198.51.100.9:6785") }},
		"no address":      {change: func(d *datagram) { d.from = netip.AddrPort{} }},
		"other password":  {key: wrongKey, foreign: 1},
		"this host":       {says: announcement{id.PeerID{1}, 1}},
		"met already":     {says: announcement{id.PeerID{2}, 1}},
		"nothing told us": {change: func(d *datagram) { *d = datagram{} }},
	} {
		f := hearing(func(p id.PeerID) bool { return p != id.PeerID{2} })
		d, key, says := good, c.key, c.says
		if c.change != nil {
			c.change(&d)
		}
		if key == ([KeySize]byte{}) {
			key = rightKey
		}
		if says == (announcement{}) {
			says = sample
		}
		f.take(newSealer(key).seal(says), d, time.Now())
		x, ok := f.finds.next(time.Now())
		if ok != c.found || ok && x != (find{sample.peer, netip.MustParseAddrPort("192.0.2.9:6783")}) || f.Status().Foreign != c.foreign {
			t.Errorf("%s: %+v, %t, foreign %d", name, x, ok, f.Status().Foreign)
		}
	}
}

// TestNewcomers holds that a newcomer is answered once, and again when it was away.
func TestNewcomers(t *testing.T) {
	f, now := hearing(func(id.PeerID) bool { return false }), time.Unix(1000, 0)
	d := datagram{n: messageLen, link: 3, hops: 1, from: netip.MustParseAddrPort("192.0.2.9:40000"), to: group4}
	answered := func(after time.Duration) bool {
		now = now.Add(after)
		f.take(newSealer(rightKey).seal(sample), d, now)
		select {
		case <-f.news:
			return true
		default:
			return false
		}
	}
	if !answered(0) || answered(time.Second) || answered(newcomerAge-1) || !answered(newcomerAge) {
		t.Error("not as it should")
	}
	for i := range 2 * maxHeard {
		f.isNew(id.PeerID{9, byte(i >> 8), byte(i)}, now)
	}
	if len(f.heard) > maxHeard {
		t.Errorf("%d peers are kept", len(f.heard))
	}
}
