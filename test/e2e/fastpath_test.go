package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"weave/plugin/control"
	"weave/test/dockerlab"
)

// open are settings of spare hosts without a password; the first is known to
// the others.
func open(i int, first string) map[string]string {
	settings := map[string]string{}
	if i > 0 {
		settings["WEAVE_PEERS"] = first
	}
	return settings
}

// TestFastPath: without a password frames go by the kernel's VXLAN, also while
// the plugin does not run; a password set later moves them all into the tunnel,
// and nothing of VXLAN stays.
func TestFastPath(t *testing.T) {
	t.Parallel()
	hs := spareHosts(t, 2, open)
	awaitPeers(t, hs)
	sub := subnet()
	net := network(t, hs, "--subnet", sub)
	a := run(t, hs[0], net, []string{"-p", "8090:7000"}).serve()
	b := run(t, hs[1], net, nil).serve()
	awaitCarrier(t, hs, control.VXLAN)
	for i, h := range hs {
		out := weave(t, h, "status", "peers")
		if !strings.HasSuffix(strings.TrimSpace(out), " VXLAN") { // else the reason follows
			t.Errorf("weave status peers of %s does not say that frames go by VXLAN:\n%s", h.Name(), out)
		}
		if !slices.Contains(vxlanTraces(t, hs[i:i+1]), "link wvx-beat") {
			t.Errorf("%s has no VXLAN device of heart-beats", h.Name())
		}
	}
	client := run(t, hs[1], net, nil, "tool", "hold", a.ip()+":7000")
	steps := []struct {
		name string
		do   func() error
	}{
		{"at first", func() error { return nil }},
		{"plugin killed", hs[0].KillPlugin},
		{"plugin disabled", hs[0].DisablePlugin},
		{"plugin enabled", hs[0].EnablePlugin},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		awaitBeats(t, client, 2*time.Second) // it never stands still
		if step.name == "plugin killed" {
			awaitPeers(t, hs) // an engine that is restarting a plugin fails to disable it
		}
	}
	awaitCarrier(t, hs, control.VXLAN)
	awaitShared(t, hs, sub) // the kernel's tables outlive the plugin, but broadcasts go by the tunnel
	fastTraffic(t, a, b, sub)
	own := way{own: inSubnet(sub, 250), address: container.ip}
	weave(t, hs[0], "expose", own.own+"/24")
	hostEcho(t, hs[0], ":9000")
	own.reached(t, hs[0], a, b)

	setPassword(t, hs)
	awaitCarrier(t, hs, control.Sealed)
	awaitBeats(t, client, soon)
	if left := vxlanTraces(t, hs); len(left) > 0 {
		t.Errorf("with a password there is still %v", left)
	}
	a.exec("ping", "-c2", "-W2", "-s1400", b.ip())
	own.reached(t, hs[0], a, b)
}

// TestFastPathLeavesNothing: the last network takes VXLAN with it.
func TestFastPathLeavesNothing(t *testing.T) {
	t.Parallel()
	h := spareHost(t, open(0, ""))
	net := network(t, []*dockerlab.Host{h}, "--subnet", subnet())
	c := run(t, h, net, nil)
	if got := c.iface().MTU; got != 1450 {
		t.Errorf("the MTU on an underlay of 1500 is %d, want VXLAN's 1450", got)
	}
	if len(vxlanTraces(t, []*dockerlab.Host{h})) == 0 {
		t.Error("there is no VXLAN device")
	}
	docker(t, h, "rm", "-f", c.name)
	docker(t, h, "network", "rm", net)
	if left := vxlanTraces(t, []*dockerlab.Host{h}); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// fastTraffic holds that every kind of frame crosses, and none of them twice.
func fastTraffic(t *testing.T, a, b container, sub string) {
	t.Helper()
	for _, way := range []struct{ from, to container }{{a, b}, {b, a}} {
		way.from.exec("ping", "-c2", "-W2", way.to.ip())
		way.from.exec("tool", "send", "-text="+strings.Repeat("x", 20000), "udp", way.to.ip()+":7000")
		once(way.from, way.to, ":9000", inSubnet(sub, 255)+":9000")
		once(way.from, way.to, "239.1.2.3:9000", "239.1.2.3:9000")
	}
	out, err := b.host.Run("busybox", "nc", "-w1", a.host.Net().IP4().String(), "8090")
	if err != nil {
		t.Errorf("the published port is not reached: %q, %v", out, err)
	}
}

// once holds that a datagram to a group arrives one time.
func once(from, to container, listen, group string) {
	from.t.Helper()
	heard := make(chan string, 1)
	go func() {
		out, _ := to.try("tool", "listen", "-i", to.iface().Name, "-timeout=6s", "-count=1000", listen) // ends by time
		heard <- out
	}()
	var sent []string
	for {
		text := uniqueName("cast")
		from.exec("tool", "cast", "-i", from.iface().Name, "-text="+text, group)
		sent = append(sent, text+"\n")
		select {
		case out := <-heard:
			got := 0
			for _, text := range sent {
				n := strings.Count(out+"\n", text)
				if got += n; n > 1 {
					from.t.Errorf("%s: %q came %d times", group, text, n)
				}
			}
			if got == 0 {
				from.t.Errorf("%s: none of %d datagrams came", group, len(sent))
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// awaitCarrier waits until the hosts say that frames to each other go by that.
func awaitCarrier(t *testing.T, hs []*dockerlab.Host, want control.Carrier) {
	t.Helper()
	for _, h := range hs {
		eventually(t, 2*soon, func() error {
			s, err := statusOf(h)
			if err != nil {
				return err
			}
			for _, p := range s.Peers {
				if p.State != control.Up || p.Frames != want {
					return fmt.Errorf("frames of %s go by %q, want %q: %s", h.Name(), p.Frames, want, p.FramesWhy)
				}
			}
			return nil
		})
	}
}

// setPassword gives both hosts the password that they had none of.
func setPassword(t *testing.T, hs []*dockerlab.Host) {
	t.Helper()
	for _, h := range hs {
		settings := map[string]string{"WEAVE_PASSWORD": sparePassword}
		if err := errors.Join(h.DisablePlugin(), h.SetPlugin(settings), h.EnablePlugin()); err != nil {
			t.Fatal(err)
		}
	}
	awaitPeers(t, hs)
}

// vxlanTraces lists what the hosts have of VXLAN: links, and tables of the packet
// filter.
func vxlanTraces(t *testing.T, hs []*dockerlab.Host) (all []string) {
	t.Helper()
	for _, h := range hs {
		names, err := h.Net().Links()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasPrefix(name, "wvx") {
				all = append(all, "link "+name)
			}
		}
		err = h.Net().Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			tables, err := c.ListTables()
			for _, table := range tables {
				if table.Name == "weave-vxlan" {
					all = append(all, "table "+table.Name)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// awaitShared waits until each host knows that all of them have the segment of a
// subnet.
func awaitShared(t *testing.T, hosts []*dockerlab.Host, sub string) {
	t.Helper()
	eventually(t, soon, func() error {
		for _, h := range hosts {
			for _, seg := range status(t, h).Segments {
				if seg.Subnet.String() == sub && len(seg.Members) != len(hosts) {
					return fmt.Errorf("%s says that %v have segment %s", h.Name(), seg.Members, sub)
				}
			}
		}
		return nil
	})
}
