package e2e

import (
	"context"
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

// status asks the plugin, which may be on its way up.
func status(t *testing.T, h *dockerlab.Host) (s control.Status) {
	t.Helper()
	eventually(t, soon, func() (err error) {
		s, err = statusOf(h)
		return err
	})
	return s
}

// statusOf asks the socket that the command-line tool asks, which is cheaper.
func statusOf(h *dockerlab.Host) (control.Status, error) {
	s, err := control.NewClient(h.Path("/run/weave/weave.sock")).Status(context.Background())
	if err != nil {
		err = fmt.Errorf("status of %s: %w", h.Name(), err)
	}
	return s, err
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
	beside(t)
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
	var typed control.Status
	if err := json.Unmarshal([]byte(weave(t, hs[0], "status", "--json")), &typed); err != nil || typed.Peer != status(t, hs[0]).Peer {
		t.Errorf("status --json tells of peer %q: %v", typed.Peer, err)
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
