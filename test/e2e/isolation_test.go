package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const everybody = "ff:ff:ff:ff:ff:ff"

func TestIsolation(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	netA, subB := network(t, hs, "--subnet", subnet()), subnet()
	netB := network(t, hs, "--subnet", subB)
	power := []string{"--cap-add=NET_RAW", "--cap-add=NET_ADMIN"}
	attacker := run(t, hs[0], netA, power)
	near, far := run(t, hs[0], netB, power).serve(), run(t, hs[1], netB, power).serve()
	near.exec("tool", "send", "udp", far.ip()+":7000")

	for _, victim := range []container{near, far} {
		t.Run("plain to "+victim.host.Name(), func(t *testing.T) {
			attacker.in(t).exec("tool", "unreachable", "-timeout=1s", victim.in(t).ip()+":7000")
		})
		t.Run("raw frames to "+victim.host.Name(), func(t *testing.T) {
			seen, err := forge(attacker.in(t), victim.in(t), 4*time.Second)
			if err != nil || seen {
				t.Errorf("frames arrived: %v %v", seen, err)
			}
		})
	}
	t.Run("forged route and neighbour", func(t *testing.T) {
		attacker := attacker.in(t)
		dev := attacker.iface().Name
		attacker.exec("ip", "route", "replace", subB, "dev", dev)
		for _, victim := range []container{near.in(t), far.in(t)} {
			attacker.exec("arp", "-i", dev, "-s", victim.ip(), victim.mac())
			attacker.exec("tool", "unreachable", "-timeout=1s", victim.ip()+":7000")
		}
	})
	t.Run("through docker_gwbridge", func(t *testing.T) {
		for _, victim := range []container{near, far} {
			aside(attacker.in(t), victim.in(t))
		}
	})
	near.exec("tool", "send", "udp", far.ip()+":7000") // no ARP cache is poisoned
	t.Run("the sniffer sees what is on its own network", func(t *testing.T) {
		for _, way := range []struct{ from, to container }{{near, far}, {far, near}} {
			seen, err := forge(way.from.in(t), way.to.in(t), time.Minute)
			if err != nil || !seen {
				t.Errorf("%s to %s: frames seen: %v %v", way.from.host.Name(), way.to.host.Name(), seen, err)
			}
		}
	})
}

// aside attacks by the interface that Docker adds for the world outside: the
// victim's address as if it were a neighbour there, as if it were behind the
// gateway, and as if the gateway were the victim's host.
func aside(attacker, victim container) {
	attacker.t.Helper()
	t, ip := attacker.t, victim.ip()
	out, in := attacker.outside(), victim.outside()
	gateway := docker(t, attacker.host, "network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "docker_gwbridge")
	route := []string{"ip", "route", "replace", ip + "/32", "dev", out.Name}
	attacker.exec(route...)
	attacker.exec("arp", "-i", out.Name, "-s", ip, in.MAC)
	attacker.exec("tool", "unreachable", "-timeout=1s", ip+":7000")
	attacker.exec("arp", "-i", out.Name, "-d", ip)
	attacker.exec(append(route, "via", gateway)...)
	attacker.exec("tool", "unreachable", "-timeout=1s", ip+":7000")
	attacker.exec("ip", "route", "del", ip+"/32")
}

// outside returns the container's interface on docker_gwbridge.
func (c container) outside() iface {
	c.t.Helper()
	inside := c.iface().Name
	for _, i := range c.ifaces() {
		if i.Name != inside {
			return i
		}
	}
	c.t.Fatalf("%s has only %s", c.name, inside)
	return iface{}
}

// forge sends frames from one container as if it were on the other's network,
// and reports whether one arrives there while the other listens: for as long as
// that, or longer on a busy machine.
func forge(from, to container, listen time.Duration) (seen bool, err error) {
	from.t.Helper()
	text, dev := uniqueName("forged"), to.iface().Name
	frames := forged(from, to, text)
	result := make(chan error, 1)
	go func() {
		_, err := to.try("tool", "sniff", "-i", dev, "-timeout="+listen.String(), "-text="+text)
		result <- err
	}()
	// The sniffer may start late, so the frames are sent until it has ended.
	var begun []time.Time // of each sending
	for {
		begun = append(begun, time.Now())
		from.exec("sh", "-c", frames)
		select {
		case err := <-result:
			switch last := len(begun) - 1; {
			case err != nil && strings.Contains(err.Error(), "a frame with the text arrived"):
				return true, nil
			case err == nil && listen < time.Minute && (last < 1 || begun[last-1].Before(time.Now().Add(-listen))):
				return forge(from, to, 2*listen) // no whole sending while the other listened
			}
			return false, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// forged is the command that sends frames to a container, to all, and as if
// they came from somebody else.
func forged(from, to container, text string) string {
	from.t.Helper()
	dev, ip := from.iface(), to.ip()
	var all []string
	for _, source := range []string{dev.MAC, "02:00:00:12:34:56"} {
		for _, target := range []string{to.mac(), everybody} {
			all = append(all, fmt.Sprintf("tool inject-udp -i %s -count=10 -text=%s %s %s 10.1.1.1:7000 %s:7000", dev.Name, text, source, target, ip))
		}
		all = append(all, fmt.Sprintf("tool inject-arp -i %s -count=10 %s %s %s %s", dev.Name, source, ip, everybody, ip))
	}
	return strings.Join(all, " && ")
}
