package vxlan

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"weave/mesh/beat"
	"weave/mesh/fdb"
	"weave/mesh/id"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	if os.Getenv("WEAVE_TEST_LOG") != "" {
		l.SetOutput(os.Stderr)
		l.SetLevel(logrus.DebugLevel)
	}
	return logrus.NewEntry(l)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fakeKernel keeps the tables that a kernel would, and counts what is changed
// in them.
type fakeKernel struct {
	devices map[string]*fakeDevice
	loose   bool // the TAPs are in no bridge
	bridge  int  // which one they are in
	fail    func(what string, e Entry) error
	changes int
	atTAP   map[string]map[slot]Entry
	log     []string
}

type fakeDevice struct {
	Device
	bridge  int // 0: not plugged in
	table   map[slot]Entry
	learned map[fdb.MAC]netip.Addr
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{devices: map[string]*fakeDevice{}, bridge: 1, atTAP: map[string]map[slot]Entry{}}
}

func (k *fakeKernel) err(what string, e Entry) error {
	if k.fail == nil {
		return nil
	}
	return k.fail(what, e)
}

func (k *fakeKernel) Find(name string) (uint32, error) {
	if d := k.devices[name]; d != nil {
		return d.VNI, nil
	}
	return 0, nil
}

func (k *fakeKernel) Make(d Device) (bool, error) {
	if err := k.err("make", Entry{}); err != nil {
		return false, err
	}
	old := k.devices[d.Name]
	if old != nil {
		same := old.Device
		same.MTU = d.MTU
		if same == d {
			old.MTU = d.MTU
			return false, nil
		}
	}
	k.devices[d.Name] = &fakeDevice{Device: d, table: map[slot]Entry{}, learned: map[fdb.MAC]netip.Addr{}}
	return true, nil
}

func (k *fakeKernel) Plug(name, tap string) (plugged, fresh bool, err error) {
	d := k.devices[name]
	if d == nil {
		return false, false, net.ErrClosed
	}
	if tap == "" {
		return false, false, nil
	}
	if k.loose {
		return false, false, nil
	}
	fresh = d.bridge != k.bridge
	if d.bridge = k.bridge; fresh {
		for x := range d.table {
			if x.Kind == Port {
				delete(d.table, x)
			}
		}
	}
	return true, fresh, nil
}

func (k *fakeKernel) Remove(name string) error { delete(k.devices, name); return nil }
func (k *fakeKernel) Clear(tap string) error   { delete(k.atTAP, tap); return nil }
func (k *fakeKernel) Close() error             { return nil }

// in returns the table that an entry is in. A MAC address is at one port only.
func (k *fakeKernel) in(name, tap string, e Entry) map[slot]Entry {
	if e.Kind == Neighbour || e.Kind == Port && !e.Fast {
		if k.atTAP[tap] == nil {
			k.atTAP[tap] = map[slot]Entry{}
		}
		return k.atTAP[tap]
	}
	if d := k.devices[name]; d != nil {
		return d.table
	}
	return nil
}

func (k *fakeKernel) Entries(name, tap string) ([]Entry, error) {
	var all []Entry
	for _, e := range k.devices[name].table {
		all = append(all, e)
	}
	for _, e := range k.atTAP[tap] {
		all = append(all, e)
	}
	return all, nil
}

func (k *fakeKernel) Set(name, tap string, e Entry) error {
	if err := k.err("set", e); err != nil {
		return err
	}
	k.changes++
	k.log = append(k.log, fmt.Sprint("set ", e))
	into := k.in(name, tap, e)
	if into == nil {
		return os.ErrNotExist
	}
	if e.Kind == Port {
		other := e
		other.Fast = !e.Fast
		delete(k.in(name, tap, other), e.slot())
	}
	into[e.slot()] = e
	return nil
}

func (k *fakeKernel) Delete(name, tap string, e Entry) error {
	if err := k.err("delete", e); err != nil {
		return err
	}
	k.changes++
	k.log = append(k.log, fmt.Sprint("delete ", e))
	delete(k.in(name, tap, e), e.slot())
	return nil
}

func (k *fakeKernel) TakeLearned(name string, at netip.Addr) (macs []fdb.MAC, err error) {
	d := k.devices[name]
	for mac, a := range d.learned {
		if a == at {
			macs = append(macs, mac)
			delete(d.learned, mac)
		}
	}
	return macs, nil
}

// fakeGuard is a set of addresses.
type fakeGuard struct {
	up      bool
	allowed map[netip.Addr]bool
	err     error
	changes int
	touched bool
}

func (g *fakeGuard) Touched() bool { return g.touched }

