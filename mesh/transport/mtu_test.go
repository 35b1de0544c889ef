package transport

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weave/mesh/wire"
)

const (
	sec      = int64(time.Second)
	ethernet = usualMTU - header4
)

func newPathMTU() *pathMTU {
	m := &pathMTU{}
	m.init(raiseFirst)
	return m
}

// probes sends a round of probes by a link and a path that take so much, at once
// answered, and returns how many went out.
func probes(m *pathMTU, now int64, link, path int) (sent int) {
	round := m.search(now)
	if round == 0 {
		return 0
	}
	taken := 0
	for _, size := range m.sizes(header4, 0) {
		if size > link {
			m.refused(size)
			continue
		}
		sent++
		taken = max(taken, size)
		if size <= path {
			m.answered(size, now)
		}
		if round == 1 && size <= ethernet {
			break
		}
	}
	m.took(max(taken, int(m.limit.Load())))
	return sent
}

// TestSearch: the largest size that a path takes is found within a few rounds, and
// looked for again later, if there may be more.
func TestSearch(t *testing.T) {
	for name, tt := range map[string]struct {
		link, path, want int
		sent             []int // in each round
		again            time.Duration
	}{
		"as usual":          {ethernet, ethernet, ethernet, []int{1}, raiseLast},
		"jumbo":             {9000 - header4, 9000 - header4, 9000 - header4, []int{2}, raiseLast},
		"jumbo link only":   {9000 - header4, ethernet, ethernet, []int{2, 1, 1}, raiseFirst},
		"1280":              {ethernet, 1280 - header4, 1280 - header4, []int{1, 20, 14}, raiseFirst},
		"none of the list":  {ethernet, 1399, 1420 - header4, []int{1, 20, 7}, raiseFirst},
		"base":              {ethernet, baseSize, baseSize, []int{1, 20, 15}, raiseFirst},
		"less than that":    {ethernet, 1006 - header4, 1006 - header4, []int{1, 20, 17}, raiseFirst},
		"the least":         {ethernet, leastSize, leastSize, []int{1, 20, 19}, raiseFirst},
		"nobody answers":    {ethernet, 0, baseSize, []int{1, 20, 20}, raiseFirst},
		"small link":        {1280 - header4, 9000, 1280 - header4, []int{1}, raiseLast},
		"link not so usual": {1399, 1399, 1420 - header4, []int{1}, raiseLast},
	} {
		m := newPathMTU()
		m.reset(1)
		now, end := int64(1), int64(0)
		var sent []int
		for ; now < 5*sec; now += roundWait {
			if n := probes(m, now, tt.link, tt.path); n > 0 {
				sent = append(sent, n)
				end = now
			}
		}
		if got := int(m.limit.Load()); got != tt.want || !slices.Equal(sent, tt.sent) {
			t.Errorf("%s: limit %d, want %d, probes sent %v, want %v", name, got, tt.want, sent, tt.sent)
		}
		at := end + roundWait + int64(tt.again)
		if m.search(at-sec) != 0 || m.search(at+roundWait) != 1 {
			t.Errorf("%s: not searched again after %s", name, tt.again)
		}
	}
}

// TestSearchForMore: what is found to be more is taken, and searches for more become
// rarer.
func TestSearchForMore(t *testing.T) {
	m := newPathMTU()
	m.reset(1)
	path, searches := 1280-header4, 0
	for now := int64(1); now < 3600*sec; now += roundWait {
		if before := m.round; probes(m, now, ethernet, path) > 0 && before%searchOver == 0 {
			searches++
		}
	}
	if searches < 9 || searches > 13 || m.limit.Load() != int64(path) {
		t.Errorf("%d searches in an hour, limit %d", searches, m.limit.Load())
	}
	path = ethernet
	for now := 3600 * sec; now < 4300*sec; now += roundWait {
		probes(m, now, ethernet, path)
	}
	if m.limit.Load() != ethernet {
		t.Errorf("limit %d", m.limit.Load())
	}
}

