package managed

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weave/plugin/config"
)

// TestCreate: what Docker is given to make the plugin of, in which order it is
// told the rest, and that the next launch has nothing to do.
func TestCreate(t *testing.T) {
	b := newBed(t)
	if err := os.Mkdir(b.saved, 0o755); err != nil { // by somebody who did not think of others
		t.Fatal(err)
	}
	b.must(Settings{"WEAVE_PEERS": "h1,h2:7000"}, "a secret", Created)
	b.wantCalls("create "+Name, "set WEAVE_PASSWORD_FILE=password WEAVE_PEERS=h1,h2:7000 state.source="+b.lib, "enable")
	b.wantFiles(map[string]string{PasswordFile: "a secret\n"})
	if info, err := os.Stat(b.saved); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", info, err)
	}

	files := slices.Sorted(maps.Keys(b.engine.files))
	var c struct {
		Mounts []struct{ Destination string }
	}
	if err := json.Unmarshal([]byte(b.engine.files["config.json"]), &c); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Mounts {
		if !slices.Contains(files, "rootfs"+m.Destination+"/") {
			t.Errorf("no folder to mount %s on: %q", m.Destination, files)
		}
	}
	if b.engine.files["rootfs/weave"] != "this program" || !slices.Contains(files, "rootfs/run/docker/plugins/") {
		t.Errorf("the archive has %q", b.engine.files)
	}
	if !strings.Contains(b.engine.files["config.json"], `"name":"WEAVE_BINARY"`) {
		t.Errorf("config.json: %s", b.engine.files["config.json"])
	}

	b.must(nil, "", Unchanged)
	b.must(Settings{"WEAVE_PEERS": "h1,h2:7000"}, "a secret", Unchanged)
	b.wantCalls()
	b.engine.plugin.Enabled = false
	b.must(nil, "", Started)
	b.wantCalls("enable")
}

// TestUpgradeKeepsSettings also holds that settings with spaces and quotes
// survive, and that the file they were kept in does not.
func TestUpgradeKeepsSettings(t *testing.T) {
	b := newBed(t)
	odd := `it's $HOME "a" \ b=c`
	b.install(Settings{"WEAVE_PASSWORD": odd, "WEAVE_PEERS": "a b,c"})
	b.must(Settings{"WEAVE_MTU": "1400"}, "", Replaced)
	b.wantCalls("disable -f", "rm -f", "create "+Name, "set WEAVE_MTU=1400 WEAVE_PASSWORD="+odd+" WEAVE_PEERS=a b,c state.source="+b.lib, "enable")
	b.wantFiles(map[string]string{})
}

// TestChange: the same binary is not replaced, and gets what differs.
func TestChange(t *testing.T) {
	b := newBed(t)
	b.must(Settings{"WEAVE_PEERS": "old", "WEAVE_PASSWORD": "direct"}, "", Created)
	b.wantFiles(map[string]string{PasswordFile: "direct\n"})
	b.must(Settings{"WEAVE_PEERS": "new", "WEAVE_MTU": "1400"}, "", Changed)
	b.wantCalls("disable -f", "set WEAVE_MTU=1400 WEAVE_PEERS=new", "enable")
	b.must(Settings{"WEAVE_MTU": ""}, "other", Changed)
	b.wantCalls("disable -f", "set WEAVE_MTU=", "enable")
	b.wantFiles(map[string]string{PasswordFile: "other\n"})
	b.must(nil, "third", Changed) // the file alone needs a start as well
	b.wantCalls("disable -f", "enable")
}

// TestPasswordOfAnotherKind: the two ways to set one exclude each other.
func TestPasswordOfAnotherKind(t *testing.T) {
	b := newBed(t)
	b.install(Settings{"WEAVE_PASSWORD": "shown to all"})
	if err := writeFile(b.saved, "mine", []byte("secret\n")); err != nil {
		t.Fatal(err)
	}
	b.must(Settings{"WEAVE_PASSWORD_FILE": "mine"}, "", Replaced)
	if s, err := b.State(t.Context()); err != nil || s.settings["WEAVE_PASSWORD"] != "" || s.settings["WEAVE_PASSWORD_FILE"] != "mine" {
		t.Errorf("%v, %v", s.settings, err)
	}
}

