package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var blue, red = Scope{Segment: "blue"}, Scope{Segment: "red"}

// town is a table with a bit of everything.
func town() *Table {
	var t Table
	t.Set("here", []Record{
		{"blue", "web", addr("10.1.0.1"), true}, {"blue", "web", addr("fd00::1"), true}, {"blue", "db.v1", addr("10.1.0.9"), true},
		{"red", "secret", addr("10.2.0.1"), true},
	})
	t.Set("there", []Record{{"blue", "web", addr("10.1.0.2"), false}, {"blue", "front", addr("10.1.0.2"), false}, {"blue", "shop_web_1", addr("10.1.0.7"), false}, {"red", "web", addr("10.2.0.2"), false}})
	return &t
}

func server(t *Table) *Server { return New(Config{Table: t, Domain: "weave.local", TTL: time.Second}) }

// query is a question as a program sends it. size is what it takes by EDNS; 0: without.
func query(t testing.TB, name string, typ dnsmessage.Type, size int) []byte {
	t.Helper()
	n, err := dnsmessage.NewName(name)
	if err != nil {
		t.Fatal(err)
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: typ, Class: dnsmessage.ClassINET}},
	}
	if size > 0 {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(size, 0, true); err != nil {
			t.Fatal(err)
		}
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unpack(t testing.TB, b []byte) (m dnsmessage.Message) {
	t.Helper()
	if err := m.Unpack(b); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	return m
}

// told is what an answer says, in short.
func told(m dnsmessage.Message) string {
	words := []string{strings.TrimPrefix(m.RCode.String(), "RCode")}
	for _, r := range m.Answers {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			words = append(words, netip.AddrFrom4(b.A).String())
		case *dnsmessage.AAAAResource:
			words = append(words, netip.AddrFrom16(b.AAAA).String())
		case *dnsmessage.PTRResource:
			words = append(words, b.PTR.String())
		}
	}
	slices.Sort(words[1:])
	return strings.Join(words, " ")
}

// listen listens by UDP and TCP on one port of loopback.
func listen(t *testing.T) (*net.UDPConn, net.Listener) {
	t.Helper()
	for try := 0; ; try++ {
		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		tcp, err := net.Listen("tcp", udp.LocalAddr().String())
		if err == nil {
			return udp, tcp
		}
		_ = udp.Close() // somebody has the port by TCP
		if try == 100 {
			t.Fatal(err)
		}
	}
}

// opened is a door on loopback.
type opened struct {
	t    *testing.T
	udp  *net.UDPConn
	tcp  net.Listener
	stop func() error
}

func open(t *testing.T, s *Server, upstream string, scopes ...Scope) *opened {
	t.Helper()
	o := &opened{t: t}
	o.udp, o.tcp = listen(t)
	d := Door{UDP: o.udp, TCP: o.tcp, Scopes: func() []Scope { return scopes }}
	if upstream != "" {
		d.Upstream = func(ctx context.Context, network string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, upstream)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, d) }()
	stopped := false
	o.stop = func() (err error) {
		if !stopped {
			stopped = true
			cancel()
			select {
			case err = <-ended:
			case <-time.After(patience):
				err = fmt.Errorf("does not end")
			}
		}
		return err
	}
	t.Cleanup(func() {
		if err := o.stop(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// dial connects to the door.
func (o *opened) dial(network string) net.Conn {
	o.t.Helper()
	c, err := net.Dial(network, o.udp.LocalAddr().String())
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		o.t.Fatal(err)
	}
	return c
}

// send sends a message and get returns one.
func (o *opened) send(c net.Conn, msg []byte) {
	o.t.Helper()
	write := func() error { _, err := c.Write(msg); return err }
	if c.LocalAddr().Network() == "tcp" {
		write = func() error { return writeMessage(c, msg) }
	}
	if err := write(); err != nil {
		o.t.Fatal(err)
	}
}

func (o *opened) get(c net.Conn) []byte {
	o.t.Helper()
	var n int
	var err error
	buf := make([]byte, maxMessage)
	if c.LocalAddr().Network() == "tcp" {
		buf, err = readMessage(c, buf)
		n = len(buf)
	} else {
		n, err = c.Read(buf)
	}
	if err != nil {
		o.t.Fatal(err)
	}
	return buf[:n]
}

// exchange is both, with a connection of their own.
func (o *opened) exchange(network string, msg []byte) []byte {
	o.t.Helper()
	c := o.dial(network)
	defer c.Close()
	o.send(c, msg)
	return o.get(c)
}
