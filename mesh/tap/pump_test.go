package tap

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weave/mesh/run"
	"weave/mesh/udp"
	"weave/mesh/wire"
)

// site is one end of the shortest tunnel there can be: TAP, Splitter, UDP and
// back, without seals, tables or anything else in between.
type site struct {
	ns   namespace
	tap  *Device
	udp  *udp.Conn
	peer netip.AddrPort

	runs, pieces   atomic.Int64 // that left in more than one piece, and their pieces
	joined, frames atomic.Int64 // datagrams that came, and frames written
	refused        atomic.Int64
}

// newTunnel connects two namespaces by a wire with the usual MTU and puts a
// site on each; the overlay is 10.99.0.0/24 and fd99::/64.
func newTunnel(t testing.TB, queues int) (a, b *site) {
	t.Helper()
	a, b = &site{ns: newNamespace(t)}, &site{ns: newNamespace(t)}
	a.ns.do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "wire", 1500
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire", PeerNamespace: netlink.NsFd(b.ns.handle)})
	})
	for i, s := range []*site{a, b} {
		s.open(t, i+1, queues)
	}
	a.peer, b.peer = b.udp.LocalAddr(), a.udp.LocalAddr()
	var wg sync.WaitGroup
	for _, s := range []*site{a, b} {
		for q := range queues {
			wg.Go(func() { s.outwards(t, q) })
		}
		wg.Go(func() { s.inwards(t) })
	}
	t.Cleanup(func() {
		for _, s := range []*site{a, b} {
			if err := errors.Join(s.tap.Close(), s.udp.Close()); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
	})
	return a, b
}

func (s *site) open(t testing.TB, number, queues int) {
	t.Helper()
	s.tap = s.ns.openQueues(t, "wvt0", queues)
	s.ns.do(t, func() (err error) {
		// Here the TAP stands for the bridge as well, and so has addresses.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/wvt0/disable_ipv6", []byte("0"), 0); err != nil {
			return err
		}
		err = errors.Join(
			addAddr("wire", fmt.Sprintf("192.0.2.%d/24", number)),
			addAddr("wvt0", fmt.Sprintf("10.99.0.%d/24", number)),
			addAddr("wvt0", fmt.Sprintf("fd99::%d/64", number)),
		)
		if err != nil {
			return err
		}
		s.udp, err = udp.Listen(netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:6783", number)), udp.Options{})
		return err
	})
}

// addAddr brings a link up and gives it an address that is usable at once.
func addAddr(name, addr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	a.Flags = unix.IFA_F_NODAD
	return errors.Join(netlink.LinkSetUp(link), netlink.AddrAdd(link, a))
}

// outwards carries frames from a queue of the TAP to the peer until the TAP is
// closed.
func (s *site) outwards(t testing.TB, queue int) {
	bufs, sizes := buffers(8)
	train := make([]byte, 0, 1<<17)
	var sp run.Splitter
	for {
		n, _, err := s.tap.ReadBatch(queue, bufs, sizes)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			return
		}
		for i := range n {
			m, err := run.DecodeVnet(bufs[i][:sizes[i]])
			if err != nil {
				t.Error(err)
				return
			}
			pieces, err := sp.Reset(bufs[i][run.VnetHdrLen:sizes[i]], m, 14+testMTU)
			if err != nil {
				t.Error(err)
				return
			}
			if pieces > 1 {
				s.runs.Add(1)
				s.pieces.Add(int64(pieces))
			}
			if err := s.send(&sp, train); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
	}
}

func (s *site) send(sp *run.Splitter, train []byte) error {
	size := wire.FrameHeaderLen + sp.NextLen()
	for {
		at := len(train)
		n, h, ok := sp.Next(train[min(at+wire.FrameHeaderLen, cap(train)):cap(train)])
		if !ok {
			return s.udp.Write(train, size, s.peer)
		}
		train = train[:at+wire.FrameHeaderLen+n]
		h.Put(train[at:])
	}
}

// inwards carries datagrams from the peer to the TAP until the socket is
// closed.
func (s *site) inwards(t testing.TB) {
	trains := make([]udp.Train, 8)
	for i := range trains {
		trains[i].Buf = make([]byte, 1<<16)
	}
	j := run.Joiner{NoUDP: !s.tap.USO()}
	for {
		n, err := s.udp.ReadBatch(trains)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
			return
		}
		for _, tr := range trains[:n] {
			for b := tr.Buf; len(b) > 0; b = b[min(tr.Size, len(b)):] {
				s.receive(t, &j, b[:min(tr.Size, len(b))])
			}
		}
		s.flush(t, &j)
	}
}

func (s *site) receive(t testing.TB, j *run.Joiner, datagram []byte) {
	h, frame, err := wire.ParseFrame(datagram)
	if err != nil {
		t.Error(err)
		return
	}
	s.joined.Add(1)
	if j.Add(h, frame) {
		return
	}
	s.flush(t, j)
	if !j.Add(h, frame) {
		s.refused.Add(1)
	}
}

func (s *site) flush(t testing.TB, j *run.Joiner) {
	if !j.Held() {
		return
	}
	if err := s.tap.Write(j.Frame()); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	s.frames.Add(1)
	j.Reset()
}

// connect opens a TCP connection over the overlay. It sets cubic, so that
// figures do not depend on the machine's default.
func connect(t testing.TB, from, to *site, addr string) (out, in net.Conn) {
	t.Helper()
	control := func(_, _ string, rc syscall.RawConn) error {
		var inner error
		err := rc.Control(func(fd uintptr) {
			inner = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
		})
		return errors.Join(err, inner)
	}
	var ln net.Listener
	to.ns.do(t, func() (err error) {
		lc := net.ListenConfig{Control: control}
		ln, err = lc.Listen(t.Context(), "tcp", net.JoinHostPort(addr, "0"))
		return err
	})
	defer ln.Close()
	from.ns.do(t, func() (err error) {
		d := net.Dialer{Control: control}
		out, err = d.DialContext(t.Context(), "tcp", ln.Addr().String())
		return err
	})
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return out, in
}

