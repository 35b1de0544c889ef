package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weave/test/dockerlab"
	"weave/test/netlab"
)

// TestInstall: `make install` brings plugin and command onto a host. Over a
// running plugin it is an upgrade: the settings stay, containers run on, and so
// do their connections. `make uninstall` takes both away but not the state.
func TestInstall(t *testing.T) {
	beside(t)
	other, h := spareHost(t, map[string]string{"WEAVE_PASSWORD": password}), emptyHost(t)
	prefix := t.TempDir()
	givePassword(t, h)
	makeTarget(t, h, "install", "PREFIX="+prefix,
		"SET=WEAVE_PASSWORD_FILE=password WEAVE_PEERS="+other.Net().IP4().String()+" WEAVE_NICKNAME="+nickname(h))
	awaitPeer(t, h, other)

	net := upgrade(t, other, h, prefix)
	if err := removeAll(h, net); err != nil {
		t.Fatal(err)
	}
	docker(t, h, "network", "rm", net)
	if rules, err := h.Run("iptables", "-S"); err != nil || strings.Contains(rules, "weave") {
		t.Errorf("rules without a network: %s %v", rules, err)
	}
	makeTarget(t, h, "uninstall", "PREFIX="+prefix)
	if plugins := docker(t, h, "plugin", "ls", "-q"); plugins != "" {
		t.Errorf("plugins are left: %s", plugins)
	}
	if _, err := os.Stat(filepath.Join(prefix, "bin", "weave")); !os.IsNotExist(err) {
		t.Errorf("the command is left: %v", err)
	}
	if _, err := os.Stat(h.Path("/var/lib/weave/password")); err != nil {
		t.Errorf("the state is gone: %v", err)
	}
}

// TestImage: `make image` makes one that holds the binary, wherever that was
// built.
func TestImage(t *testing.T) {
	beside(t)
	h, build := emptyHost(t), t.TempDir()
	binary, err := os.ReadFile(filepath.Join(pluginDir(), "rootfs", "weave"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(build, "weave"), binary, 0o755); err != nil {
		t.Fatal(err)
	}
	makeTarget(t, h, "image", "BUILD="+build)
	if out := docker(t, h, "run", "--rm", "--net=none", "--entrypoint=/weave", "weave", "--help"); !strings.Contains(out, "Usage:") {
		t.Errorf("the image's weave says %q", out)
	}
}

// TestDemo: `make demo` shows what it promises, and `make demo-down` leaves
// nothing.
func TestDemo(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	lab := netlab.UniqueName()
	demo := func(target string) string {
		cmd := exec.Command("make", "--no-print-directory", "-o", "build", target, "LAB="+lab)
		cmd.Dir = dockerlab.ProjectDir()
		cmd.Env = append(os.Environ(), "MAKEFLAGS=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("make %s: %v\n%s", target, err, out)
		}
		return string(out)
	}
	t.Cleanup(func() {
		demo("demo-down")
		if left, err := filepath.Glob("/run/netns/" + lab + "*"); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	})
	out := demo("demo")
	for _, words := range []string{
		"h2# weave launch", "h2# docker network create -d weave", "3 packets received", "hello from", " Gbit/s", "h2# weave status", "Peers: 1 of 1 up",
	} {
		if !strings.Contains(out, words) {
			t.Errorf("the demo does not show %q:\n%s", words, out)
		}
	}
	if n := strings.Count(out, "Nothing is wrong."); n != 2 {
		t.Errorf("%d hosts are well:\n%s", n, out)
	}
}

// upgrade replaces the plugin of a host whose container talks to the other's. It
// returns the network.
func upgrade(t *testing.T, other, h *dockerlab.Host, prefix string) string {
	t.Helper()
	self := []*dockerlab.Host{h}
	net := network(t, []*dockerlab.Host{other, h}, "--subnet", subnet())
	server := run(t, other, net, nil).serve()
	client := run(t, h, net, nil, "tool", "hold", server.ip()+":7000")
	awaitBeats(t, client, soon)
	before, peer, settings := pluginPIDs(t, self), status(t, h).Peer, pluginSettings(t, h)

	makeTarget(t, h, "install", "PREFIX="+prefix, "SET=WEAVE_LOG_LEVEL=debug")
	awaitBeats(t, client, soon)
	if running := docker(t, h, "inspect", "-f", "{{.State.Running}} {{.RestartCount}}", client.name); running != "true 0" {
		t.Errorf("the client ended: %s\n%s", running, docker(t, h, "logs", client.name))
	}
	if after := pluginPIDs(t, self); after == before {
		t.Error("the plugin was not replaced")
	}
	if after := status(t, h).Peer; after != peer {
		t.Errorf("the host was peer %s, is %s", peer, after)
	}
	i := slices.Index(settings, "WEAVE_LOG_LEVEL=")
	if i < 0 {
		t.Fatalf("no WEAVE_LOG_LEVEL in %q", settings)
	}
	settings[i] = "WEAVE_LOG_LEVEL=debug"
	if after := pluginSettings(t, h); !slices.Equal(after, settings) {
		t.Errorf("the settings are %q, want %q", after, settings)
	}
	run(t, h, net, nil).reaches(server.ip(), soon)
	if out, err := h.Run(filepath.Join(prefix, "bin", "weave"), "version"); err != nil || !strings.Contains(out, "plugin") {
		t.Errorf("weave version: %q, %v", out, err)
	}
	return net
}

// givePassword puts the password where WEAVE_PASSWORD_FILE finds it.
func givePassword(t *testing.T, h *dockerlab.Host) {
	t.Helper()
	dir := h.Path("/var/lib/weave")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "password"), []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// makeTarget runs make on the host, with what is built already.
func makeTarget(t *testing.T, h *dockerlab.Host, target string, variables ...string) string {
	t.Helper()
	out, err := tryTarget(h, target, variables...)
	if err != nil {
		t.Fatalf("make %s: %v\n%s", target, err, out)
	}
	return out
}

func tryTarget(h *dockerlab.Host, target string, variables ...string) (string, error) {
	args := []string{"MAKEFLAGS=", "make", "-C", dockerlab.ProjectDir(), "--no-print-directory", "-o", "build", target,
		"SUDO=", "BUILD=" + dockerlab.BuildDir()}
	return h.Run("env", append(args, variables...)...)
}

// pluginSettings returns the plugin's environment as its engine has it.
func pluginSettings(t *testing.T, h *dockerlab.Host) []string {
	t.Helper()
	return strings.Fields(docker(t, h, "plugin", "inspect", "-f", "{{range .Settings.Env}}{{println .}}{{end}}", dockerlab.PluginName))
}
