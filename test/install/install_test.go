// Package install tests what `make plugin` lays out, and what `make install` and
// `make uninstall` ask of the weave command, on one that only pretends to be it;
// on real engines they are tested by package e2e. It has no code but its tests.
package install

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.." // of the repository

// fakeWeave writes its arguments to the file calls beside the Makefile's BUILD,
// one to a line and an empty line at the end. It fails if there is the file fails.
// Of its man pages there is one.
const fakeWeave = `#!/bin/sh
dir=${0%/*}
case $dir in */bin) dir=$dir/.. ;; esac
[ "$1" != man ] || { mkdir -p "$2" && echo page >"$2/weave.1"; exit; }
printf '%s\n' "$@" '' >>"$dir/calls"
[ ! -e "$dir/fails" ]
`

type bed struct {
	t   *testing.T
	dir string
}

// newBed has a binary that was compiled.
func newBed(t *testing.T) bed {
	t.Helper()
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("no make here")
	}
	b := bed{t, t.TempDir()}
	b.write("weave", fakeWeave)
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

// make runs a target with what is built already, and returns what it prints.
func (b bed) make(target string, variables ...string) (string, error) {
	b.t.Helper()
	args := []string{"--no-print-directory", "-o", "build", target, "VERSION=1.2.3", "SUDO=", "BUILD=" + b.dir, "PREFIX=" + b.dir}
	cmd := exec.CommandContext(b.t.Context(), "make", append(args, variables...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// calls returns the arguments of each call of weave since the last time.
func (b bed) calls() (all [][]string) {
	b.t.Helper()
	name := filepath.Join(b.dir, "calls")
	raw, err := os.ReadFile(name)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.Remove(name); err != nil {
		b.t.Fatal(err)
	}
	for call := range strings.SplitSeq(strings.TrimSuffix(string(raw), "\n\n"), "\n\n") {
		all = append(all, strings.Split(call, "\n"))
	}
	return all
}

// wantCall holds how weave was called, once.
func (b bed) wantCall(want ...string) {
	b.t.Helper()
	if got := b.calls(); len(got) != 1 || !slices.Equal(got[0], want) {
		b.t.Errorf("weave was called with %q, want %q", got, want)
	}
}

// TestDockerfile holds that it lays out what `make plugin` does: the binary, and
// the mount points of config.json.
func TestDockerfile(t *testing.T) {
	b := newBed(t)
	if out, err := b.make("plugin"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var want []string
	laid := filepath.Join(b.dir, "plugin/rootfs")
	if err := filepath.WalkDir(laid, func(path string, _ fs.DirEntry, err error) error {
		want = append(want, strings.TrimPrefix(path, laid))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	dockerfile, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	got := []string{""} // the root
	for line := range strings.Lines(string(dockerfile)) {
		words := strings.Fields(line)
		switch {
		case len(words) > 1 && words[0] == "FROM" && words[1] != "scratch":
			t.Errorf("not from scratch: %s", line)
		case len(words) > 0 && (words[0] == "COPY" || words[0] == "WORKDIR"):
			for path := words[len(words)-1]; path != "/"; path = filepath.Dir(path) {
				got = append(got, path)
			}
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("the Dockerfile makes %q, make plugin %q", got, want)
	}
}

// TestInstall: the command is in place, and launches itself with what SET says,
// as it was typed.
func TestInstall(t *testing.T) {
	const set = `WEAVE_PASSWORD=$HOME"$(date)'*\$a&;#!  WEAVE_PEERS=a,b:7000`
	b := newBed(t)
	if out, err := b.make("install", "SET="+set); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.wantCall("launch", "--set", set)
	if info, err := os.Stat(filepath.Join(b.dir, "bin/weave")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("command: %v, %v", info, err)
	}
	if !b.has("share/man/man1/weave.1") {
		t.Error("no man page")
	}
	b.write("fails", "")
	if out, err := b.make("install"); err == nil {
		t.Errorf("launch failed, make did not: %s", out)
	}
}

// TestUninstall: the command goes if the plugin does, and may be gone already.
func TestUninstall(t *testing.T) {
	b := newBed(t)
	if out, err := b.make("install"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.calls()
	b.write("fails", "")
	if out, err := b.make("uninstall"); err == nil || !b.has("bin/weave") {
		t.Errorf("there is a network: %v\n%s", err, out)
	}
	b.wantCall("stop", "--remove")
	if err := os.Remove(filepath.Join(b.dir, "fails")); err != nil {
		t.Fatal(err)
	}
	for _, time := range []string{"first", "second"} {
		if out, err := b.make("uninstall", "FORCE=1"); err != nil || b.has("bin/weave") || b.has("share/man/man1/weave.1") {
			t.Fatalf("%s time: %v\n%s", time, err, out)
		}
		b.wantCall("stop", "--remove", "--force")
	}
}
