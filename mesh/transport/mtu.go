package transport

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"weave/mesh/udp"
	"weave/mesh/wire"
)

// How long a datagram a path by UDP takes is found out by probes, as RFC 8899 has
// it (DPLPMTUD), and not from ICMP, which is often filtered and easily forged. A
// probe is a ping that is padded; the pong, which is short, tells which one came.
//
//	begin ──> search: largest first, then all sizes, again ──> settled
//	  ^         limit: the largest that was answered              │ some minutes later
//	  │                                                           └──> search for more
//	  └── the path is another, or padded pings as long as the limit stay unanswered
//	      while short ones are answered, or the kernel refuses what is that long
//
// What is longer than the limit goes in fragments: see fragments.go.

const (
	// baseSize is the UDP payload that most paths take (BASE_PLPMTU of RFC 8899), and
	// leastSize what those take that have the least MTU of IPv4 in use, 576.
	baseSize  = 1200
	leastSize = 576 - header4
	header4   = 20 + 8 // of IP and UDP
	header6   = 40 + 8

	// roundWait is how long the answers to a round of probes are waited for. All that
	// is not answered is sent in three rounds (MAX_PROBES).
	roundWait  = int64(400 * time.Millisecond)
	lastRound  = 3
	searchOver = lastRound + 1
	// A search for more comes after raiseFirst, as the way may be short of its usual
	// for a moment only, later twice as long each time, up to raiseLast
	// (PMTU_RAISE_TIMER).
	raiseFirst = 15 * time.Second
	raiseLast  = 10 * time.Minute
	// checkEvery is how often a busy path is checked, and twice as often while the last
	// check is unanswered. By the third the path takes less than it did: at 5 % loss
	// each way that is wrong once in a thousand checks, and right again a round trip
	// later.
	checkEvery = int64(800 * time.Millisecond)
	maxChecks  = 3
	// checkGap is how long checks may pause for all to count.
	checkGap = int64(3 * time.Second)
	// searchGap is between rounds at least, for a path that changes all the time.
	searchGap = int64(200 * time.Millisecond)
	// maxProbes bounds the probes of one tick, which are sent with mu held. The round
	// that reaches it is the last.
	maxProbes = 256
	// probeLen is the length of the body of a ping that is a probe: the time, and how
	// long the datagram is.
	probeLen = pingLen + 2
)

// pathMTUs are the MTUs that are likely to be met, and those in between such that
// little is lost where one is not among them.
var pathMTUs = [...]int{9000, 1500, 1492, 1480, 1472, 1460, 1450, 1440, 1420, 1400, 1380, 1360, 1340, 1320, 1300, 1280, 1100, 1006, 800}

// usualMTU is that of most paths, whatever a host's own link takes.
const usualMTU = 1500

// pathMTU is what is known of the path in use. Times are in nanoseconds since epoch.
type pathMTU struct {
	limit atomic.Int64 // bytes of UDP payload; what is sent obeys it

	mu        sync.Mutex    // guards what follows; held over nothing
	began     int64         // of what is known: answers to probes from before do not count
	reached   int           // the largest that was answered since then
	top       int           // the largest that the kernel may take
	round     int           // of the search: the one that is under way, or searchOver
	sent      int64         // when the last was sent; 0: none was
	next      int64         // when the next is due
	first     time.Duration // instead of raiseFirst
	wait      time.Duration // until the search after the next
	checks    int           // since the last that was answered
	checkedAt int64         // when these began
	lastCheck int64
}

func (m *pathMTU) init(first time.Duration) {
	m.first = first
	m.restart(0)
	m.limit.Store(baseSize)
}

// reset is for another path.
func (m *pathMTU) reset(now int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.restart(now)
	m.limit.Store(baseSize)
}

func (m *pathMTU) restart(now int64) {
	m.began, m.reached, m.top = now, 0, 1<<16
	m.round, m.next, m.wait = 0, now, m.first
	if m.sent > 0 {
		m.next = max(now, m.sent+searchGap)
	}
	m.checks, m.lastCheck = 0, now
}

// lower is for a path that does not take datagrams of that size. It reports whether
// shorter ones are left to try.
func (m *pathMTU) lower(size int, now int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if int(m.limit.Load()) < size {
		return true // somebody else noticed
	}
	return m.fall(now)
}

func (m *pathMTU) fall(now int64) bool {
	limit := m.limit.Load()
	if limit <= leastSize {
		return false
	}
	m.restart(now)
	if limit > baseSize {
		m.limit.Store(baseSize)
	} else {
		m.limit.Store(leastSize)
	}
	return true
}

// answered takes the answer to a probe that was sent then.
func (m *pathMTU) answered(size int, sent int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if sent < m.began || size > m.top {
		return
	}
	m.reached = max(m.reached, size)
	if limit := int(m.limit.Load()); size > limit {
		m.limit.Store(int64(size))
	} else if size < limit {
		return
	}
	m.checks = 0
}

