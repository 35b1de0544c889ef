package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"

	"weave/plugin/config"
)

// TestConfigJSON holds that the managed plugin declares what the daemon counts
// on: each setting, its socket, and where the host's folders are mounted.
func TestConfigJSON(t *testing.T) {
	b, err := os.ReadFile("../config.json")
	if err != nil {
		t.Fatal(err)
	}
	var plugin struct {
		Entrypoint []string
		Interface  struct {
			Types  []string
			Socket string
		}
		Network struct{ Type string }
		Mounts  []struct{ Destination string }
		Env     []struct {
			Name, Description, Value string
			Settable                 []string
		}
	}
	if err := json.Unmarshal(b, &plugin); err != nil {
		t.Fatal(err)
	}
	var env []string
	for _, e := range plugin.Env {
		env = append(env, e.Name)
		if e.Description == "" || e.Value != "" || !slices.Equal(e.Settable, []string{"value"}) {
			t.Errorf("%s: want a description, no value (defaults are in package config), settable", e.Name)
		}
	}
	slices.Sort(env)
	settings := []string{
		config.Password, config.PasswordFile, config.Peers, config.Port, config.Address,
		config.Nickname, config.IPAllocRange, config.MTU, config.LogLevel,
	}
	slices.Sort(settings)
	if !slices.Equal(env, settings) {
		t.Errorf("settings %v, want %v", env, settings)
	}
	var mounts []string
	for _, m := range plugin.Mounts {
		mounts = append(mounts, m.Destination)
	}
	if want := []string{"/host/run", "/host/var/lib"}; !slices.Equal(mounts, want) {
		t.Errorf("mounts %v, want %v", mounts, want)
	}
	if want := []string{"docker.networkdriver/1.0", "docker.ipamdriver/1.0"}; !slices.Equal(plugin.Interface.Types, want) {
		t.Errorf("interface types %v, want %v", plugin.Interface.Types, want)
	}
	managed := (config.Config{Run: "/host/run"}).PluginSockets()[0]
	if filepath.Base(managed) != plugin.Interface.Socket {
		t.Errorf("socket %s, the daemon listens on %s", plugin.Interface.Socket, managed)
	}
	if plugin.Network.Type != "host" || !slices.Equal(plugin.Entrypoint, []string{"/weave", "daemon"}) {
		t.Errorf("network %q, entrypoint %v", plugin.Network.Type, plugin.Entrypoint)
	}
}

// fakeDocker stands in for the docker command: it has one plugin when there is
// a file `there`, notes what changes something in `calls`, and fails what
// `fails` names.
const fakeDocker = `#!/bin/sh
cd "${0%/*}"
case "$2" in
inspect)
	[ -e there ] || exit 1
	[ "$3" != --format ] || cat settings
	exit 0;;
create) touch there;;
rm) rm there;;
esac
echo "$*" >>calls
! grep -qx -- "$2" fails 2>/dev/null
`

