package transport

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// dialStagger is how long a way to connect has before the next is tried beside it,
// as in RFC 8305.
const dialStagger = 250 * time.Millisecond

// maxAnswer bounds what a proxy may answer, in bytes.
const maxAnswer = 64 << 10

// opener opens a connection, or fails when the context ends.
type opener func(context.Context) (net.Conn, error)

// race opens a connection in several ways: each begins when the one before has
// failed, or has taken long. Of those that succeed the first counts, and the others
// are closed. It returns when all have ended, and they end with the context.
func race(ctx context.Context, stagger time.Duration, ways ...opener) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		c   net.Conn
		err error
	}
	results := make(chan result)
	begun, pending := 0, 0
	var got net.Conn
	var errs []error
	next := func() {
		if got != nil || begun == len(ways) || ctx.Err() != nil {
			return
		}
		way := ways[begun]
		begun, pending = begun+1, pending+1
		go func() {
			c, err := way(ctx)
			results <- result{c, err}
		}()
	}
	tick := time.NewTicker(stagger)
	defer tick.Stop()
	for next(); pending > 0; {
		select {
		case <-tick.C:
			next()
			continue
		case r := <-results:
			pending--
			switch {
			case r.err != nil:
				errs = append(errs, r.err)
				next()
			case got != nil:
				_ = r.c.Close() // too late
			default:
				got = r.c
				cancel()
			}
		}
	}
	switch {
	case got != nil:
		return got, nil
	case len(errs) == 0:
		return nil, context.Cause(ctx)
	}
	return nil, errors.Join(errs...)
}

// tcpWays are the ways to a peer's address: the port that it has for UDP too, the
// further one, and each through the proxy.
func (t *Transport) tcpWays(addr netip.AddrPort) (ways []opener) {
	addrs := []netip.AddrPort{addr}
	if port := t.cfg.TCPPort; port != 0 && port != addr.Port() {
		addrs = append(addrs, netip.AddrPortFrom(addr.Addr(), port))
	}
	for _, a := range addrs {
		ways = append(ways, func(ctx context.Context) (net.Conn, error) {
			return t.dialer(a.Addr()).DialContext(ctx, "tcp", a.String())
		})
	}
	for _, a := range addrs {
		if t.cfg.Proxy != nil {
			ways = append(ways, func(ctx context.Context) (net.Conn, error) { return throughProxy(ctx, t.cfg.Proxy, a) })
		}
	}
	return ways
}

// listenFurther listens on the further port, if there is one besides the usual.
// Somebody else may have it: that is no reason to do nothing.
func (c *Config) listenFurther(usual uint16) (net.Listener, error) {
	if c.TCPPort == 0 || c.TCPPort == usual {
		return nil, nil
	}
	l, err := listenTCP(c.Listen.Addr(), c.TCPPort)
	if err != nil {
		c.Log.WithError(err).Error("hosts that get out by that port only will not reach this one; trying again")
	}
	return l, err
}

// TCPTrouble returns why Config.TCPPort is not listened on, though it should be. It
// is tried again until it succeeds.
func (t *Transport) TCPTrouble() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tcpTrouble
}

// acceptLate is accept for Config.TCPPort, which somebody else had at the start.
// What it starts in the group ends with Close.
func (t *Transport) acceptLate(ctx context.Context, g *errgroup.Group) error {
	tick := time.NewTicker(t.cfg.tune.maxBackoff)
	defer tick.Stop()
	for {
		select {
		case <-t.closed:
			return nil
		case <-tick.C:
		}
		l, err := listenTCP(t.cfg.Listen.Addr(), t.cfg.TCPPort)
		t.mu.Lock()
		t.tcpTrouble = err
		t.mu.Unlock()
		if err == nil {
			t.log.WithField("port", t.cfg.TCPPort).Info("the further TCP port is free now")
			g.Go(func() error { <-t.closed; return l.Close() })
			return t.accept(ctx, l)
		}
	}
}

// dialer connects from the address that datagrams come from, if that is a certain
// one: peers, and firewalls on the way, know this host by it.
func (t *Transport) dialer(to netip.Addr) *net.Dialer {
	own := t.cfg.Listen.Addr().Unmap()
	if !own.IsValid() || own.IsUnspecified() || own.Is4() != to.Is4() {
		return &net.Dialer{Control: shortSegments}
	}
	return &net.Dialer{Control: shortSegments, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(own, 0))}
}

// maxSegment is the MSS that we offer and use: segments that any IPv6 path takes, and
// any usual one of IPv4. The kernel would learn by ICMP only that a path takes less
// than its link does, and where that is filtered a stream would stand still.
const maxSegment = 1280 - 40 - 20

// shortSegments is a net.Dialer's Control.
func shortSegments(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, maxSegment) // else it may do without
	})
}

// throughProxy connects to an address by an HTTP proxy's method CONNECT (RFC 9110,
// 9.3.6).
func throughProxy(ctx context.Context, proxy *url.URL, to netip.AddrPort) (net.Conn, error) {
	c, err := (&net.Dialer{Control: shortSegments}).DialContext(ctx, "tcp", proxy.Host)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err = askProxy(c, proxy.User, to)
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("proxy %s: %w", proxy.Host, err), c.Close())
	}
	return proxied{c}, nil
}

// proxied is a connection whose other end is not who is talked to.
type proxied struct{ net.Conn }

// RemoteAddr returns nil: it is not known.
func (proxied) RemoteAddr() net.Addr { return nil }

func askProxy(c net.Conn, user *url.Userinfo, to netip.AddrPort) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: to.String()}, Host: to.String(), Header: http.Header{}}
	if user != nil {
		password, _ := user.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := req.Write(c); err != nil {
		return err
	}
	in := bufio.NewReaderSize(io.LimitReader(c, maxAnswer), 4<<10)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %q", resp.Status)
	}
	if in.Buffered() > 0 { // we are to speak first
		return errors.New("it sends what nobody asked for")
	}
	return nil
}
