package mesh

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	flatSegments = 20
	flatTimed    = 40 // endpoints that come and go one by one, for the time that takes
	flatRounds   = 7
	flatChurn    = 100              // endpoints that come and go in a round, for the rest
	flatPace     = time.Millisecond // between two of these changes
)

func flatKey(n int) string { return fmt.Sprint("flat-", n%flatSegments) }

// flatEndpoint is one of those that are there all the time, or of those that come
// and go if it is moving.
func flatEndpoint(n int, moving bool) Endpoint {
	ip := [4]byte{10, 1, byte(n >> 8), byte(n)}
	if moving {
		ip[1] = 2
	}
	return Endpoint{
		ID: fmt.Sprintf("%064x", ip), Segment: flatKey(n),
		MAC: MAC{2, 0x57, ip[0], ip[1], ip[2], ip[3]}, Addrs: []netip.Addr{netip.AddrFrom4(ip)},
	}
}

// TestJoiningStaysFlat holds that an endpoint comes and goes at the same cost
// among 1,000 as among 10, on 20 segments of two hosts: in the kernel's tables, and
// with a password in the tunnel's.
func TestJoiningStaysFlat(t *testing.T) {
	for mode, password := range map[string]string{"VXLAN": "", "tunnel": "secret"} {
		t.Run(mode, func(t *testing.T) {
			l := newFastLab(t, 0)
			var pairs []*flatPair
			for _, present := range []int{10, 100, 1000} {
				pairs = append(pairs, l.newFlatPair(password, present))
			}
			for _, p := range pairs {
				p.fill()
			}
			for i := range flatTimed {
				for _, p := range rotated(pairs, i) {
					p.time(i)
				}
			}
			for i := range flatRounds {
				for _, p := range rotated(pairs, i) {
					p.churn()
				}
			}
			few, many := pairs[0], pairs[len(pairs)-1]
			for _, c := range flatCosts {
				if was, is := median(few.costs[c.what]), median(many.costs[c.what]); is > c.bound*was {
					t.Errorf("%s: %.1f among %d endpoints, %.1f among %d", c.what, was, few.present, is, many.present)
				}
			}
			t.Log(flatTable(mode, pairs))
		})
	}
}

// rotated returns the same in another order each time.
func rotated(pairs []*flatPair, by int) []*flatPair {
	by %= len(pairs)
	return append(slices.Clone(pairs[by:]), pairs[:by]...)
}

// What is measured, of one endpoint that comes and goes.
const (
	costJoin    = "until the other host has it in its tables, µs"
	costLeave   = "until the other host has it no more, µs"
	costCPU     = "CPU time of both daemons, µs"
	costMemory  = "bytes that both daemons allocate"
	costBytes   = "bytes that its host sends"
	costChanges = "changes of the kernel's tables, both hosts"
)

// flatCosts has how many times as much each may be with 100 times the endpoints.
// What is counted hardly varies; times do, on a busy machine, and so do changes,
// since what comes and goes at once is none.
var flatCosts = []struct {
	what  string
	bound float64
}{{costJoin, 2.5}, {costLeave, 2.5}, {costCPU, 2.5}, {costMemory, 2}, {costBytes, 2}, {costChanges, 2.5}}

func median(of []float64) float64 {
	if len(of) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(of))[len(of)/2]
}

func flatTable(mode string, pairs []*flatPair) string {
	var b strings.Builder
	fmt.Fprintf(&b, "medians\n\n| %s |", mode)
	for _, p := range pairs {
		fmt.Fprintf(&b, " among %d |", p.present)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(pairs)))
	for _, c := range flatCosts {
		if len(pairs[0].costs[c.what]) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n| %s |", c.what)
		for _, p := range pairs {
			fmt.Fprintf(&b, " %.0f |", median(p.costs[c.what]))
		}
	}
	return b.String()
}

// flatPair is two hosts that have so many endpoints.
type flatPair struct {
	t        *testing.T
	from, to *fastHost
	present  int
	kernels  []*kernelTables // those of from and to, if they are where frames go by
	costs    map[string][]float64
}

func (l *fastLab) newFlatPair(password string, present int) *flatPair {
	peer := len(l.hosts) + 1
	p := &flatPair{t: l.t, from: l.add(password, peer), to: l.add(password, peer), present: present, costs: map[string][]float64{}}
	for _, h := range p.hosts() {
		if password == "" {
			p.kernels = append(p.kernels, h.watchTables())
		}
		for n := range flatSegments {
			h.join(flatKey(n), fmt.Sprint("wv", n))
		}
		h.call("run")
	}
	return p
}