// search returns the number of the round of probes that is to be sent now, or 0.
func (m *pathMTU) search(now int64) (round int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now < m.next {
		return 0
	}
	limit := int(m.limit.Load())
	if m.round == searchOver { // for more than is known
		m.round, m.reached, m.top = 0, limit, 1<<16
	}
	if m.round++; m.round <= lastRound && limit < m.top {
		m.sent, m.next = now, now+roundWait
		return m.round
	}
	m.settle(limit, now)
	return 0
}

// settle ends a search.
func (m *pathMTU) settle(limit int, now int64) {
	if m.reached > 0 && m.reached < limit {
		m.limit.Store(int64(m.reached)) // a path that does not even take what it began with
	}
	if limit >= m.top {
		m.wait = raiseLast // what would be more, the kernel does not take
	}
	m.round, m.next = searchOver, now+int64(m.wait)
	m.wait = min(2*m.wait, raiseLast)
}

// refused notes that the kernel does not take that size.
func (m *pathMTU) refused(size int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.top = min(m.top, size-1)
}

// took notes that size is the largest that the kernel takes of those there are.
func (m *pathMTU) took(size int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.top = min(m.top, size)
}

// sizes are those to probe for, in descending order: all that the kernel may take
// and that are larger than what was answered.
func (m *pathMTU) sizes(header, routeMTU int) (sizes []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, mtu := range append(pathMTUs[:], routeMTU, baseSize+header, leastSize+header) {
		if size := min(mtu-header, udp.MaxDatagram); size > m.reached && size <= m.top && size >= leastSize {
			sizes = append(sizes, size)
		}
	}
	slices.SortFunc(sizes, func(a, b int) int { return b - a })
	return slices.Compact(sizes)
}

// check returns the size to check the path with now, or 0. Shorter pings were
// answered last at proved, and within rtt. Where checks are not, the path takes
// less than it did, and fell tells so.
func (m *pathMTU) check(now, proved, rtt int64) (size int, fell bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now-m.lastCheck > checkGap {
		m.checks = 0
	}
	every := checkEvery
	if m.checks > 0 {
		every /= 2
	}
	if now-m.lastCheck < every {
		return 0, false
	}
	limit := int(m.limit.Load())
	if limit <= leastSize {
		return 0, false
	}
	if m.checks >= maxChecks && proved > m.checkedAt+rtt && m.fall(now) {
		return 0, true
	}
	if m.checks++; m.checks == 1 {
		m.checkedAt = now
	}
	m.lastCheck = now
	return limit, false
}

// headerOf is what IP and UDP put in front of a datagram.
func headerOf(to netip.Addr) int {
	if to.Is4() || to.Is4In6() {
		return header4
	}
	return header6
}

// tooLong tells that the kernel refused datagrams for their length.
func tooLong(err error) bool { return errors.Is(err, syscall.EMSGSIZE) }

// probeMTU finds out how much the path of a peer takes, and watches it; the caller
// has mu.
func (t *Transport) probeMTU(p *peer, now time.Time) {
	path := p.path.Load()
	if !p.up.Load() || !path.udp() {
		return
	}
	m, at := &p.mtu, t.since(now)
	if p.watch.closely {
		size, fell := m.check(at, p.proved.Load(), p.rtt.Load())
		if fell {
			t.log.WithField("peer", p.id.Short()).Debug("the path to the peer takes less than it did")
		}
		if size > 0 && tooLong(p.probe(size, at, path.addr)) {
			m.lower(size, at)
		}
	}
	if t.probes >= maxProbes {
		t.kick() // go on when the others had their turn
		return
	}
	round := m.search(at)
	if round == 0 {
		return
	}
	header := headerOf(path.addr.Addr())
	taken := 0
	for _, size := range m.sizes(header, t.conn.RouteMTU(path.addr)) {
		err := p.probe(size, at, path.addr)
		t.probes++
		switch {
		case tooLong(err):
			m.refused(size)
			continue
		case err != nil:
			return // the next round is another try
		}
		taken = max(taken, size)
		if round == 1 && size <= usualMTU-header {
			break // most likely that is it
		}
	}
	m.took(max(taken, int(m.limit.Load())))
}

// probe sends a ping of that size, by UDP.
func (l *Link) probe(size int, now int64, to netip.AddrPort) error {
	var body [probeLen]byte
	binary.BigEndian.PutUint64(body[:], uint64(now))
	binary.BigEndian.PutUint16(body[pingLen:], uint16(size))
	d := wire.AppendItem(make([]byte, wire.HeaderLen, size), wire.KindPing, body[:])
	padding := size - len(d) - wire.ItemHeaderLen - wire.TagLen
	d = append(d, byte(wire.KindPadding), byte(padding>>8), byte(padding))[:size]
	if err := l.Seal(d, size); err != nil {
		return err
	}
	err := l.t.conn.Write(d, size, to)
	if err == nil {
		l.txDatagrams.Add(1)
		l.txBytes.Add(uint64(size))
	}
	return err
}

// probed takes the answer to a probe.
func (r *receiver) probed(l *Link, body []byte) {
	sent := int64(binary.BigEndian.Uint64(body))
	path := l.path.Load()
	if path == nil || *path != r.from || !path.udp() || sent > r.t.since(r.now) {
		return
	}
	l.mtu.answered(int(binary.BigEndian.Uint16(body[pingLen:])), sent)
}
