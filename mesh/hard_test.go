package mesh

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"weave/test/netlab"
)

// hardLab is a fastLab whose hosts have a password, and a container each on one
// segment.
type hardLab struct {
	*fastLab
	password string
	boxes    []*container
	ears     []*listener
	group    netip.Addr
}

func newHardLab(t *testing.T) *hardLab {
	t.Helper()
	needRoot(t)
	lab, err := netlab.New(netlab.UniqueName())
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	return &hardLab{fastLab: &fastLab{t: t, net: lab}, password: "secret", group: addr("239.1.2.3")}
}

// start runs a process and a container on a host.
func (l *hardLab) start(h *netlab.Host, seeds ...netip.Addr) *fastHost {
	l.t.Helper()
	host := l.place(h, l.password, seeds...)
	host.join(blue, "wv1")
	host.call("run")
	c := host.run(blue, "wv1", fmt.Sprint("c", host.number), fmt.Sprintf("10.1.0.%d", host.number))
	c.echo()
	l.boxes, l.ears = append(l.boxes, c), append(l.ears, c.listen(l.group))
	return host
}

// addHosts adds hosts 1 to n, on which nothing runs.
func (l *hardLab) addHosts(n int) (hosts []*netlab.Host) {
	l.t.Helper()
	for i := range n {
		h, err := l.net.AddHost(i + 1)
		must(l.t, err)
		hosts = append(hosts, h)
	}
	return hosts
}

// startLine runs n hosts, each of which reaches its neighbours only and looks for
// the one before.
func (l *hardLab) startLine(n int) []*netlab.Host {
	l.t.Helper()
	hosts := l.addHosts(n)
	must(l.t, l.net.Connect(hosts, netlab.Line(hosts...)))
	for i, h := range hosts {
		if i == 0 {
			l.start(h)
		} else {
			l.start(h, l.hosts[i-1].addresses()[0])
		}
	}
	return hosts
}

// hops tells how far a host is from another by its own word; 0 if there is no way.
func (h *fastHost) hops(other *fastHost) int {
	p := h.peer(other)
	if !p.Up || !p.Alive || p.Relayed == (p.Hops == 1) { // in the last case it is about to change
		return 0
	}
	return p.Hops
}

// awaitHops waits until all hosts have ways of these lengths to each other.
func (l *hardLab) awaitHops(hosts []*fastHost, want func(i, j int) int) {
	l.t.Helper()
	for i, h := range hosts {
		for j, other := range hosts {
			if i != j {
				await(l.t, fmt.Sprintf("%s to reach %s by %d hops", h.Name(), other.Name(), want(i, j)), func() bool { return h.hops(other) == want(i, j) })
			}
		}
	}
}

// ask has a UDP datagram echoed.
func (c *container) ask(to *container, text string, within time.Duration) error {
	return c.do(func() error {
		conn, err := net.Dial("udp4", addrPort(to.addr, echoPort).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
			return err
		}
		if _, err := conn.Write([]byte(text)); err != nil {
			return err
		}
		b := make([]byte, 2000)
		n, err := conn.Read(b)
		if err == nil && string(b[:n]) != text {
			err = fmt.Errorf("answer %q", b[:n])
		}
		return err
	})
}

// udpEcho serves ask until the test ends.
func (c *container) udpEcho() {
	c.t.Helper()
	var conn net.PacketConn
	must(c.t, c.do(func() (err error) {
		conn, err = net.ListenPacket("udp4", addrPort(c.addr, echoPort).String())
		return err
	}))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 2000)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(b[:n], from)
		}
	}()
	c.t.Cleanup(func() { _ = conn.Close(); <-ended })
}

