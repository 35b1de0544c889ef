package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// socket is a UDP socket on a host.
type socket struct {
	*net.UDPConn
	t    *testing.T
	addr netip.AddrPort // its own, by which hosts of its network reach it
}

// open opens a socket of IPv4, or IPv6; port 0 is any.
func open(t *testing.T, h *Host, six bool, port int) *socket {
	t.Helper()
	s := &socket{t: t}
	err := h.Do(func() (err error) {
		s.UDPConn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address(h, six), uint16(port))))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.addr = s.LocalAddr().(*net.UDPAddr).AddrPort()
	s.option(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) // a busy machine loses nothing
	return s
}

func (s *socket) send(to netip.AddrPort, text string) {
	s.t.Helper()
	if _, err := s.WriteToUDPAddrPort([]byte(text), to); err != nil {
		s.t.Fatal(err)
	}
}

// receive returns the next datagram, within the time.
func (s *socket) receive(wait time.Duration) (text string, from netip.AddrPort, err error) {
	s.t.Helper()
	if err := s.SetReadDeadline(time.Now().Add(wait)); err != nil {
		s.t.Fatal(err)
	}
	buf := make([]byte, 2000)
	n, from, err := s.ReadFromUDPAddrPort(buf)
	return string(buf[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
}

// soon is ample for what must come.
const soon = 5 * time.Second

// next is receive without what passes has sent, which may come late.
func (s *socket) next(wait time.Duration) (text string, from netip.AddrPort, err error) {
	s.t.Helper()
	for {
		if text, from, err = s.receive(wait); !strings.HasPrefix(text, probe) {
			return text, from, err
		}
	}
}

// get fails unless the text is what comes next; it returns the sender.
func (s *socket) get(text string) netip.AddrPort {
	s.t.Helper()
	got, from, err := s.next(soon)
	if err != nil || got != text {
		s.t.Fatalf("got %q, %v, not %q", got, err, text)
	}
	return from
}

func address(h *Host, six bool) netip.Addr {
	if six {
		return h.IP6()
	}
	return h.IP4()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addRouter(t *testing.T, n *Network, number, inside int) *Router {
	t.Helper()
	r, err := n.AddRouter(number, inside)
	must(t, err)
	return r
}

func both(t *testing.T, f func(t *testing.T, six bool)) {
	for i, name := range []string{"IPv4", "IPv6"} {
		t.Run(name, func(t *testing.T) { f(t, i == 1) })
	}
}

// passes tells whether datagrams get from one socket to another. One is there
// when it is sent, or never: nothing between waits. So only if it should pass,
// passes has patience, for a machine that is busy.
func passes(from, to *socket, should bool) bool {
	from.t.Helper()
	wait := soon
	if !should {
		wait = never
	}
	sent := fmt.Sprint(probe, probes.Add(1))
	if _, err := from.WriteToUDPAddrPort([]byte(sent), to.addr); err != nil {
		return false
	}
	for {
		text, _, err := to.receive(wait)
		if err != nil || text == sent {
			return err == nil
		}
	}
}

var probes atomic.Int32

const probe = "probe "

const never = 20 * time.Millisecond

// numbers sends so many numbered datagrams and returns which came, as they came;
// after the last was sent it waits for others that long.
func numbers(from, to *socket, count int, wait time.Duration) (came []int) {
	from.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range count {
			if i%50 == 49 { // the kernel has one queue of 1000 packets for all that a processor does
				time.Sleep(time.Millisecond)
			}
			if _, err := from.WriteToUDPAddrPort([]byte{byte(i >> 8), byte(i)}, to.addr); err != nil {
				from.t.Error(err)
			}
		}
	}()
	for len(came) < count {
		sent := false
		select {
		case <-done:
			sent = true
		default:
		}
		text, _, err := to.next(wait)
		switch {
		case err == nil:
			came = append(came, int(text[0])<<8|int(text[1]))
		case sent:
			return came
		}
	}
	<-done
	return came
}

// option sets a socket option.
func (s *socket) option(level, name, value int) {
	s.t.Helper()
	raw, err := s.SyscallConn()
	must(s.t, err)
	var failed error
	must(s.t, raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, name, value) }))
	must(s.t, failed)
}

// connects tells whether a gets a TCP connection to a port of b.
func connects(t *testing.T, a, b *Host, to netip.AddrPort, should bool) bool {
	t.Helper()
	listener := listen(t, b, to.Port())
	defer listener.Close()
	return dials(a, to, should)
}

func listen(t *testing.T, h *Host, port uint16) (l net.Listener) {
	t.Helper()
	must(t, h.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
		return err
	}))
	return l
}

// dials tells whether a host gets a TCP connection; if it should not, it gives up
// before the kernel tries again.
func dials(h *Host, to netip.AddrPort, should bool) bool {
	wait := soon
	if !should {
		wait = 50 * time.Millisecond
	}
	conn, err := dialFrom(h, 0, to, wait)
	return err == nil && conn.Close() == nil
}

// dialFrom has a port of its own, which other connections may have as well.
func dialFrom(h *Host, port int, to netip.AddrPort, wait time.Duration) (conn net.Conn, err error) {
	d := net.Dialer{Timeout: wait, LocalAddr: &net.TCPAddr{Port: port}, Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		return errors.Join(err, failed)
	}}
	err = h.Do(func() (err error) {
		conn, err = d.Dial("tcp", to.String())
		return err
	})
	return conn, err
}

// gatewayOf is where the host's kernel sends what goes there.
func gatewayOf(t *testing.T, h *Host, to string) (via string) {
	t.Helper()
	must(t, h.Do(func() error {
		routes, err := netlink.RouteGet(net.ParseIP(to))
		if err == nil {
			via = routes[0].Gw.String()
		}
		return err
	}))
	return via
}
