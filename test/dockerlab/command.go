package dockerlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// commandLimit bounds every command: an engine that hangs fails its test.
	commandLimit = 4 * time.Minute
	pingLimit    = 5 * time.Second
)

// PluginName is what `docker plugin create` is given; networks say `-d weave`.
const PluginName = "weavenet"

// CommandError is how a command on a host failed.
type CommandError struct {
	Host, Command, Stderr string
	Err                   error
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("%s: %s: %v: %s", e.Host, e.Command, e.Err, e.Stderr)
}

func (e *CommandError) Unwrap() error { return e.Err }

// Run runs a command as if typed on the host, and returns what it printed
// without the last newline. A failure is a *CommandError.
func (h *Host) Run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	return h.RunContext(ctx, name, args...)
}

// RunContext is Run, ended by ctx only.
func (h *Host) RunContext(ctx context.Context, name string, args ...string) (string, error) {
	cmd := h.enter(func(name string, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, name, args...)
	}, name, args...)
	// nsenter forks, so the whole group must be ended.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	return h.result(ctx, out.String(), errOut.String(), err, name, args)
}

// result makes Run's of what a command wrote and how it ended.
func (h *Host) result(ctx context.Context, out, errOut string, err error, name string, args []string) (string, error) {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		err = &CommandError{
			Host:    h.name,
			Command: strings.Join(append([]string{filepath.Base(name)}, args...), " "),
			Stderr:  strings.TrimSpace(errOut),
			Err:     err,
		}
	}
	return strings.TrimRight(out, "\n"), err
}

// Docker runs the docker command-line tool.
func (h *Host) Docker(args ...string) (string, error) { return h.Run("docker", args...) }

// Weave runs the weave command-line tool that `make build` made.
func (h *Host) Weave(args ...string) (string, error) {
	return h.Run(filepath.Join(BuildDir(), "weave"), args...)
}

// InstallPlugin makes a plugin from a directory with config.json and rootfs/, unless
// Prepare did so, gives it settings and enables it.
func (h *Host) InstallPlugin(dir string, settings map[string]string) error {
	if h.madeOf != dir {
		if err := h.createPlugin(dir); err != nil {
			return err
		}
	}
	return errors.Join(h.SetPlugin(settings), h.EnablePlugin())
}

func (h *Host) createPlugin(dir string) error {
	_, err := h.Docker("plugin", "create", PluginName, dir)
	if err == nil {
		h.madeOf = dir
	}
	return err
}

// SetPlugin changes settings of the disabled plugin.
func (h *Host) SetPlugin(settings map[string]string) error {
	args := []string{"plugin", "set", PluginName}
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, key+"="+settings[key])
	}
	if len(settings) == 0 {
		return nil
	}
	_, err := h.Docker(args...)
	return err
}

// EnablePlugin enables the plugin.
func (h *Host) EnablePlugin() error {
	_, err := h.Docker("plugin", "enable", PluginName)
	return err
}

// DisablePlugin disables the plugin, even if networks use it.
func (h *Host) DisablePlugin() error {
	_, err := h.Docker("plugin", "disable", "-f", PluginName)
	return err
}

// RemovePlugin disables and removes the plugin; its state stays.
func (h *Host) RemovePlugin() error {
	_, err := h.Docker("plugin", "rm", "-f", PluginName)
	if err == nil {
		h.madeOf = ""
	}
	return err
}

// ProjectDir returns the root of the source tree that the working directory is
// in, or the working directory itself if it is in none. A path that the compiler
// noted would do only without -trimpath.
func ProjectDir() string {
	here, err := os.Getwd()
	if err != nil {
		return "."
	}
	for dir := here; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		mod, _ := os.ReadFile(filepath.Join(dir, "go.mod"))
		if bytes.HasPrefix(mod, []byte("module weave\n")) {
			return dir
		}
	}
	return here
}

// BuildDir returns where the binary and the plugin's folder are: build/, unless
// WEAVE_BUILD names another.
func BuildDir() string {
	if dir := os.Getenv("WEAVE_BUILD"); dir != "" {
		return dir
	}
	return filepath.Join(ProjectDir(), "build")
}

// quickStart has short-lived Go programs not collect their garbage: for each
// container dockerd starts itself three times, and would spend a third of that
// on it. The plugin does not see it.
const quickStart = "GOGC=400"

// enter makes a command that runs in the host's namespaces.
func (h *Host) enter(command func(string, ...string) *exec.Cmd, name string, args ...string) *exec.Cmd {
	target := fmt.Sprintf("--target=%d", h.init.Process.Pid)
	cmd := command("nsenter", append([]string{target, "--mount", "--uts", "--net", "--pid", name}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+filepath.Join(h.dir, "docker-cli"), "DOCKER_HOST=", "WEAVE_SOCKET=", quickStart)
	return cmd
}

// awaitEngine waits until the engine answers, which it does after it has
// started its plugins and containers.
func (h *Host) awaitEngine() error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	for {
		err := h.ping(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-h.engine.done:
			return fmt.Errorf("engine of %s ended at start: see %s", h.name, h.LogPath())
		case <-ctx.Done():
			return fmt.Errorf("engine of %s does not answer: %w", h.name, err)
		case <-time.After(pollEvery):
		}
	}
}

// ping asks the engine for its version. A connection made while the engine
// starts may stay without an answer, so no attempt is long.
func (h *Host) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/version", nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", h.Path("/run/docker.sock"))
		},
	}}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("version: %s", response.Status)
	}
	return nil
}
