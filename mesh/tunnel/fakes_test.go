package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"weave/mesh/fdb"
	"weave/mesh/id"
	"weave/mesh/run"
	"weave/mesh/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 10 * time.Second
	mtu      = 1400
)

// fakeDevice is a TAP whose kernel side is the test.
type fakeDevice struct {
	batches chan [][]byte // what ReadBatch returns, call by call
	second  chan [][]byte // the same of another queue; nil: there is none
	written chan []byte
	closed  chan struct{}
	fail    atomic.Bool // Write returns an error
	noUSO   bool        // set before the segment is added
}

func newFakeDevice() *fakeDevice {
	return &fakeDevice{
		batches: make(chan [][]byte, 64),
		written: make(chan []byte, 4096),
		closed:  make(chan struct{}),
	}
}

// newTwoQueues returns one with a second queue.
func newTwoQueues() *fakeDevice {
	d := newFakeDevice()
	d.second = make(chan [][]byte, cap(d.batches))
	return d
}

func (d *fakeDevice) Queues() int {
	if d.second != nil {
		return 2
	}
	return 1
}

func (d *fakeDevice) ReadBatch(queue int, bufs [][]byte, sizes []int) (int, bool, error) {
	select {
	case <-d.closed:
		return 0, false, os.ErrClosed
	case frames, ok := <-[]chan [][]byte{d.batches, d.second}[queue]:
		if !ok {
			return 0, false, errors.New("device is gone")
		}
		for i, f := range frames {
			sizes[i] = copy(bufs[i], f)
		}
		return len(frames), len(frames) == len(bufs), nil
	}
}

func (d *fakeDevice) Write(vnetFrame []byte) error {
	if d.fail.Load() {
		return errors.New("device takes nothing")
	}
	d.written <- append([]byte(nil), vnetFrame...)
	return nil
}

func (d *fakeDevice) USO() bool { return !d.noUSO }

func (d *fakeDevice) Close() error { close(d.closed); return nil }

// fakeLink takes datagrams from one tunnel to another, at once and in order.
// What it seals can still be read; the tag shows that it was sealed whole.
type fakeLink struct {
	t       testing.TB
	from    id.PeerID
	to      *host
	counter atomic.Uint64

	mu    sync.Mutex
	down  bool
	lose  func(counter uint64) bool
	sends [][]int // lengths of the datagrams of each Send
}

const tag = "0123456789abcdef"

func (l *fakeLink) Seal(buf []byte, size int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return errors.New("no session")
	}
	for len(buf) > 0 {
		d := buf[:min(size, len(buf))]
		buf = buf[len(d):]
		wire.Header{Type: wire.TypeSealed, Version: wire.Version, Counter: l.counter.Add(1)}.Put(d)
		copy(d[len(d)-wire.TagLen:], tag)
	}
	return nil
}

func (l *fakeLink) Send(buf []byte, size int) error {
	l.to.mu.Lock() // one goroutine at a time receives
	defer l.to.mu.Unlock()
	l.mu.Lock()
	lose := l.lose
	l.mu.Unlock()
	var lengths []int
	for len(buf) > 0 {
		d := buf[:min(size, len(buf))]
		buf = buf[len(d):]
		lengths = append(lengths, len(d))
		h, err := wire.ParseHeader(d)
		if err != nil || h.Type != wire.TypeSealed || string(d[len(d)-wire.TagLen:]) != tag {
			l.t.Errorf("a datagram of %d bytes was not sealed whole: %v", len(d), err)
			return nil
		}
		if lose == nil || !lose(h.Counter) {
			l.receive(h.Counter, d[wire.HeaderLen:len(d)-wire.TagLen])
		}
	}
	l.to.tunnel.Flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sends = append(l.sends, lengths)
	return nil
}

func (l *fakeLink) receive(counter uint64, plain []byte) {
	for len(plain) > 0 {
		kind, body, rest, err := wire.NextItem(plain)
		if err != nil || kind != wire.KindFrame {
			l.t.Errorf("item of kind %d: %v", kind, err)
			return
		}
		h, frame, err := wire.ParseFrame(body)
		if err != nil {
			l.t.Error(err)
			return
		}
		l.to.tunnel.Receive(l.from, counter, h, frame)
		plain = rest
	}
}