// TestPump: streams between two namespaces arrive as they were sent, and they
// travel in runs.
func TestPump(t *testing.T) {
	forQueues(t, func(t *testing.T, queues int) {
		a, b := newTunnel(t, queues)
		for addr, size := range map[string]int64{"10.99.0.2": 64 << 20, "fd99::2": 8 << 20} {
			out, in := connect(t, a, b, addr)
			transfer(t, out, in, size)
		}
		if a.runs.Load() == 0 || a.pieces.Load() < 2*a.runs.Load() || b.joined.Load() < 2*b.frames.Load() || b.refused.Load() > 0 {
			t.Errorf("sent %d runs of %d pieces; received %d datagrams, wrote %d frames, refused %d",
				a.runs.Load(), a.pieces.Load(), b.joined.Load(), b.frames.Load(), b.refused.Load())
		}
	})
}

// transfer sends size bytes and compares what arrives.
func transfer(t *testing.T, out, in net.Conn, size int64) {
	t.Helper()
	sent, received := sha256.New(), sha256.New()
	var wg sync.WaitGroup
	wg.Go(func() {
		src := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
		_, err := io.Copy(io.MultiWriter(out, sent), src)
		if err := errors.Join(err, out.Close()); err != nil {
			t.Error(err)
		}
	})
	n, err := io.Copy(received, in)
	if err := errors.Join(err, in.Close()); err != nil || n != size {
		t.Errorf("received %d of %d bytes: %v", n, size, err)
	}
	wg.Wait()
	if !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
		t.Error("other bytes arrived")
	}
}

// TestPumpDatagrams: trains of an application's datagrams arrive with their
// boundaries, as one frame where the TAP has runs of UDP.
func TestPumpDatagrams(t *testing.T) {
	a, b := newTunnel(t, 1)
	for _, addrs := range [][2]string{{"10.99.0.1", "10.99.0.2"}, {"fd99::1", "fd99::2"}} {
		var from, to *udp.Conn
		a.ns.do(t, func() (err error) {
			from, err = udp.Listen(netip.AddrPortFrom(netip.MustParseAddr(addrs[0]), 0), udp.Options{})
			return err
		})
		b.ns.do(t, func() (err error) {
			to, err = udp.Listen(netip.AddrPortFrom(netip.MustParseAddr(addrs[1]), 0), udp.Options{})
			return err
		})
		const size, count = 1200, 20
		buf := make([]byte, count*size-500)
		rand.NewChaCha8([32]byte{2}).Read(buf)
		frames := b.frames.Load()
		if err := from.Write(buf, size, to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		got, boundaries := readDatagrams(t, to, len(buf), size)
		if !bytes.Equal(got, buf) || !boundaries {
			t.Errorf("%s: other datagrams arrived", addrs[1])
		}
		// Neighbour discovery may come in between.
		if n := b.frames.Load() - frames; a.tap.USO() && from.Stats().GSO && n > 5 {
			t.Errorf("%s: %d frames for one train", addrs[1], n)
		}
		if err := errors.Join(from.Close(), to.Close()); err != nil {
			t.Error(err)
		}
	}
}

// readDatagrams reads n bytes, and tells whether all datagrams had the size
// that they should have.
func readDatagrams(t *testing.T, c *udp.Conn, n, size int) (got []byte, boundaries bool) {
	t.Helper()
	trains := []udp.Train{{Buf: make([]byte, 1<<16)}}
	boundaries = true
	for len(got) < n {
		if _, err := c.ReadBatch(trains); err != nil {
			t.Fatal(err)
		}
		got = append(got, trains[0].Buf...)
		boundaries = boundaries && (trains[0].Size == size || len(got) == n && trains[0].Size == n%size)
	}
	return got, boundaries
}

// BenchmarkPump is the ceiling of the sealed path: everything but the seals.
// The bare wire below it is measured too, to judge the machine by. A rate is
// that of bytes received, over the time until the last one was.
func BenchmarkPump(b *testing.B) {
	for name, addr := range map[string]string{"overlay": "10.99.0.2", "wire": "192.0.2.2"} {
		b.Run(name, func(b *testing.B) {
			x, y := newTunnel(b, 1)
			out, in := connect(b, x, y, addr)
			benchStream(b, out, in)
			if frames := y.frames.Load(); frames > 0 {
				b.ReportMetric(float64(y.joined.Load())/float64(frames), "pieces/frame")
			}
		})
	}
}

func benchStream(b *testing.B, out, in net.Conn) {
	buf := make([]byte, 1<<20)
	var received int64
	var readErr error
	var wg sync.WaitGroup
	start := time.Now()
	wg.Go(func() { received, readErr = io.Copy(io.Discard, in) })
	for b.Loop() {
		if _, err := out.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		b.Fatal(err)
	}
	wg.Wait()
	elapsed := time.Since(start)
	if err := errors.Join(readErr, in.Close()); err != nil || received != int64(b.N)*int64(len(buf)) {
		b.Fatalf("received %d of %d bytes: %v", received, b.N*len(buf), err)
	}
	b.ReportMetric(float64(received)*8/float64(elapsed.Nanoseconds()), "Gbit/s")
	b.ReportMetric(0, "ns/op") // of a write to the socket's buffer: says nothing
}
