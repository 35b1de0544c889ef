package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"weave/plugin/sandbox"
	"weave/test/dockerlab"
	"weave/test/netlab"
)

// question is one that a program asks a name server.
type question struct {
	protocol string // "udp" or "tcp"
	name     string
	kind     dnsmessage.Type
	size     int  // of an answer by UDP, told by EDNS with DO set, and CD; 0: none of that
	docker   bool // past us, of Docker's resolver
}

const (
	questionID  = 4711
	askPatience = time.Second // what is lost is asked again
)

func (q question) pack() ([]byte, error) {
	name, err := dnsmessage.NewName(strings.TrimSuffix(q.name, ".") + ".")
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: questionID, RecursionDesired: true, CheckingDisabled: q.size > 0},
		Questions: []dnsmessage.Question{{Name: name, Type: q.kind, Class: dnsmessage.ClassINET}},
	}
	if q.size > 0 {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(q.size, 0, true); err != nil {
			return nil, err
		}
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	return m.Pack()
}

// ask asks a server from the network namespace at a path, and returns the answer as it
// came.
func (q question) ask(from, server string) ([]byte, error) {
	message, err := q.pack()
	if err != nil {
		return nil, err
	}
	var c net.Conn
	dialer := net.Dialer{Timeout: askPatience, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		controlled := raw.Control(func(fd uintptr) {
			if q.docker {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, sandbox.Mark)
			}
		})
		return errors.Join(controlled, err)
	}}
	if err := netlab.Inside(from, func() (err error) { c, err = dialer.Dial(q.protocol, server); return err }); err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(askPatience))
	if q.protocol == "tcp" {
		if err := writeFramed(c, message); err != nil {
			return nil, err
		}
		return readFramed(c)
	}
	if _, err := c.Write(message); err != nil {
		return nil, err
	}
	answer := make([]byte, 1<<16)
	n, err := c.Read(answer)
	return answer[:n], err
}

// tell is ask, and returns what the answer says: its code, and what is in it by
// address or name, in order.
func (q question) tell(from, server string) (code dnsmessage.RCode, all []string, err error) {
	raw, err := q.ask(from, server)
	if err != nil {
		return 0, nil, fmt.Errorf("%s by %s of %s: %w", q.name, q.protocol, server, err)
	}
	var m dnsmessage.Message
	if err := m.Unpack(raw); err != nil {
		return 0, nil, err
	}
	for _, r := range m.Answers {
		switch body := r.Body.(type) {
		case *dnsmessage.AResource:
			all = append(all, netip.AddrFrom4(body.A).String())
		case *dnsmessage.AAAAResource:
			all = append(all, netip.AddrFrom16(body.AAAA).String())
		case *dnsmessage.PTRResource:
			all = append(all, body.PTR.String())
		}
	}
	return m.RCode, all, nil
}

// asks asks the name server that is in the container's /etc/resolv.conf.
func (c container) asks(name string, kind dnsmessage.Type) (dnsmessage.RCode, []string, error) {
	return question{protocol: "udp", name: name, kind: kind}.tell(c.host.Path(sandboxOf(c.t, c)), sandbox.Resolver.String())
}

// both are the kinds of addresses that a program asks for.
var both = []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA}

// finds waits until a name has certain addresses, joined by spaces.
func (c container) finds(name, addresses string) {
	c.t.Helper()
	want := strings.Fields(addresses)
	slices.Sort(want)
	eventually(c.t, soon, func() error {
		var found []string
		for _, kind := range both {
			code, all, err := c.asks(name, kind)
			if err != nil || code != dnsmessage.RCodeSuccess {
				return errors.Join(err, fmt.Errorf("%s is told %v for name %s, want %s", c.name, code, name, want))
			}
			found = append(found, all...)
		}
		if slices.Sort(found); !slices.Equal(found, want) {
			return fmt.Errorf("%s finds %s by name %s, want %s", c.name, found, name, want)
		}
		return nil
	})
}

// findsAs waits until an address has a certain name.
func (c container) findsAs(address, name string) {
	c.t.Helper()
	eventually(c.t, soon, func() error {
		code, all, err := c.asks(reverse(address), dnsmessage.TypePTR)
		if err != nil || code != dnsmessage.RCodeSuccess || !slices.Contains(all, name+".weave.local.") {
			return errors.Join(err, fmt.Errorf("%s finds %v, %s for address %s, want %s", c.name, code, all, address, name))
		}
		return nil
	})
}

// reverse is the name by which names of an address are asked for.
func reverse(address string) string {
	a := netip.MustParseAddr(address)
	var name string
	if a.Is4() {
		for _, b := range a.As4() {
			name = fmt.Sprintf("%d.", b) + name
		}
		return name + "in-addr.arpa"
	}
	for _, b := range a.As16() {
		name = fmt.Sprintf("%x.%x.", b&0xf, b>>4) + name
	}
	return name + "ip6.arpa"
}

// misses waits until a name is told not to exist.
func (c container) misses(name string) {
	c.t.Helper()
	eventually(c.t, gone, func() error { return c.missing(name) })
}

// missing is an error unless it is told, by whom Docker asks outside, that there is no
// such name. The container has none but a server of the lab for that: see outside.
func (c container) missing(name string) error {
	for _, kind := range both {
		if code, all, err := c.asks(name, kind); err != nil || code != dnsmessage.RCodeNameError {
			return errors.Join(err, fmt.Errorf("%s is told %v, %s for name %s", c.name, code, all, name))
		}
	}
	return nil
}

