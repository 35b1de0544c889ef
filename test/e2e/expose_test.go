package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weave/plugin/control"
	"weave/test/dockerlab"
)

// hostEcho serves TCP on a host, and returns who came last.
func hostEcho(t *testing.T, h *dockerlab.Host, addr string) func() string {
	t.Helper()
	var l net.Listener
	if err := h.Net().Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	came := make(chan string, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			select {
			case <-came:
			default:
			}
			came <- netip.MustParseAddrPort(c.RemoteAddr().String()).Addr().String()
			_ = c.SetDeadline(time.Now().Add(soon))
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-ended
	})
	return func() string {
		select {
		case who := <-came:
			return who
		case <-time.After(soon):
			return "nobody"
		}
	}
}

// hostSends has a host say something to an echo server.
func hostSends(h *dockerlab.Host, addr string) error {
	return h.Net().Do(func() error {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if _, err := c.Write([]byte("echo")); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 4))
		return err
	})
}

// hostTraces are all that exposing may leave on a host. Addresses of Docker's links
// are tentative for a second or two.
func hostTraces(t *testing.T, h *dockerlab.Host) string {
	t.Helper()
	out, err := h.Run("sh", "-c", "nft list tables | sort | while read -r table; do nft -s list $table; done; ip addr | sed 's/ tentative//'; ip route; ip -6 route")
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(out, " tentative", "") // it was just given
}

// way is one family of addresses by which a host is exposed to a network.
type way struct {
	bits    string   // of the subnet, as in /24
	own     string   // of the first host on the network
	hosts   []string // underlay addresses of all
	address func(container) string
}

// ways are those by IPv4 and IPv6.
func ways(hs []*dockerlab.Host, sub4, sub6 string) []way {
	v4 := way{"/24", inSubnet(sub4, 77), nil, container.ip}
	v6 := way{"/64", strings.TrimSuffix(sub6, "/64") + "77", nil, container.ip6}
	for _, h := range hs {
		v4.hosts, v6.hosts = append(v4.hosts, h.Net().IP4().String()), append(v6.hosts, h.Net().IP6().String())
	}
	return []way{v4, v6}
}

// at is an address of the way with a port.
func at(addr, port string) string { return net.JoinHostPort(addr, port) }

// expose gives the first host its address, exports port 7000 of a container and
// imports port 9001 of the second host.
func (w way) expose(t *testing.T, h *dockerlab.Host, server container, flags ...string) {
	t.Helper()
	args := []string{"expose", w.own + w.bits, "--export", "18080:" + at(w.address(server), "7000"), "--import", "15432:" + at(w.hosts[1], "9001")}
	if got := weave(t, h, append(args, flags...)...); got != w.own {
		t.Errorf("weave expose prints %q", got)
	}
}

// reached checks that the host, where port 9000 is open, and containers reach each
// other.
func (w way) reached(t *testing.T, h *dockerlab.Host, all ...container) {
	t.Helper()
	for _, c := range all {
		eventually(t, afterBoot, func() error { return hostSends(h, at(w.address(c), "7000")) })
		eventually(t, soon, func() error { return c.sends(at(w.own, "9000")) })
	}
}

// passed checks that what is exported and imported gets through: came tells who
// asked the second host.
func (w way) passed(t *testing.T, hs []*dockerlab.Host, came func() string, all ...container) {
	t.Helper()
	for _, c := range all {
		eventually(t, soon, func() error { return c.sends(at(w.own, "15432")) })
		if who := came(); who != w.hosts[0] {
			t.Errorf("an imported service hears %s", who)
		}
	}
	for _, h := range hs {
		eventually(t, soon, func() error { return hostSends(h, at(w.hosts[0], "18080")) })
	}
}

// masqueraded checks that a container with a route by the first host gets out there.
func (w way) masqueraded(t *testing.T, c container, came func() string) {
	t.Helper()
	eventually(t, soon, func() error { return c.sends(at(w.hosts[1], "9001")) })
	if who := came(); who != w.hosts[0] {
		t.Errorf("masqueraded, %s comes", who)
	}
}

// sends has a container say something to an echo server.
func (c container) sends(addr string) error {
	_, err := c.try("tool", "send", "-timeout=1s", "tcp", addr)
	return err
}

// forwardIPv6 is what /etc/sysctl.d does on a host: Docker lets it forward IPv4 only.
func forwardIPv6(t *testing.T, h *dockerlab.Host) {
	t.Helper()
	if _, err := h.Run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"); err != nil {
		t.Fatal(err)
	}
}

