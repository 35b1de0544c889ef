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
	out, err := h.Run("sh", "-c", "nft -s list ruleset; ip addr | sed 's/ tentative//'; ip route; ip -6 route")
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(out, " tentative", "") // it was just given
}

// bothWays checks that a host and containers reach each other.
func bothWays(t *testing.T, h *dockerlab.Host, addr string, all ...container) {
	t.Helper()
	for _, c := range all {
		eventually(t, afterBoot, func() error { return hostSends(h, c.ip()+":7000") })
		eventually(t, soon, func() error {
			_, err := c.try("tool", "send", "-timeout=1s", "tcp", addr)
			return err
		})
	}
}

// TestExpose: a host is on the switch as if it were a container, and stays there.
func TestExpose(t *testing.T) {
	t.Parallel()
	hs := spareCluster(t, 2)
	sub, sub6 := subnet(), subnet6()
	netw := network(t, hs, "--ipv6", "--subnet", sub, "--subnet", sub6)
	options := []string{"--restart", "always", "--cap-add", "NET_ADMIN"}
	a, b := run(t, hs[0], netw, options, "tool", "echo", "tcp", ":7000"), run(t, hs[1], netw, options, "tool", "echo", "tcp", ":7000")
	a.reaches(b.ip(), soon)
	own, underlay := inSubnet(sub, 77), []string{hs[0].Net().IP4().String(), hs[1].Net().IP4().String()}
	before := hostTraces(t, hs[0])

	if got := weave(t, hs[0], "expose", own+"/24"); got != own {
		t.Errorf("weave expose prints %q", got)
	}
	hostEcho(t, hs[0], own+":9000")
	bothWays(t, hs[0], own+":9000", a, b)
	other := weave(t, hs[1], "expose", "net:"+sub) // host to host, over the segment
	hostEcho(t, hs[1], other+":9000")
	for h, to := range map[*dockerlab.Host]string{hs[0]: other, hs[1]: own} {
		eventually(t, soon, func() error { return hostSends(h, to+":9000") })
	}
	weave(t, hs[1], "hide")

	own6 := strings.TrimSuffix(sub6, "/64") + "77"
	weave(t, hs[0], "expose", own6+"/64")
	hostEcho(t, hs[0], "["+own6+"]:9000")
	for _, c := range []container{a, b} {
		c.exec("tool", "send", "-timeout=3s", "tcp", "["+own6+"]:9000")
		eventually(t, soon, func() error { return hostSends(hs[0], "["+c.ip6()+"]:7000") })
	}
	weave(t, hs[0], "hide", own6+"/64")
	refused(t, hs[1], []string{own, "in use", nickname(hs[0])}, "run", "--rm", "--net", netw, "--ip", own, dockerlab.Image, "true")
	if _, err := hs[1].Weave("expose", own+"/24"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("by host %q itself", nickname(hs[0]))) {
		t.Errorf("exposed on two hosts: %v", err)
	}

	came := hostEcho(t, hs[1], underlay[1]+":9001")
	weave(t, hs[0], "expose", own+"/24", "--masquerade", "--export", "18080:"+b.ip()+":7000", "--import", "15432:"+underlay[1]+":9001")
	check := func() {
		t.Helper()
		bothWays(t, hs[0], own+":9000", a, b)
		for _, c := range []container{a, b} {
			eventually(t, soon, func() error {
				_, err := c.try("tool", "send", "-timeout=1s", "tcp", own+":15432")
				return err
			})
			if who := came(); who != underlay[0] {
				t.Errorf("an imported service hears %s", who)
			}
		}
		for _, h := range hs {
			eventually(t, soon, func() error { return hostSends(h, underlay[0]+":18080") })
		}
	}
	check()
	b.exec("ip", "route", "add", underlay[1]+"/32", "via", own)
	b.exec("tool", "send", "-timeout=3s", "tcp", underlay[1]+":9001")
	if who := came(); who != underlay[0] {
		t.Errorf("masqueraded, %s comes", who)
	}
	b.exec("ip", "route", "del", underlay[1]+"/32")
	exposedStatus(t, hs, own)
	weave(t, hs[0], "hide", own+"/24")
	if after := hostTraces(t, hs[0]); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}

	weave(t, hs[0], "expose", own+"/24", "--export", "18080:"+b.ip()+":7000", "--import", "15432:"+underlay[1]+":9001")
	check()
	for _, restart := range []func() error{hs[0].KillPlugin, hs[0].Restart} { // of the plugin, of the engine
		if err := restart(); err != nil {
			t.Fatal(err)
		}
		awaitPeers(t, hs)
		check()
	}
	if got := weave(t, hs[0], "hide"); got != own {
		t.Errorf("weave hide prints %q", got)
	}
	if after := hostTraces(t, hs[0]); strings.Contains(after, own) || strings.Contains(after, "table ip weave {") {
		t.Errorf("left:\n%s", after)
	}
	docker(t, hs[1], "run", "--rm", "--net", netw, "--ip", own, dockerlab.Image, "true") // its lease was given back
}

// exposedStatus checks what the hosts tell of an exposed address of the first.
func exposedStatus(t *testing.T, hs []*dockerlab.Host, own string) {
	t.Helper()
	s := status(t, hs[0])
	if len(s.Exposed) != 1 || s.Exposed[0].Address.Addr().String() != own || !s.Exposed[0].Masquerade || len(s.Exposed[0].Exports) != 1 || len(s.Exposed[0].Imports) != 1 {
		t.Errorf("exposed: %+v", s.Exposed)
	}
	for _, h := range hs {
		has := func(e control.Endpoint) bool {
			return e.Kind == control.KindHost && e.Host == nickname(hs[0]) && fmt.Sprint(e.Addresses) == "["+own+"]" &&
				(!e.Local || e.Network == s.Exposed[0].Network)
		}
		if s := status(t, h); !slices.ContainsFunc(s.Endpoints, has) {
			t.Errorf("%s does not know of %s: %+v", h.Name(), own, s.Endpoints)
		}
	}
	if screen := weave(t, hs[0], "status"); !strings.Contains(screen, "Exposed: 1 address of this host") {
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
