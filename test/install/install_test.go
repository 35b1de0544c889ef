// Package install tests what `make plugin` lays out, and what `make install` and
// `make uninstall` ask of Docker, on a command that only pretends to be Docker's;
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
	"text/template"
)

const root = "../.." // of the repository

// fakeDocker writes each call to the file calls, an argument to a line and an
// empty line at the end. It has the plugin if there is the file there, with the
// settings of the file settings, the networks of the file networks, and fails
// where its arguments begin with the words of the file fails.
const fakeDocker = `#!/bin/sh
cd "$(dirname "$0")"
printf '%s\n' "$@" '' >>calls
if [ -s fails ]; then case "$*" in "$(cat fails)"*) exit 1 ;; esac; fi
case "$1 $2" in
'plugin inspect') [ -e there ] || exit 1; [ "$3" != --format ] || cat settings ;;
'plugin create') touch there ;;
'plugin rm') rm there ;;
'network ls') echo id ;;
'network inspect') cat networks ;;
esac
`

type bed struct {
	t   *testing.T
	dir string
}

// newBed has the plugin, Docker's own network, and a binary that was compiled.
func newBed(t *testing.T) bed {
	t.Helper()
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("no make here")
	}
	b := bed{t, t.TempDir()}
	b.write("docker", fakeDocker)
	b.write("there", "")
	b.write("settings", "WEAVE_PEERS=old\n")
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