// TestExpose: a host is on the switch as if it were a container, by IPv4 and by
// IPv6, and stays there.
func TestExpose(t *testing.T) {
	t.Parallel()
	hs := spareCluster(t, 2)
	sub, sub6 := subnet(), subnet6()
	netw := network(t, hs, "--ipv6", "--subnet", sub, "--subnet", sub6)
	options := []string{"--restart", "always", "--cap-add", "NET_ADMIN"}
	a, b := run(t, hs[0], netw, options, "tool", "echo", "tcp", ":7000"), run(t, hs[1], netw, options, "tool", "echo", "tcp", ":7000")
	a.reaches(b.ip(), soon)
	all := ways(hs, sub, sub6)
	own := all[0].own
	refusedWeave(t, hs[0], []string{"forwards no IPv6 packets", "net.ipv6.conf.all.forwarding"}, "expose", all[1].own+"/64", "--masquerade")
	forwardIPv6(t, hs[0])
	before := hostTraces(t, hs[0])
	hostEcho(t, hs[0], ":9000")
	came := hostEcho(t, hs[1], ":9001")

	for _, w := range all {
		if got := weave(t, hs[0], "expose", w.own+w.bits); got != w.own {
			t.Errorf("weave expose prints %q", got)
		}
		w.reached(t, hs[0], a, b)
	}
	hostToHost(t, hs, sub, own)
	refused(t, hs[1], []string{own, "in use", nickname(hs[0])}, "run", "--rm", "--net", netw, "--ip", own, dockerlab.Image, "true")
	refusedWeave(t, hs[1], []string{fmt.Sprintf("by host %q itself", nickname(hs[0]))}, "expose", own+"/24")
	for _, w := range all {
		w.expose(t, hs[0], b)
		w.passed(t, hs, came, a, b)
		w.expose(t, hs[0], b, "--masquerade") // in addition
		exposedStatus(t, hs, w)
		b.exec("ip", "route", "add", w.hosts[1], "via", w.own)
		w.masqueraded(t, b, came)
		weave(t, hs[0], "hide", w.own+w.bits)
	}
	if after := hostTraces(t, hs[0]); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}

	for _, w := range all {
		w.expose(t, hs[0], b, "--masquerade")
	}
	reboot := func() error {
		if err := hs[0].Reboot(); err != nil {
			return err
		}
		forwardIPv6(t, hs[0])
		hostEcho(t, hs[0], ":9000")
		return nil
	}
	for _, restart := range []func() error{hs[0].KillPlugin, hs[0].Restart, reboot} { // of the plugin, of the engine
		if err := restart(); err != nil {
			t.Fatal(err)
		}
		awaitPeers(t, hs)
		for _, w := range all {
			w.reached(t, hs[0], a, b)
			w.passed(t, hs, came, a, b)
			w.masqueraded(t, b, came)
		}
	}
	if got := weave(t, hs[0], "hide"); got != own+"\n"+all[1].own {
		t.Errorf("weave hide prints %q", got)
	}
	if after := hostTraces(t, hs[0]); strings.Contains(after, own) || strings.Contains(after, all[1].own) || strings.Contains(after, "table ip weave {") || strings.Contains(after, "table ip6 weave {") {
		t.Errorf("left:\n%s", after)
	}
	docker(t, hs[1], "run", "--rm", "--net", netw, "--ip", own, dockerlab.Image, "true") // its lease was given back
}

// hostToHost: two hosts that are exposed reach each other over the segment.
func hostToHost(t *testing.T, hs []*dockerlab.Host, sub, own string) {
	t.Helper()
	other := weave(t, hs[1], "expose", "net:"+sub)
	eventually(t, soon, func() error { return hostSends(hs[0], at(other, "9001")) })
	eventually(t, soon, func() error { return hostSends(hs[1], at(own, "9000")) })
	weave(t, hs[1], "hide")
}

// exposedStatus checks what the hosts tell of an exposed address of the first.
func exposedStatus(t *testing.T, hs []*dockerlab.Host, w way) {
	t.Helper()
	s := status(t, hs[0])
	i := slices.IndexFunc(s.Exposed, func(x control.Exposed) bool { return x.Address.Addr().String() == w.own })
	if i < 0 || !s.Exposed[i].Masquerade || len(s.Exposed[i].Exports) != 1 || len(s.Exposed[i].Imports) != 1 {
		t.Fatalf("exposed: %+v", s.Exposed)
	}
	for _, h := range hs {
		has := func(e control.Endpoint) bool {
			return e.Kind == control.KindHost && e.Host == nickname(hs[0]) && fmt.Sprint(e.Addresses) == "["+w.own+"]" &&
				(!e.Local || e.Network == s.Exposed[i].Network)
		}
		if s := status(t, h); !slices.ContainsFunc(s.Endpoints, has) {
			t.Errorf("%s does not know of %s: %+v", h.Name(), w.own, s.Endpoints)
		}
	}
	if screen := weave(t, hs[0], "status"); !strings.Contains(screen, "Exposed: ") {
		t.Errorf("the status does not show it:\n%s", screen)
	}
}

