package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestTrafficCrosses(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	sub := subnet()
	net := network(t, hs, "--subnet", sub)
	a := run(t, hs[0], net, nil).serve()
	b := run(t, hs[1], net, nil).serve()
	cases := []struct {
		name  string
		cross func(from, to container)
	}{
		{"ICMP", func(from, to container) { from.exec("ping", "-c3", "-W2", to.ip()) }},
		{"TCP", func(from, to container) { from.exec("tool", "send", "tcp", to.ip()+":7000") }},
		{"UDP", func(from, to container) { from.exec("tool", "send", "udp", to.ip()+":7000") }},
		{"large datagrams", func(from, to container) {
			from.exec("tool", "send", "-text="+strings.Repeat("x", 20000), "udp", to.ip()+":7000")
			from.exec("ping", "-c1", "-W2", "-s", "9000", to.ip())
		}},
		{"subnet broadcast", func(from, to container) { crosses(from, to, ":9000", inSubnet(sub, 255)+":9000") }},
		{"broadcast", func(from, to container) { crosses(from, to, ":9000", "255.255.255.255:9000") }},
		{"multicast", func(from, to container) { crosses(from, to, "239.1.2.3:9000", "239.1.2.3:9000") }},
		{"mDNS", func(from, to container) { crosses(from, to, "224.0.0.251:5353", "224.0.0.251:5353") }},
	}
	for _, test := range cases {
		for _, way := range []struct{ from, to container }{{a, b}, {b, a}} {
			t.Run(test.name+" from "+way.from.host.Name()+" to "+way.to.host.Name(), func(t *testing.T) {
				test.cross(way.from.in(t), way.to.in(t))
			})
		}
	}
}

// crosses sends datagrams to a group until a listener in the other container
// has got one.
func crosses(from, to container, listen, group string) {
	from.t.Helper()
	text := uniqueName("cast")
	source, in, out := from.ip(), to.iface().Name, from.iface().Name
	type result struct {
		out string
		err error
	}
	heard := make(chan result, 1)
	go func() {
		out, err := to.try("tool", "listen", "-i", in, "-timeout=10s", listen)
		heard <- result{out, err}
	}()
	for {
		from.exec("tool", "cast", "-i", out, "-text="+text, group)
		select {
		case r := <-heard:
			if want := source + " " + text; r.err != nil || !strings.HasSuffix(r.out, want) {
				from.t.Errorf("%s: heard %q, want %q: %v", group, r.out, want, r.err)
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func TestFirstPing(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	net := network(t, hs, "--subnet", subnet())
	old := run(t, hs[0], net, nil)
	for i := range 4 {
		h := hs[(i+1)%2]
		docker(t, h, "run", "--rm", "--net", net, "busybox", "ping", "-c1", "-W3", old.ip())
		fresh := run(t, h, net, nil)
		old.exec("ping", "-c1", "-W3", fresh.ip())
	}
}

func TestThreeHostsThroughOneSeed(t *testing.T) {
	beside(t)
	hs := hosts(t, 3)
	net := network(t, hs, "--subnet", subnet())
	var all []container
	for _, h := range hs {
		all = append(all, run(t, h, net, nil))
	}
	seen := map[string]bool{}
	for _, from := range all {
		seen[from.ip()] = true
		for _, to := range all {
			from.reaches(to.ip(), soon)
		}
	}
	if len(seen) != len(all) {
		t.Errorf("addresses are not unique: %v", seen)
	}
}

// TestThroughput holds the tunnel to a floor far below what it makes on a free
// machine; docs/benchmarks.md has the figures.
func TestThroughput(t *testing.T) {
	const floor = 1.0 // Gbit/s
	hs := hosts(t, 2)
	net := network(t, hs, "--subnet", subnet())
	server := run(t, hs[0], net, nil, "tool", "sink", ":5201")
	client := run(t, hs[1], net, []string{"--cap-add=NET_ADMIN"})
	client.reaches(server.ip(), soon)
	var best float64
	for tries := 0; tries < 3 && best < floor; tries++ {
		var rate float64
		out := client.exec("tool", "throughput", "-timeout=2s", server.ip()+":5201")
		if _, err := fmt.Sscanf(out, "%f Gbit/s", &rate); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		best = max(best, rate)
	}
	t.Logf("one TCP stream: %.2f Gbit/s", best)
	if best < floor {
		t.Errorf("one TCP stream makes %.2f Gbit/s, want %.2f", best, floor)
	}
}
