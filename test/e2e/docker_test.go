package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weave/plugin/control"
	"weave/test/dockerlab"
	"weave/test/netlab"
)

func TestPublishedPortAndTwoInterfaces(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	net := network(t, hs, "--subnet", subnet())
	web := run(t, hs[0], net, []string{"-p", "8090:80"}, "tool", "http", "-text=published", ":80")
	if n := len(web.ifaces()); n != 2 {
		t.Errorf("the container has %d interfaces, want 2", n)
	}
	const want = "published from"
	for name, url := range map[string]string{
		"the host":      "http://127.0.0.1:8090/",
		"another host":  "http://10.99.0.1:8090/",
		"a container":   "http://" + web.ip() + "/",
		"the container": "http://127.0.0.1/",
	} {
		t.Run("from "+name, func(t *testing.T) {
			get := map[string]func() (string, error){
				"the host":      func() (string, error) { return hs[0].Run("busybox", "wget", "-qO-", url) },
				"another host":  func() (string, error) { return hs[1].Run("busybox", "wget", "-qO-", url) },
				"a container":   func() (string, error) { return run(t, hs[1], net, nil).try("tool", "get", url) },
				"the container": func() (string, error) { return web.try("tool", "get", url) },
			}[name]
			eventually(t, soon, func() error {
				out, err := get()
				if err == nil && !strings.Contains(out, want) {
					err = fmt.Errorf("got %q", out)
				}
				return err
			})
		})
	}
	web.exec("ping", "-c1", "-W2", netlab.Outside4.String()) // the world outside
}

func TestInternalNetworkHasNoWayOut(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	net := network(t, hs, "--internal", "--subnet", subnet())
	a, b := run(t, hs[0], net, nil), run(t, hs[1], net, nil)
	a.reaches(b.ip(), soon)
	for _, c := range []container{a, b} {
		if n := len(c.ifaces()); n != 1 {
			t.Errorf("a container has %d interfaces, want 1", n)
		}
		for _, outside := range []string{netlab.Outside4.String(), "10.99.0.1", "10.99.0.2"} {
			if out, err := c.try("ping", "-c1", "-W1", outside); err == nil {
				t.Errorf("%s is reachable: %s", outside, out)
			}
		}
	}
}

func TestDockersOwnIPAMClash(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	name, sub := uniqueName("net"), subnet()
	for _, h := range hs {
		docker(t, h, "network", "create", "-d", "weave", "--subnet", sub, name)
		t.Cleanup(func() {
			if _, err := h.Docker("network", "rm", name); err != nil {
				t.Error(err)
			}
		})
	}
	first := run(t, hs[0], name, nil)
	refuse := []string{nickname(hs[0]), first.name, "--ipam-driver weave", first.ip()}
	eventually(t, soon, func() error { // the endpoint's record must have crossed, with the name
		s := status(t, hs[1])
		if !slices.ContainsFunc(s.Endpoints, func(e control.Endpoint) bool { return e.Container == first.name }) {
			return fmt.Errorf("%s does not know %s: %+v", hs[1].Name(), first.name, s.Endpoints)
		}
		return nil
	})
	refused(t, hs[1], refuse, "run", "--rm", "--net", name, dockerlab.Image, "true")
	second := run(t, hs[1], name, []string{"--ip", inSubnet(sub, 77)})
	first.reaches(second.ip(), soon)
}