func (l *fakeLink) set(change func(*fakeLink)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l)
}

// taken returns what was sent so far, and forgets it.
func (l *fakeLink) taken() [][]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	sends := l.sends
	l.sends = nil
	return sends
}

// host is a tunnel with its links to the others.
type host struct {
	t      testing.TB
	id     id.PeerID
	tunnel *Tunnel
	clock  *fakeClock

	mu    sync.Mutex // held while something is received
	links map[id.PeerID]*fakeLink
}

func (h *host) Link(p id.PeerID) Link {
	if l := h.links[p]; l != nil {
		return l
	}
	return nil
}

type fakeClock struct{ nanos atomic.Int64 }

func (c *fakeClock) now() time.Time          { return time.Unix(1_700_000_000, c.nanos.Load()) }
func (c *fakeClock) advance(d time.Duration) { c.nanos.Add(int64(d)) }

func quiet() *logrus.Entry {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return logrus.NewEntry(log)
}

// newHosts makes tunnels with links between all of them, and ends them with
// the test.
func newHosts(t testing.TB, n int) []*host {
	clock := new(fakeClock)
	hosts := make([]*host, n)
	for i := range hosts {
		h := &host{t: t, id: id.PeerID{byte(i + 1)}, clock: clock, links: make(map[id.PeerID]*fakeLink)}
		h.tunnel = New(Config{Self: h.id, Links: h, Log: quiet(), Clock: clock.now})
		hosts[i] = h
	}
	for _, from := range hosts {
		for _, to := range hosts {
			if from != to {
				from.links[to.id] = &fakeLink{t: t, from: from.id, to: to}
			}
		}
	}
	return hosts
}

const key = "10.32.0.0/16"

func segmentID(key string) wire.SegmentID {
	return wire.SegmentID(binary.BigEndian.Uint64([]byte(key + "        ")))
}

// join puts the hosts on a segment, as members of it all.
func join(t testing.TB, key string, hosts ...*host) []*fakeDevice {
	t.Helper()
	devices := make([]*fakeDevice, len(hosts))
	var peers []id.PeerID
	for _, h := range hosts {
		peers = append(peers, h.id)
	}
	for i, h := range hosts {
		devices[i] = newFakeDevice()
		h.attach(key, devices[i])
		h.tunnel.SetMembers(key, peers)
	}
	return devices
}

// attach adds a segment, and removes it with the test.
func (h *host) attach(key string, d Device) {
	h.t.Helper()
	if err := h.tunnel.AddSegment(Segment{ID: segmentID(key), Key: key, MTU: mtu, Device: d}); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := h.tunnel.RemoveSegment(key); err != nil {
			h.t.Error(err)
		}
	})
}

// announce makes an endpoint known on all hosts.
func announce(key string, at *host, mac fdb.MAC, ip string, hosts ...*host) {
	for _, h := range hosts {
		h.tunnel.SetEndpoint(key, Endpoint{ID: mac.String(), MAC: mac, IPs: []netip.Addr{netip.MustParseAddr(ip)}, Peer: at.id})
	}
}

// next returns the next frame that was written to the device.
func (d *fakeDevice) next(t testing.TB) []byte {
	t.Helper()
	select {
	case f := <-d.written:
		return f
	case <-time.After(patience):
		t.Fatal("nothing was written")
		return nil
	}
}

// wantFrames expects exactly these frames, in order.
func (d *fakeDevice) wantFrames(t testing.TB, want ...[]byte) {
	t.Helper()
	for i, w := range want {
		if got := d.next(t); string(got) != string(w) {
			t.Fatalf("frame %d is\n%x, want\n%x", i, got, w)
		}
	}
	d.wantNothing(t)
}

func (d *fakeDevice) wantNothing(t testing.TB) {
	t.Helper()
	select {
	case f := <-d.written:
		t.Fatalf("%x was written", f)
	default:
	}
}

