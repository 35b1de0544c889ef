package udp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t testing.TB, addr string) *Conn {
	t.Helper()
	c, err := Listen(netip.AddrPortFrom(netip.MustParseAddr(addr), 0), Options{})
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return c
}

func newTrains(n int) []Train {
	trains := make([]Train, n)
	for i := range trains {
		trains[i].Buf = make([]byte, 1<<16)
	}
	return trains
}

// receive reads until it has n datagrams, or a second without any has passed.
func receive(t testing.TB, c *Conn, n int) (datagrams [][]byte, from []netip.AddrPort) {
	t.Helper()
	trains := newTrains(4)
	for len(datagrams) < n {
		if err := c.sock.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		got, err := c.ReadBatch(trains)
		if err != nil {
			t.Fatalf("after %d of %d datagrams: %v", len(datagrams), n, err)
		}
		for _, tr := range trains[:got] {
			for b := tr.Buf; len(b) > 0; b = b[min(tr.Size, len(b)):] {
				datagrams = append(datagrams, bytes.Clone(b[:min(tr.Size, len(b))]))
				from = append(from, tr.From)
			}
		}
	}
	return datagrams, from
}

// pattern fills n bytes so that every datagram differs.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13)
	}
	return b
}

func checkDatagrams(t testing.TB, got [][]byte, buf []byte, size int) {
	t.Helper()
	for i, d := range got {
		want := buf[:min(size, len(buf))]
		if !bytes.Equal(d, want) {
			t.Fatalf("datagram %d: %d bytes, want %d, or other content", i, len(d), len(want))
		}
		buf = buf[len(want):]
	}
	if len(buf) > 0 {
		t.Fatalf("%d bytes did not arrive", len(buf))
	}
}

func TestTrains(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		for _, tc := range []struct{ bytes, size, calls int }{
			{1, 1, 1},
			{100, 100, 1},
			{100, 200, 1},
			{1000, 100, 1},
			{1001, 100, 1},
			{6400, 100, 1},
			{6401, 100, 2},
			{65488, 65488, 1}, // with IPv6's header, what loopback takes
			{46 * 1420, 1420, 1},
			{47 * 1420, 1420, 2},
			{200_000, 1420, 4},
			{3 * 40000, 40000, 3},
		} {
			t.Run(fmt.Sprintf("%s/%d of %d", addr, tc.bytes, tc.size), func(t *testing.T) {
				a, b := listen(t, addr), listen(t, addr)
				gso := a.Stats().GSO
				buf := pattern(tc.bytes)
				if err := a.Write(buf, tc.size, b.LocalAddr()); err != nil {
					t.Fatal(err)
				}
				n := (tc.bytes + tc.size - 1) / tc.size
				got, from := receive(t, b, n)
				checkDatagrams(t, got, buf, tc.size)
				if from[0] != a.LocalAddr() {
					t.Fatalf("from %s, want %s", from[0], a.LocalAddr())
				}
				sent, recvd := a.Stats(), b.Stats()
				if gso && sent.SentCalls != uint64(tc.calls) {
					t.Errorf("%d calls, want %d", sent.SentCalls, tc.calls)
				}
				if gso && recvd.GRO && n > 1 && recvd.ReceivedTrains != uint64(tc.calls) {
					t.Errorf("%d trains received, want %d", recvd.ReceivedTrains, tc.calls)
				}
				if sent.SentDatagrams != uint64(n) || recvd.ReceivedDatagrams != uint64(n) ||
					sent.SentBytes != uint64(tc.bytes) || recvd.ReceivedBytes != uint64(tc.bytes) {
					t.Errorf("counters %+v %+v", sent, recvd)
				}
			})
		}
	}
}

func TestDualStack(t *testing.T) {
	for _, wildcard := range []string{"0.0.0.0", "::"} {
		for _, addr := range []string{"127.0.0.1", "::1"} {
			t.Run(wildcard+" and "+addr, func(t *testing.T) {
				a, b := listen(t, addr), listen(t, wildcard)
				to := netip.AddrPortFrom(netip.MustParseAddr(addr), b.LocalAddr().Port())
				if err := a.Write(pattern(3000), 1000, to); err != nil {
					t.Fatal(err)
				}
				got, from := receive(t, b, 3)
				checkDatagrams(t, got, pattern(3000), 1000)
				if from[0] != a.LocalAddr() {
					t.Fatalf("from %s, want %s", from[0], a.LocalAddr())
				}
				if err := b.Write(pattern(2500), 1000, from[0]); err != nil {
					t.Fatal(err)
				}
				got, _ = receive(t, a, 3)
				checkDatagrams(t, got, pattern(2500), 1000)
			})
		}
	}
}

