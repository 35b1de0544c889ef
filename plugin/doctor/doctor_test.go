package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weave"
	"weave/plugin/config"
	"weave/plugin/control"
	"weave/plugin/engine"
)

// fakeEngine is a Docker Engine; it answers err while that is set.
type fakeEngine struct {
	version engine.Version
	plugins []engine.Plugin
	err     error
}

func (f *fakeEngine) Version(context.Context) (engine.Version, error)  { return f.version, f.err }
func (f *fakeEngine) Plugins(context.Context) ([]engine.Plugin, error) { return f.plugins, f.err }

var entrypoint = []string{"/weave", "daemon"}

// world is a host on which all is well, until a test changes it.
type world struct {
	engine fakeEngine
	host   Host
	answer Answer
}

const mounts = `20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
21 20 0:20 / /run rw,nosuid shared:5 - tmpfs tmpfs rw
22 20 0:21 / /runner rw - tmpfs tmpfs rw
23 21 0:22 / /run/lock rw - tmpfs tmpfs rw
`

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		engine: fakeEngine{
			version: engine.Version{Version: "28.1", API: "1.49", Kernel: "6.1"},
			plugins: []engine.Plugin{{Name: "other", Enabled: true, Entrypoint: []string{"/other"}}, {Name: "weavenet:latest", Enabled: true, Entrypoint: entrypoint}},
		},
		answer: Answer{Command: "1.2", Version: "1.2"},
	}
	w.host = Host{engine: &w.engine, tun: "/dev/null", mounts: filepath.Join(t.TempDir(), "mounts"), run: "/run"}
	w.mounted(t, mounts)
	return w
}

func (w *world) mounted(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(w.host.mounts, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (w *world) silent() { w.answer.Version, w.answer.Err = "", control.ErrNotRunning }

func TestExamine(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*world)
		want   []string // what is not well, as "name verdict: words of what was found -> way out"
	}{
		"well": {func(*world) {}, nil},
		"disabled": {func(w *world) { w.silent(); w.engine.plugins[1].Enabled = false },
			[]string{"plugin failed: plugin weavenet:latest is disabled -> docker plugin enable weavenet:latest"}},
		"not installed":  {func(w *world) { w.silent(); w.engine.plugins = w.engine.plugins[:1] }, []string{"plugin failed: not installed -> weave launch"}},
		"as a service":   {func(w *world) { w.engine.plugins = nil }, nil},
		"enabled, mute":  {(*world).silent, []string{"plugin failed: does not answer -> docker plugin disable -f weavenet:latest"}},
		"old":            {func(w *world) { w.answer.Err = control.ErrOld }, []string{"plugin warning: too old -> upgrade"}},
		"broken":         {func(w *world) { w.answer.Err = errors.New("no list") }, []string{"plugin failed: no list -> log"}},
		"other version":  {func(w *world) { w.answer.Version = "1.1" }, []string{"plugin warning: it is 1.1, this command 1.2 -> same version"}},
		"no root":        {func(w *world) { w.silent(); w.answer.Err, w.engine.err = control.ErrPermission, fs.ErrPermission }, []string{"engine not known: may not -> sudo", "plugin not known: only root -> sudo"}},
		"no engine":      {func(w *world) { w.silent(); w.engine.err = errors.New("refused") }, []string{"engine failed: refused -> systemctl start docker", "plugin failed: does not answer -> Docker Engine first"}},
		"old engine":     {func(w *world) { w.engine.version.API = "1.40" }, []string{"engine failed: too old -> 20.10"}},
		"engine is away": {func(w *world) { w.host.engine = nil }, []string{"engine not known: DOCKER_HOST -> on that host"}},
		"no tun":         {func(w *world) { w.host.tun = "/dev/no-tun" }, []string{"tun failed: no /dev/no-tun -> modprobe tun"}},
		"odd tun":        {func(w *world) { w.host.tun = "/etc" }, []string{"tun failed: no device -> modprobe"}},
		"private":        {func(w *world) { w.mounted(t, strings.Replace(mounts, "shared:5 ", "", 1)) }, []string{"mounts warning: private -> make-rshared"}},
		"slave":          {func(w *world) { w.mounted(t, strings.Replace(mounts, "shared:5", "master:5", 1)) }, nil},
		"part of root": {func(w *world) {
			w.mounted(t, strings.Split(mounts, "\n")[0]+"\n24 20 0:23 / /ru rw - tmpfs tmpfs rw\n")
		}, nil},
		"odd mounts": {func(w *world) { w.mounted(t, "x\n") }, []string{"mounts not known: names no mount -> "}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.change(w)
			var bad []control.Check
			for _, c := range w.host.Examine(t.Context(), w.answer) {
				if c.Verdict != control.OK {
					bad = append(bad, c)
				}
			}
			if len(bad) != len(test.want) {
				t.Fatalf("found %+v", bad)
			}
			for i, want := range test.want {
				head, rest, _ := strings.Cut(want, ": ")
				found, do, _ := strings.Cut(rest, " -> ")
				if got := bad[i]; fmt.Sprintf("%s %s", got.Name, got.Verdict) != head || !strings.Contains(got.Found, found) || !strings.Contains(got.Do, do) {
					t.Errorf("%+v, want %s", got, want)
				}
			}
		})
	}
}

