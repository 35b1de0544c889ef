package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"weave/test/dockerlab"
)

// TestService: the daemon runs on a host without the managed plugin, with no
// more rights than examples/weave.service gives it, in one cluster with hosts
// that have the plugin.
func TestService(t *testing.T) {
	beside(t)
	h, other := emptyHost(t), spareHost(t, map[string]string{"WEAVE_PASSWORD": password})
	givePassword(t, h)
	service := startService(t, h, other.Net().IP4().String())
	awaitPeer(t, h, other)
	if _, err := h.Weave("launch"); err == nil || !strings.Contains(err.Error(), "without the managed plugin") {
		t.Errorf("launch beside it: %v", err)
	}
	refusedWeave(t, h, []string{"systemctl stop weave"}, "stop")
	if s := status(t, h); !s.Service || status(t, other).Service {
		t.Error("a service and a managed plugin are not told apart")
	}

	net := network(t, []*dockerlab.Host{h, other}, "--subnet", subnet())
	server := run(t, other, net, nil).serve()
	client := run(t, h, net, nil, "tool", "hold", server.ip()+":7000")
	awaitBeats(t, client, soon)
	client.finds(server.name, server.ip())
	server.finds(client.name, client.ip())
	if q := status(t, h).DNS.Questions; q.Answered == 0 {
		t.Errorf("questions %+v", q)
	}

	before := status(t, h).Started
	if _, err := h.Run("kill", "-9", service); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, func() error { // as systemd does: its sockets are served until all its threads are gone
		_, err := h.Run("sh", "-c", "! grep -qs '^State:[^Z]*$' /proc/"+service+"/task/*/status")
		return err
	})
	startService(t, h, other.Net().IP4().String())
	awaitBeats(t, client, soon)
	if after := status(t, h).Started; !after.After(before) {
		t.Errorf("it ran since %s, now since %s", before, after)
	}
	run(t, h, net, nil).reaches(server.ip(), soon)
	if out := weave(t, h, "status", "endpoints"); !strings.Contains(out, client.name) {
		t.Errorf("endpoints:\n%s", out)
	}
}

// startService does what systemd would with examples/weave.service, as far as
// rights of processes go, and returns the process. As with ProtectSystem, what is
// mounted on the host later, such as containers' network namespaces, comes to a
// mount namespace of its own.
func startService(t *testing.T, h *dockerlab.Host, peers string) string {
	t.Helper()
	unit := exampleUnit(t)
	rights := "-all"
	for capability := range strings.FieldsSeq(unit["CapabilityBoundingSet"]) {
		rights += ",+" + strings.ToLower(strings.TrimPrefix(capability, "CAP_"))
	}
	command := strings.Replace(unit["ExecStart"], "/usr/local/bin/weave", filepath.Join(dockerlab.BuildDir(), "weave"), 1)
	pid, err := h.Run("sh", "-c", fmt.Sprintf(
		"umask %s; WEAVE_PASSWORD_FILE=password WEAVE_PEERS=%s WEAVE_NICKNAME=%s setsid unshare --mount --propagation slave setpriv --no-new-privs --bounding-set=%s --inh-caps=-all %s >>/var/lib/weave.log 2>&1 & echo $!",
		unit["UMask"], peers, nickname(h), rights, command))
	if err != nil {
		t.Fatal(err)
	}
	log := h.Path("/var/lib/weave.log")
	t.Cleanup(func() {
		if text, err := os.ReadFile(log); t.Failed() {
			t.Logf("the daemon's log: %s, %v", text, err)
		}
	})
	return pid
}

// exampleUnit returns the settings of examples/weave.service by name.
func exampleUnit(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dockerlab.ProjectDir(), "examples", "weave.service"))
	if err != nil {
		t.Fatal(err)
	}
	unit := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(name, "#") {
			unit[name] = value
		}
	}
	return unit
}

// TestUnitFile: systemd understands each line of examples/weave.service.
func TestUnitFile(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip(err)
	}
	text, err := os.ReadFile(filepath.Join(dockerlab.ProjectDir(), "examples", "weave.service"))
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "weave.service")
	binary := filepath.Join(dockerlab.BuildDir(), "weave")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), "=/usr/local/bin/weave", "="+binary)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}
