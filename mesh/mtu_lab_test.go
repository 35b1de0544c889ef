package mesh

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weave/test/netlab"
)

// mtuLab is two hosts, one of them behind a router that takes less than their
// links, and tells nobody: where ICMP and fragments are dropped, what is longer
// vanishes. Containers' frames are longer than either would take.
type mtuLab struct {
	*hardLab
	router *netlab.Router
	a, b   *fastHost
}

const (
	fullMTU  = 1500
	smallMTU = 1280
)

// silence drops what tells of MTUs, and what goes round them.
var silence = netlab.Filter{ICMP: true, Fragments: true}

func newMTULab(t *testing.T, mtu int, ip6 bool) *mtuLab {
	t.Helper()
	l := &mtuLab{hardLab: newHardLab(t)}
	l.ip6, l.mtu = ip6, fullMTU
	outside, err := l.net.AddHost(1)
	must(t, err)
	l.router, err = l.net.AddRouter(11, 101)
	must(t, err)
	inside, err := l.router.Inside.AddHost(2)
	must(t, err)
	must(t, l.router.SetMTU(mtu, false))
	must(t, l.router.SetFilter(silence))
	l.a = l.start(outside)
	seed := outside.IP4()
	if ip6 {
		seed = outside.IP6()
	}
	l.b = l.start(inside, seed)
	l.awaitHops(l.hosts, func(i, j int) int { return 1 })
	return l
}

// pathMTU is what a host knows of its path to another.
func (h *fastHost) pathMTU(other *fastHost) int {
	for _, p := range h.status().Peers {
		if p.Name == other.Name() {
			return p.MTU
		}
	}
	return 0
}

func (l *mtuLab) awaitMTU(want int) {
	l.t.Helper()
	for _, pair := range [][2]*fastHost{{l.a, l.b}, {l.b, l.a}} {
		await(l.t, fmt.Sprintf("%s to know the path MTU %d to %s", pair[0].Name(), want, pair[1].Name()), func() bool {
			return pair[0].pathMTU(pair[1]) == want
		})
	}
}

// fullSized holds that datagrams of any length pass between two containers, both
// ways, up to frames as long as the segment's MTU, and streams.
func fullSized(t *testing.T, a, b *container) {
	t.Helper()
	for _, c := range [][2]*container{{a, b}, {b, a}} {
		for n := 1100; n <= fullMTU-28; n += 31 {
			askSurely(t, c[0], c[1], n)
		}
		askSurely(t, c[0], c[1], fullMTU-28)
		c[0].bulk(c[1])
	}
}

// askSurely has a datagram of n bytes echoed, in three tries.
func askSurely(t *testing.T, from, to *container, n int) {
	t.Helper()
	var err error
	for range 3 {
		if err = from.ask(to, string(bytes.Repeat([]byte{'x'}, n)), 500*time.Millisecond); err == nil {
			return
		}
	}
	t.Errorf("%d bytes from %s to %s: %v", n, from.addr, to.addr, err)
}

// TestLabSmallPath holds that frames of 1500 bytes cross a path of 1280 that drops
// ICMP and fragments, and one that takes the frames but not with the tunnel's headers.
func TestLabSmallPath(t *testing.T) {
	t.Parallel()
	for _, ip6 := range []bool{false, true} {
		for _, mtu := range []int{smallMTU, fullMTU} {
			t.Run(fmt.Sprintf("%d, IPv6 %v", mtu, ip6), func(t *testing.T) {
				t.Parallel()
				l := newMTULab(t, mtu, ip6)
				for _, c := range l.boxes {
					c.udpEcho()
				}
				fullSized(t, l.boxes[0], l.boxes[1])
				l.awaitMTU(mtu)
				fullSized(t, l.boxes[0], l.boxes[1])
			})
		}
	}
}

// TestLabSmallPathByRelay is the same between two hosts behind such routers that
// talk by a third.
func TestLabSmallPathByRelay(t *testing.T) {
	t.Parallel()
	l := newNATLab(t, netlab.Symmetric)
	l.awaitWay(2)
	for _, r := range l.routers {
		must(t, r.SetMTU(smallMTU, false))
		must(t, r.SetFilter(silence))
	}
	l.a.udpEcho()
	for _, h := range l.inside {
		await(t, "the path to be found out", func() bool { return h.pathMTU(l.public) == smallMTU && l.public.pathMTU(h) == smallMTU })
	}
	l.awaitWay(2)
	for _, n := range []int{1200, fastMTU - 28} {
		askSurely(t, l.a, l.b, n)
		askSurely(t, l.b, l.a, n)
	}
	l.a.bulk(l.b)
	l.b.bulk(l.a)
}

// flow is a TCP connection by which as much as gets through is echoed.
type flow struct {
	bytes atomic.Int64
	stop  func()
}

func (c *container) flow(to *container) *flow {
	c.t.Helper()
	conn, err := c.dial(to, wait)
	must(c.t, err)
	f := &flow{}
	var ends sync.WaitGroup
	ends.Go(func() {
		block := bytes.Repeat([]byte("flow"), 16<<10)
		for {
			if _, err := conn.Write(block); err != nil {
				return
			}
		}
	})
	ends.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, err := conn.Read(b)
			f.bytes.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	f.stop = sync.OnceFunc(func() { _ = conn.Close(); ends.Wait() })
	c.t.Cleanup(f.stop)
	return f
}

// standstill breaks something, and returns the longest time in which nothing came
// in the time after that, which is longer than TCP pauses when it may go on again.
func (f *flow) standstill(t *testing.T, broken func()) (longest time.Duration) {
	t.Helper()
	broken()
	began := time.Now()
	last, seen := began, f.bytes.Load()
	await(t, "the flow to go on", func() bool {
		if now := f.bytes.Load(); now != seen {
			longest = max(longest, time.Since(last))
			last, seen = time.Now(), now
		}
		return time.Since(began) > 8*time.Second && time.Since(last) < time.Second
	})
	return longest
}

// TestLabPathShrinks holds that a stream goes on within 5 s when its path takes less
// from now on, without a word, and that the path is used in full when it takes more
// again.
func TestLabPathShrinks(t *testing.T) {
	t.Parallel()
	l := newMTULab(t, fullMTU, false)
	l.awaitMTU(fullMTU)
	f := l.boxes[0].flow(l.boxes[1])
	await(t, "the flow to begin", func() bool { return f.bytes.Load() > 1<<20 })
	gap := f.standstill(t, func() { must(t, l.router.SetMTU(smallMTU, false)) })
	t.Logf("stood still for %s", gap)
	if gap > 5*time.Second {
		t.Errorf("stood still for %s", gap)
	}
	l.awaitMTU(smallMTU)
	must(t, l.router.SetMTU(fullMTU, false))
	end := time.Now().Add(time.Minute) // 15 s after the fall it is searched for more, and 30 s later again
	for l.a.pathMTU(l.b) < fullMTU && time.Now().Before(end) {
		time.Sleep(statusGap)
	}
	l.awaitMTU(fullMTU)
	seen := f.bytes.Load()
	await(t, "the flow to go on", func() bool { return f.bytes.Load() > seen+1<<20 })
	f.stop()
}