func TestWishesAreHonoured(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	sub := subnet()
	net := network(t, hs, "--subnet", sub, "--ip-range", inSubnet(sub, 128)+"/25",
		"--gateway", inSubnet(sub, 254), "--aux-address", "printer="+inSubnet(sub, 129))
	ipRange := netip.MustParsePrefix(inSubnet(sub, 128) + "/25")

	for _, h := range hs {
		c := run(t, h, net, nil)
		address := netip.MustParseAddr(c.ip())
		if !ipRange.Contains(address) {
			t.Errorf("%s is not in the range %s", address, ipRange)
		}
		for _, taken := range []int{129, 254} {
			if c.ip() == inSubnet(sub, taken) {
				t.Errorf("reserved address %s was given out", address)
			}
			refused(t, h, []string{inSubnet(sub, taken)}, "run", "--rm", "--net", net, "--ip", inSubnet(sub, taken), dockerlab.Image, "true")
		}
	}
	a := run(t, hs[0], net, []string{"--ip", inSubnet(sub, 200)})
	b := run(t, hs[1], net, []string{"--ip", inSubnet(sub, 201)}) // both from one host's space
	for c, want := range map[container]string{a: inSubnet(sub, 200), b: inSubnet(sub, 201)} {
		if got := c.ip(); got != want {
			t.Errorf("--ip %s gave %s", want, got)
		}
	}
	b.reaches(a.ip(), soon)
	refused(t, hs[1], []string{a.ip()}, "run", "--rm", "--net", net, "--ip", a.ip(), dockerlab.Image, "true")
}

func TestMACAddress(t *testing.T) {
	beside(t)
	const mac = "02:42:de:ad:be:ef"
	hs := hosts(t, 2)
	net := network(t, hs, "--subnet", subnet())
	a, b := runWithMAC(t, hs[0], net, mac), run(t, hs[1], net, nil)
	if got := a.iface().MAC; got != mac {
		t.Errorf("wanted MAC address %s, got %s", mac, got)
	}
	b.reaches(a.ip(), soon)
	if got := b.exec("arp", "-n", a.ip()); !strings.Contains(got, mac) {
		t.Errorf("the other side sees %s", got)
	}
}

// runWithMAC starts a container by the API: Docker's newer command-line tools do
// not pass --mac-address on to older engines.
func runWithMAC(t *testing.T, h *dockerlab.Host, net, mac string) container {
	t.Helper()
	c := container{t, h, net, uniqueName("container")}
	t.Cleanup(func() {
		if err := remove(h, c.name); err != nil {
			t.Error(err)
		}
	})
	if err := launch(h, c.name, net, map[string]any{"MacAddress": mac}); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestSubnetsByDefault: without --subnet each network gets one of its own.
func TestSubnetsByDefault(t *testing.T) {
	hs := hosts(t, 1)
	seen := map[string]bool{}
	all := netip.MustParsePrefix("10.32.0.0/12")
	for range 3 {
		sub := subnetOf(t, hs[0], network(t, hs))
		prefix, err := netip.ParsePrefix(sub)
		if err != nil || !all.Overlaps(prefix) || seen[sub] {
			t.Errorf("got %s after %v: %v", sub, seen, err)
		}
		seen[sub] = true
	}
}

// TestConnectAndDisconnect attaches a running container to a second network.
func TestConnectAndDisconnect(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	netA, netB := network(t, hs, "--subnet", subnet()), network(t, hs, "--subnet", subnet())
	a, b := run(t, hs[0], netA, nil), run(t, hs[1], netB, nil)
	docker(t, hs[0], "network", "connect", netB, a.name)
	a.reaches(b.ip(), soon)
	docker(t, hs[0], "network", "disconnect", netB, a.name)
	if _, err := a.try("ping", "-c1", "-W1", b.ip()); err == nil {
		t.Error("still reachable after disconnect")
	}
	docker(t, hs[0], "network", "connect", netB, a.name)
	a.reaches(b.ip(), soon)
	docker(t, hs[0], "network", "disconnect", netB, a.name)
	eventually(t, soon, func() error {
		if n := len(a.ifaces()); n != 2 {
			return fmt.Errorf("the container has %d interfaces, want 2", n)
		}
		return nil
	})
}

// TestMTU: an option sets it, and without one whole frames fit one datagram.
func TestMTU(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	set := network(t, hs, "--subnet", subnet(), "-o", "weave.mtu=1300")
	if got := run(t, hs[0], set, nil).iface().MTU; got != 1300 {
		t.Errorf("-o weave.mtu=1300 gave %d", got)
	}
	free := network(t, hs, "--subnet", subnet())
	if got := run(t, hs[0], free, nil).iface().MTU; got < 1300 || got >= 1500 {
		t.Errorf("the MTU on an underlay of 1500 is %d", got)
	}
}