// TestNoSecretInFacts: what is set is told, what is secret is not, whatever the
// setting is called.
func TestNoSecretInFacts(t *testing.T) {
	w := newWorld(t)
	w.engine.plugins[1].Env = []string{
		"WEAVE_PASSWORD=sesame-1", "WEAVE_PROXY=http://mole:sesame-2@proxy.example.org:3128", "WEAVE_PEERS=host1,host2",
		"WEAVE_OF_TOMORROW=sesame-3", "WEAVE_MTU=", "odd",
	}
	b, err := json.Marshal(w.host.Facts(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"sesame", "mole"} {
		if strings.Contains(string(b), secret) {
			t.Errorf("%q is in %s", secret, b)
		}
	}
	for _, want := range []string{`"WEAVE_PEERS":"host1,host2"`, `"WEAVE_PROXY":"http://proxy.example.org:3128"`, `"WEAVE_PASSWORD":"(set, not shown)"`, `"WEAVE_OF_TOMORROW":"(set, not shown)"`, `"28.1"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s is not in %s", want, b)
		}
	}
	if strings.Contains(string(b), "WEAVE_MTU") {
		t.Error("an empty setting is shown as set")
	}
	if settings, _ := public([]string{"WEAVE_PROXY=:sesame:"}); settings["WEAVE_PROXY"] != hidden {
		t.Errorf("an odd proxy is shown: %v", settings)
	}
}

// TestHide: what a setting hides is hidden in the log, too.
func TestHide(t *testing.T) {
	w := newWorld(t)
	w.engine.plugins[1].Env = []string{"WEAVE_PROXY=http://mole:mole%212@proxy.example.org:3128"}
	got := w.host.Facts(t.Context()).Hide("bad proxy http://mole:mole%212@proxy, password mole!2, or mole%212, of mole")
	if got != "bad proxy http://***@proxy, password ***, or ***, of ***" {
		t.Error(got)
	}
}

// TestEverySetting: whether a report shows it has been thought of for each.
func TestEverySetting(t *testing.T) {
	var declared struct{ Env []struct{ Name string } }
	if err := json.Unmarshal(weave.ConfigJSON, &declared); err != nil || len(declared.Env) == 0 {
		t.Fatal(err)
	}
	secret := []string{config.Password, config.Proxy}
	for _, e := range declared.Env {
		if slices.Contains(shown(), e.Name) == slices.Contains(secret, e.Name) {
			t.Errorf("%s is neither shown nor secret, or both", e.Name)
		}
	}
}

func TestNew(t *testing.T) {
	for from, local := range map[string]bool{"": true, "unix:///run/d.sock": true, "tcp://192.0.2.1:2375": false} {
		if h := New(from); (h.engine != nil) != local {
			t.Errorf("%q: %+v", from, h)
		}
	}
}
