package dockerlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weave/test/netlab"
)

// sweepOnce is for tests that run at once: only one may remove a dead lab.
var sweepOnce = sync.OnceValue(Sweep)

func newLab(t *testing.T) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	if err := sweepOnce(); err != nil {
		t.Error(err)
	}
	lab, err := New(netlab.UniqueName())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
		checkNothingLeft(t, lab.Net().Name())
	})
	return lab
}

func checkNothingLeft(t *testing.T, name string) {
	t.Helper()
	for _, pattern := range []string{"/run/netns/", baseDir + "/", "/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		if left, err := filepath.Glob(pattern + name + "*"); err != nil || len(left) > 0 {
			t.Errorf("left: %v %v", left, err)
		}
	}
	for _, file := range []string{"/proc/self/mountinfo", "/proc/mounts"} {
		if mounts, err := os.ReadFile(file); err != nil || strings.Contains(string(mounts), name) {
			t.Errorf("a mount is left in %s %v", file, err)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if line, _ := os.ReadFile(p); strings.Contains(string(line), name) {
			t.Errorf("process left: %s %q", p, line)
		}
	}
}

func must(t *testing.T) func(string, error) string {
	return func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

func addHost(t *testing.T, lab *Lab, n int) *Host {
	t.Helper()
	h, err := lab.AddHost(n)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestTwoEngines(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	for _, h := range []*Host{addHost(t, lab, 1), addHost(t, lab, 2)} {
		if got := must(t)(h.Docker("run", "--rm", "--name", "same", Image, "echo", "hello")); got != "hello" {
			t.Errorf("%s printed %q", h.Name(), got)
		}
		if got := must(t)(h.Run("hostname")); got != h.Name() {
			t.Errorf("host %s calls itself %q", h.Name(), got)
		}
		must(t)(h.Docker("run", "-d", "--name", "web", "-p", "8080:80", Image, "tool", "http", "-text=web", ":80"))
		awaitPublished(t, h)
		must(t)(h.Docker("exec", "web", "ping", "-c1", "-W5", netlab.Outside4.String()))
		rules := must(t)(h.Run("nft", "list", "ruleset"))
		if !strings.Contains(rules, "chain DOCKER-USER") {
			t.Errorf("no nft chain DOCKER-USER on %s", h.Name())
		}
		_, err := h.Docker("start", "nobody")
		var failed *CommandError
		if !errors.As(err, &failed) || failed.Host != h.Name() || !strings.Contains(failed.Stderr, "nobody") {
			t.Errorf("a container that is not there: %v", err)
		}
	}
}

// awaitPublished waits until the container behind a published port listens.
func awaitPublished(t *testing.T, h *Host) {
	t.Helper()
	for end := time.Now().Add(startLimit); ; time.Sleep(pollEvery) {
		got, err := h.Run("busybox", "wget", "-qO-", "http://127.0.0.1:8080/")
		if strings.Contains(got, "web from") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("published port of %s answered %q: %v", h.Name(), got, err)
		}
	}
}

// TestType: a shell's syntax, a file that outlives a reboot, and what a terminal
// shows of a failure.
func TestType(t *testing.T) {
	t.Parallel()
	h := addHost(t, newLab(t), 1)
	if err := h.SetHostname("one"); err != nil {
		t.Fatal(err)
	}
	before := must(t)(h.Run("stat", "-L", "-c", "%i", "/proc/self/ns/uts"))
	for _, step := range []struct{ line, want string }{
		{"echo 'a  b' | sudo tee note; echo oops >&2; hostname", "a  b\noops\none"},
		{"sudo reboot", ""},
		{"cat note && hostname", "a  b\none"},
	} {
		if got := must(t)(h.Type(step.line)); got != step.want {
			t.Errorf("%s shows %q, want %q", step.line, got, step.want)
		}
	}
	if after := must(t)(h.Run("stat", "-L", "-c", "%i", "/proc/self/ns/uts")); after == before {
		t.Error("it was not rebooted")
	}
	must(t)(h.Type("sudo systemctl restart docker"))
	out, err := h.Type("echo shown; docker start nobody")
	var failed *CommandError
	if !errors.As(err, &failed) || !strings.HasPrefix(out, "shown\n") || !strings.Contains(out, "nobody") || failed.Command != "echo shown; docker start nobody" {
		t.Errorf("a failure shows %q, and is %v", out, err)
	}
}

// state returns whether the container runs, and since when.
func state(t *testing.T, h *Host, container string) string {
	t.Helper()
	return must(t)(h.Docker("inspect", "-f", "{{.State.Running}} {{.State.StartedAt}}", container))
}

func TestEngineLifecycle(t *testing.T) {
	t.Parallel()
	lab := newLab(t)
	h := addHost(t, lab, 1)
	must(t)(h.Docker("run", "-d", "--name", "always", "--restart=always", Image, "tool", "idle"))
	before := state(t, h, "always")
	steps := []struct {
		name      string
		do        func() error
		undisturb bool
	}{
		{"restart", h.Restart, false},
		{"kill", func() error { return errors.Join(h.Kill(), h.Start()) }, false},
		{"reboot", h.Reboot, false},
		{"to live-restore", func() error { return errors.Join(h.Configure(true), h.Restart()) }, false},
		{"live-restore restart", h.Restart, true},
		{"live-restore kill", func() error { return errors.Join(h.Kill(), h.Start()) }, true},
	}
	for _, step := range steps {
		begin := time.Now()
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		after := state(t, h, "always")
		if !strings.HasPrefix(after, "true") {
			t.Errorf("after %s the container does not run", step.name)
		}
		if (after == before) != step.undisturb {
			t.Errorf("%s: container was %q, is %q", step.name, before, after)
		}
		t.Logf("%s took %v", step.name, time.Since(begin))
		before = after
	}
}

// composeFile holds one service; what it lacks is the command.
const composeFile = `
services:
  one:
    image: ` + Image + `
    network_mode: none
    command: %s
`

// TestCompose: calls that share what docker-compose imports are told apart by
// what they write and how they end, and one that takes too long is ended.
func TestCompose(t *testing.T) {
	t.Parallel()
	h := addHost(t, newLab(t), 1)
	file := func(command string) string {
		path := filepath.Join(t.TempDir(), "compose.yml")
		if err := os.WriteFile(path, fmt.Appendf(nil, composeFile, command), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var calls sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		calls.Go(func() {
			out, err := h.Compose("-p", name, "-f", file("echo said by "+name), "run", "--rm", "-T", "one")
			if err != nil || out != "said by "+name {
				t.Errorf("%s printed %q: %v", name, out, err)
			}
		})
	}
	calls.Wait()
	if pythonOf("docker-compose") != "" && h.composer.run == nil {
		t.Error("each call imports anew")
	}
	_, err := h.Compose("-f", "nowhere.yml", "up")
	var failed *CommandError
	if !errors.As(err, &failed) || !strings.Contains(failed.Stderr, "nowhere.yml") || failed.Command != "docker-compose -f nowhere.yml up" {
		t.Errorf("a file that is not there: %v", err)
	}
	before := pythons(t, h)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if _, err := h.compose(ctx, "-f", file("tool idle"), "up"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a service that runs on: %v", err)
	}
	for end := time.Now().Add(10 * time.Second); pythons(t, h) != before; time.Sleep(pollEvery) {
		if time.Now().After(end) {
			t.Fatalf("of the ended call %d processes are left", pythons(t, h)-before)
		}
	}
	if err := h.Reboot(); err != nil {
		t.Fatal(err)
	}
	must(t)(h.Compose("version"))
}

// pythons counts a host's processes that run Python.
func pythons(t *testing.T, h *Host) (n int) {
	t.Helper()
	pids, err := processesIn(h.net.NamespacePath())
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if name := commandOf(pid); strings.HasPrefix(name, "python") || strings.HasPrefix(name, "docker-compose") {
			n++
		}
	}
	return n
}
