// Package install tests what `make install` and `make uninstall` ask of Docker,
// on a command that only pretends to be Docker's; on real engines they are
// tested by package e2e. It has no code but its tests.
package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeDocker writes each call to the file calls, an argument to a line and an
// empty line at the end. It has the plugin if there is the file plugin, the
// networks of the file networks, and fails where its arguments begin with the
// words of the file fails.
const fakeDocker = `#!/bin/sh
cd "$(dirname "$0")"
printf '%s\n' "$@" '' >>calls
if [ -s fails ]; then case "$*" in "$(cat fails)"*) exit 1 ;; esac; fi
case "$1 $2" in
'plugin inspect') [ -e plugin ] || exit 1; [ "$3" != --format ] || echo WEAVE_PEERS=old ;;
'plugin rm') rm plugin ;;
'network ls') echo id ;;
'network inspect') cat networks ;;
esac
`

type bed struct {
	t   *testing.T
	dir string
}

// newBed has the plugin, and Docker's own network.
func newBed(t *testing.T) bed {
	t.Helper()
	b := bed{t, t.TempDir()}
	b.write("docker", fakeDocker)
	b.write("plugin", "")
	b.write("networks", "bridge bridge default\nweave bridge default\n")
	b.write("weave", "")
	return b
}

func (b bed) write(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o700); err != nil {
		b.t.Fatal(err)
	}
}

func (b bed) has(name string) bool {
	_, err := os.Stat(filepath.Join(b.dir, name))
	return err == nil
}

// make runs a target and returns what it prints.
func (b bed) make(target string, variables ...string) (string, error) {
	b.t.Helper()
	args := []string{"--no-print-directory", "-o", "plugin", target, "SUDO=", "BUILD=" + b.dir, "PREFIX=" + b.dir, "DOCKER=" + filepath.Join(b.dir, "docker")}
	cmd := exec.CommandContext(b.t.Context(), "make", append(args, variables...)...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "TMPDIR="+b.dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// calls returns the arguments of each call of docker.
func (b bed) calls() (all [][]string) {
	b.t.Helper()
	raw, err := os.ReadFile(filepath.Join(b.dir, "calls"))
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	for call := range strings.SplitSeq(strings.TrimSuffix(string(raw), "\n\n"), "\n\n") {
		all = append(all, strings.Split(call, "\n"))
	}
	return all
}

// set returns what the plugin was told to set, in order.
func (b bed) set() (all []string) {
	for _, call := range b.calls() {
		if len(call) == 4 && call[0] == "plugin" && call[1] == "set" {
			all = append(all, call[3])
		}
	}
	return all
}

// TestSet: settings reach Docker as they were typed.
func TestSet(t *testing.T) {
	const odd = `WEAVE_PASSWORD=$HOME"$(date)'*\$a&;#!`
	b := newBed(t)
	if out, err := b.make("install", "SET="+odd+"  WEAVE_PEERS=a,b:7000 state.source=/srv"); err != nil {
		t.Fatal(err, out)
	}
	if want := []string{"WEAVE_PEERS=old", odd, "WEAVE_PEERS=a,b:7000", "state.source=/srv"}; !slices.Equal(b.set(), want) {
		t.Errorf("set %q, want %q", b.set(), want)
	}
}

// TestSetRefused: what sets nothing is refused before the old plugin is touched.
func TestSetRefused(t *testing.T) {
	for _, set := range []string{"WEAVE_PEERS=a b", "WEAVE_PASWORD=secret", "WEAVE_MTU", "weave.db=x", "=", "WEAVE_PASSWORD=a secret"} {
		b := newBed(t)
		out, err := b.make("install", "SET="+set)
		if err == nil || !strings.Contains(out, "Nothing was changed") || !strings.Contains(out, "WEAVE_PEERS=host1,host2") {
			t.Errorf("SET=%q: %v, %s", set, err, out)
		}
		if strings.Contains(out, "secret") {
			t.Errorf("SET=%q is shown: %s", set, out)
		}
		if b.has("calls") {
			t.Errorf("SET=%q: docker was called: %q", set, b.calls())
		}
	}
}

// TestRemovalFails: whoever is left with the old plugin is told where it and its
// settings are.
func TestRemovalFails(t *testing.T) {
	b := newBed(t)
	b.write("fails", "plugin rm")
	out, err := b.make("install")
	if err == nil || !strings.Contains(out, "docker plugin enable weavenet") {
		t.Fatalf("%v, %s", err, out)
	}
	saved, err := filepath.Glob(filepath.Join(b.dir, "tmp.*"))
	if err != nil || len(saved) != 1 || !strings.Contains(out, saved[0]) {
		t.Errorf("settings are in %q: %v\n%s", saved, err, out)
	}
	if out, err := b.make("uninstall"); err == nil || !strings.Contains(out, "docker plugin enable weavenet") || !b.has("plugin") {
		t.Errorf("uninstall: %v, %s", err, out)
	}
}

// TestUninstallWithNetworks: networks need the plugin, to be removed as well.
func TestUninstallWithNetworks(t *testing.T) {
	b := newBed(t)
	b.write("networks", "bridge bridge default\nweave bridge default\napp weave weave\nlan macvlan weave\nown weave default\nold weavenet:latest weavenet:latest\n")
	out, err := b.make("uninstall")
	if err == nil || !strings.Contains(out, "docker network rm app lan own old\n") || !strings.Contains(out, "FORCE=1") {
		t.Errorf("%v, %s", err, out)
	}
	if !b.has("plugin") {
		t.Fatal("the plugin is removed")
	}
	if out, err := b.make("uninstall", "FORCE=1"); err != nil || b.has("plugin") {
		t.Errorf("FORCE=1: %v, %s", err, out)
	}
	b.write("plugin", "")
	b.write("networks", "bridge bridge default\n")
	if out, err := b.make("uninstall"); err != nil || b.has("plugin") {
		t.Errorf("without networks: %v, %s", err, out)
	}
}
