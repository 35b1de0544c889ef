package dockerlab

import (
	"bufio"
	_ "embed" // the scripts
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weave/test/netlab"
)

var (
	//go:embed init.sh
	initScript string
	//go:embed engine.sh
	engineScript string
)

const (
	startLimit = 3 * time.Minute // dockerd retries plugins for some 10 s
	stopLimit  = 3 * time.Minute
)

// Host is a machine with a Docker Engine. Commands may run concurrently; what
// starts and stops the engine or the host may not.
type Host struct {
	lab  *Lab
	n    int
	name string
	dir  string

	hostname string // of the next boot

	net    *netlab.Host
	init   *process // the host's first process
	engine *process

	composer composer
	madeOf   string // the folder that the plugin was made of; empty: it is not there
}

// process is a started child; done is closed when it has been waited for.
type process struct {
	*exec.Cmd
	done chan struct{}
}

// reap waits for a started command in the background; how it ended is told by
// its log.
func reap(cmd *exec.Cmd) *process {
	p := &process{cmd, make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = p.Wait()
	}()
	return p
}

// Name returns the host's name, such as h1.
func (h *Host) Name() string { return h.name }

// Net returns the host's network. Reboot replaces it.
func (h *Host) Net() *netlab.Host { return h.net }

// Path returns where a file of the host, such as /run/docker.sock, is seen from
// outside. It holds until the host is switched off.
func (h *Host) Path(name string) string {
	return fmt.Sprintf("/proc/%d/root%s", h.init.Process.Pid, name)
}

// cgroup names the host's control group in every hierarchy; it is called like
// the network namespace, so that Remove finds it by that.
func (h *Host) cgroup() string { return h.lab.net.Name() + "-" + h.name }

// Shell returns the command that opens a shell on the host.
func (h *Host) Shell() string {
	return fmt.Sprintf("nsenter --target=%d --mount --uts --net --pid bash", h.init.Process.Pid)
}

// Boot switches the host on and starts its engine.
func (h *Host) Boot() error {
	var err error
	if h.net, err = h.lab.net.AddHost(h.n); err != nil {
		return err
	}
	cmd := exec.Command("nsenter", "--net="+h.net.NamespacePath(), "bash", "-c", initScript, "init", h.dir, h.hostname)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS,
		Setsid:     true,
	}
	if err := h.startInit(cmd); err != nil {
		return fmt.Errorf("boot %s: %w", h.name, err)
	}
	return h.Start()
}

// startInit starts the first process and waits until it is ready. It gets none
// of our files: it may outlive us, and must not hold up whoever reads them.
func (h *Host) startInit(cmd *exec.Cmd) error {
	log, err := h.openLog()
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	h.init = reap(cmd)
	if strings.TrimSpace(line) != "ready" {
		return errors.Join(fmt.Errorf("not ready: see %s", h.LogPath()), err)
	}
	return nil
}

func (h *Host) openLog() (*os.File, error) {
	return os.OpenFile(h.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

// PowerOff ends everything on the host at once, as a power cut would, and
// forgets what a kernel forgets: links, routes, packet filters, /run.
func (h *Host) PowerOff() error {
	if h.net == nil {
		return nil
	}
	err := killAll(h.net.NamespacePath())
	if h.init != nil {
		<-h.init.done
	}
	if h.engine != nil {
		<-h.engine.done
	}
	if h.composer.run != nil {
		<-h.composer.run.done
	}
	err = errors.Join(err, removeCgroups(h.cgroup()), h.lab.net.RemoveHost(h.net))
	h.net, h.init, h.engine, h.composer = nil, nil, nil, composer{}
	return err
}

// Reboot is PowerOff and Boot.
func (h *Host) Reboot() error { return errors.Join(h.PowerOff(), h.Boot()) }

// Configure writes the engine's settings, which hold from its next start.
func (h *Host) Configure(liveRestore bool) error {
	settings, err := json.Marshal(map[string]any{
		"live-restore":  liveRestore,
		"cgroup-parent": "/" + h.cgroup(),
	})
	if err != nil {
		return fmt.Errorf("configure %s: %w", h.name, err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "etc-docker", "daemon.json"), settings, 0o644); err != nil {
		return fmt.Errorf("configure %s: %w", h.name, err)
	}
	return nil
}

// Start starts the engine and waits until it answers.
func (h *Host) Start() error {
	log, err := h.openLog()
	if err != nil {
		return fmt.Errorf("start engine of %s: %w", h.name, err)
	}
	defer log.Close()
	cmd := h.enter(exec.Command, "bash", "-c", engineScript, "engine", h.cgroup())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start engine of %s: %w", h.name, err)
	}
	h.engine = reap(cmd)
	return h.awaitEngine()
}

// LogPath returns the file with the engine's log; it holds the plugin's, too.
func (h *Host) LogPath() string { return filepath.Join(h.dir, "log") }

// Stop ends the engine with SIGTERM.
func (h *Host) Stop() error { return h.endEngine(unix.SIGTERM) }

// Kill ends the engine with SIGKILL; containers and plugins run on.
func (h *Host) Kill() error { return h.endEngine(unix.SIGKILL) }

// Restart is Stop and Start.
func (h *Host) Restart() error { return errors.Join(h.Stop(), h.Start()) }

// KillPlugin ends the plugin's process with SIGKILL; the engine starts it again.
func (h *Host) KillPlugin() error {
	pids, err := h.plugin()
	if err == nil && len(pids) != 1 {
		err = fmt.Errorf("%d processes", len(pids))
	}
	if err == nil {
		err = unix.Kill(pids[0], unix.SIGKILL)
	}
	if err != nil {
		return fmt.Errorf("kill plugin of %s: %w", h.name, err)
	}
	return nil
}

// PluginPID returns the process of the plugin, 0 if none runs.
func (h *Host) PluginPID() (int, error) {
	pids, err := h.plugin()
	if err != nil || len(pids) != 1 {
		return 0, err
	}
	return pids[0], nil
}

// plugin finds the daemon, as opposed to the command-line tool of the same
// name, by being in a container: its PID namespace is not the host's.
func (h *Host) plugin() ([]int, error) {
	all, err := processesIn(h.net.NamespacePath())
	if err != nil {
		return nil, err
	}
	own := namespaceOf(h.init.Process.Pid, "pid")
	var pids []int
	for _, pid := range all {
		if commandOf(pid) == "weave" && namespaceOf(pid, "pid") != own {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func (h *Host) endEngine(signal unix.Signal) error {
	pids, err := processesIn(h.net.NamespacePath())
	if err != nil {
		return fmt.Errorf("end engine of %s: %w", h.name, err)
	}
	for _, pid := range pids {
		if commandOf(pid) != "dockerd" {
			continue
		}
		if err := unix.Kill(pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end engine of %s: %w", h.name, err)
		}
	}
	select {
	case <-h.engine.done:
		return nil
	case <-time.After(stopLimit):
		return fmt.Errorf("end engine of %s: still there after %s", h.name, stopLimit)
	}
}
