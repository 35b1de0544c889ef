// Package managed makes the managed plugin out of the running binary, and starts,
// replaces, stops and removes it in the local Docker Engine. It also looks after
// what of the plugin is on the host's disk: the password file, and the settings
// while a plugin is being replaced.
//
// It changes Docker's objects and files only when it is told to, and knows
// nothing of what the plugin does once it runs.
package managed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/versions"

	"weave/plugin/config"
	"weave/plugin/engine"
)

// Name is what the managed plugin is called. Not "weave": that would hide the
// socket by which dockerd knows the plugin as `-d weave`.
const Name = "weavenet"

const (
	minAPI    = "1.41" // of engine 20.10
	dialLimit = 5 * time.Second
	tunDevice = "/dev/net/tun"
)

// Errors about the host, told apart so that a caller can say the way out.
var (
	ErrNotRoot   = errors.New("this needs root")
	ErrNoEngine  = errors.New("the Docker Engine does not answer on this host")
	ErrRemote    = errors.New("DOCKER_HOST names an engine that is not on this host")
	ErrOldEngine = errors.New("the Docker Engine is too old: 20.10 or newer is needed")
	ErrNotOurs   = errors.New("there is a plugin " + Name + " that is not weave")
	ErrNoTUN     = errors.New("there is no " + tunDevice + " on this host")
)

// Engine is what is asked of Docker; moby's client is one.
type Engine interface {
	Info(ctx context.Context, o client.InfoOptions) (client.SystemInfoResult, error)
	PluginInspect(ctx context.Context, name string, o client.PluginInspectOptions) (client.PluginInspectResult, error)
	PluginCreate(ctx context.Context, tar io.Reader, o client.PluginCreateOptions) (client.PluginCreateResult, error)
	PluginSet(ctx context.Context, name string, o client.PluginSetOptions) (client.PluginSetResult, error)
	PluginEnable(ctx context.Context, name string, o client.PluginEnableOptions) (client.PluginEnableResult, error)
	PluginDisable(ctx context.Context, name string, o client.PluginDisableOptions) (client.PluginDisableResult, error)
	PluginRemove(ctx context.Context, name string, o client.PluginRemoveOptions) (client.PluginRemoveResult, error)
	NetworkDisconnect(ctx context.Context, network string, o client.NetworkDisconnectOptions) (client.NetworkDisconnectResult, error)
	NetworkRemove(ctx context.Context, network string, o client.NetworkRemoveOptions) (client.NetworkRemoveResult, error)
}

// networkLister reads what networks there are; package engine has one.
type networkLister interface {
	Networks(ctx context.Context) ([]engine.Network, error)
	NetworkByID(ctx context.Context, id string) (engine.Network, error)
}

// Plugin is the managed plugin of the local engine, whether it is there or not.
// One method is to be called at a time.
type Plugin struct {
	engine   Engine
	networks networkLister
	binary   string // the file that becomes the plugin
	tun      string
	saved    string                                     // the folder for settings while a plugin is being replaced
	lock     string                                     // the file that Lock locks
	free     func(dir string) (bytes uint64, err error) // what is free on the disk of a folder
}

// Open finds the local engine, by DOCKER_HOST or where it is by default, and
// checks that it is new enough and that we may change it.
func Open(ctx context.Context) (*Plugin, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	c, err := client.New(client.FromEnv)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoEngine, err)
	}
	socket, local := strings.CutPrefix(c.DaemonHost(), "unix://")
	if !local {
		return nil, fmt.Errorf("%w: %s", ErrRemote, c.DaemonHost())
	}
	if err := probe(ctx, socket); err != nil {
		return nil, err
	}
	answer, err := c.Ping(ctx, client.PingOptions{})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoEngine, err)
	}
	if versions.LessThan(answer.APIVersion, minAPI) {
		return nil, fmt.Errorf("%w (its API is %s, not %s)", ErrOldEngine, answer.APIVersion, minAPI)
	}
	return &Plugin{
		engine: c, networks: engine.New(socket), tun: tunDevice, saved: config.HostState, lock: lockFile, free: freeOn,
		binary: "/proc/self/exe", // also if the file has been replaced meanwhile
	}, nil
}