func TestEmptyDatagram(t *testing.T) {
	a, b := listen(t, "127.0.0.1"), listen(t, "127.0.0.1")
	if _, err := a.sock.WriteToUDPAddrPort(nil, b.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	trains := newTrains(1)
	n, err := b.ReadBatch(trains)
	if n != 1 || err != nil || len(trains[0].Buf) != 0 || trains[0].Size != 0 {
		t.Fatalf("n = %d, err = %v, train of %d/%d", n, err, len(trains[0].Buf), trains[0].Size)
	}
}

func TestTruncatedIsDropped(t *testing.T) {
	a, b := listen(t, "127.0.0.1"), listen(t, "127.0.0.1")
	for i, n := range []int{10, 500, 20} {
		if err := a.Write(bytes.Repeat([]byte{byte(i)}, n), n, b.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	trains := []Train{{Buf: make([]byte, 100)}, {Buf: make([]byte, 100)}, {Buf: make([]byte, 100)}}
	var got [][]byte
	for len(got) < 2 {
		n, err := b.ReadBatch(trains)
		if err != nil {
			t.Fatal(err)
		}
		for _, tr := range trains[:n] {
			got = append(got, bytes.Clone(tr.Buf))
		}
	}
	if !bytes.Equal(got[0], make([]byte, 10)) || !bytes.Equal(got[1], bytes.Repeat([]byte{2}, 20)) || b.Stats().Truncated != 1 {
		t.Fatalf("got %x, %d truncated", got, b.Stats().Truncated)
	}
}

func TestWriteErrors(t *testing.T) {
	c := listen(t, "127.0.0.1")
	self := c.LocalAddr()
	for name, tc := range map[string]struct {
		size int
		to   netip.AddrPort
		want error
	}{
		"no size":        {0, self, unix.EMSGSIZE},
		"size too large": {MaxDatagram + 1, self, unix.EMSGSIZE},
		"no address":     {10, netip.AddrPort{}, unix.EAFNOSUPPORT},
		"other family":   {10, netip.MustParseAddrPort("[2001:db8::1]:1"), unix.EAFNOSUPPORT},
		"port zero":      {10, netip.AddrPortFrom(self.Addr(), 0), unix.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.Write(pattern(20), tc.size, tc.to); !errors.Is(err, tc.want) {
				t.Fatalf("err = %v, want %v", err, tc.want)
			}
		})
	}
	if err := c.Write(pattern(20), 10, self); err != nil {
		t.Fatalf("after errors: %v", err)
	}
	if !c.Stats().GSO {
		t.Error("an error of the network turned GSO off")
	}
	got, _ := receive(t, c, 2)
	checkDatagrams(t, got, pattern(20), 10)
}

// kernel answers calls of sendmmsg as a test wants. Two EAGAIN in a row would
// hang: the poller waits for an edge that a socket with room never has.
type kernel struct {
	answers []answer // consumed from the front; then the real one
	calls   []int    // how many messages each call had
}

type answer struct {
	n     int
	errno unix.Errno
}

func (k *kernel) sendmmsg(fd uintptr, msgs []mmsghdr) (int, unix.Errno) {
	k.calls = append(k.calls, len(msgs))
	if len(k.answers) == 0 {
		return sendmmsg(fd, msgs)
	}
	a := k.answers[0]
	k.answers = k.answers[1:]
	if a.errno != 0 {
		return 0, a.errno
	}
	return sendmmsg(fd, msgs[:a.n])
}

func TestFallback(t *testing.T) {
	for name, tc := range map[string]struct {
		answers []answer
		calls   []int
		gso     bool
	}{
		"no checksum offload": {[]answer{{errno: unix.EIO}}, []int{1, 10}, false},
		"no UDP_SEGMENT":      {[]answer{{errno: unix.ENOPROTOOPT}}, []int{1, 10}, false},
		"above the MTU":       {[]answer{{errno: unix.EMSGSIZE}}, []int{1, 10}, true},
		"above it, older":     {[]answer{{errno: unix.EINVAL}}, []int{1, 10}, true},
		"interrupted":         {[]answer{{errno: unix.EINTR}}, []int{1, 1}, true},
		"no room":             {[]answer{{errno: unix.EAGAIN}}, []int{1, 1}, true},
		"in parts": {
			[]answer{{errno: unix.EIO}, {n: 4}, {errno: unix.EAGAIN}, {n: 1}}, []int{1, 10, 6, 6, 5}, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := listen(t, "127.0.0.1"), listen(t, "127.0.0.1")
			a.gso.Store(true)
			k := &kernel{answers: tc.answers}
			a.senders.New = func() any { return newSender(k.sendmmsg) }
			if err := a.Write(pattern(950), 100, b.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			got, _ := receive(t, b, 10)
			checkDatagrams(t, got, pattern(950), 100)
			if fmt.Sprint(k.calls) != fmt.Sprint(tc.calls) || a.Stats().GSO != tc.gso {
				t.Fatalf("calls %v, GSO %v, want %v, %v", k.calls, a.Stats().GSO, tc.calls, tc.gso)
			}
			if err := a.Write(pattern(950), 100, b.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			got, _ = receive(t, b, 10)
			checkDatagrams(t, got, pattern(950), 100)
		})
	}
}

func TestClose(t *testing.T) {
	c := listen(t, "127.0.0.1")
	done := make(chan error)
	go func() {
		_, err := c.ReadBatch(newTrains(1))
		done <- err
	}()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("ReadBatch: %v", err)
	}
	if _, err := c.ReadBatch(newTrains(1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ReadBatch after Close: %v", err)
	}
	if err := c.Write([]byte{1}, 1, c.LocalAddr()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
}

func TestParallelWriters(t *testing.T) {
	a, b := listen(t, "127.0.0.1"), listen(t, "127.0.0.1")
	const writers, trains, per = 4, 20, 5
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for range trains {
				if err := a.Write(bytes.Repeat([]byte{byte(w)}, per*100), 100, b.LocalAddr()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	got, _ := receive(t, b, writers*trains*per)
	wg.Wait()
	var count [writers]int
	for _, d := range got {
		if !bytes.Equal(d, bytes.Repeat(d[:1], 100)) {
			t.Fatal("datagrams got mixed")
		}
		count[d[0]]++
	}
	if count != [writers]int{100, 100, 100, 100} {
		t.Fatalf("datagrams %v", count)
	}
}

func TestAddresses(t *testing.T) {
	for _, tc := range []struct {
		addr string
		v6   bool
		want string
	}{
		{"192.0.2.1:6783", false, "192.0.2.1:6783"},
		{"192.0.2.1:6783", true, "192.0.2.1:6783"},
		{"[::ffff:192.0.2.1]:1", false, "192.0.2.1:1"},
		{"[2001:db8::1]:65535", true, "[2001:db8::1]:65535"},
		{"[fe80::1%7]:80", true, "[fe80::1%7]:80"},
	} {
		var sa sockaddr
		if _, err := putAddr(&sa, netip.MustParseAddrPort(tc.addr), tc.v6); err != nil {
			t.Fatal(err)
		}
		if got := getAddr(&sa).String(); got != tc.want {
			t.Errorf("%s came back as %s", tc.addr, got)
		}
	}
	var sa sockaddr
	if _, err := putAddr(&sa, netip.MustParseAddrPort("[fe80::1%no-such-link]:80"), true); err == nil {
		t.Error("a zone that does not exist was accepted")
	}
}

func BenchmarkLoopback(b *testing.B) {
	for _, size := range []int{1420, 60000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			x, y := listen(b, "127.0.0.1"), listen(b, "127.0.0.1")
			buf, trains := pattern(min(46*size, MaxDatagram)), newTrains(4)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				if err := x.Write(buf, size, y.LocalAddr()); err != nil {
					b.Fatal(err)
				}
				if _, err := y.ReadBatch(trains); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The kernel drops what it is told to and nothing else, until it is told otherwise.
func TestShed(t *testing.T) {
	a, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	s, err := net.Dial("udp", a.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// send sends datagrams and then one that always comes in; it counts the others.
	send := func(n int, d ...byte) (got int) {
		t.Helper()
		for range n {
			if _, err := s.Write(d); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Write([]byte("end")); err != nil {
			t.Fatal(err)
		}
		trains := make([]Train, 1)
		for {
			trains[0].Buf = make([]byte, 64<<10)
			if _, err := a.ReadBatch(trains); err != nil {
				t.Fatal(err)
			}
			if string(trains[0].Buf) == "end" {
				return got
			}
			got += (len(trains[0].Buf) + trains[0].Size - 1) / trains[0].Size
		}
	}
	right, wrong, other := []byte{7, 0, 1, 2, 3, 4}, []byte{7, 0, 1, 2, 3, 5}, []byte{8, 0, 1, 2, 3, 5}
	check := func(s Shed, rights, wrongs int) {
		t.Helper()
		if err := a.Shed(s); err != nil {
			t.Fatal(err)
		}
		if r, w, o := send(100, right...), send(100, wrong...), send(100, other...); r != rights || w != wrongs || o != 100 {
			t.Errorf("%+v: %d, %d and %d came in, want %d, %d and 100", s, r, w, o, rights, wrongs)
		}
	}
	check(Shed{First: 7, At: 2, Mark: 0x01020304, OneIn: 1}, 100, 0)
	check(Shed{First: 7, At: 2, Mark: 0x01020305, OneIn: 1}, 0, 100)
	if err := a.Shed(Shed{First: 7, At: 2, Mark: 0x01020304, OneIn: 8}); err != nil {
		t.Fatal(err)
	}
	if n := send(4000, right...); n < 300 || n > 800 { // 500; ten deviations of 21 below
		t.Errorf("%d of 4000 came in, want an eighth", n)
	}
	check(Shed{}, 100, 100)
}