// outage asks again and again until there are answers again after something was
// broken, and returns how long there were none.
func (c *container) outage(to *container, broken func()) time.Duration {
	c.t.Helper()
	broken()
	began, answered := time.Now(), 0
	last := began
	var longest time.Duration
	for answered < 10 || time.Since(began) < 3*time.Second {
		if c.ask(to, fmt.Sprint(time.Since(began)), 50*time.Millisecond) == nil {
			answered++
			longest, last = max(longest, time.Since(last)), time.Now()
		}
		if time.Since(began) > wait {
			c.t.Fatalf("%s gets no answers of %s any more", c.addr, to.addr)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return longest
}

// everybody has all containers talk to all, by TCP, and each cast to all others.
func (l *hardLab) everybody(what string) {
	l.t.Helper()
	for i, c := range l.boxes {
		for j, d := range l.boxes {
			if i < j {
				conn, err := c.dial(d, wait)
				if err != nil {
					l.t.Errorf("%s: %s to %s: %v", what, c.addr, d.addr, err)
					continue
				}
				_ = conn.Close()
			}
		}
		var others []*listener
		for j, e := range l.ears {
			if i != j {
				others = append(others, e)
			}
		}
		once(l.t, fmt.Sprint(what, " from ", c.addr, " "), c, l.group, others...)
	}
}

// TestLabPartialMesh holds that hosts of which not all reach each other are one
// switch, whatever way they are linked; and that what changes is followed.
func TestLabPartialMesh(t *testing.T) {
	t.Parallel()
	l := newHardLab(t)
	hosts := l.startLine(5)
	line := func(i, j int) int { return max(i-j, j-i) }
	l.awaitHops(l.hosts, line)
	l.everybody("line")
	l.boxes[0].bulk(l.boxes[4])
	s := l.boxes[0].talk(l.boxes[2])

	must(t, l.net.Connect(hosts, netlab.Star(hosts[2], hosts[0], hosts[1], hosts[3], hosts[4])))
	l.awaitHops(l.hosts, func(i, j int) int {
		if i == 2 || j == 2 {
			return 1
		}
		return 2
	})
	l.everybody("star")

	must(t, l.net.Connect(hosts, netlab.Ring(hosts...)))
	l.awaitHops(l.hosts, func(i, j int) int { return min(line(i, j), 5-line(i, j)) })
	l.everybody("ring")

	must(t, l.net.Connect(hosts, netlab.Sites(hosts[:2], hosts[2:])))
	l.awaitHops(l.hosts, func(i, j int) int {
		if (i < 2) == (j < 2) {
			return 1
		}
		hops := 1
		for _, k := range []int{i, j} {
			if k != 0 && k != 2 { // no gateway
				hops++
			}
		}
		return hops
	})
	l.everybody("two sites")

	must(t, l.net.Connect(hosts, netlab.Full(hosts...)))
	l.awaitHops(l.hosts, func(i, j int) int { return 1 })
	l.everybody("all")
	s.end(t) // it broke at none of the changes
}

// TestLabRelayIsKilled holds that the death of a host that passes traffic on is
// mended within 3 s, where there is another way, and breaks no connection.
func TestLabRelayIsKilled(t *testing.T) {
	t.Parallel()
	l := newHardLab(t)
	hosts := l.startLine(5)
	must(t, l.net.Connect(hosts, netlab.Ring(hosts...)))
	l.awaitHops(l.hosts, func(i, j int) int { d := max(i-j, j-i); return min(d, 5-d) })
	for _, c := range l.boxes {
		c.udpEcho()
	}
	a, b := l.boxes[0], l.boxes[2] // by hosts[1], else by hosts[4] and hosts[3]
	s := a.talk(b)
	s.awaitAnswers(t, 10)
	gap := a.outage(b, l.hosts[1].kill)
	t.Logf("without answers for %s", gap)
	if gap > 3*time.Second {
		t.Errorf("without answers for %s", gap)
	}
	s.awaitAnswers(t, 10)
	s.end(t)
	if n := l.hosts[0].hops(l.hosts[2]); n != 3 {
		t.Errorf("%d hops", n)
	}
}

// TestLabLinkIsCut is the same for a link between two hosts that is cut, and mended.
func TestLabLinkIsCut(t *testing.T) {
	t.Parallel()
	l := newHardLab(t)
	hosts := l.startLine(3)
	must(t, l.net.Connect(hosts, netlab.Full(hosts...)))
	l.awaitHops(l.hosts, func(i, j int) int { return 1 })
	for _, c := range l.boxes {
		c.udpEcho()
	}
	a, b := l.boxes[0], l.boxes[2]
	s := a.talk(b)
	s.awaitAnswers(t, 10)
	for _, cut := range []struct {
		what string
		do   func() error
	}{
		{"cut", func() error { return l.net.CutLink(hosts[0], hosts[2], netlab.AllIP) }},
		{"cut one way", func() error { return l.net.CutOneWay(hosts[0], hosts[2], netlab.AllIP) }},
		{"cut the other way", func() error { return l.net.CutOneWay(hosts[2], hosts[0], netlab.AllIP) }},
	} {
		gap := a.outage(b, func() { must(t, cut.do()) })
		t.Logf("%s: without answers for %s", cut.what, gap)
		if gap > 3*time.Second {
			t.Errorf("%s: without answers for %s", cut.what, gap)
		}
		if n := l.hosts[0].hops(l.hosts[2]); n != 2 {
			t.Errorf("%s: %d hops", cut.what, n)
		}
		began := time.Now()
		if gap := a.outage(b, func() { must(t, l.net.HealLink(hosts[0], hosts[2])) }); gap > time.Second {
			t.Errorf("%s: the return costs %s", cut.what, gap)
		}
		await(t, "the direct way", func() bool { return l.hosts[0].hops(l.hosts[2]) == 1 && l.hosts[2].hops(l.hosts[0]) == 1 })
		t.Logf("%s: direct again after %s", cut.what, time.Since(began))
	}
	s.end(t)
}