func (b bed) remove(name string) {
	b.t.Helper()
	if err := os.Remove(filepath.Join(b.dir, name)); err != nil {
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
	built := "plugin"
	if target == built {
		built = "build"
	}
	args := []string{"--no-print-directory", "-o", built, target, "VERSION=1.2.3", "SUDO=", "BUILD=" + b.dir, "PREFIX=" + b.dir, "DOCKER=" + filepath.Join(b.dir, "docker")}
	cmd := exec.CommandContext(b.t.Context(), "make", append(args, variables...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=", "TMPDIR="+b.dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// changes returns the calls of docker that change something, a line each.
func (b bed) changes() (all []string) {
	b.t.Helper()
	raw, err := os.ReadFile(filepath.Join(b.dir, "calls"))
	if err != nil {
		b.t.Fatal(err)
	}
	for call := range strings.SplitSeq(strings.TrimSuffix(string(raw), "\n\n"), "\n\n") {
		args := strings.Split(call, "\n")
		if args[1] != "inspect" && args[1] != "ls" {
			all = append(all, strings.Join(args, " "))
		}
	}
	return all
}

// wantChanges holds what make asked of Docker.
func (b bed) wantChanges(want ...string) {
	b.t.Helper()
	if got := b.changes(); !slices.Equal(got, want) {
		b.t.Errorf("docker was called with\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// saved returns the files in which settings were kept.
func (b bed) saved() []string {
	b.t.Helper()
	files, err := filepath.Glob(filepath.Join(b.dir, "tmp.*"))
	if err != nil {
		b.t.Fatal(err)
	}
	return files
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

func TestInstall(t *testing.T) {
	b := newBed(t)
	b.remove("there")
	if out, err := b.make("install"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.wantChanges("plugin create weavenet "+b.dir+"/plugin", "plugin enable weavenet")
	if info, err := os.Stat(filepath.Join(b.dir, "bin/weave")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("command: %v, %v", info, err)
	}
	b.remove("calls")
	for _, time := range []string{"first", "second"} {
		if out, err := b.make("uninstall"); err != nil {
			t.Fatalf("%s time: %v\n%s", time, err, out)
		}
	}
	b.wantChanges("plugin disable -f weavenet", "plugin rm -f weavenet")
	if b.has("bin/weave") {
		t.Error("command is still there")
	}
}

// TestUpgradeKeepsSettings also holds that settings with spaces and quotes
// survive, and that the file they were kept in does not.
func TestUpgradeKeepsSettings(t *testing.T) {
	b := newBed(t)
	b.write("settings", "WEAVE_PASSWORD=it's $HOME \"a\" \\ b=c\nWEAVE_PEERS=a b,c\nWEAVE_PORT=\n\nstate.source=/var/lib\n\n")
	if out, err := b.make("install"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.wantChanges(
		"plugin disable -f weavenet",
		"plugin rm -f weavenet",
		"plugin create weavenet "+b.dir+"/plugin",
		`plugin set weavenet WEAVE_PASSWORD=it's $HOME "a" \ b=c`,
		"plugin set weavenet WEAVE_PEERS=a b,c",
		"plugin set weavenet state.source=/var/lib",
		"plugin enable weavenet",
	)
	if left := b.saved(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestSettingsTemplate renders what the Makefile asks Docker for with the types
// that Docker's command has: the source of a mount is a pointer.
func TestSettingsTemplate(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(makefile), "\nSETTINGS := ")
	text, _, _ := strings.Cut(rest, "\n")
	if !found {
		t.Fatal("no SETTINGS in the Makefile")
	}
	type mount struct {
		Name     string
		Source   *string
		Settable []string
	}
	type settings struct {
		Env    []string
		Mounts []mount
	}
	run, state := "/run", "/var/lib"
	var out strings.Builder
	err = template.Must(template.New("").Parse(text)).Execute(&out, struct{ Settings settings }{settings{
		Env:    []string{"WEAVE_PEERS=a b", "WEAVE_PORT="},
		Mounts: []mount{{"run", &run, nil}, {"state", &state, []string{"source"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "WEAVE_PEERS=a b\nWEAVE_PORT=\nstate.source=/var/lib\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestSet: settings reach Docker as they were typed, after those from before.
func TestSet(t *testing.T) {
	const odd = `WEAVE_PASSWORD=$HOME"$(date)'*\$a&;#!`
	b := newBed(t)
	if out, err := b.make("install", "SET="+odd+"  WEAVE_PEERS=a,b:7000 state.source=/srv"); err != nil {
		t.Fatal(err, out)
	}
	b.wantChanges(
		"plugin disable -f weavenet",
		"plugin rm -f weavenet",
		"plugin create weavenet "+b.dir+"/plugin",
		"plugin set weavenet WEAVE_PEERS=old",
		"plugin set weavenet "+odd,
		"plugin set weavenet WEAVE_PEERS=a,b:7000",
		"plugin set weavenet state.source=/srv",
		"plugin enable weavenet",
	)
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
			t.Errorf("SET=%q: docker was called: %q", set, b.changes())
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
	if saved := b.saved(); len(saved) != 1 || !strings.Contains(out, saved[0]) {
		t.Errorf("settings are in %q\n%s", saved, out)
	}
	if out, err := b.make("uninstall"); err == nil || !strings.Contains(out, "docker plugin enable weavenet") || !b.has("there") {
		t.Errorf("uninstall: %v, %s", err, out)
	}
}

// TestFailedUpgrade holds that settings are not lost where Docker fails.
func TestFailedUpgrade(t *testing.T) {
	for _, fails := range []string{"plugin create", "plugin set"} {
		b := newBed(t)
		b.write("fails", fails)
		out, err := b.make("install")
		if err == nil {
			t.Fatalf("%s failed, make did not:\n%s", fails, out)
		}
		left := b.saved()
		if len(left) != 1 || !strings.Contains(out, left[0]) {
			t.Fatalf("%s: kept %v, said\n%s", fails, left, out)
		}
		if kept, err := os.ReadFile(left[0]); err != nil || string(kept) != "WEAVE_PEERS=old\n" {
			t.Errorf("%s: kept %q, %v", fails, kept, err)
		}
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
	if !b.has("there") {
		t.Fatal("the plugin is removed")
	}
	if out, err := b.make("uninstall", "FORCE=1"); err != nil || b.has("there") {
		t.Errorf("FORCE=1: %v, %s", err, out)
	}
	b.write("there", "")
	b.write("networks", "bridge bridge default\n")
	if out, err := b.make("uninstall"); err != nil || b.has("there") {
		t.Errorf("without networks: %v, %s", err, out)
	}
}