// settle waits until the segment has done with all that was queued before.
func (d *fakeDevice) settle(t testing.TB) {
	t.Helper()
	settle(t, d.batches)
	if d.second != nil {
		settle(t, d.second)
	}
}

func settle(t testing.TB, batches chan [][]byte) {
	t.Helper()
	// When there is room for one empty batch more than the queue takes, the
	// first of them has been read, and what was before it is done.
	for range cap(batches) + 1 {
		select {
		case batches <- nil:
		case <-time.After(patience):
			t.Fatal("the segment does not read")
		}
	}
}

// plain returns a frame as the TAP has it, with nothing unfinished.
func plain(to, from fdb.MAC, payload string) []byte {
	b := make([]byte, run.VnetHdrLen)
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	b = append(b, 0x88, 0xb5) // for local experiments
	return append(b, payload...)
}

var (
	macA      = fdb.MAC{2, 0, 0, 0, 0, 0xa}
	macB      = fdb.MAC{2, 0, 0, 0, 0, 0xb}
	macC      = fdb.MAC{2, 0, 0, 0, 0, 0xc}
	macX      = fdb.MAC{2, 0, 0, 0, 0, 0x99} // nobody announces it
	broadcast = fdb.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

const (
	ipA = "10.32.0.1"
	ipB = "10.32.0.2"
	ipC = "10.32.0.3"
)

// stats returns the counters of the segment under key.
func (h *host) stats() Stats {
	h.t.Helper()
	s, ok := h.tunnel.Stats(key)
	if !ok {
		h.t.Fatal("no such segment")
	}
	return s
}

// tcpRun is a run of IPv4 TCP from macA to macB, as a TAP gives it.
func tcpRun(payload []byte, mss int, seq uint32) []byte {
	tcp := make([]byte, 20)
	copy(tcp, []byte{0x30, 0x39, 0, 80})
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12], tcp[13] = 5<<4, 0x18 // ACK, PSH
	return ipRun(6, tcp, 16, payload, run.Meta{GSO: run.GSOTCPv4, GSOSize: uint16(mss)})
}

// udpRun is the same of UDP.
func udpRun(payload []byte, size int) []byte {
	udp := []byte{0x30, 0x39, 0, 80, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)+len(payload)))
	return ipRun(17, udp, 6, payload, run.Meta{GSO: run.GSOUDP, GSOSize: uint16(size)})
}

// udpDatagram is one UDP datagram from macA to macB with the given IP ID.
func udpDatagram(id byte, payload string) []byte {
	udp := []byte{0x30, 0x39, 0, 80, 0, byte(8 + len(payload)), 0, 0}
	b := ipRun(17, udp, 6, []byte(payload), run.Meta{})
	b[2], b[3] = 0, 0 // no hint at the headers' length, which does not travel
	ip := b[run.VnetHdrLen+14:][:20]
	ip[5], ip[10], ip[11] = id, 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^onesSum(ip))
	return b
}

// ipRun puts Ethernet and IPv4 headers before a transport header, whose
// checksum it leaves unfinished.
func ipRun(protocol byte, transport []byte, csumOffset int, payload []byte, m run.Meta) []byte {
	const l3, l4 = 14, 34
	size := uint16(len(transport) + len(payload))
	ip := []byte{0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2}
	binary.BigEndian.PutUint16(ip[2:], l4-l3+size)
	binary.BigEndian.PutUint16(ip[10:], ^onesSum(ip))
	pseudo := append(bytes.Clone(ip[12:]), 0, protocol, byte(size>>8), byte(size))
	binary.BigEndian.PutUint16(transport[csumOffset:], onesSum(pseudo))

	m.NeedsCsum, m.HdrLen, m.CsumStart, m.CsumOffset = true, uint16(l4+len(transport)), l4, uint16(csumOffset)
	b := make([]byte, run.VnetHdrLen)
	m.EncodeVnet(b)
	return slices.Concat(b, macB[:], macA[:], []byte{8, 0}, ip, transport, payload)
}

func onesSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