func (p *flatPair) hosts() []*fastHost { return []*fastHost{p.from, p.to} }

// fill has the endpoints that stay announced, by both hosts.
func (p *flatPair) fill() {
	p.t.Helper()
	if p.kernels != nil {
		p.from.lab.awaitFast(p.hosts()...)
	}
	by := func(n int) int { return n / flatSegments % 2 }
	for n := range p.present {
		p.hosts()[by(n)].flat("announce", flatEndpoint(n, false))
	}
	p.awaitPresent()
	if p.kernels == nil {
		return
	}
	await(p.t, "all endpoints to be in the kernels' tables", func() bool {
		for n := range p.present {
			if _, ok := p.kernels[1-by(n)].settled(flatEndpoint(n, false), true); !ok {
				return false
			}
		}
		return true
	})
}

func (p *flatPair) awaitPresent() {
	p.t.Helper()
	await(p.t, fmt.Sprintf("%d endpoints", p.present), func() bool {
		return p.to.number64("known") == int64(p.present) && p.from.number64("known") == int64(p.present)
	})
}

// on tells how many endpoints stay on the segment of another.
func (p *flatPair) on(e Endpoint) (n int) {
	for i := range p.present {
		if flatKey(i) == e.Segment {
			n++
		}
	}
	return n
}

// time takes the time until the other host knows that an endpoint came, and that
// it went.
func (p *flatPair) time(n int) {
	p.t.Helper()
	e := flatEndpoint(n, true)
	for _, step := range []struct {
		verb, cost string
		there      int
	}{{"announce", costJoin, 1}, {"withdraw", costLeave, 0}} {
		question := []string{"await", e.Segment, fmt.Sprint(p.on(e) + step.there)}
		var began, ended int64
		if p.kernels == nil {
			p.to.ask(question...)
			began = p.from.flat(step.verb, e)
			ended = parse64(p.t, p.to.answer(question...))
		} else {
			began = p.from.flat(step.verb, e)
			await(p.t, fmt.Sprint(step.verb, " to be in the kernel's tables"), func() (ok bool) {
				ended, ok = p.kernels[1].settled(e, step.there > 0)
				return ok
			})
		}
		p.costs[step.cost] = append(p.costs[step.cost], float64(ended-began)/1e3)
	}
}

// churn has endpoints come and go at a pace, and takes what that costs.
func (p *flatPair) churn() {
	p.t.Helper()
	both := func(what string) int64 { return p.from.number64(what) + p.to.number64(what) }
	changes := func() (n int64) {
		for _, k := range p.kernels {
			n += k.count()
		}
		return n
	}
	changed, sent, allocated, used := changes(), p.from.uplinkBytes(), both("allocated"), both("cpu")
	p.from.call("churn", fmt.Sprint(flatChurn))
	used, allocated, sent = both("cpu")-used, both("allocated")-allocated, p.from.uplinkBytes()-sent
	p.awaitPresent()
	note := func(what string, n int64) { p.costs[what] = append(p.costs[what], float64(n)/flatChurn) }
	note(costCPU, used/1e3)
	note(costMemory, allocated)
	note(costBytes, sent)
	if p.kernels != nil {
		await(p.t, "the kernels' tables to be as before", func() bool {
			for n := range flatSegments {
				for _, k := range p.kernels {
					if _, gone := k.settled(flatEndpoint(n, true), false); !gone {
						return false
					}
				}
			}
			return true
		})
		note(costChanges, changes()-changed)
	}
}

// flat has the host announce or withdraw an endpoint, and returns when it began.
func (h *fastHost) flat(verb string, e Endpoint) int64 {
	h.lab.t.Helper()
	return h.number64(verb, e.Segment, e.ID, e.MAC.String(), e.Addrs[0].String())
}

func (h *fastHost) number64(words ...string) int64 {
	h.lab.t.Helper()
	return parse64(h.lab.t, h.call(words...))
}

func parse64(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	must(t, err)
	return n
}

func (h *fastHost) uplinkBytes() (n int64) {
	must(h.lab.t, h.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			n = int64(link.Attrs().Statistics.TxBytes)
		}
		return err
	}))
	return n
}

