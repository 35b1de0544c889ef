package managed

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/plugin"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"go.uber.org/goleak"

	"weave/plugin/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeEngine has one plugin or none. It notes the calls that change something,
// and fails those that begin with the words of fails, once for each.
type fakeEngine struct {
	t       *testing.T
	plugin  *plugin.Plugin
	calls   []string
	fails   []string
	files   map[string]string // of the archive of the last plugin that was made
	atStart func()            // called when the plugin is enabled
	nets    []engine.Network
	free    uint64 // bytes on its disk
}

func (e *fakeEngine) Info(context.Context, client.InfoOptions) (client.SystemInfoResult, error) {
	return client.SystemInfoResult{Info: system.Info{DockerRootDir: "/var/lib/docker"}}, nil
}

func (e *fakeEngine) do(ctx context.Context, words ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	call := strings.Join(words, " ")
	e.calls = append(e.calls, call)
	for i, f := range e.fails {
		if strings.HasPrefix(call, f) {
			e.fails = slices.Delete(e.fails, i, i+1)
			return errors.New("no luck with " + f)
		}
	}
	if words[0] != "create" && !strings.HasPrefix(words[0], "network") && e.plugin == nil {
		return errdefs.ErrNotFound
	}
	return nil
}

func (e *fakeEngine) PluginInspect(context.Context, string, client.PluginInspectOptions) (client.PluginInspectResult, error) {
	if e.plugin == nil {
		return client.PluginInspectResult{}, errdefs.ErrNotFound
	}
	return client.PluginInspectResult{Plugin: *e.plugin}, nil
}

func (e *fakeEngine) PluginCreate(ctx context.Context, r io.Reader, o client.PluginCreateOptions) (client.PluginCreateResult, error) {
	if err := e.do(ctx, "create", o.RepoName); err != nil {
		return client.PluginCreateResult{}, err
	}
	e.files = map[string]string{}
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		content, readErr := io.ReadAll(archive)
		if err != nil || readErr != nil {
			e.t.Fatal(err, readErr)
		}
		e.files[h.Name] = string(content)
	}
	sum, err := openArchive(writeTemp(e.t, e.files["rootfs/weave"]))
	if err != nil {
		e.t.Fatal(err)
	}
	sum.close()
	e.plugin = ours(sum.sum)
	return client.PluginCreateResult{}, nil
}

func (e *fakeEngine) PluginSet(ctx context.Context, _ string, o client.PluginSetOptions) (client.PluginSetResult, error) {
	if err := e.do(ctx, append([]string{"set"}, o.Args...)...); err != nil {
		return client.PluginSetResult{}, err
	}
	if e.plugin.Enabled {
		e.t.Error("set while it is enabled")
	}
	for _, arg := range o.Args {
		name, value, _ := strings.Cut(arg, "=")
		if mount, ok := strings.CutSuffix(name, sourceSuffix); ok {
			i := slices.IndexFunc(e.plugin.Settings.Mounts, func(m plugin.Mount) bool { return m.Name == mount })
			e.plugin.Settings.Mounts[i].Source = &value
			continue
		}
		e.plugin.Settings.Env = slices.DeleteFunc(e.plugin.Settings.Env, func(s string) bool { return strings.HasPrefix(s, name+"=") })
		e.plugin.Settings.Env = append(e.plugin.Settings.Env, arg)
	}
	return client.PluginSetResult{}, nil
}

func (e *fakeEngine) PluginEnable(ctx context.Context, _ string, _ client.PluginEnableOptions) (client.PluginEnableResult, error) {
	err := e.do(ctx, "enable")
	if err == nil {
		e.plugin.Enabled = true
		if e.atStart != nil {
			e.atStart()
		}
	}
	return client.PluginEnableResult{}, err
}

func (e *fakeEngine) PluginDisable(ctx context.Context, _ string, o client.PluginDisableOptions) (client.PluginDisableResult, error) {
	err := e.do(ctx, "disable", force(o.Force))
	if err == nil {
		e.plugin.Enabled = false
	}
	return client.PluginDisableResult{}, err
}

func (e *fakeEngine) PluginRemove(ctx context.Context, _ string, o client.PluginRemoveOptions) (client.PluginRemoveResult, error) {
	err := e.do(ctx, "rm", force(o.Force))
	if err == nil {
		e.plugin = nil
	}
	return client.PluginRemoveResult{}, err
}

