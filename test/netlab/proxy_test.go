package netlab

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
)

// through asks the proxy for a connection, and returns it with the status.
func through(t *testing.T, h *Host, p *Proxy, to string) (net.Conn, int) {
	t.Helper()
	var conn net.Conn
	must(t, h.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", p.Addr().String(), soon)
		return err
	}))
	t.Cleanup(func() { conn.Close() })
	_, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", to, to)
	must(t, err)
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	must(t, err)
	response.Body.Close()
	return conn, response.StatusCode
}

// TestProxy: a host that a firewall lets speak to nobody but the proxy.
func TestProxy(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	shut, server, outside := addHost(t, lab, 1), addHost(t, lab, 2), addHost(t, lab, 3)
	p, err := server.ServeProxy(3128, 443)
	must(t, err)
	defer func() { must(t, p.Close()) }()
	must(t, shut.SetFilter(Filter{OnlyTCP: []uint16{3128}}))
	listener := listen(t, outside, 443)
	defer listener.Close()
	from := make(chan netip.AddrPort, 1)
	go func() { // an echo, which ends after what it was sent has
		conn, err := listener.Accept()
		if err != nil {
			close(from)
			return
		}
		defer conn.Close()
		from <- conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		_, _ = io.Copy(conn, conn)
	}()
	at := netip.AddrPortFrom(outside.IP4(), 443)
	if dials(shut, at, false) {
		t.Error("the firewall is open")
	}
	conn, status := through(t, shut, p, at.String())
	if status != http.StatusOK {
		t.Fatalf("the proxy says %d", status)
	}
	_, err = io.WriteString(conn, "there and back")
	must(t, err)
	must(t, conn.(*net.TCPConn).CloseWrite())
	if got, err := io.ReadAll(conn); string(got) != "there and back" || err != nil {
		t.Errorf("%q, %v came back", got, err)
	}
	if via := <-from; via.Addr().Unmap() != server.IP4() {
		t.Errorf("the connection came from %s", via)
	}
	for _, refused := range []struct {
		to   string
		want int
	}{
		{netip.AddrPortFrom(outside.IP4(), 80).String(), http.StatusForbidden},
		{"outside:443", http.StatusForbidden},
		{netip.AddrPortFrom(server.IP4(), 443).String(), http.StatusBadGateway},
	} {
		if _, status := through(t, shut, p, refused.to); status != refused.want {
			t.Errorf("%s: the proxy says %d, not %d", refused.to, status, refused.want)
		}
	}
	if n := p.Tunnels(); n != 1 {
		t.Errorf("%d tunnels", n)
	}
}

// TestProxyEndsTunnels: Close leaves nothing open.
func TestProxyEndsTunnels(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	a, b := addHost(t, lab, 1), addHost(t, lab, 2)
	p, err := b.ServeProxy(0)
	must(t, err)
	listener := listen(t, a, 7000)
	defer listener.Close()
	conn, status := through(t, a, p, netip.AddrPortFrom(a.IP4(), 7000).String())
	if status != http.StatusOK {
		t.Errorf("the proxy says %d", status)
	}
	must(t, p.Close())
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the tunnel is still there")
	}
	if dials(a, p.Addr(), false) {
		t.Error("the proxy is still there")
	}
}
