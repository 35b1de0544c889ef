package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"weave/test/dockerlab"
)

// TestLaunch is a host's life by the weave command: launched, upgraded while
// its containers talk, stopped, started, and taken out of the cluster for good.
func TestLaunch(t *testing.T) {
	beside(t)
	hs := emptyHosts(t, 2)
	other, h := hs[0], hs[1]
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	weave(t, other, "launch", "--password-file", secret, "--nickname", nickname(other))
	launch := []string{"launch", "--password-file", secret, "--nickname", nickname(h), other.Net().IP4().String()}
	if out := weave(t, h, launch...); !strings.Contains(out, "docker network create") {
		t.Errorf("launch does not say what is next: %s", out)
	}
	awaitPeers(t, hs)
	checkSecret(t, h)
	checkLog(t, h)
	pids := pluginPIDs(t, hs)
	if out := weave(t, h, launch...); !strings.Contains(out, "Nothing to do") || pluginPIDs(t, hs) != pids {
		t.Errorf("launched again: %s", out)
	}

	net := network(t, hs, "--subnet", subnet())
	server := run(t, other, net, nil).serve()
	client := run(t, h, net, nil, "tool", "hold", server.ip()+":7000")
	awaitBeats(t, client, soon)
	newer := newerBinary(t)
	launchNewer(t, newer, h, other, client)
	stopAndStart(t, newer, h, net)
	before := status(t, h).Peer
	resetHost(t, h, other, net)
	weave(t, h, launch...)
	awaitPeer(t, h, other)
	if after := status(t, h).Peer; after == before {
		t.Errorf("after the reset it is peer %s again", after)
	}
}