// TestChecks: a path that takes less is noticed by what stays unanswered while short
// pings are answered.
func TestChecks(t *testing.T) {
	settled := func() *pathMTU {
		m := newPathMTU()
		m.reset(1)
		probes(m, 1, ethernet, ethernet)
		m.search(sec)
		return m
	}
	for name, tt := range map[string]struct {
		takes  int
		proved func(now int64) int64
		step   int64
		want   int
	}{
		"all is well":       {ethernet, func(now int64) int64 { return now }, sec / 5, ethernet},
		"takes less":        {1280, func(now int64) int64 { return now }, sec / 5, baseSize},
		"nothing gets back": {0, func(int64) int64 { return 0 }, sec / 5, ethernet},
		"hardly checked":    {1280, func(now int64) int64 { return now }, 4 * sec, ethernet},
	} {
		m := settled()
		now := sec
		for ; now < 60*sec && m.limit.Load() == ethernet; now += tt.step {
			size, fell := m.check(now, tt.proved(now), sec/100)
			if fell != (m.limit.Load() != ethernet) {
				t.Errorf("%s: fell %v, limit %d", name, fell, m.limit.Load())
			}
			if size > 0 && size <= tt.takes {
				m.answered(size, now)
			}
		}
		if m.limit.Load() != int64(tt.want) {
			t.Errorf("%s: limit %d, want %d", name, m.limit.Load(), tt.want)
		}
		if tt.want == baseSize && now > 4*sec {
			t.Errorf("%s: noticed after %s", name, time.Duration(now-sec))
		}
	}

	m := settled()
	m.check(2*sec, 2*sec, 0)
	if !m.lower(ethernet, 3*sec) || m.limit.Load() != baseSize {
		t.Errorf("limit %d", m.limit.Load())
	}
	m.answered(ethernet, 2*sec)
	if m.limit.Load() != baseSize {
		t.Error("the answer to a probe from before it fell counts")
	}
	if !m.lower(ethernet, 3*sec) || m.limit.Load() != baseSize {
		t.Error("lowered twice for one reason")
	}
	if !m.lower(baseSize, 3*sec) || m.limit.Load() != leastSize || m.lower(leastSize, 3*sec) {
		t.Errorf("limit %d", m.limit.Load())
	}
}

func TestProbeSizes(t *testing.T) {
	m := newPathMTU()
	v4, v6, odd := m.sizes(header4, 1500), m.sizes(header6, 1500), m.sizes(header6, 1390)
	for _, sizes := range [][]int{v4, v6, odd} {
		if !slices.IsSortedFunc(sizes, func(a, b int) int { return b - a }) || sizes[0] != 9000-header4 && sizes[0] != 9000-header6 ||
			sizes[len(sizes)-1] != leastSize || !slices.Contains(sizes, baseSize) {
			t.Errorf("sizes %v", sizes)
		}
	}
	if len(odd) != len(v6)+1 || !slices.Contains(odd, 1390-header6) {
		t.Errorf("what the route says is not tried: %v", odd)
	}
	if big := m.sizes(header4, 1<<16); big[0] != 65507 {
		t.Errorf("sizes %v", big)
	}
	m.took(ethernet)
	m.answered(1400, 1)
	if got := m.sizes(header4, 0); got[0] != ethernet || got[len(got)-1] <= 1400 {
		t.Errorf("sizes %v", got)
	}
	m.answered(60_000, 1)
	if m.limit.Load() != 1400 {
		t.Error("an answer to what was not sent counts")
	}
}

// narrow is a Conn to a link of 1500 bytes and a path that takes less: what is
// longer vanishes, or is refused if that is the link's fault.
type narrow struct {
	Conn
	path, link atomic.Int64 // bytes of UDP payload
	longest    atomic.Int64 // that was sent, and passed
	vanished   atomic.Int64
}

func (c *narrow) Write(b []byte, size int, to netip.AddrPort) error {
	if size > int(c.link.Load()) {
		return os.NewSyscallError("sendmmsg", syscall.EMSGSIZE)
	}
	c.longest.Store(max(c.longest.Load(), int64(min(size, len(b)))))
	if path := int(c.path.Load()); size > path {
		c.vanished.Add(1)
		b = b[len(b)-len(b)%size:] // the last may be shorter
		if len(b) > path {
			return nil
		}
	}
	return c.Conn.Write(b, size, to)
}

func (c *narrow) RouteMTU(netip.AddrPort) int { return usualMTU }

// startNarrow is start on such a path; the tap comes before it.
func startNarrow(t testing.TB, ip string, path int, change ...func(*Config)) (*node, *narrow) {
	t.Helper()
	c := &narrow{}
	c.path.Store(int64(path))
	c.link.Store(ethernet)
	n := start(t, ip, append(change, func(cfg *Config) {
		before := cfg.tune.wrapConn
		cfg.tune.wrapConn = func(inner Conn) Conn { c.Conn = inner; return before(c) }
	})...)
	return n, c
}