func (g *fakeGuard) Ensure(uint16) ([]netip.Addr, error) {
	g.touched = false
	if g.err != nil {
		return nil, g.err
	}
	if g.up = true; g.allowed == nil {
		g.allowed = map[netip.Addr]bool{}
	}
	var all []netip.Addr
	for a := range g.allowed {
		all = append(all, a)
	}
	return all, nil
}

func (g *fakeGuard) Allow(a netip.Addr) error { g.allowed[a] = true; g.changes++; return nil }
func (g *fakeGuard) Deny(a netip.Addr) error  { delete(g.allowed, a); g.changes++; return nil }
func (g *fakeGuard) Remove() error            { g.up, g.allowed = false, nil; return nil }
func (g *fakeGuard) Close() error             { return nil }

// world is some hosts under one clock. Nothing in it runs by itself.
type world struct {
	t     testing.TB
	now   time.Time
	hosts []*fakeHost
	// cut tells which probes get lost, down which sessions there are not, relayed
	// which go through others.
	cut     func(from, to *fakeHost, frame []byte) bool
	down    func(a, b *fakeHost) bool
	relayed func(a, b *fakeHost) bool
	mute    bool // reports get lost
}

// fakeHost is a Switch with all that it needs. It is its own Mesh, Tunnel and
// Probes.
type fakeHost struct {
	*Switch
	w       *world
	self    id.PeerID
	addr    netip.AddrPort
	off     string
	kernel  *fakeKernel
	guard   *fakeGuard
	dead    bool // the plugin is not running
	removed bool // from the cluster
	carried map[string][]id.PeerID
	learned []string
	changed int
	bound   string
	binds   int
	beats   int      // probes and reports sent
	watched int      // how often the mesh was asked to watch a peer
	keys    []string // segments that it is on
}

const meshPort, vxlanPort = 6783, 6784

func newWorld(t testing.TB, n int) *world {
	w := &world{
		t: t, now: time.Unix(1_700_000_000, 0),
		cut:     func(_, _ *fakeHost, _ []byte) bool { return false },
		down:    func(_, _ *fakeHost) bool { return false },
		relayed: func(_, _ *fakeHost) bool { return false },
	}
	for i := range n {
		h := &fakeHost{
			w: w, self: id.PeerID{byte(i + 1)}, kernel: newFakeKernel(), guard: &fakeGuard{},
			addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), meshPort),
		}
		h.start()
		w.hosts = append(w.hosts, h)
	}
	return w
}

// start begins a run with what the kernel has.
func (h *fakeHost) start() {
	h.carried, h.keys, h.learned, h.dead = map[string][]id.PeerID{}, nil, nil, false
	h.Switch = New(Config{
		Self: h.self, Local: h.addr.Addr(), Port: vxlanPort, MeshPort: meshPort, Off: h.off, Mesh: h, Tunnel: h,
		Kernel: h.kernel, Guard: h.guard, Probes: h, Changed: func() { h.changed++ },
		Clock: func() time.Time { return h.w.now }, Log: quiet(),
	})
}

func (h *fakeHost) Path(p id.PeerID) (netip.AddrPort, bool) {
	for _, other := range h.w.hosts {
		switch {
		case other.self != p || other.dead || h.w.down(h, other):
		case h.w.relayed(h, other):
			return netip.AddrPort{}, true
		default:
			return other.addr, true
		}
	}
	return netip.AddrPort{}, false
}

// Away tells of all hosts of the world that are still in the cluster.
func (h *fakeHost) Away() (away []netip.Addr) {
	for _, other := range h.w.hosts {
		if _, ok := h.Path(other.self); !ok && other != h && !other.removed {
			away = append(away, other.addr.Addr())
		}
	}
	return away
}

func (h *fakeHost) Watch(id.PeerID) { h.watched++ }

func (h *fakeHost) SendReport(p id.PeerID, body []byte) {
	h.beats++
	for _, other := range h.w.hosts {
		if other.self == p && !other.dead && !h.w.down(h, other) && !h.w.mute {
			other.Heard(h.self, body)
		}
	}
}

func (h *fakeHost) SetCarried(key string, peers []id.PeerID) { h.carried[key] = slices.Clone(peers) }

func (h *fakeHost) Learn(key string, mac fdb.MAC, at id.PeerID) {
	h.learned = append(h.learned, fmt.Sprint(key, " ", mac, " ", at[0]))
}

func (h *fakeHost) Bind(link string) error { h.bound = link; h.binds++; return nil }