// monotonic is a clock that all processes share.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// serveFlat does the commands of this file, in a host's process.
func serveFlat(n *Node, words []string) (string, error) {
	switch {
	case len(words) == 5 && words[0] == "withdraw":
		began := monotonic()
		n.Withdraw(words[2])
		return fmt.Sprint(began), nil
	case len(words) == 1 && words[0] == "known":
		return fmt.Sprint(len(n.Endpoints())), nil
	case len(words) == 1 && words[0] == "cpu":
		var u unix.Rusage
		err := unix.Getrusage(unix.RUSAGE_SELF, &u)
		return fmt.Sprint(u.Utime.Nano() + u.Stime.Nano()), err
	case len(words) == 1 && words[0] == "allocated":
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return fmt.Sprint(m.TotalAlloc), nil
	case len(words) == 3 && words[0] == "await":
		want, err := strconv.Atoi(words[2])
		if err != nil {
			return "", err
		}
		return n.awaitEndpoints(words[1], want)
	case len(words) == 2 && words[0] == "churn":
		times, err := strconv.Atoi(words[1])
		if err != nil {
			return "", err
		}
		return "", churn(n, times)
	}
	return "", fmt.Errorf("no such command: %q", words)
}

// awaitEndpoints returns when the tunnel has so many endpoints on a segment.
func (n *Node) awaitEndpoints(key string, want int) (string, error) {
	pause := unix.NsecToTimespec(20_000) // Go's own sleep takes a millisecond at least
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); {
		if stats, _ := n.tunnel.Stats(key); stats.Endpoints == want {
			return fmt.Sprint(monotonic()), nil
		}
		_ = unix.Nanosleep(&pause, nil)
	}
	return "", fmt.Errorf("not within %s: %d endpoints on %s", wait, want, key)
}

// churn has endpoints come and go, one at a time.
func churn(n *Node, times int) error {
	tick := time.NewTicker(flatPace)
	defer tick.Stop()
	for i := range times {
		e := flatEndpoint(i%flatSegments, true)
		if err := n.Announce(e); err != nil {
			return err
		}
		<-tick.C
		n.Withdraw(e.ID)
		<-tick.C
	}
	return nil
}

// kernelTables follows what the kernel tells of its tables on a host.
type kernelTables struct {
	mu      sync.Mutex
	changes int64
	known   map[netip.Addr]*kernelEntries
}

// kernelEntries are those of one endpoint: links by the table that an entry is in.
type kernelEntries struct {
	links map[string]int
	at    int64 // the last change
}

// Tables that an endpoint of another host is in.
const (
	tableRemote    = "of the VXLAN device"
	tablePort      = "of the bridge"
	tableNeighbour = "of neighbours"
)

func (h *fastHost) watchTables() *kernelTables {
	t := h.lab.t
	k := &kernelTables{known: map[netip.Addr]*kernelEntries{}}
	ns, err := netns.GetFromPath(h.NamespacePath())
	must(t, err)
	defer ns.Close()
	updates, done := make(chan netlink.NeighUpdate, 64), make(chan struct{})
	var failed error
	must(t, netlink.NeighSubscribeWithOptions(updates, done, netlink.NeighSubscribeOptions{
		Namespace: &ns, ReceiveBufferSize: 4 << 20, ReceiveBufferForceSize: true, ErrorCallback: func(err error) { failed = err },
	}))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for u := range updates {
			k.take(u)
		}
	}()
	t.Cleanup(func() {
		select {
		case <-ended:
			t.Errorf("host %d: its tables were followed only until %v", h.number, failed)
		default:
		}
		close(done)
		<-ended
	})
	return k
}

// take notes an update that is of an endpoint.
func (k *kernelTables) take(u netlink.NeighUpdate) {
	table, name := tableNeighbour, u.IP.To4()
	if u.Family == unix.AF_BRIDGE && len(u.HardwareAddr) == len(MAC{}) {
		table, name = tablePort, net.IP(u.HardwareAddr)[2:]
		if u.Flags&netlink.NTF_SELF != 0 {
			table = tableRemote
		}
	}
	addr, ok := netip.AddrFromSlice(name)
	if !ok || addr.As4()[0] != 10 || addr.As4()[1] > 2 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.known[addr]
	if e == nil {
		e = &kernelEntries{links: map[string]int{}}
		k.known[addr] = e
	}
	k.changes++
	e.at = monotonic()
	if u.Type == unix.RTM_NEWNEIGH {
		e.links[table] = u.LinkIndex
	} else {
		delete(e.links, table)
	}
}

func (k *kernelTables) count() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changes
}

// settled tells whether an endpoint of another host is in all tables or in none,
// and since when.
func (k *kernelTables) settled(x Endpoint, there bool) (since int64, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.known[x.Addrs[0]]
	if e == nil {
		return 0, !there
	}
	if !there {
		return e.at, len(e.links) == 0
	}
	port, remote := e.links[tablePort], e.links[tableRemote]
	return e.at, len(e.links) == 3 && port == remote
}