func (e *fakeEngine) NetworkDisconnect(ctx context.Context, network string, o client.NetworkDisconnectOptions) (client.NetworkDisconnectResult, error) {
	return client.NetworkDisconnectResult{}, e.do(ctx, "network disconnect", force(o.Force), network, o.Container)
}

func (e *fakeEngine) NetworkRemove(ctx context.Context, network string, _ client.NetworkRemoveOptions) (client.NetworkRemoveResult, error) {
	return client.NetworkRemoveResult{}, e.do(ctx, "network rm", network)
}

// Networks leaves the endpoints out, as the engine does.
func (e *fakeEngine) Networks(context.Context) ([]engine.Network, error) {
	all := slices.Clone(e.nets)
	for i := range all {
		all[i].Endpoints = nil
	}
	return all, nil
}

func (e *fakeEngine) NetworkByID(_ context.Context, id string) (engine.Network, error) {
	for _, n := range e.nets {
		if n.ID == id {
			return n, nil
		}
	}
	return engine.Network{}, engine.ErrNotFound
}

func force(yes bool) string {
	if yes {
		return "-f"
	}
	return "gently"
}

// ours is the plugin as it is made, of a binary with that sum.
func ours(sum string) *plugin.Plugin {
	state := "/var/lib"
	p := &plugin.Plugin{ID: "0123abcd", Name: Name}
	p.Config.Entrypoint = []string{"/weave", "daemon"}
	for _, d := range AllSettings() {
		if strings.HasPrefix(d.Name, "WEAVE_") {
			p.Settings.Env = append(p.Settings.Env, d.Name+"=")
		}
	}
	p.Settings.Env = append(p.Settings.Env, binaryEnv+"="+sum)
	p.Settings.Mounts = []plugin.Mount{{Name: "run", Source: new(string)}, {Name: "state", Source: &state, Settable: []string{"source"}}}
	return p
}

func writeTemp(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// bed is a host with an engine, and a folder in the place of /var/lib.
type bed struct {
	*Plugin
	t      *testing.T
	engine *fakeEngine
	lib    string
}

// newBed has no plugin.
func newBed(t *testing.T) bed {
	t.Helper()
	lib := t.TempDir()
	e := &fakeEngine{t: t, free: 1 << 30}
	return bed{&Plugin{
		engine: e, networks: e, binary: writeTemp(t, "this program"), tun: os.DevNull, saved: filepath.Join(lib, "weave"), lock: filepath.Join(lib, "run", "lock"),
		free: func(dir string) (uint64, error) {
			if dir != "/var/lib/docker" {
				t.Errorf("asked for the disk of %s", dir)
			}
			return e.free, nil
		},
	}, t, e, lib}
}

// install has a plugin that runs, with settings, made of another binary.
func (b bed) install(settings Settings) {
	b.engine.plugin = ours("another one")
	b.engine.plugin.Enabled = true
	env := &b.engine.plugin.Settings.Env
	for name, value := range settings {
		*env = append(slices.DeleteFunc(*env, func(s string) bool { return s == name+"=" }), name+"="+value)
	}
	*b.engine.plugin.Settings.Mounts[1].Source = b.lib
}

// launch launches with the state below the bed's folder.
func (b bed) launch(set Settings, password string) (Outcome, error) {
	b.t.Helper()
	r := Request{Set: Settings{stateSource: b.lib}}
	maps.Copy(r.Set, set)
	if password != "" {
		r.Password = &password
	}
	return b.Launch(b.t.Context(), r)
}

func (b bed) must(set Settings, password string, want Outcome) {
	b.t.Helper()
	b.engine.calls = nil
	if got, err := b.launch(set, password); err != nil || got != want {
		b.t.Fatalf("outcome %d, %v; want %d", got, err, want)
	}
}

// wantCalls holds what was asked of the engine.
func (b bed) wantCalls(want ...string) {
	b.t.Helper()
	if !slices.Equal(b.engine.calls, want) {
		b.t.Errorf("the engine was asked\n%s\nwant\n%s", strings.Join(b.engine.calls, "\n"), strings.Join(want, "\n"))
	}
}

// wantFiles holds what is in the state folder.
func (b bed) wantFiles(want map[string]string) {
	b.t.Helper()
	got := map[string]string{}
	entries, err := os.ReadDir(b.saved)
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(b.saved, e.Name()))
		if err != nil {
			b.t.Fatal(err)
		}
		got[e.Name()] = string(content)
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			b.t.Errorf("%s: %v, %v", e.Name(), info, err)
		}
	}
	if !maps.Equal(got, want) {
		b.t.Errorf("files %q, want %q", got, want)
	}
}
