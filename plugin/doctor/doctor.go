// Package doctor looks at what of the plugin can be seen from the host and in the
// local Docker Engine, also while the plugin does not answer.
//
// It changes nothing, and does not know what the plugin tells of itself: that
// comes over the control API.
package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"weave/plugin/control"
	"weave/plugin/engine"
)

const (
	defaultEngine = "/var/run/docker.sock"
	minAPI        = 41 // of engine 20.10, after 1.
)

var errRemote = errors.New("DOCKER_HOST names an engine that is not on this host")

// Engine is what is asked of Docker; *engine.Client is one.
type Engine interface {
	Version(ctx context.Context) (engine.Version, error)
	Plugins(ctx context.Context) ([]engine.Plugin, error)
}

// Host is the host that this program runs on.
type Host struct {
	engine Engine // nil: DOCKER_HOST names one that is not on this host
	tun    string
	mounts string // the file that lists them
	run    string
}

// New returns the host. dockerHost is the variable DOCKER_HOST.
func New(dockerHost string) *Host {
	h := &Host{tun: "/dev/net/tun", mounts: "/proc/self/mountinfo", run: "/run"}
	socket, local := strings.CutPrefix(dockerHost, "unix://")
	switch {
	case dockerHost == "":
		h.engine = engine.New(defaultEngine)
	case local:
		h.engine = engine.New(socket)
	}
	return h
}

// Answer is what came of asking the plugin.
type Answer struct {
	Command string // the version of this program
	Version string // of the plugin; empty if it does not answer
	Err     error  // why it does not, or not to the doctor
}

// Examine tells what can be seen from outside the plugin.
func (h *Host) Examine(ctx context.Context, a Answer) []control.Check {
	e, plugins := h.examineEngine(ctx)
	checks := []control.Check{e}
	checks = append(checks, examinePlugin(plugins, e.Verdict, a))
	return append(checks, h.examineTUN(), h.examineMounts())
}

func check(name string, v control.Verdict, do, format string, args ...any) control.Check {
	return control.Check{Name: name, Verdict: v, Found: fmt.Sprintf(format, args...), Do: do}
}

// examineEngine also returns the plugins that are weave.
func (h *Host) examineEngine(ctx context.Context) (control.Check, []engine.Plugin) {
	const name = "engine"
	if h.engine == nil {
		return check(name, control.Undecided, "run weave on that host, or without DOCKER_HOST", "%v", errRemote), nil
	}
	v, err := h.engine.Version(ctx)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return check(name, control.Undecided, "try again with sudo", "this user may not ask the Docker Engine"), nil
	case err != nil:
		return check(name, control.Failed, "sudo systemctl start docker", "the Docker Engine does not answer: %v", err), nil
	}
	minor, err := strconv.Atoi(strings.TrimPrefix(v.API, "1."))
	if err == nil && minor < minAPI {
		return check(name, control.Failed, "install Docker Engine 20.10 or newer", "Docker Engine %s is too old", v.Version), nil
	}
	plugins, err := h.weaves(ctx)
	if err != nil {
		return check(name, control.Undecided, "try again", "%v", err), nil
	}
	return check(name, control.OK, "", "Docker Engine %s, API %s, kernel %s", v.Version, v.API, v.Kernel), plugins
}

// weaves are the managed plugins that are weave, whatever they are called.
func (h *Host) weaves(ctx context.Context) ([]engine.Plugin, error) {
	all, err := h.engine.Plugins(ctx)
	return slices.DeleteFunc(all, func(p engine.Plugin) bool { return !slices.Equal(p.Entrypoint, []string{"/weave", "daemon"}) }), err
}

func examinePlugin(plugins []engine.Plugin, asked control.Verdict, a Answer) control.Check {
	const name = "plugin"
	enabled := slices.IndexFunc(plugins, func(p engine.Plugin) bool { return p.Enabled })
	called := "the daemon runs"
	if enabled >= 0 {
		called = "plugin " + plugins[enabled].Name + " is enabled"
	}
	switch {
	case errors.Is(a.Err, control.ErrOld):
		return check(name, control.Warned, "upgrade the plugin to the version of this command", "%s and answers, but %s is too old to examine itself; this command is %s", called, a.Version, a.Command)
	case a.Version != "" && a.Err != nil:
		return check(name, control.Failed, "see the plugin's log", "%s and answers, but not to this: %v", called, a.Err)
	case a.Version != "" && a.Version != a.Command:
		return check(name, control.Warned, "install both in the same version", "%s and answers; it is %s, this command %s", called, a.Version, a.Command)
	case a.Version != "":
		return check(name, control.OK, "", "%s and answers; it is %s, as this command", called, a.Version)
	case errors.Is(a.Err, control.ErrPermission):
		return check(name, control.Undecided, "try again with sudo", "%v", a.Err)
	case enabled >= 0:
		again := plugins[enabled].Name
		return check(name, control.Failed, "see why in the engine's log, journalctl -u docker; then: docker plugin disable -f "+again+", docker plugin enable "+again,
			"%s, but does not answer: %v", called, a.Err)
	case asked != control.OK:
		return check(name, control.Failed, "see to the Docker Engine first: it starts the plugin", "it does not answer: %v", a.Err)
	case len(plugins) > 0:
		return check(name, control.Failed, "docker plugin enable "+plugins[0].Name, "plugin %s is disabled: containers have the interfaces they had, and nothing new works", plugins[0].Name)
	}
	return check(name, control.Failed, "install it: weave launch", "it is not installed on this host")
}

func (h *Host) examineTUN() control.Check {
	const name = "tun"
	info, err := os.Stat(h.tun)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return check(name, control.Failed, "sudo modprobe tun, and for each boot: echo tun | sudo tee /etc/modules-load.d/tun.conf", "there is no %s: the plugin cannot start", h.tun)
	case err != nil:
		return check(name, control.Undecided, "", "%v", err)
	case info.Mode()&fs.ModeCharDevice == 0:
		return check(name, control.Failed, "remove it, and: sudo modprobe tun", "%s is no device", h.tun)
	}
	return check(name, control.OK, "", "%s is there", h.tun)
}

// examineMounts: the plugin has the host's /run as a slave mount, which needs one
// that can have slaves.
func (h *Host) examineMounts() control.Check {
	const name = "mounts"
	shared, err := h.propagates(h.run)
	switch {
	case err != nil:
		return check(name, control.Undecided, "", "%v", err)
	case !shared:
		return check(name, control.Warned, "sudo mount --make-rshared /, before Docker starts", "%s is a private mount: the plugin does not see what is mounted below it later", h.run)
	}
	return check(name, control.OK, "", "%s is a mount that the plugin can share", h.run)
}

// propagates tells whether the mount that a folder is in is shared, or the slave
// of one that is; see proc(5) for the file's form.
func (h *Host) propagates(dir string) (bool, error) {
	f, err := os.Open(h.mounts)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }() // read only
	longest, shared := -1, false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 7 {
			continue
		}
		at := strings.TrimSuffix(fields[4], "/")
		if at != dir && !strings.HasPrefix(dir, at+"/") || len(at) < longest {
			continue // not around it; of two at one place the later is on top
		}
		longest, shared = len(at), false
		for _, option := range fields[6:] {
			if option == "-" {
				break
			}
			shared = shared || strings.HasPrefix(option, "shared:") || strings.HasPrefix(option, "master:")
		}
	}
	if err := lines.Err(); err != nil {
		return false, err
	}
	if longest < 0 {
		return false, fmt.Errorf("%s names no mount that %s is in", h.mounts, dir)
	}
	return shared, nil
}
