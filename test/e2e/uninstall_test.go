package e2e

import (
	"fmt"
	"strings"
	"testing"

	"weave/plugin/control"
	"weave/test/dockerlab"
)

// TestUninstallLeavesNothing: `make uninstall` wants the networks gone first, as
// the plugin then takes its links and packet filters off the host by itself,
// those of the fast path included.
func TestUninstallLeavesNothing(t *testing.T) {
	beside(t)
	hs := spareHosts(t, 2, func(i int, first string) map[string]string {
		if i == 0 {
			return nil
		}
		return map[string]string{"WEAVE_PEERS": first}
	})
	awaitPeers(t, hs)
	h := hs[0]
	net := network(t, hs, "--subnet", subnet())
	a, b := run(t, h, net, nil), run(t, hs[1], net, nil)
	b.reaches(a.ip(), soon)
	eventually(t, soon, func() error {
		if s := status(t, h); len(s.Peers) != 1 || s.Peers[0].Frames != control.VXLAN {
			return fmt.Errorf("peers: %+v", s.Peers)
		}
		return nil
	})
	if left := traces(t, h); len(left) < 6 { // a bridge, a veth, a TAP, VXLAN, tables, a rule
		t.Errorf("the test sees too little: %q", left)
	}

	prefix := "PREFIX=" + t.TempDir()
	if out, err := tryTarget(h, "uninstall", prefix); err == nil || !strings.Contains(err.Error(), "docker network rm "+net+"\n") {
		t.Fatalf("uninstall with a network: %v\n%s", err, out)
	}
	status(t, h) // it still answers
	if err := removeAll(h, net); err != nil {
		t.Fatal(err)
	}
	docker(t, h, "network", "rm", net)
	makeTarget(t, h, "uninstall", prefix)
	if left := traces(t, h); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// traces lists what of Weave is in a host's kernel.
func traces(t *testing.T, h *dockerlab.Host) (found []string) {
	t.Helper()
	for _, command := range []string{"ip -o link", "nft list ruleset", "iptables-save", "ip6tables-save"} {
		words := strings.Fields(command)
		out, err := h.Run(words[0], words[1:]...)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, "weave") || strings.Contains(line, ": wv") || strings.Contains(line, "wv*") {
				found = append(found, strings.TrimSpace(line))
			}
		}
	}
	return found
}
