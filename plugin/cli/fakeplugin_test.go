package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"weave/plugin/managed"
)

// fakePlugin is the managed plugin of a script: it is there if there is a file
// there, it runs if there is a file enabled, networks has a network and its
// containers to a line, and calls gets what is asked of it.
type fakePlugin struct{}

// openFake fails as the file no-engine says.
func openFake() (Plugin, error) {
	for name, err := range map[string]error{
		"not-root": managed.ErrNotRoot, "no-engine": managed.ErrNoEngine, "remote": managed.ErrRemote,
		"old-engine": managed.ErrOldEngine, "not-ours": managed.ErrNotOurs, "no-tun": managed.ErrNoTUN,
	} {
		if has(name) {
			return nil, err
		}
	}
	return fakePlugin{}, nil
}

func has(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func call(format string, args ...any) error {
	f, err := os.OpenFile("calls", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, format+"\n", args...)
	return errors.Join(err, f.Close())
}

func (fakePlugin) State(context.Context) (managed.State, error) {
	return managed.State{There: has("there"), Enabled: has("enabled"), ID: "0123abcd"}, nil
}

func (fakePlugin) Lock(context.Context) (func(), error) { return func() {}, nil }

// Launch has the control socket answer that was called later.sock.
func (fakePlugin) Launch(_ context.Context, r managed.Request) (managed.Outcome, error) {
	if has("fails") {
		return managed.Unchanged, errors.New("enable plugin weavenet: no luck")
	}
	var words []string
	for _, name := range slices.Sorted(maps.Keys(r.Set)) {
		words = append(words, fmt.Sprintf("%s=%q", name, r.Set[name]))
	}
	if r.Password != nil {
		words = append(words, fmt.Sprintf("password %q", *r.Password))
	}
	outcome := managed.Created
	if has("there") {
		outcome = managed.Replaced
	}
	if has("later.sock") {
		if err := os.Rename("later.sock", "weave.sock"); err != nil {
			return outcome, err
		}
	}
	return outcome, call("launch %s", strings.Join(words, " "))
}

func (fakePlugin) Stop(context.Context) (bool, error) { return has("enabled"), call("stop") }

func (fakePlugin) Remove(context.Context) error { return call("remove") }

func (fakePlugin) Networks(context.Context) (all []managed.Network, err error) {
	raw, err := os.ReadFile("networks")
	if os.IsNotExist(err) {
		return nil, nil
	}
	for line := range strings.Lines(string(raw)) {
		words := strings.Fields(line)
		all = append(all, managed.Network{Name: words[0], Containers: words[1:]})
	}
	return all, err
}

func (fakePlugin) RemoveNetwork(_ context.Context, n managed.Network) error {
	if has("stuck-" + n.Name) {
		return fmt.Errorf("remove network %s: it is stuck", n.Name)
	}
	return call("remove network %s", n.Name)
}

func (fakePlugin) Wipe(managed.State) (bool, error) { return has("there"), call("wipe") }
