package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weave/plugin/control"
	"weave/test/dockerlab"
)

// TestNothingReadableOnTheWire captures handshakes, gossip and data.
func TestNothingReadableOnTheWire(t *testing.T) {
	hs := hosts(t, 2)
	capture, err := common.lab.Net().Capture()
	if err != nil {
		t.Fatal(err)
	}
	if err := hs[1].KillPlugin(); err != nil { // so that new handshakes are seen
		t.Error(err)
	}
	net := network(t, hs, "--subnet", subnet())
	a, b := run(t, hs[0], net, nil).serve(), run(t, hs[1], net, nil)
	b.reaches(a.ip(), soon)
	payload := uniqueName("a-payload-that-nobody-may-read")
	for _, network := range []string{"udp", "tcp"} {
		b.exec("tool", "send", "-text="+payload, network, a.ip()+":7000")
	}
	mac, err := parseMAC(b.iface().MAC)
	if err != nil {
		t.Error(err)
	}
	frames, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{
		"payload":        []byte(payload),
		"password":       []byte(password),
		"nickname":       []byte("nickname-of-"),
		"network name":   []byte(net),
		"container name": []byte(b.name),
		"MAC address":    mac,
	}
	for what, secret := range secrets {
		for _, frame := range frames {
			if bytes.Contains(frame, secret) {
				t.Errorf("the %s can be read on the wire: %x", what, frame)
				break
			}
		}
	}
	sealed := 0
	for _, frame := range frames {
		if len(weaveDatagram(frame)) > 0 {
			sealed++
		}
	}
	if sealed == 0 {
		t.Errorf("no datagram of port 6783 among %d frames", len(frames))
	}
}

func TestStrangersStayOut(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	for name, wrong := range map[string]string{"wrong password": "tr0ub4dor&3", "no password": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stranger := spareHost(t, map[string]string{"WEAVE_PASSWORD": wrong, "WEAVE_PEERS": seed})
			saysPassword(t, stranger, hs[0])
			saysPassword(t, hs[0], stranger)
			inside, outside := strangersContainers(t, hs[0], stranger)
			if _, err := outside.try("ping", "-c2", "-W1", inside.ip()); err == nil {
				t.Error("the stranger reaches a container")
			}
			id := status(t, stranger).Peer
			for _, h := range hs {
				for _, p := range status(t, h).Peers {
					if p.ID == id {
						t.Errorf("%s counts the stranger as a peer: %+v", h.Name(), p)
					}
				}
			}
		})
	}
}

// saysPassword waits until the host's status blames the password for the
// trouble with the other.
func saysPassword(t *testing.T, h, other *dockerlab.Host) {
	t.Helper()
	address := other.Net().IP4()
	eventually(t, 2*soon, func() error {
		s := status(t, h)
		blamed := slices.ContainsFunc(s.Refusals, func(r control.Refusal) bool {
			return r.Address == address && strings.Contains(r.Why, "password")
		})
		blamed = blamed || slices.ContainsFunc(s.Seeds, func(s control.Seed) bool {
			return strings.HasPrefix(s.Address, address.String()+":") && strings.Contains(s.Error, "password")
		})
		if !blamed {
			return fmt.Errorf("%s does not name the password: refusals %v, seeds %v", h.Name(), s.Refusals, s.Seeds)
		}
		if out := weave(t, h, "status"); !strings.Contains(out, address.String()) {
			return fmt.Errorf("the screen does not show %s:\n%s", address, out)
		}
		return nil
	})
}

// strangersContainers starts a container on each host, on networks of the same
// subnet. The addresses come from Docker: a pool needs hosts that agree.
func strangersContainers(t *testing.T, h, stranger *dockerlab.Host) (inside, outside container) {
	t.Helper()
	sub, name := subnet(), uniqueName("net")
	for _, at := range []*dockerlab.Host{h, stranger} {
		docker(t, at, "network", "create", "-d", "weave", "--subnet", sub, name)
		if !isSpare(at) {
			t.Cleanup(func() { docker(t, at, "network", "rm", name) })
		}
	}
	return run(t, h, name, []string{"--ip", inSubnet(sub, 7)}), run(t, stranger, name, []string{"--ip", inSubnet(sub, 8)})
}

func subnetOf(t *testing.T, h *dockerlab.Host, net string) string {
	t.Helper()
	return docker(t, h, "network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", net)
}

// TestJunkAndReplays sends what a stranger could: noise, and datagrams that
// were once good.
func TestJunkAndReplays(t *testing.T) {
	hs := hosts(t, 2)
	net := network(t, hs, "--subnet", subnet())
	a, b := run(t, hs[0], net, nil).serve(), run(t, hs[1], net, nil)
	b.reaches(a.ip(), soon)
	before := pluginPIDs(t, hs)
	capture, err := common.lab.Net().Capture()
	if err != nil {
		t.Fatal(err)
	}
	b.exec("tool", "send", "-text="+strings.Repeat("x", 5000), "tcp", a.ip()+":7000")
	frames, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	datagrams := [][]byte{{}, {0}, bytes.Repeat([]byte{0xff}, 1400), []byte("GET / HTTP/1.0\r\n\r\n")}
	for _, frame := range frames {
		if datagram := weaveDatagram(frame); len(datagram) > 0 {
			cut := datagram[:len(datagram)/2]
			flipped := bytes.Clone(datagram)
			flipped[len(flipped)-1] ^= 1
			datagrams = append(datagrams, datagram, datagram, cut, flipped)
		}
	}
	if err := errors.Join(sendJunk(hs[1], "udp", seed+":6783", datagrams), sendJunk(hs[1], "tcp", seed+":6783", datagrams)); err != nil {
		t.Error(err)
	}
	b.reaches(a.ip(), time.Second)
	b.exec("tool", "send", "tcp", a.ip()+":7000")
	if after := pluginPIDs(t, hs); after != before {
		t.Errorf("plugins were %s, are %s", before, after)
	}
}