// Send goes where the heart-beats' device sends it.
func (h *fakeHost) Send(frame []byte) error {
	h.beats++
	d := h.kernel.devices[h.bound]
	if d == nil {
		return unix.ENXIO
	}
	to, ok := d.table[slot{Kind: Remote, MAC: fdb.MAC(frame[:6])}]
	if !ok || len(frame) > d.MTU+ethernetLen {
		return os.ErrInvalid
	}
	for _, other := range h.w.hosts {
		if other.addr.Addr() == to.Addr && !other.dead && other.guard.allowed[h.addr.Addr()] && !h.w.cut(h, other, frame) {
			other.take(bytes.Clone(frame))
		}
	}
	return nil
}

func (h *fakeHost) Receive([]byte) (int, error) { return 0, unix.ENOBUFS }
func (h *fakeHost) Close() error                { return nil }

// step is one interval in the life of all hosts.
func (w *world) step() {
	for _, h := range w.hosts {
		if !h.dead {
			h.tick(w.now)
			h.settle()
		}
	}
	w.now = w.now.Add(beat.Interval / 2)
	for _, h := range w.hosts {
		if !h.dead {
			h.settle()
		}
	}
	w.now = w.now.Add(beat.Interval / 2)
}

// settle does what Run does when it is woken.
func (h *fakeHost) settle() {
	for {
		select {
		case r := <-h.reports:
			h.judge(r)
		default:
			h.op.Lock()
			h.flush()
			h.op.Unlock()
			return
		}
	}
}

func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.step()
	}
}

// until steps until something holds, and tells how long that took.
func (w *world) until(what string, ok func() bool) time.Duration {
	w.t.Helper()
	began := w.now
	for !ok() {
		if w.now.Sub(began) > 3*time.Minute {
			w.t.Fatalf("not within 3 minutes: %s", what)
		}
		w.step()
	}
	return w.now.Sub(began)
}

func (h *fakeHost) isFast(other *fakeHost) bool { fast, _ := h.Peer(other.self); return fast }

const testVNI = 100

func vniOf(key string) uint32 { return testVNI + uint32(key[0]) }

// join puts hosts on a segment, and tells all of them who is there.
func (w *world) join(key string, hosts ...*fakeHost) {
	for _, h := range hosts {
		h.AddSegment(Segment{Key: key, VNI: vniOf(key), MTU: 1390, Link: "wvx" + key, TAP: "wvt" + key})
		h.keys = append(h.keys, key)
	}
	w.tell()
}

// tell publishes who is on which segment, with what.
func (w *world) tell() {
	for _, h := range w.hosts {
		for _, key := range h.keys {
			var members []Member
			for _, other := range w.hosts {
				if slices.Contains(other.keys, key) {
					m := Member{Peer: other.self, VNI: vniOf(key), Ready: other.Ready(key)}
					if seg := other.segments[key]; seg != nil {
						m.VNI = seg.VNI
					}
					members = append(members, m)
				}
			}
			h.SetMembers(key, members)
		}
	}
}

// announce tells all hosts of an endpoint, number n of host h.
func (w *world) announce(key string, h *fakeHost, n int) {
	for _, other := range w.hosts {
		other.SetEndpoint(key, endpointOf(h.self, n).at(other))
	}
}

func (w *world) withdraw(key string, h *fakeHost, n int) {
	for _, other := range w.hosts {
		e := endpointOf(h.self, n).at(other)
		other.RemoveEndpoint(key, e.At, e.ID)
	}
}

type testEndpoint struct{ fdb.Endpoint }

func endpointOf(p id.PeerID, n int) testEndpoint {
	return testEndpoint{fdb.Endpoint{
		At: fdb.At(p), ID: fmt.Sprint("e", n), MAC: fdb.MAC{2, p[0], 0, 0, byte(n >> 8), byte(n)},
		IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, p[0], byte(n >> 8), byte(n)}), netip.MustParseAddr("fd00::1")},
	}}
}

// at is the endpoint as a host knows it.
func (e testEndpoint) at(h *fakeHost) fdb.Endpoint {
	if e.At.Peer == h.self {
		e.At = fdb.Here()
	}
	return e.Endpoint
}

// device returns the table of a segment's device.
func (h *fakeHost) device(key string) map[slot]Entry {
	d := h.kernel.devices["wvx"+key]
	if d == nil {
		return nil
	}
	return d.table
}

// port tells where a host's bridge sends frames for an endpoint.
func (h *fakeHost) port(key string, e testEndpoint) string {
	x := slot{Kind: Port, MAC: e.MAC}
	if _, ok := h.device(key)[x]; ok {
		return "vxlan"
	}
	if _, ok := h.kernel.atTAP["wvt"+key][x]; ok {
		return "tap"
	}
	return "none"
}
