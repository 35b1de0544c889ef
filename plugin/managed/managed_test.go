package managed

import (
	"context"
	"debug/elf"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weave/plugin/engine"
)

func TestStop(t *testing.T) {
	b := newBed(t)
	if ran, err := b.Stop(t.Context()); ran || err != nil {
		t.Errorf("without a plugin: %v, %v", ran, err)
	}
	b.install(nil)
	if ran, err := b.Stop(t.Context()); !ran || err != nil {
		t.Errorf("%v, %v", ran, err)
	}
	if ran, err := b.Stop(t.Context()); ran || err != nil {
		t.Errorf("again: %v, %v", ran, err)
	}
	b.wantCalls("disable -f")
}

func TestRemove(t *testing.T) {
	b := newBed(t)
	b.install(nil)
	for range 2 {
		if err := b.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	b.wantCalls("disable -f", "rm -f")
}

// TestChangeIsFinished: whoever loses his patience halfway is not left without
// the plugin.
func TestChangeIsFinished(t *testing.T) {
	b := newBed(t)
	b.install(nil)
	ctx, cancel := context.WithCancel(t.Context())
	outcome, err := b.Launch(ctx, Request{Set: Settings{stateSource: b.lib}, Step: func(string) { cancel() }})
	if outcome != Replaced || err != nil || !b.engine.plugin.Enabled {
		t.Errorf("%d, %v", outcome, err)
	}
}

// TestNetworks: those that have the plugin as their driver, or for their
// addresses, by whatever of its names.
func TestNetworks(t *testing.T) {
	b := newBed(t)
	add := func(name, driver, ipam string, endpoints ...engine.Endpoint) {
		b.engine.nets = append(b.engine.nets, engine.Network{ID: "id-" + name, Name: name, Driver: driver, IPAM: engine.IPAM{Driver: ipam}, Endpoints: endpoints})
	}
	add("bridge", "bridge", "default", engine.Endpoint{ContainerID: "c0", ContainerName: "other"})
	add("weave", "bridge", "default")
	add("own", "weave", "default", engine.Endpoint{ContainerID: "c1", ContainerName: "web"}, engine.Endpoint{}, engine.Endpoint{ContainerID: "c2", ContainerName: "db"})
	add("lan", "macvlan", "weave")
	add("old", "weavenet:latest", "weavenet:latest")
	all, err := b.Networks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range all {
		names = append(names, n.Name)
	}
	if want := []string{"lan", "old", "own"}; !slices.Equal(names, want) || !slices.Equal(all[2].Containers, []string{"db", "web"}) {
		t.Fatalf("%+v", all)
	}
	if err := b.RemoveNetwork(t.Context(), all[2]); err != nil {
		t.Error(err)
	}
	b.wantCalls("network disconnect -f id-own db", "network disconnect -f id-own web", "network rm id-own")
}

// TestWipe: all goes that is in the state folder, wherever that is, and nothing
// that it only points to.
func TestWipe(t *testing.T) {
	b := newBed(t)
	b.must(nil, "secret", Created)
	outside := filepath.Join(b.lib, "outside")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(b.saved, "folder", "deep"), 0o700), os.WriteFile(outside, nil, 0o600),
		os.Symlink(b.lib, filepath.Join(b.saved, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := b.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.saved = filepath.Join(b.lib, "nowhere")
	if some, err := b.Wipe(s); err != nil || !some {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(b.lib, "weave")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}

// TestNeedsLibraries: a plugin has none.
func TestNeedsLibraries(t *testing.T) {
	const sh = "/bin/sh"
	f, err := elf.Open(sh)
	if err != nil {
		t.Skip(err)
	}
	libraries, err := f.ImportedLibraries()
	if err := errors.Join(err, f.Close()); err != nil || len(libraries) == 0 {
		t.Skip(sh, "needs none here", err)
	}
	if _, err := openArchive(sh); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("%v", err)
	}
}

// TestOpen: which hosts are none to launch weave on.
func TestOpen(t *testing.T) {
	if os.Geteuid() != 0 {
		if _, err := Open(t.Context()); !errors.Is(err, ErrNotRoot) {
			t.Errorf("not root: %v", err)
		}
		t.Skip("the rest needs root")
	}
	path := filepath.Join(t.TempDir(), "docker.sock")
	t.Setenv("DOCKER_HOST", "unix://"+path)
	if _, err := Open(t.Context()); !errors.Is(err, ErrNoEngine) {
		t.Errorf("no socket: %v", err)
	}
	api := "1.40"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Api-Version", api)
		w.Header().Set("Connection", "close")
	})}
	ended := make(chan error)
	go func() { ended <- server.Serve(l) }()
	defer func() {
		_ = server.Close()
		<-ended
	}()
	if _, err := Open(t.Context()); !errors.Is(err, ErrOldEngine) {
		t.Errorf("API %s: %v", api, err)
	}
	api = "1.41"
	if _, err := Open(t.Context()); err != nil {
		t.Errorf("API %s: %v", api, err)
	}
	t.Setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
	if _, err := Open(t.Context()); !errors.Is(err, ErrRemote) {
		t.Errorf("remote: %v", err)
	}
}