// runMake runs a target of the Makefile in dir, with the fake docker and what
// is built already.
func runMake(t *testing.T, dir, target string, more ...string) (string, error) {
	t.Helper()
	built := "plugin"
	if target == built {
		built = "build"
	}
	cmd := exec.Command("make", append([]string{"-f", "Makefile", "-o", built, target, "VERSION=1.2.3", "SUDO=", "BUILD=build",
		"DOCKER=" + filepath.Join(dir, "docker"), "PREFIX=" + filepath.Join(dir, "usr")}, more...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=", "TMPDIR="+dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// makeDir lays out what the targets need, and files.
func makeDir(t *testing.T, files map[string]string) string {
	t.Helper()
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("no make here")
	}
	dir := t.TempDir()
	all := map[string]string{"docker": fakeDocker, "build/weave": "binary"}
	for _, name := range []string{"Makefile", "config.json", "test/test.mk"} {
		b, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(b)
	}
	for name, content := range files {
		all[name] = content
	}
	for name, content := range all {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestDockerfile holds that it lays out what `make plugin` does: the binary, and
// the mount points of config.json.
func TestDockerfile(t *testing.T) {
	dir := makeDir(t, map[string]string{"config.json": "{}"})
	if out, err := runMake(t, dir, "plugin"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var want []string
	root := filepath.Join(dir, "build/plugin/rootfs")
	if err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		want = append(want, strings.TrimPrefix(path, root))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	dockerfile, err := os.ReadFile("../Dockerfile")
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

func calls(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestInstall(t *testing.T) {
	dir := makeDir(t, nil)
	if out, err := runMake(t, dir, "install"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, want := calls(t, dir), "plugin create weavenet build/plugin\nplugin enable weavenet\n"; got != want {
		t.Errorf("docker was called with\n%swant\n%s", got, want)
	}
	if info, err := os.Stat(filepath.Join(dir, "usr/bin/weave")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("command: %v, %v", info, err)
	}
	if out, err := runMake(t, dir, "uninstall"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := runMake(t, dir, "uninstall"); err != nil {
		t.Fatalf("second time: %v\n%s", err, out)
	}
	if !strings.HasSuffix(calls(t, dir), "plugin disable -f weavenet\nplugin rm -f weavenet\n") {
		t.Errorf("docker was called with\n%s", calls(t, dir))
	}
	if _, err := os.Stat(filepath.Join(dir, "usr/bin/weave")); err == nil {
		t.Error("command is still there")
	}
}

// TestUpgradeKeepsSettings also holds that settings with spaces and quotes
// survive, and that the file they were kept in does not.
func TestUpgradeKeepsSettings(t *testing.T) {
	dir := makeDir(t, map[string]string{
		"there":    "",
		"settings": "WEAVE_PASSWORD=it's $HOME \"a\" \\ b=c\nWEAVE_PEERS=a b,c\nWEAVE_PORT=\n\nstate.source=/var/lib\n\n",
	})
	if out, err := runMake(t, dir, "install"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := `plugin disable -f weavenet
plugin rm -f weavenet
plugin create weavenet build/plugin
plugin set weavenet WEAVE_PASSWORD=it's $HOME "a" \ b=c
plugin set weavenet WEAVE_PEERS=a b,c
plugin set weavenet state.source=/var/lib
plugin enable weavenet
`
	if got := calls(t, dir); got != want {
		t.Errorf("docker was called with\n%swant\n%s", got, want)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "tmp.*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestSettingsTemplate renders what the Makefile asks Docker for with the types
// that Docker's command has: the source of a mount is a pointer.
func TestSettingsTemplate(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
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

// TestInstallSets holds that SET overrides what was set before.
func TestInstallSets(t *testing.T) {
	dir := makeDir(t, map[string]string{"there": "", "settings": "WEAVE_PEERS=a\n"})
	if out, err := runMake(t, dir, "install", "SET=WEAVE_PEERS=b WEAVE_MTU=1400"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := `plugin disable -f weavenet
plugin rm -f weavenet
plugin create weavenet build/plugin
plugin set weavenet WEAVE_PEERS=a
plugin set weavenet WEAVE_PEERS=b
plugin set weavenet WEAVE_MTU=1400
plugin enable weavenet
`
	if got := calls(t, dir); got != want {
		t.Errorf("docker was called with\n%swant\n%s", got, want)
	}
}

// TestFailedUpgrade holds that settings are not lost where Docker fails.
func TestFailedUpgrade(t *testing.T) {
	for _, verb := range []string{"create", "set"} {
		dir := makeDir(t, map[string]string{"there": "", "settings": "WEAVE_PEERS=a\n", "fails": verb})
		out, err := runMake(t, dir, "install")
		if err == nil {
			t.Fatalf("%s failed, make did not:\n%s", verb, out)
		}
		left, _ := filepath.Glob(filepath.Join(dir, "tmp.*"))
		if len(left) != 1 || !strings.Contains(out, left[0]) {
			t.Fatalf("%s: kept %v, said\n%s", verb, left, out)
		}
		if b, err := os.ReadFile(left[0]); err != nil || string(b) != "WEAVE_PEERS=a\n" {
			t.Errorf("%s: kept %q, %v", verb, b, err)
		}
	}
}