// checkSecret holds that only root can read the password, and nobody by asking
// Docker.
func checkSecret(t *testing.T, h *dockerlab.Host) {
	t.Helper()
	if told := docker(t, h, "plugin", "inspect", dockerlab.PluginName); strings.Contains(told, password) {
		t.Error("docker plugin inspect shows the password")
	}
	for name, mode := range map[string]os.FileMode{"/var/lib/weave": 0o700, "/var/lib/weave/password": 0o600} {
		if info, err := os.Stat(h.Path(name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// checkLog holds that weave logs finds the plugin's lines in what the engine
// writes. Hosts of the lab have no journal: one is made of the engine's log.
func checkLog(t *testing.T, h *dockerlab.Host) {
	t.Helper()
	log, err := os.ReadFile(h.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	var journal strings.Builder
	lines := slices.Collect(strings.Lines(string(log)))
	for _, line := range slices.Backward(lines) {
		entry, err := json.Marshal(map[string]string{"__CURSOR": "c", "MESSAGE": strings.TrimSpace(line)})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&journal, "%s\n", entry)
	}
	dir := t.TempDir()
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "journal"), []byte(journal.String()), 0o600),
		os.WriteFile(filepath.Join(dir, "journalctl"), []byte("#!/bin/sh\ncat "+dir+"/journal\n"), 0o700),
	); err != nil {
		t.Fatal(err)
	}
	out, err := h.Run("env", "PATH="+dir+":"+os.Getenv("PATH"), filepath.Join(dockerlab.BuildDir(), "weave"), "logs", "-n", "1000")
	if err != nil || !strings.Contains(out, `level=info msg="weave starts"`) || strings.Contains(out, "plugin=") {
		t.Errorf("%v\n%s", err, out)
	}
}

// launchNewer upgrades a host by a newer command, with other settings as well:
// connections outlive it.
func launchNewer(t *testing.T, newer string, h, other *dockerlab.Host, client container) {
	t.Helper()
	before := status(t, h)
	out, err := h.Run(newer, "launch", "--log-level", "debug")
	if err != nil || !strings.Contains(out, "Upgraded to weave "+newerName) {
		t.Fatalf("%s, %v", out, err)
	}
	awaitBeats(t, client, soon)
	if running := docker(t, h, "inspect", "-f", "{{.State.Running}} {{.RestartCount}}", client.name); running != "true 0" {
		t.Errorf("the client ended: %s", running)
	}
	if after := status(t, h); after.Version != newerName || after.Peer != before.Peer {
		t.Errorf("it was %s of peer %s, is %s of %s", before.Version, before.Peer, after.Version, after.Peer)
	}
	want := []string{"WEAVE_LOG_LEVEL=debug", "WEAVE_NICKNAME=" + nickname(h), "WEAVE_PASSWORD_FILE=password", "WEAVE_PEERS=" + other.Net().IP4().String()}
	settings := slices.DeleteFunc(pluginSettings(t, h), func(s string) bool {
		return strings.HasSuffix(s, "=") || strings.HasPrefix(s, "WEAVE_BINARY=")
	})
	slices.Sort(settings)
	if !slices.Equal(settings, want) {
		t.Errorf("settings %q, want %q", settings, want)
	}
}

func stopAndStart(t *testing.T, newer string, h *dockerlab.Host, net string) {
	t.Helper()
	weave(t, h, "stop")
	if enabled := docker(t, h, "plugin", "ls", "--format", "{{.Enabled}}"); enabled != "false" {
		t.Errorf("stopped, but enabled: %s", enabled)
	}
	if out := weave(t, h, "stop"); !strings.Contains(out, "Nothing to do") {
		t.Errorf("stopped again: %s", out)
	}
	var said [2]string
	var all errgroup.Group
	for i := range said { // the second finds nothing to do
		all.Go(func() (err error) {
			said[i], err = h.Run(newer, "launch")
			return err
		})
	}
	if err := all.Wait(); err != nil || !strings.Contains(said[0]+said[1], "Started") || !strings.Contains(said[0]+said[1], "Nothing to do") {
		t.Fatalf("%q, %v", said, err)
	}
	run(t, h, net, nil, "true")
}

// resetHost has a host leave: it keeps nothing, and the other inherits.
func resetHost(t *testing.T, h, other *dockerlab.Host, net string) {
	t.Helper()
	awaitPeer(t, h, other)
	if _, err := h.Weave("reset"); err == nil || !strings.Contains(err.Error(), net) {
		t.Errorf("reset under a container: %v", err)
	}
	const others = "nft -s list table ip others; iptables -S FORWARD | grep 192.0.2.2"
	before, err := h.Run("sh", "-c", "nft 'table ip others { chain c { type filter hook forward priority 0; iifname \"wv*\" ip saddr 192.0.2.1 drop; }; }' && iptables -I FORWARD -s 192.0.2.2 -j DROP && "+others)
	if err != nil {
		t.Fatal(err)
	}
	if out := weave(t, h, "reset", "--force"); !strings.Contains(out, nickname(other)+" sees to it") {
		t.Errorf("reset: %s", out)
	}
	if left := docker(t, h, "plugin", "ls", "-q") + docker(t, h, "network", "ls", "-q", "-f", "name="+net); left != "" {
		t.Errorf("left in Docker: %s", left)
	}
	if left, err := os.ReadDir(h.Path("/var/lib/weave")); err != nil || len(left) > 0 {
		t.Errorf("left on disk: %v, %v", left, err)
	}
	if after, err := h.Run("sh", "-c", others); err != nil || after != before {
		t.Errorf("the packet filter of others was\n%s\nis\n%s, %v", before, after, err)
	}
	if _, err := h.Run("sh", "-c", "nft delete table ip others; iptables -D FORWARD -s 192.0.2.2 -j DROP"); err != nil {
		t.Error(err)
	}
	if left := traces(t, h); len(left) > 0 {
		t.Errorf("left in the kernel: %q", left)
	}
	if out := weave(t, h, "reset", "--force"); !strings.Contains(out, "Nothing to do") {
		t.Errorf("reset again: %s", out)
	}
	eventually(t, 2*soon, func() error {
		s, err := statusOf(other)
		switch {
		case err != nil:
			return err
		case len(s.Peers) > 0:
			return fmt.Errorf("peers: %+v", s.Peers)
		case len(s.IPAM) != 1 || s.IPAM[0].Owned != s.IPAM[0].Size:
			return fmt.Errorf("pools: %+v", s.IPAM)
		}
		return nil
	})
}

// newerName is the version of the binary that newerBinary returns.
const newerName = "v99.0.0"

// newerBinary compiles the command as another version.
func newerBinary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weave")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w -X main.version="+newerName, "-o", path, "weave/plugin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}
