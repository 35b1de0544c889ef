package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weave/mesh/wire"
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
	for _, test := range []struct{ name, password, plugin, why string }{
		{"wrong password", "tr0ub4dor&3", pluginDir(), "password"},
		{"no password", "", pluginDir(), "password"},
		{"other protocol version", password, otherVersion(t), "protocol version"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			stranger := emptyHost(t)
			settings := map[string]string{"WEAVE_PASSWORD": test.password, "WEAVE_PEERS": seed, "WEAVE_NICKNAME": nickname(stranger)}
			if err := stranger.InstallPlugin(test.plugin, settings); err != nil {
				t.Fatal(err)
			}
			saysWhy(t, stranger, hs[0], test.why)
			saysWhy(t, hs[0], stranger, test.why)
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

// otherVersion makes the plugin as it is, but for the number of its protocol.
func otherVersion(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	original := filepath.Join(dockerlab.ProjectDir(), "mesh", "wire", "wire.go")
	source, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	ours := fmt.Appendf(nil, "const Version = %d\n", wire.Version)
	changed := bytes.Replace(source, ours, []byte("const Version = 99\n"), 1)
	if bytes.Equal(changed, source) {
		t.Fatalf("no %q in %s", ours, original)
	}
	replacement, overlay := filepath.Join(dir, "wire.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{original: replacement}})
	if err != nil {
		t.Fatal(err)
	}
	plugin := filepath.Join(dir, "plugin")
	err = errors.Join(os.WriteFile(replacement, changed, 0o644), os.WriteFile(overlay, replace, 0o644),
		os.CopyFS(plugin, os.DirFS(pluginDir())))
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-overlay="+overlay,
		"-o", filepath.Join(plugin, "rootfs", "weave"), "./plugin")
	build.Dir = dockerlab.ProjectDir()
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return plugin
}

// saysWhy waits until the host's status names the reason for the trouble with
// the other, for programs and on the screen.
func saysWhy(t *testing.T, h, other *dockerlab.Host, why string) {
	t.Helper()
	address := other.Net().IP4()
	eventually(t, 2*soon, func() error {
		s := status(t, h)
		blamed := slices.ContainsFunc(s.Refusals, func(r control.Refusal) bool {
			return r.Address == address && strings.Contains(r.Why, why)
		})
		blamed = blamed || slices.ContainsFunc(s.Seeds, func(s control.Seed) bool {
			return strings.HasPrefix(s.Address, address.String()+":") && strings.Contains(s.Error, why)
		})
		if !blamed {
			return fmt.Errorf("%s does not name the %s: refusals %v, seeds %v", h.Name(), why, s.Refusals, s.Seeds)
		}
		if out := weave(t, h, "status"); !strings.Contains(out, address.String()) || !strings.Contains(out, why) {
			return fmt.Errorf("the screen does not show %s and %s:\n%s", address, why, out)
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

// TestReplaysAreNotDelivered counts: a datagram that is sent again, as it was on
// the wire, brings its text no second time. What comes first to the one socket
// is read first, so the last text shows that all replays were. The metric counts
// them: at least the texts, each of them twice.
func TestReplaysAreNotDelivered(t *testing.T) {
	hs := hosts(t, 2)
	net := network(t, hs, "--subnet", subnet())
	listener := run(t, hs[0], net, nil, "tool", "listen", "-count=4", "-timeout=1m", ":9000")
	sender := run(t, hs[1], net, nil)
	sender.reaches(listener.ip(), soon)
	heard := func(want ...string) {
		t.Helper()
		eventually(t, soon, func() error {
			var texts []string
			for line := range strings.Lines(docker(t, hs[0], "logs", listener.name)) {
				if _, text, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
					texts = append(texts, text)
				}
			}
			if !slices.Equal(texts, want) {
				return fmt.Errorf("heard %q, want %q", texts, want)
			}
			return nil
		})
	}
	say := func(text string) {
		sender.exec("tool", "cast", "-i", sender.iface().Name, "-text="+text, listener.ip()+":9000")
	}
	capture, err := common.lab.Net().Capture()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two", "three"} {
		say(text)
	}
	heard("one", "two", "three")
	frames, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	var datagrams [][]byte
	for _, frame := range frames {
		if datagram := weaveDatagram(frame); len(datagram) > 0 {
			datagrams = append(datagrams, datagram, datagram)
		}
	}
	slices.Reverse(datagrams)
	replayed := func() int {
		n, err := strconv.Atoi(metric(t, hs[0], `weave_dropped_datagrams_total{reason="replayed"}`))
		if err != nil {
			t.Error(err)
		}
		return n
	}
	before := replayed()
	if err := sendJunk(hs[1], "udp", seed+":6783", datagrams); err != nil {
		t.Error(err)
	}
	say("end")
	heard("one", "two", "three", "end")
	if n := replayed() - before; n < 2*3 {
		t.Errorf("%d datagrams were dropped as replayed", n)
	}
}