// TestRefusedBefore: what cannot work is refused before anything is touched.
func TestRefusedBefore(t *testing.T) {
	for name, test := range map[string]struct {
		old, set       Settings
		password, want string
	}{
		"bad setting":      {nil, Settings{"WEAVE_MTU": "12"}, "", "WEAVE_MTU=12"},
		"bad peer":         {nil, Settings{"WEAVE_PEERS": "h1:0"}, "", "WEAVE_PEERS"},
		"long password":    {nil, nil, strings.Repeat("x", config.MaxPassword+1), "1025 bytes"},
		"no password file": {nil, Settings{"WEAVE_PASSWORD_FILE": "none"}, "", "no such file"},
		"later setting":    {Settings{"WEAVE_MAGIC": "on"}, nil, "", "WEAVE_MAGIC is set, and this version does not have it"},
		"relative folder":  {nil, Settings{stateSource: "lib"}, "", "no absolute path"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.install(test.old)
			_, err := b.launch(test.set, test.password)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "nothing was changed") {
				t.Errorf("%v", err)
			}
			b.wantCalls()
			b.wantFiles(map[string]string{})
		})
	}
}

func TestRefusedHosts(t *testing.T) {
	b := newBed(t)
	b.tun = filepath.Join(b.lib, "tun")
	if _, err := b.launch(nil, ""); !errors.Is(err, ErrNoTUN) {
		t.Errorf("no TUN: %v", err)
	}
	b = newBed(t)
	b.install(nil)
	b.engine.plugin.Config.Entrypoint = []string{"/other"}
	if _, err := b.launch(nil, ""); !errors.Is(err, ErrNotOurs) {
		t.Errorf("another plugin: %v", err)
	}
	if err := b.Remove(t.Context()); !errors.Is(err, ErrNotOurs) {
		t.Errorf("another plugin: %v", err)
	}
	b.wantCalls()
}

// TestCreateFails: nothing is left of a plugin that does not come to life.
func TestCreateFails(t *testing.T) {
	for _, fails := range []string{"create", "set", "enable"} {
		b := newBed(t)
		b.engine.fails = []string{fails}
		_, err := b.launch(Settings{"WEAVE_PEERS": "h1"}, "secret")
		if err == nil || !strings.Contains(err.Error(), "not installed") || strings.Contains(err.Error(), "not found") {
			t.Errorf("%s: %v", fails, err)
		}
		if b.engine.plugin != nil {
			t.Errorf("%s: there is a plugin", fails)
		}
		b.wantFiles(map[string]string{})
	}
}

// TestRemovalFails: the old plugin runs on with what it had.
func TestRemovalFails(t *testing.T) {
	for _, fails := range []string{"disable", "rm"} {
		b := newBed(t)
		b.install(Settings{"WEAVE_PEERS": "old"})
		b.engine.fails = []string{fails}
		if _, err := b.launch(nil, "secret"); err == nil || !b.engine.plugin.Enabled {
			t.Errorf("%s: %v, plugin %+v", fails, err, b.engine.plugin)
		}
		b.wantFiles(map[string]string{})
	}
	b := newBed(t)
	b.install(nil)
	b.engine.fails = []string{"rm", "enable"}
	if _, err := b.launch(nil, ""); err == nil || !strings.Contains(err.Error(), "disabled") {
		t.Errorf("it does not say that the plugin is disabled: %v", err)
	}
}

// TestFailedUpgrade holds that settings are not lost where Docker fails: the
// next launch goes on with them.
func TestFailedUpgrade(t *testing.T) {
	for _, fails := range []string{"create", "set", "enable"} {
		b := newBed(t)
		b.install(Settings{"WEAVE_PEERS": "old"})
		b.engine.fails = []string{fails}
		if _, err := b.launch(Settings{"WEAVE_MTU": "1400"}, "new secret"); err == nil || !strings.Contains(err.Error(), "`weave launch` goes on") {
			t.Fatalf("%s failed: %v", fails, err)
		}
		if _, err := b.Launch(t.Context(), Request{}); err != nil {
			t.Fatalf("%s: launch again: %v", fails, err)
		}
		s, err := b.State(t.Context())
		if err != nil || !s.Enabled || s.settings["WEAVE_PEERS"] != "old" || s.settings["WEAVE_MTU"] != "1400" {
			t.Errorf("%s: afterwards %+v, %v", fails, s, err)
		}
		b.wantFiles(map[string]string{PasswordFile: "new secret\n"})
	}
}

