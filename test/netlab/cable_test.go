package netlab

import (
	"bytes"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLoss(t *testing.T) {
	t.Parallel()
	const count, part = 4000, 0.1
	lab := newLab(t)
	a, b := addHost(t, lab, 1), addHost(t, lab, 2)
	both(t, func(t *testing.T, six bool) {
		x, y := open(t, a, six, 0), open(t, b, six, 0)
		x.send(y.addr, "both know where the other is")
		y.get("both know where the other is")
		must(t, a.SetLoss(part))
		for _, way := range []struct{ from, to *socket }{{x, y}, {y, x}} {
			came := numbers(way.from, way.to, count, 100*time.Millisecond)
			deviation := math.Sqrt(count * part * (1 - part))
			if lost := float64(count - len(came)); math.Abs(lost-count*part) > 6*deviation {
				t.Errorf("lost %v of %d", lost, count)
			}
		}
		must(t, a.SetLoss(0))
		if came := numbers(x, y, count, soon); len(came) != count {
			t.Errorf("without loss %d of %d came", len(came), count)
		}
	})
	for _, wrong := range []float64{-0.1, 1.1, math.NaN()} {
		if a.SetLoss(wrong) == nil {
			t.Errorf("a loss of %v was taken", wrong)
		}
	}
}

// TestLossTakesSingles: what is sent as a run of datagrams is lost one by one,
// either way.
func TestLossTakesSingles(t *testing.T) {
	t.Parallel()
	const size, pieces = 1000, 50
	lab := newLab(t)
	a, b := addHost(t, lab, 1), addHost(t, lab, 2)
	longest := func(from, to *Host) (longest int) {
		t.Helper()
		x, y := open(t, from, false, 0), open(t, to, false, 0)
		x.option(unix.SOL_UDP, unix.UDP_SEGMENT, size)
		capture, err := lab.Capture()
		must(t, err)
		x.send(y.addr, string(bytes.Repeat([]byte("x"), size*pieces)))
		y.receive(soon)
		frames, err := capture.Stop()
		must(t, err)
		for _, f := range frames {
			longest = max(longest, len(f))
		}
		return longest
	}
	if n := longest(a, b); n < size*pieces {
		t.Skipf("this kernel sends no runs: the longest frame has %d bytes", n)
	}
	must(t, a.SetLoss(1e-6))
	if n := longest(a, b); n > size+100 {
		t.Errorf("a frame of %d bytes went by the cable", n)
	}
	arrived := func() int { // at the end of a's cable
		x, y := open(t, b, false, 0), open(t, a, false, 0)
		y.option(unix.SOL_UDP, unix.UDP_GRO, 1)
		x.option(unix.SOL_UDP, unix.UDP_SEGMENT, size)
		x.send(y.addr, string(bytes.Repeat([]byte("x"), size*pieces)))
		buf := make([]byte, 1<<16)
		must(t, y.SetReadDeadline(time.Now().Add(soon)))
		n, _, err := y.ReadFromUDPAddrPort(buf)
		must(t, err)
		return n
	}
	if n := arrived(); n > size {
		t.Errorf("a run of %d bytes came by the cable", n)
	}
	must(t, a.SetLoss(0))
	if n := arrived(); n <= size {
		t.Errorf("after the loss runs are still cut, to %d bytes", n)
	}
}

func TestFilter(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	a, b := addHost(t, lab, 1), addHost(t, lab, 2)
	// What passes either way; a has the filter.
	type passed struct{ udp, long, icmp, tcp443, tcp444 bool }
	all := passed{true, true, true, true, true}
	tests := []struct {
		name   string
		filter Filter
		want   passed
	}{
		{"UDP", Filter{UDP: true}, passed{icmp: true, tcp443: true, tcp444: true}},
		{"ICMP", Filter{ICMP: true}, passed{udp: true, long: true, tcp443: true, tcp444: true}},
		{"Fragments", Filter{Fragments: true}, passed{udp: true, icmp: true, tcp443: true, tcp444: true}},
		{"OnlyTCP", Filter{OnlyTCP: []uint16{80, 443}}, passed{tcp443: true}},
		{"None", Filter{}, all},
	}
	both(t, func(t *testing.T, six bool) {
		for _, test := range tests {
			must(t, a.SetFilter(test.filter))
			for _, way := range [][2]*Host{{a, b}, {b, a}} {
				from, to := way[0], way[1]
				want, at := test.want, address(to, six)
				got := passed{
					udp:    passes(open(t, from, six, 0), open(t, to, six, 0), want.udp),
					long:   passesLong(open(t, from, six, 0), open(t, to, six, 0), want.long),
					icmp:   pings(t, from, at, want.icmp),
					tcp443: connects(t, from, to, netip.AddrPortFrom(at, 443), want.tcp443),
					tcp444: connects(t, from, to, netip.AddrPortFrom(at, 444), want.tcp444),
				}
				if got != want {
					t.Errorf("%s: from %s: %+v, not %+v", test.name, from.Name(), got, want)
				}
			}
		}
	})
	for six, filter := range map[bool]Filter{false: {IPv4: true}, true: {IPv6: true}} {
		must(t, a.SetFilter(filter))
		both(t, func(t *testing.T, by6 bool) {
			for _, way := range [][2]*Host{{a, b}, {b, a}} {
				if want := by6 != six; passes(open(t, way[0], by6, 0), open(t, way[1], by6, 0), want) != want {
					t.Errorf("%+v: from %s the other family, or this one, is dropped", filter, way[0].Name())
				}
			}
		})
	}
	must(t, a.SetFilter(Filter{OnlyTCP: []uint16{443}}))
	c := addHost(t, lab, 3) // neighbours find each other
	both(t, func(t *testing.T, six bool) {
		if !connects(t, a, c, netip.AddrPortFrom(address(c, six), 443), true) {
			t.Error("no TCP with a host that is new")
		}
		listener := listen(t, c, 444)
		defer listener.Close()
		if _, err := dialFrom(a, 443, netip.AddrPortFrom(address(c, six), 444), 50*time.Millisecond); err == nil {
			t.Error("a connection was made from a port that is for answers")
		}
	})
	must(t, a.SetFilter(Filter{UDP: true}))
	must(t, lab.RemoveHost(a))
	if a = addHost(t, lab, 1); !passes(open(t, a, false, 0), open(t, b, false, 0), true) {
		t.Error("the next host of that number has the filter")
	}
}

// passesLong is passes for a datagram that is sent in fragments.
func passesLong(from, to *socket, should bool) bool {
	from.t.Helper()
	from.send(to.addr, string(make([]byte, 1900)))
	wait := soon
	if !should {
		wait = never
	}
	text, _, err := to.receive(wait)
	return err == nil && len(text) == 1900
}

// pings tells whether an echo comes back.
func pings(t *testing.T, h *Host, to netip.Addr, should bool) bool {
	t.Helper()
	network, request, reply := "ip4:icmp", []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, byte(0) // with its checksum
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", []byte{128, 0, 0, 0, 0, 0, 0, 0}, 129
	}
	var conn net.PacketConn
	must(t, h.Do(func() (err error) {
		conn, err = net.ListenPacket(network, "")
		return err
	}))
	defer conn.Close()
	_, err := conn.WriteTo(request, &net.IPAddr{IP: to.AsSlice()})
	must(t, err)
	wait := soon
	if !should {
		wait = never
	}
	must(t, conn.SetReadDeadline(time.Now().Add(wait)))
	buf := make([]byte, 2000)
	for {
		_, from, err := conn.ReadFrom(buf)
		if err != nil {
			return false
		}
		if buf[0] == reply && from.String() == to.String() {
			return true
		}
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	const wait = 5 * time.Millisecond
	lab := newLab(t)
	a, b, c := addHost(t, lab, 1), addHost(t, lab, 2), addHost(t, lab, 3)
	for _, name := range []string{"all", a.port} { // else the kernel of some machines would answer in nobody's place
		must(t, inNamespace(lab.wires(), func() error { return writeSysctl("net/ipv4/conf/"+name+"/rp_filter", "0") }))
	}
	both(t, func(t *testing.T, six bool) {
		x, y := open(t, a, six, 0), open(t, b, six, 0)
		const count = 200
		must(t, lab.CutLink(a, b, UDP))
		d, err := a.Delay(wait, wait)
		must(t, err)
		if passes(x, y, false) {
			t.Error("the delay heals a link")
		}
		must(t, lab.HealLink(a, b))
		begin, far := time.Now(), Outside4
		if six {
			_, far = lab.address(gateway)
		}
		if back := pings(t, a, far, true); !back || time.Since(begin) < 4*wait { // it is looked for first
			t.Errorf("ping of the gateway: %v, in %s", back, time.Since(begin))
		}
		for _, way := range []struct{ from, to *socket }{{x, y}, {y, x}} {
			way.from.send(way.to.addr, "first") // neighbours are found
			way.to.get("first")
			begin := time.Now()
			way.from.send(way.to.addr, "timed")
			way.to.get("timed")
			if took := time.Since(begin); took < wait {
				t.Errorf("from %s it took %s", way.from.addr, took)
			}
			if came := numbers(way.from, way.to, count, soon); len(came) != count || !slices.IsSorted(came) {
				t.Errorf("from %s %d of %d came, in order: %v", way.from.addr, len(came), count, slices.IsSorted(came))
			}
		}
		if _, err := a.Delay(wait, wait); err == nil {
			t.Error("there are two delays")
		}
		// What else is done to the cable, or the link, is done all the same.
		must(t, lab.CutLink(a, b, UDP))
		if passes(x, y, false) || !passes(x, open(t, c, six, 0), true) {
			t.Error("with a delay links are not cut")
		}
		must(t, lab.HealLink(a, b))
		for _, change := range []struct{ do, undo func() error }{
			{a.Cut, a.Heal},
			{func() error { return a.SetFilter(Filter{UDP: true}) }, func() error { return a.SetFilter(Filter{}) }},
			{func() error { return a.SetLoss(1) }, func() error { return a.SetLoss(0) }},
		} {
			must(t, change.do())
			if passes(x, y, false) || passes(y, x, false) {
				t.Error("with a delay nothing else is done to the cable")
			}
			must(t, change.undo())
			if !passes(x, y, true) {
				t.Error("nothing comes any more")
			}
		}
		must(t, d.Stop())
		if !passes(x, y, true) {
			t.Error("after the delay nothing comes")
		}

		d, err = a.Delay(0, 2*wait)
		must(t, err)
		came := numbers(x, y, count, soon)
		if slices.IsSorted(came) {
			t.Error("all came in order")
		}
		if slices.Sort(came); len(came) != count {
			t.Errorf("%d of %d came: %v; passes now %v", len(came), count, came, passes(x, y, true))
		}
		// The kernel leaves checksums unfinished.
		if !connects(t, a, b, netip.AddrPortFrom(address(b, six), 7000), true) {
			t.Error("no TCP")
		}
		must(t, d.Stop())
	})
}

// TestDelaySome holds that a part of what a host sends comes late, and all of it, and
// that links and cables are cut for that part, too.
func TestDelaySome(t *testing.T) {
	t.Parallel()
	const count, part, late = 2000, 0.1, 20 * time.Millisecond
	lab := newLab(t)
	a, b, c := addHost(t, lab, 1), addHost(t, lab, 2), addHost(t, lab, 3)
	both(t, func(t *testing.T, six bool) {
		x, y := open(t, a, six, 0), open(t, b, six, 0)
		d, err := a.DelaySome(part, late)
		must(t, err)
		x.send(y.addr, "both know where the other is")
		y.get("both know where the other is")
		came := numbers(x, y, count, soon)
		held, most := 0, -1 // who is behind one that was sent later
		for _, n := range came {
			if n < most {
				held++
			}
			most = max(most, n)
		}
		deviation := math.Sqrt(count * part * (1 - part))
		if len(came) != count || held == 0 || float64(held) > count*part+6*deviation {
			t.Errorf("%d of %d came, %d of them late", len(came), count, held)
		}
		if back := numbers(y, x, count, soon); len(back) != count || !slices.IsSorted(back) {
			t.Errorf("the other way %d of %d came, in order: %v", len(back), count, slices.IsSorted(back))
		}
		if six { // what goes to all hosts is not doubled
			all := &socket{t: t}
			must(t, c.Do(func() (err error) {
				all.UDPConn, err = net.ListenUDP("udp6", &net.UDPAddr{Port: 7001})
				return err
			}))
			t.Cleanup(func() { all.Close() })
			must(t, b.Do(func() error {
				link, err := net.InterfaceByName(uplink)
				if err == nil {
					all.addr = netip.MustParseAddrPort(fmt.Sprintf("[ff02::1%%%d]:7001", link.Index))
				}
				return err
			}))
			if came := numbers(y, all, 50, 5*late); len(came) != 50 {
				t.Errorf("of 50 to all hosts %d came", len(came))
			} else if text, _, err := all.next(5 * late); err == nil {
				t.Errorf("more came than was sent: %q", text)
			}
		}
		for _, change := range []struct{ do, undo func() error }{
			{a.Cut, a.Heal},
			{func() error { return lab.CutLink(a, b, UDP) }, func() error { return lab.HealLink(a, b) }},
		} {
			must(t, change.do())
			if came := numbers(x, y, 200, 5*late); len(came) != 0 {
				t.Errorf("%d get through what is cut", len(came))
			}
			must(t, change.undo())
		}
		if !connects(t, a, b, netip.AddrPortFrom(address(b, six), 7000), true) {
			t.Error("no TCP")
		}
		must(t, d.Stop())
		if came := numbers(x, y, count, soon); len(came) != count || !slices.IsSorted(came) {
			t.Errorf("after it %d of %d came, in order: %v", len(came), count, slices.IsSorted(came))
		}
	})
	for _, wrong := range []float64{0, 1, -1, math.NaN()} {
		if _, err := a.DelaySome(wrong, late); err == nil {
			t.Errorf("a part of %v was taken", wrong)
		}
	}
}