// probe tells why a socket cannot be used; moby's client hides that.
func probe(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (socket %s)", ErrNotRoot, socket)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoEngine, err)
	}
	return c.Close()
}

// State is what the engine has of the plugin.
type State struct {
	There, Enabled bool
	ID             string // by which the engine's log names it

	binary   string   // SHA-256 of the file it was made of; empty if it was made otherwise
	settings Settings // all that it declares
}

// State asks the engine. A plugin of the name that is not weave is ErrNotOurs.
func (p *Plugin) State(ctx context.Context) (State, error) {
	r, err := p.engine.PluginInspect(ctx, Name, client.PluginInspectOptions{})
	if isNotFound(err) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("inspect plugin %s: %w", Name, err)
	}
	x := r.Plugin
	if !slices.Equal(x.Config.Entrypoint, []string{"/weave", "daemon"}) {
		return State{}, fmt.Errorf("%w: it runs %q", ErrNotOurs, strings.Join(x.Config.Entrypoint, " "))
	}
	s := State{There: true, Enabled: x.Enabled, ID: x.ID, settings: Settings{}}
	for _, e := range x.Settings.Env {
		name, value, _ := strings.Cut(e, "=")
		if name == binaryEnv {
			s.binary = value
		} else if value != "" {
			s.settings[name] = value
		}
	}
	for _, m := range x.Settings.Mounts {
		if len(m.Settable) > 0 && m.Source != nil {
			s.settings[m.Name+sourceSuffix] = *m.Source
		}
	}
	return s, nil
}

// Stop disables the plugin, also while networks use it. It reports whether it
// ran.
func (p *Plugin) Stop(ctx context.Context) (ran bool, err error) {
	s, err := p.State(ctx)
	if err != nil || !s.Enabled {
		return false, err
	}
	return true, p.disable(ctx)
}

// Remove takes the plugin out of the engine. What it kept on disk stays. One
// that cannot be removed runs as before.
func (p *Plugin) Remove(ctx context.Context) error {
	s, err := p.State(ctx)
	if err != nil || !s.There {
		return err
	}
	ctx, cancel := uninterrupted(ctx)
	defer cancel()
	return p.remove(ctx, s)
}

// remove disables the plugin and removes it; -f, in Docker's words: networks
// that use it do not keep it from being replaced.
func (p *Plugin) remove(ctx context.Context, s State) error {
	if s.Enabled {
		if err := p.disable(ctx); err != nil {
			return err
		}
	}
	_, err := p.engine.PluginRemove(ctx, Name, client.PluginRemoveOptions{Force: true})
	if err == nil {
		return nil
	}
	err = fmt.Errorf("remove plugin %s: %w", Name, err)
	if !s.Enabled {
		return err
	}
	if again := p.enable(ctx); again != nil {
		return fmt.Errorf("%w; it is still there, with its settings, but disabled: %w", err, again)
	}
	return fmt.Errorf("%w; it runs on as before", err)
}

func (p *Plugin) disable(ctx context.Context) error {
	if _, err := p.engine.PluginDisable(ctx, Name, client.PluginDisableOptions{Force: true}); err != nil {
		return fmt.Errorf("disable plugin %s: %w", Name, err)
	}
	return nil
}

// enableLimit is how long dockerd tries to reach the plugin, in seconds.
const enableLimit = 30

func (p *Plugin) enable(ctx context.Context) error {
	if _, err := p.engine.PluginEnable(ctx, Name, client.PluginEnableOptions{Timeout: enableLimit}); err != nil {
		return fmt.Errorf("enable plugin %s: %w", Name, err)
	}
	return nil
}

// changeLimit bounds a change that goes on although the caller has lost its
// patience: half of it would leave the host without the plugin.
const changeLimit = 3 * time.Minute

func uninterrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), changeLimit)
}
