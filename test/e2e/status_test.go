package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weave/plugin/control"
	"weave/test/dockerlab"
)

// weave runs the command-line tool, which must succeed.
func weave(t *testing.T, h *dockerlab.Host, args ...string) string {
	t.Helper()
	out, err := h.Weave(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func status(t *testing.T, h *dockerlab.Host) control.Status {
	t.Helper()
	var s control.Status
	if err := json.Unmarshal([]byte(weave(t, h, "status", "--json")), &s); err != nil {
		t.Fatalf("status of %s: %v", h.Name(), err)
	}
	return s
}

// awaitPeer waits until the host is connected to the other.
func awaitPeer(t *testing.T, h, other *dockerlab.Host) {
	t.Helper()
	eventually(t, soon, func() error {
		s := status(t, h)
		for _, p := range s.Peers {
			if p.Nickname == nickname(other) && p.State == control.Up {
				return nil
			}
		}
		return fmt.Errorf("%s is not connected to %s: %+v", h.Name(), other.Name(), s.Peers)
	})
}

// spareHost boots a host for one test and installs the plugin; nobody else
// knows of it.
func spareHost(t *testing.T, settings map[string]string) *dockerlab.Host {
	t.Helper()
	h := bareHost(t, spare)
	install(t, h, settings)
	return h
}

// bareHost boots host n for one test, without the plugin.
func bareHost(t *testing.T, n int) *dockerlab.Host {
	t.Helper()
	h, err := common.lab.AddHost(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		keepLogs(t, []*dockerlab.Host{h})
		if err := common.lab.RemoveHost(h); err != nil {
			t.Error(err)
		}
	})
	return h
}

func install(t *testing.T, h *dockerlab.Host, settings map[string]string) {
	t.Helper()
	all := map[string]string{"WEAVE_NICKNAME": nickname(h)}
	for key, value := range settings {
		all[key] = value
	}
	if err := h.InstallPlugin(pluginDir(), all); err != nil {
		t.Fatal(err)
	}
}

// use is how much of a pool is taken, on all hosts together.
type use struct{ leased, notFree uint64 }

func poolUse(t *testing.T, hosts []*dockerlab.Host, subnet string) use {
	t.Helper()
	var sum use
	prefix := netip.MustParsePrefix(subnet)
	for _, h := range hosts {
		for _, p := range status(t, h).IPAM {
			if p.Subnet == prefix {
				sum.leased += p.Leased
				sum.notFree += p.Owned - p.Free
			}
		}
	}
	return sum
}

// TestStatus checks what the status says against what Docker says.
func TestStatus(t *testing.T) {
	hs := hosts(t, 2)
	sub := subnet()
	net := network(t, hs, "--subnet", sub)
	a, b := run(t, hs[0], net, nil), run(t, hs[1], net, nil)
	a.reaches(b.ip(), soon)
	eventually(t, soon, func() error {
		s := status(t, hs[0])
		for _, c := range []container{a, b} {
			i := slices.IndexFunc(s.Endpoints, func(e control.Endpoint) bool { return e.Container == c.name })
			if i < 0 {
				return fmt.Errorf("no endpoint of %s in %+v", c.name, s.Endpoints)
			}
			e := s.Endpoints[i]
			address := netip.MustParseAddr(c.ip())
			if !slices.Contains(e.Addresses, address) || e.MAC != c.mac() || e.Host != nickname(c.host) || e.Local != (c.host == hs[0]) {
				return fmt.Errorf("%s %s on %s shows as %+v", c.name, address, c.host.Name(), e)
			}
		}
		i := slices.IndexFunc(s.Segments, func(s control.Segment) bool { return s.Subnet.String() == sub })
		if i < 0 || len(s.Segments[i].Members) != 2 || len(s.Segments[i].Networks) != 1 || s.Segments[i].Networks[0].Name != net {
			return fmt.Errorf("segment %s in %+v", sub, s.Segments)
		}
		return nil
	})
	if got := poolUse(t, hs, sub); got.leased < 2 {
		t.Errorf("%d addresses of %s are leased, want 2 or more", got.leased, sub)
	}
	for _, part := range []string{"peers", "segments", "endpoints", "ipam"} {
		if !json.Valid([]byte(weave(t, hs[0], "status", part, "--json"))) {
			t.Errorf("status %s --json is not JSON", part)
		}
		if weave(t, hs[0], "status", part) == "" {
			t.Errorf("status %s is empty", part)
		}
	}
	screen := weave(t, hs[0], "status")
	for _, want := range []string{nickname(hs[0]), nickname(hs[1]), sub, "6783"} {
		if !strings.Contains(screen, want) {
			t.Errorf("the status does not show %q:\n%s", want, screen)
		}
	}
	if out := weave(t, hs[0], "version"); !strings.Contains(out, status(t, hs[0]).Version) {
		t.Errorf("version shows %q", out)
	}
}

// TestConnect: a host that was told of nobody joins by `weave connect`.
func TestConnect(t *testing.T) {
	hs := hosts(t, 1)
	h := spareHost(t, map[string]string{"WEAVE_PASSWORD": password})
	if peers := status(t, h).Peers; len(peers) != 0 {
		t.Errorf("a host that knows nobody has peers: %+v", peers)
	}
	if out := weave(t, h, "connect", seed); !strings.Contains(out, nickname(hs[0])) {
		t.Errorf("connect printed %q", out)
	}
	awaitPeer(t, hs[0], h)
	if _, err := h.Weave("connect", "10.99.0.250"); err == nil || !strings.Contains(err.Error()+weave(t, h, "status"), "10.99.0.250") {
		t.Errorf("connecting to nobody: %v", err)
	}
}