// sendFrames sends a train of frames of n bytes and returns what they contain.
func (n *node) sendFrames(to *node, train, size int) (texts []string, err error) {
	var buf []byte
	for i := range train {
		text := fmt.Sprintf("%d:", i)
		text += strings.Repeat("f", size-len(text))
		d := wire.AppendItem(make([]byte, wire.HeaderLen), wire.KindFrame, append(make([]byte, wire.FrameHeaderLen), text...))
		buf, texts = append(append(buf, d...), make([]byte, wire.TagLen)...), append(texts, text)
	}
	l := n.Link(to.self)
	if err := l.Seal(buf, len(buf)/train); err != nil {
		return nil, err
	}
	return texts, l.Send(buf, len(buf)/train)
}

// cross holds that frames get from one node to another, whole and in order.
func cross(t testing.TB, from, to *node, train, size int) {
	t.Helper()
	before, _ := to.frames.got()
	want, err := from.sendFrames(to, train, size)
	if err != nil {
		t.Fatal(err)
	}
	await(t, fmt.Sprintf("%d frames of %d bytes", train, size), func() bool {
		got, _ := to.frames.got()
		return slices.Equal(got[len(before):], want)
	})
}

func awaitPathMTU(t testing.TB, a, b *node, mtu int) {
	t.Helper()
	await(t, fmt.Sprintf("the path MTU %d", mtu), func() bool { return a.status(b.self).MTU == mtu && b.status(a.self).MTU == mtu })
}

// TestSmallPath: what is longer than a path takes crosses it all the same, at once,
// and soon in as few fragments as can be.
func TestSmallPath(t *testing.T) {
	t.Parallel()
	for i, mtu := range []int{1500, 1280, 576} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			t.Parallel()
			a, ca := startNarrow(t, fmt.Sprintf("127.0.21.%d", 2*i+1), mtu-header4)
			b, cb := startNarrow(t, fmt.Sprintf("127.0.21.%d", 2*i+2), mtu-header4)
			connect(t, a, b)
			if mtu > baseSize {
				cross(t, a, b, 3, 2000) // before anything is known
			}
			awaitPathMTU(t, a, b, mtu)
			var before [2]int64
			for i, c := range []*narrow{ca, cb} {
				await(t, "the search to end", func() bool {
					last := before[i]
					before[i] = c.vanished.Load()
					return last == before[i] && ended(a, b) && ended(b, a)
				})
			}
			for _, size := range []int{10, 500, 529, 1205, 1400, 1453, 2000, 9000, 60_000} {
				cross(t, a, b, 1, size)
				cross(t, b, a, min(7, 60_000/size), size)
			}
			for i, c := range []*narrow{ca, cb} {
				if c.longest.Load() != ethernet || c.vanished.Load() > before[i] {
					t.Errorf("%d bytes were sent, %d writes vanished", c.longest.Load(), c.vanished.Load()-before[i])
				}
			}
		})
	}
}

// ended tells whether a node has ended its search.
func ended(n, of *node) bool {
	m := &n.Link(of.self).mtu
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.round == searchOver
}

// TestPathShrinks: who has something to send notices soon that a path takes less,
// and later that it takes more again.
func TestPathShrinks(t *testing.T) {
	t.Parallel()
	soon := func(c *Config) { c.tune.raiseFirst = 500 * time.Millisecond }
	a, ca := startNarrow(t, "127.0.22.1", ethernet, soon)
	b, cb := startNarrow(t, "127.0.22.2", ethernet, soon)
	connect(t, a, b)
	awaitPathMTU(t, a, b, usualMTU)
	cross(t, a, b, 1, 1400)
	for _, c := range []*narrow{ca, cb} {
		c.path.Store(1400 - header4)
	}
	await(t, "a frame to arrive", func() bool {
		before, _ := b.frames.got()
		_, err := a.sendFrames(b, 1, 1400)
		time.Sleep(10 * time.Millisecond)
		got, _ := b.frames.got()
		return err == nil && len(got) > len(before)
	})
	cross(t, b, a, 1, 10) // has b check, too
	await(t, "all that the path takes to be used", func() bool {
		_, errA := a.sendFrames(b, 1, 10)
		_, errB := b.sendFrames(a, 1, 10)
		return errA == nil && errB == nil && a.status(b.self).MTU == 1400 && b.status(a.self).MTU == 1400
	})
	for _, c := range []*narrow{ca, cb} {
		c.path.Store(ethernet)
	}
	awaitPathMTU(t, a, b, usualMTU)
}