// looksUp has a program in the container find addresses, joined by spaces, the usual
// way: by /etc/resolv.conf.
func (c container) looksUp(protocol, name, addresses string) {
	c.t.Helper()
	got, err := c.try("tool", "lookup", "-timeout=2s", protocol, name)
	if err != nil || strings.Join(strings.Fields(got), " ") != addresses {
		c.t.Errorf("%s looks %s up by %s and gets %q, want %s: %v", c.name, name, protocol, got, addresses, err)
	}
}

// outside is a name server outside all containers, for what those ask that is not of
// Docker's networks.
type outside struct {
	addr netip.Addr

	mu    sync.Mutex
	asked []string // questions as they came, behind the protocol
}

// startOutside starts one on a host, which has one at most, for the time of the test.
// Of zone example.org it knows www, and for each number N the name bytes-N, of which
// the answer is at least so long. There are no other names.
func startOutside(t *testing.T, h *dockerlab.Host) *outside {
	t.Helper()
	o := &outside{addr: h.Net().IP4()}
	at := netip.AddrPortFrom(o.addr, 53).String()
	var udp net.PacketConn
	var tcp net.Listener
	err := h.Net().Do(func() (err error) {
		if udp, err = net.ListenPacket("udp", at); err == nil {
			tcp, err = net.Listen("tcp", at)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var loops sync.WaitGroup
	loops.Go(func() { o.datagrams(udp) })
	loops.Go(func() { o.streams(tcp) })
	t.Cleanup(func() {
		_, _ = udp.Close(), tcp.Close()
		loops.Wait()
	})
	return o
}

// options has Docker ask the server for a container.
func (o *outside) options(more ...string) []string {
	return append([]string{"--dns", o.addr.String()}, more...)
}

func (o *outside) datagrams(udp net.PacketConn) {
	message := make([]byte, 1<<16)
	for {
		n, from, err := udp.ReadFrom(message)
		if err != nil {
			return
		}
		_, _ = udp.WriteTo(o.answer("udp", message[:n]), from)
	}
}

func (o *outside) streams(tcp net.Listener) {
	for {
		c, err := tcp.Accept()
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(soon))
		if message, err := readFramed(c); err == nil {
			_ = writeFramed(c, o.answer("tcp", message))
		}
		_ = c.Close()
	}
}

// answer notes a question and answers it.
func (o *outside) answer(protocol string, message []byte) []byte {
	o.mu.Lock()
	o.asked = append(o.asked, protocol+" "+string(message))
	o.mu.Unlock()
	var m dnsmessage.Message
	if m.Unpack(message) != nil || len(m.Questions) != 1 {
		return nil
	}
	limit := 512
	if len(m.Additionals) > 0 {
		limit = int(m.Additionals[0].Header.Class)
	}
	m.Response, m.RecursionAvailable = true, true
	q := m.Questions[0]
	header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
	var size int
	if name := q.Name.String(); name == "www.example.org." {
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 80}}}}
	} else if n, _ := fmt.Sscanf(name, "bytes-%d.example.org.", &size); n == 1 {
		var text dnsmessage.TXTResource
		for ; size > 0; size -= 200 {
			text.TXT = append(text.TXT, strings.Repeat("x", 200))
		}
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &text}}
	} else {
		m.RCode = dnsmessage.RCodeNameError
	}
	packed, err := m.Pack()
	if err == nil && protocol == "udp" && len(packed) > limit {
		m.Truncated, m.Answers = true, nil
		packed, err = m.Pack()
	}
	if err != nil {
		return nil
	}
	return packed
}

// wasAsked returns what the server was asked since the last call, and forgets it.
func (o *outside) wasAsked() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	asked := o.asked
	o.asked = nil
	return asked
}

// asksOutside holds that what we do not know is asked, and answered, as if we were
// not there: both ways byte for byte what it is without us.
func (c container) asksOutside(o *outside) {
	c.t.Helper()
	from := c.host.Path(sandboxOf(c.t, c))
	ask := func(q question) (answer []byte, asked []string, err error) {
		_ = o.wasAsked()
		answer, err = q.ask(from, sandbox.Resolver.String())
		return answer, o.wasAsked(), err
	}
	for _, q := range []question{
		{name: "www.example.org", kind: dnsmessage.TypeA}, {name: "nobody.example.org", kind: dnsmessage.TypeAAAA, size: 1232},
		{name: "bytes-600.example.org", kind: dnsmessage.TypeTXT}, {name: "bytes-1000.example.org", kind: dnsmessage.TypeTXT, size: 1232},
		{name: "bytes-3000.example.org", kind: dnsmessage.TypeTXT, size: 4096}, {name: "bytes-3000.example.org", kind: dnsmessage.TypeTXT, size: 1232},
	} {
		for _, q.protocol = range []string{"udp", "tcp"} {
			eventually(c.t, soon, func() error {
				got, asked, err := ask(q)
				past := q
				past.docker = true
				want, wantAsked, pastErr := ask(past)
				if err != nil || pastErr != nil || !bytes.Equal(got, want) || !slices.Equal(asked, wantAsked) || len(asked) != 1 {
					return errors.Join(err, pastErr, fmt.Errorf("%+v: %q, asked outside %q; without us %q, %q", q, got, asked, want, wantAsked))
				}
				return nil
			})
		}
	}
}