// TestFailedChange: settings and password are back.
func TestFailedChange(t *testing.T) {
	for _, fails := range []string{"disable", "set", "enable"} {
		b := newBed(t)
		b.must(Settings{"WEAVE_PEERS": "old"}, "secret", Created)
		b.engine.fails = []string{fails}
		if _, err := b.launch(Settings{"WEAVE_PEERS": "new"}, "other"); err == nil {
			t.Fatalf("%s failed, launch did not", fails)
		}
		s, err := b.State(t.Context())
		if err != nil || !s.Enabled || s.settings["WEAVE_PEERS"] != "old" {
			t.Errorf("%s: afterwards %+v, %v", fails, s, err)
		}
		b.wantFiles(map[string]string{PasswordFile: "secret\n"})
	}
}

// TestPasswordIsThereAtStart: the plugin reads it only then.
func TestPasswordIsThereAtStart(t *testing.T) {
	b := newBed(t)
	starts := 0
	b.engine.atStart = func() {
		starts++
		b.wantFiles(map[string]string{PasswordFile: "secret\n"})
	}
	b.must(nil, "secret", Created)
	if starts != 1 {
		t.Errorf("started %d times", starts)
	}
}

// TestSettingsAreSaved: while the plugin is away, a power cut loses nothing.
func TestSettingsAreSaved(t *testing.T) {
	b := newBed(t)
	b.install(Settings{"WEAVE_PEERS": "old"})
	b.engine.atStart = func() {
		if s, err := b.savedSettings(); err != nil || s["WEAVE_PEERS"] != "old" {
			t.Errorf("saved %v, %v", s, err)
		}
	}
	b.must(nil, "", Replaced)
	if err := writeFile(b.saved, savedName, []byte("{")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.launch(nil, ""); err == nil || !strings.Contains(err.Error(), savedName) {
		t.Errorf("half a file: %v", err)
	}
}

// TestParseSettings: words are taken as they are, and none is shown that sets
// nothing.
func TestParseSettings(t *testing.T) {
	const odd = `WEAVE_PASSWORD=$HOME"$(date)'*\$a&;#!`
	s, err := ParseSettings(odd + "  WEAVE_PEERS=a,b:7000 state.source=/srv")
	want := Settings{"WEAVE_PASSWORD": strings.TrimPrefix(odd, "WEAVE_PASSWORD="), "WEAVE_PEERS": "a,b:7000", "state.source": "/srv"}
	if err != nil || !maps.Equal(s, want) {
		t.Errorf("%q, %v", s, err)
	}
	for _, words := range []string{"WEAVE_PEERS=a b", "WEAVE_PASWORD=secret", "WEAVE_MTU", "weave.db=x", "=", "WEAVE_PASSWORD=a secret", "run.source=/", "WEAVE_BINARY=0"} {
		_, err := ParseSettings(words)
		if err == nil || !strings.Contains(err.Error(), "nothing was changed") || !strings.Contains(err.Error(), "WEAVE_PEERS=host1,host2") {
			t.Errorf("%q: %v", words, err)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q is shown: %v", words, err)
		}
	}
}

// TestNoRoom: a plugin is not removed for one that Docker's disk does not take.
func TestNoRoom(t *testing.T) {
	b := newBed(t)
	b.install(nil)
	b.engine.free = 1
	if _, err := b.launch(nil, ""); err == nil || !strings.Contains(err.Error(), "nothing was changed: the plugin takes 0 MB of Docker's disk, and 0 MB are free in /var/lib/docker: make room") {
		t.Errorf("got %v", err)
	}
	if len(b.engine.calls) > 0 {
		t.Errorf("changed: %q", b.engine.calls)
	}
}