// TestLinkShrinks: what the kernel refuses goes in fragments at once.
func TestLinkShrinks(t *testing.T) {
	t.Parallel()
	a, c := startNarrow(t, "127.0.23.1", ethernet)
	b := start(t, "127.0.23.2")
	connect(t, a, b)
	await(t, "the path MTU", func() bool { return a.status(b.self).MTU == usualMTU })
	for _, link := range []int64{1400, 1000, 600, leastSize, ethernet} {
		longest := int(a.Link(b.self).mtu.limit.Load())
		c.link.Store(link)
		cross(t, a, b, 3, longest-wire.Overhead)
		if limit := a.Link(b.self).mtu.limit.Load(); limit > link {
			t.Errorf("limit %d on a link of %d", limit, link)
		}
		cross(t, a, b, 3, 3000)
	}
	if n := a.dropped(dropSend); n != 0 {
		t.Errorf("%d could not be sent", n)
	}
}

// TestFewProbesAtOnce: however many paths are to be searched, a tick sends a bounded
// number of probes, and others go on with the rest.
func TestFewProbesAtOnce(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.27.1"), start(t, "127.0.27.2")
	connect(t, a, b)
	await(t, "the search to end", func() bool { return ended(a, b) })
	a.stop() // what follows does the work of its goroutines
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.peers[b.self]
	p.proved.Store(a.since(time.Now()))
	for a.probes = 0; a.probes < maxProbes; {
		before := a.probes
		p.mtu.began, p.mtu.reached, p.mtu.round, p.mtu.next, p.mtu.top = 0, 0, 1, 0, 1<<16
		p.mtu.limit.Store(baseSize)
		a.probeMTU(p, time.Now())
		if a.probes == before {
			t.Fatal("no probes")
		}
	}
	before := a.probes
	p.mtu.round, p.mtu.next = 1, 0
	a.probeMTU(p, time.Now())
	if a.probes != before || before > maxProbes+len(pathMTUs)+3 {
		t.Errorf("%d probes in one tick, then %d", before, a.probes-before)
	}
	if len(a.wake) == 0 {
		t.Error("nobody goes on")
	}
}

// TestNewPath: what was found of one path says nothing of another.
func TestNewPath(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.24.1"), start(t, "127.0.24.2")
	connect(t, a, b)
	l := a.Link(b.self)
	await(t, "the path to be searched", func() bool { return l.mtu.limit.Load() > 9000 && ended(a, b) })
	a.stop()
	l.setPath(direct(b.addr), 1)
	if l.mtu.limit.Load() <= baseSize {
		t.Error("forgotten, though the path is the same")
	}
	l.setPath(direct(netip.MustParseAddrPort("127.0.24.3:1")), 2)
	if l.mtu.limit.Load() != baseSize {
		t.Error("not forgotten")
	}
	r := newReceiver(a.Transport)
	r.now = time.Now()
	probe := func(size int, from hop) {
		r.from = from
		body := a.knockBody(r.now)
		r.ponged(l, wire.AppendAddr(append(body, byte(size>>8), byte(size)), a.addr))
	}
	if probe(1400, direct(b.addr)); l.mtu.limit.Load() != baseSize {
		t.Error("an answer by another path counts")
	}
	if probe(1400, *l.path.Load()); l.mtu.limit.Load() != 1400 {
		t.Error("an answer does not count")
	}
}

// TestAnswersAreShort: nobody gets more sent than he sends.
func TestAnswersAreShort(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.25.1"), start(t, "127.0.25.2")
	connect(t, a, b)
	await(t, "both searches to end", func() bool { return ended(a, b) && ended(b, a) })
	before := len(b.wire.all())
	if err := a.Link(b.self).probe(5000, a.since(time.Now()), b.addr); err != nil {
		t.Fatal(err)
	}
	pong := func(s sent) bool {
		return len(s.b) == wire.HeaderLen+wire.ItemHeaderLen+probeLen+wire.AddrLen+wire.TagLen
	}
	await(t, "an answer", func() bool { return slices.ContainsFunc(b.wire.all()[before:], pong) })
	for _, s := range b.wire.all()[before:] {
		if len(s.b) > 100 {
			t.Errorf("%d bytes were sent", len(s.b))
		}
	}
}
