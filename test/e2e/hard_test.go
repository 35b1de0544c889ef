package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"weave/test/dockerlab"
	"weave/test/netlab"
)

// TestHardNetworks: containers are on one switch though their hosts reach each
// other by a third one only, or by TCP only. When a better way is there it is
// taken, and what the containers do with each other outlives each change.
func TestHardNetworks(t *testing.T) {
	t.Parallel()
	hs := hostsInLine(t)
	wire, first, last := common.lab.Net(), hs[0].Net(), hs[2].Net()
	sub := subnet()
	net := network(t, hs, "--subnet", sub)
	var all []container
	for i, h := range hs {
		c := run(t, h, net, []string{"--cap-add=NET_ADMIN"}, "tool", "listen", "-count=1000", "-timeout=10m", ":9000")
		c.exec("ip", "address", "add", unannounced(sub, i), "dev", "ethwe0")
		all = append(all, c)
	}
	a, b := all[0].serve(), all[2].serve()
	client := run(t, hs[0], net, nil, "tool", "hold", b.ip()+":7000")
	var casts []string
	for _, step := range []struct {
		name   string
		change func() error
		way    string // as the status has it
	}{
		{"in a line", func() error { return nil }, "relay via " + nickname(hs[1])},
		{"healed", func() error { return wire.HealLink(first, last) }, "direct UDP"},
		{"UDP blocked", func() error { return wire.CutLink(first, last, netlab.UDP) }, "direct TCP"},
		{"UDP let through", func() error { return wire.HealLink(first, last) }, "direct UDP"},
	} {
		t.Run(step.name, func(t *testing.T) {
			if err := step.change(); err != nil {
				t.Fatal(err)
			}
			awaitWay(t, hs[0], hs[2], step.way)
			awaitWay(t, hs[2], hs[0], step.way)
			awaitBeats(t, client, soon)
			a, b := a.in(t), b.in(t)
			casts = append(casts, talk(a, b, unannounced(sub, 2)), talk(b, a, unannounced(sub, 0)))
		})
	}
	for _, c := range all {
		cameOnce(c, casts)
	}
}

// hostsInLine boots three hosts, of which the outer ones have never reached each
// other.
func hostsInLine(t *testing.T) []*dockerlab.Host {
	t.Helper()
	hs := disabledHosts(t, 3)
	var nets []*netlab.Host
	for _, h := range hs {
		nets = append(nets, h.Net())
	}
	if err := common.lab.Net().Connect(nets, netlab.Line(nets...)); err != nil {
		t.Fatal(err)
	}
	var installs errgroup.Group
	for _, h := range hs {
		installs.Go(func() error {
			return install(h, map[string]string{"WEAVE_PASSWORD": sparePassword, "WEAVE_PEERS": nets[1].IP4().String()})
		})
	}
	if err := installs.Wait(); err != nil {
		t.Fatal(err)
	}
	awaitPeers(t, hs)
	return hs
}

// unannounced is an address that the container of host i gives itself: no host
// can answer an ARP request for it, which must go all the way.
func unannounced(subnet string, i int) string { return inSubnet(subnet, 200+i) }

// talk sends a container what there is from another: a ping, a TCP stream, an ARP
// request for an address of its own, a broadcast. It returns the text of the last.
func talk(from, to container, address string) (text string) {
	from.t.Helper()
	text = uniqueName("cast")
	ip, mac := to.ip(), to.mac()
	from.reaches(ip, soon)
	from.exec("tool", "send", "-text="+strings.Repeat("x", 100_000), "tcp", ip+":7000")
	if out := from.exec("arping", "-f", "-w3", "-I", "ethwe0", address); !strings.Contains(strings.ToLower(out), mac) {
		from.t.Errorf("ARP for %s of %s: %s", address, mac, out)
	}
	from.exec("tool", "cast", "-i", "ethwe0", "-text="+text, "255.255.255.255:9000")
	return text
}

// cameOnce: each of the texts is in the container's log, and once. The last was
// sent just now; copies of the others would have come long ago.
func cameOnce(c container, texts []string) {
	c.t.Helper()
	eventually(c.t, soon, func() error {
		log := docker(c.t, c.host, "logs", c.name) + "\n"
		for _, text := range texts {
			switch n := strings.Count(log, " "+text+"\n"); {
			case n == 0:
				return fmt.Errorf("%q did not come to %s", text, c.host.Name())
			case n > 1:
				c.t.Fatalf("%q came to %s %d times", text, c.host.Name(), n)
			}
		}
		return nil
	})
}

// awaitWay waits until a host says how it reaches another.
func awaitWay(t *testing.T, h, other *dockerlab.Host, way string) {
	t.Helper()
	eventually(t, 2*soon, func() error {
		out, err := h.Weave("status", "peers")
		if err != nil {
			return err
		}
		lines := strings.Split(out, "\n")
		i := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, "  "+nickname(other)+" ") })
		if i < 0 || !strings.Contains(lines[i], "  "+way) {
			return fmt.Errorf("%s does not say that it reaches %s by %s:\n%s", h.Name(), other.Name(), way, out)
		}
		return nil
	})
}
