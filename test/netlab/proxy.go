package netlab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// proxyPatience is how long the proxy tries to reach a destination.
const proxyPatience = 10 * time.Second

// Proxy is an HTTP proxy on a host that knows CONNECT, and nothing else.
type Proxy struct {
	host    *Host
	ports   []uint16
	server  *http.Server
	addr    netip.AddrPort
	tunnels atomic.Int64
	serving sync.WaitGroup // the server, and the tunnels

	mu     sync.Mutex
	open   map[net.Conn]bool // guarded by mu: both ends of each tunnel
	closed bool              // guarded by mu
}

// ServeProxy starts a proxy on the host's port, on all its addresses. It connects
// from the host to the given TCP ports, or to any if there are none, of what is
// named by address: there is no DNS in a lab. The caller must Close it.
func (h *Host) ServeProxy(port uint16, ports ...uint16) (*Proxy, error) {
	p := &Proxy{host: h, ports: ports, open: map[net.Conn]bool{}}
	var listener net.Listener
	err := h.Do(func() (err error) {
		listener, err = net.Listen("tcp", ":"+strconv.Itoa(int(port)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("proxy on %s: %w", h.name, err)
	}
	p.addr = netip.AddrPortFrom(h.IP4(), uint16(listener.Addr().(*net.TCPAddr).Port))
	p.server = &http.Server{Handler: http.HandlerFunc(p.connect), ReadHeaderTimeout: proxyPatience}
	p.serving.Go(func() { _ = p.server.Serve(listener) })
	return p, nil
}

// Addr returns the proxy's IPv4 address and port.
func (p *Proxy) Addr() netip.AddrPort { return p.addr }

// Tunnels returns how many connections the proxy has made so far.
func (p *Proxy) Tunnels() int64 { return p.tunnels.Load() }

// Close ends the proxy and its tunnels.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	for c := range p.open {
		_ = c.Close()
	}
	p.mu.Unlock()
	err := p.server.Close()
	p.serving.Wait()
	return err
}

func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) {
	to, err := netip.ParseAddrPort(r.Host)
	switch {
	case r.Method != http.MethodConnect:
		http.Error(w, "only CONNECT", http.StatusMethodNotAllowed)
		return
	case err != nil || len(p.ports) > 0 && !slices.Contains(p.ports, to.Port()):
		http.Error(w, "not to there", http.StatusForbidden)
		return
	}
	there, err := p.dial(r.Context(), to)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	here, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = there.Close()
		return
	}
	if !p.keep(here, there) {
		return
	}
	defer p.release(here, there)
	p.tunnels.Add(1)
	if _, err := io.WriteString(here, "HTTP/1.1 200 Connection established\r\n\r\n"); err == nil {
		splice(here, there, buffered)
	}
}

func (p *Proxy) dial(ctx context.Context, to netip.AddrPort) (c net.Conn, err error) {
	dialer := net.Dialer{Timeout: proxyPatience}
	err = p.host.Do(func() (err error) { // an address, one alone, is dialed on this thread
		c, err = dialer.DialContext(ctx, "tcp", to.String())
		return err
	})
	return c, err
}

// splice carries both directions until each has ended.
func splice(here, there net.Conn, buffered io.Reader) {
	var up sync.WaitGroup
	up.Go(func() { pipe(there, buffered) })
	pipe(here, there)
	up.Wait()
}

// pipe carries one direction, and its end.
func pipe(to net.Conn, from io.Reader) {
	_, err := io.Copy(to, from)
	end, ok := to.(interface{ CloseWrite() error })
	if err != nil || !ok || end.CloseWrite() != nil {
		_ = to.Close()
	}
}

// keep notes a tunnel's two ends, for Close to end them, until release. Once Close
// was called it closes them, and says no.
func (p *Proxy) keep(here, there net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_, _ = here.Close(), there.Close()
		return false
	}
	p.serving.Add(1)
	p.open[here], p.open[there] = true, true
	return true
}

func (p *Proxy) release(here, there net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = here.Close(), there.Close()
	delete(p.open, here)
	delete(p.open, there)
	p.serving.Done()
}
