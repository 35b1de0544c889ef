package mesh

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stream is a TCP connection between two containers that is always in use.
type stream struct {
	conn   net.Conn
	echoed atomic.Int64
	gap    atomic.Int64 // the longest time without an answer, in nanoseconds
	ended  chan error
	stop   atomic.Bool
}

const echoPort = 7

func (c *container) echo() {
	var l net.Listener
	must(c.t, c.do(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf("%s:%d", c.addr, echoPort))
		return err
	}))
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	c.t.Cleanup(func() { // an end from the other side may be lost with its host
		_ = l.Close()
		cancel()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(ctx, func() { _ = conn.Close() })
			serving.Go(func() { _, _ = io.Copy(conn, conn); _ = conn.Close() })
		}
	})
}

func (c *container) dial(to *container, timeout time.Duration) (conn net.Conn, err error) {
	err = c.do(func() error {
		conn, err = net.DialTimeout("tcp4", fmt.Sprintf("%s:%d", to.addr, echoPort), timeout)
		return err
	})
	return conn, err
}

// bulk has a megabyte echoed, in frames as long as they may be.
func (c *container) bulk(to *container) {
	c.t.Helper()
	conn, err := c.dial(to, wait)
	must(c.t, err)
	defer conn.Close()
	must(c.t, conn.SetDeadline(time.Now().Add(wait)))
	sent := make([]byte, 1<<20)
	for i := range sent {
		sent[i] = byte(i >> 4)
	}
	go func() { _, _ = conn.Write(sent) }()
	got := make([]byte, len(sent))
	_, err = io.ReadFull(conn, got)
	must(c.t, err)
	if !bytes.Equal(got, sent) {
		c.t.Error("not the same bytes came back")
	}
}

// talk keeps a connection busy until end.
func (c *container) talk(to *container) *stream {
	c.t.Helper()
	conn, err := c.dial(to, wait)
	must(c.t, err)
	s := &stream{conn: conn, ended: make(chan error, 1)}
	go func() { s.ended <- s.loop() }()
	return s
}

// end holds that the connection never broke.
func (s *stream) end(t *testing.T) {
	s.stop.Store(true)
	if err := <-s.ended; err != nil {
		t.Errorf("the connection broke: %v", err)
	}
	_ = s.conn.Close()
}

func (s *stream) loop() error {
	var b [8]byte
	for i := uint64(0); !s.stop.Load(); i++ {
		began := time.Now()
		binary.BigEndian.PutUint64(b[:], i)
		if err := s.conn.SetDeadline(began.Add(wait)); err != nil {
			return err
		}
		if _, err := s.conn.Write(b[:]); err != nil {
			return err
		}
		if _, err := io.ReadFull(s.conn, b[:]); err != nil {
			return err
		}
		if binary.BigEndian.Uint64(b[:]) != i {
			return errors.New("another answer than expected")
		}
		s.gap.Store(max(s.gap.Load(), int64(time.Since(began))))
		s.echoed.Add(1)
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// longest returns the longest gap since it was last asked for.
func (s *stream) longest() time.Duration { return time.Duration(s.gap.Swap(0)) }

// awaitAnswers waits until the connection has had answers again.
func (s *stream) awaitAnswers(t *testing.T, n int64) {
	t.Helper()
	from := s.echoed.Load()
	await(t, "the connection to go on", func() bool { return s.echoed.Load() >= from+n })
}

// listener counts datagrams with a text.
type listener struct {
	conn net.PacketConn
}

const castPort = 4000

// listen takes broadcasts, and multicast to a group.
func (c *container) listen(group netip.Addr) *listener {
	c.t.Helper()
	l := &listener{}
	must(c.t, c.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		mreq := &unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(link.Index)}
		err = errors.Join(unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, mreq), unix.Bind(fd, &unix.SockaddrInet4{Port: castPort}))
		f := os.NewFile(uintptr(fd), "cast")
		defer f.Close()
		if err == nil {
			l.conn, err = net.FilePacketConn(f)
		}
		return err
	}))
	c.t.Cleanup(func() { _ = l.conn.Close() })
	return l
}

// count counts the datagrams with a text that come until the last one did.
func (l *listener) count(t *testing.T, text, last string) (n int) {
	t.Helper()
	must(t, l.conn.SetReadDeadline(time.Now().Add(wait)))
	buf := make([]byte, 2000)
	for {
		size, _, err := l.conn.ReadFrom(buf)
		if err != nil {
			t.Fatalf("waiting for %q: %v", last, err)
		}
		switch got := string(buf[:size]); got {
		case text:
			n++
		case last:
			return n
		}
	}
}

// cast sends datagrams to an address, one of them at a time.
func (c *container) cast(to netip.Addr, texts ...string) {
	c.t.Helper()
	must(c.t, c.do(func() error {
		conn, err := net.ListenPacket("udp4", ":0") // Go's sockets may broadcast
		if err != nil {
			return err
		}
		defer conn.Close()
		for _, text := range texts {
			if _, err := conn.WriteTo([]byte(text), net.UDPAddrFromAddrPort(addrPort(to, castPort))); err != nil {
				return err
			}
		}
		return nil
	}))
}

// once holds that each of the others gets a frame once, which another follows
// by each way.
func once(t *testing.T, what string, from *container, group netip.Addr, others ...*listener) {
	t.Helper()
	for i, to := range []netip.Addr{group, netip.MustParseAddr("10.1.255.255")} {
		text := fmt.Sprint(what, i)
		from.cast(to, text)
		time.Sleep(200 * time.Millisecond) // a second copy may take another way, and longer
		from.cast(to, text+" end")
		for _, l := range others {
			if n := l.count(t, text, text+" end"); n != 1 {
				t.Errorf("%s to %s: %d copies", what, to, n)
			}
		}
	}
}