// TestExposeMakesNetwork: and when that is removed, the address goes with it.
func TestExposeMakesNetwork(t *testing.T) {
	beside(t)
	h := hosts(t, 1)[0]
	eventually(t, soon, func() error { // it may have just booted
		s, err := statusOf(h)
		if err == nil && s.Peer == "" {
			err = errors.New("the plugin does no work yet")
		}
		return err
	})
	sub := subnet()
	netw := "weave-" + strings.ReplaceAll(sub, "/", "-")
	if _, err := h.Weave("expose", inSubnet(sub, 7)+"/24", "--export", "1:10.250.0.1:1"); err == nil {
		t.Error("an export out of the subnet was taken")
	}
	if _, err := h.Docker("network", "inspect", netw); err == nil {
		t.Error("a network that did not help stays")
	}
	own := weave(t, h, "expose", "net:"+sub)
	if !netip.MustParsePrefix(sub).Contains(netip.MustParseAddr(own)) {
		t.Errorf("weave expose prints %q", own)
	}
	var made struct{ Labels map[string]string }
	if err := json.Unmarshal([]byte(docker(t, h, "network", "inspect", "-f", "{{json .}}", netw)), &made); err != nil || made.Labels["org.weave.made"] != "expose" {
		t.Errorf("labels %v: %v", made.Labels, err)
	}
	if s := status(t, h); len(s.Exposed) != 1 || s.Exposed[0].Network != netw {
		t.Errorf("exposed: %+v", s.Exposed)
	}
	weave(t, h, "hide", own+"/24")
	if _, err := h.Docker("network", "inspect", netw); err == nil {
		t.Error("the network outlives weave hide")
	}
	own = weave(t, h, "expose", "net:"+sub)
	docker(t, h, "network", "rm", netw)
	s := status(t, h)
	told := slices.ContainsFunc(s.Problems, func(p control.Problem) bool { return strings.Contains(p.What, own) && strings.Contains(p.What, netw) })
	if !told || slices.ContainsFunc(s.Exposed, func(x control.Exposed) bool { return x.Address.Addr().String() == own }) {
		t.Errorf("problems %+v, exposed %+v", s.Problems, s.Exposed)
	}
	if after := hostTraces(t, h); strings.Contains(after, own) {
		t.Errorf("left:\n%s", after)
	}
	if use := poolUse(t, []*dockerlab.Host{h}, sub); use.leased != 0 {
		t.Errorf("%d leases are left", use.leased)
	}
	weave(t, h, "hide", own+"/24")
}

// TestExposedTwice: two clusters that meet have exposed the same address. One of
// them keeps it, and the other is told and takes another one.
func TestExposedTwice(t *testing.T) {
	beside(t)
	hs := spareHosts(t, 2, alone)
	sub := subnet()
	own := inSubnet(sub, 1)
	for _, h := range hs {
		eventually(t, soon, func() error { // the plugin has just been started
			_, err := h.Weave("expose", own+"/24")
			return err
		})
		hostEcho(t, h, own+":9000")
	}
	weave(t, hs[0], "connect", hs[1].Net().IP4().String())
	awaitPeers(t, hs)
	told := func(h *dockerlab.Host) bool {
		return slices.ContainsFunc(status(t, h).Problems, func(p control.Problem) bool { return strings.Contains(p.What, own+" of this host itself") })
	}
	eventually(t, soon, func() error {
		if told(hs[0]) {
			hs[0], hs[1] = hs[1], hs[0]
		}
		if !told(hs[1]) {
			return errors.New("nobody is told")
		}
		return nil
	})
	weave(t, hs[1], "hide")
	other := weave(t, hs[1], "expose", "net:"+sub)
	hostEcho(t, hs[1], other+":9000")
	for h, to := range map[*dockerlab.Host]string{hs[0]: other, hs[1]: own} {
		eventually(t, soon, func() error { return hostSends(h, to+":9000") })
	}
	if told(hs[1]) {
		t.Errorf("the clash stays: %+v", status(t, hs[1]).Problems)
	}
}
