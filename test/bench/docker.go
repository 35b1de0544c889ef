package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"weave/test/bench/report"
	"weave/test/dockerlab"
	"weave/test/netlab"
)

const (
	dockerHosts   = 3
	bridgeNetwork = "bench-bridge"
	weaveNetwork  = "bench-weave"
	settleTime    = 40 * time.Second // after which a daemon counts as idle: paths have been up for half a minute
	idleTime      = 30 * time.Second
	peersLimit    = 30 * time.Second
)

// docker measures what needs Docker Engines, with the plugin installed as users
// have it: docker run, and the daemon when there is nothing to do.
func (b *bench) docker(ctx context.Context) (err error) {
	b.say("start %d hosts with Docker Engines and the plugin", dockerHosts)
	lab, err := dockerlab.New(netlab.UniqueName())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	var hosts []*dockerlab.Host
	for n := range dockerHosts {
		h, err := lab.AddHost(n + 1)
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = equip(h, n)
		}
		if err != nil {
			return err
		}
		hosts = append(hosts, h)
	}
	if err := awaitPeers(ctx, hosts); err != nil {
		return err
	}
	if out, err := hosts[0].Docker("version", "--format", "{{.Server.Version}}"); err == nil {
		b.result.Machine.Engine = strings.TrimSpace(out)
	}
	if b.has("docker") {
		if err := b.dockerRuns(ctx, hosts[0]); err != nil {
			return err
		}
	}
	if !b.has("idle") {
		return nil
	}
	if err := b.idle(ctx, sealed, hosts); err != nil {
		return err
	}
	if err := openUp(ctx, hosts); err != nil {
		return err
	}
	return b.idle(ctx, fast, hosts)
}

// openUp takes the password from all hosts.
func openUp(ctx context.Context, hosts []*dockerlab.Host) error {
	for _, h := range hosts {
		err := h.DisablePlugin()
		if err == nil {
			err = h.SetPlugin(map[string]string{"WEAVE_PASSWORD": ""})
		}
		if err == nil {
			err = h.EnablePlugin()
		}
		if err != nil {
			return err
		}
	}
	return awaitPeers(ctx, hosts)
}

// equip gives a host the plugin, a container on a Weave network, and a bridge
// network of Docker's.
func equip(h *dockerlab.Host, n int) error {
	settings := map[string]string{"WEAVE_PASSWORD": weavePassword, "WEAVE_NICKNAME": h.Name()}
	if n > 0 {
		settings["WEAVE_PEERS"] = "10.99.0.1"
	}
	if err := h.InstallPlugin(filepath.Join(dockerlab.BuildDir(), "plugin"), settings); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"network", "create", "-d", "weave", "--ipam-driver", "weave", "--subnet", overlay(0).Masked().String(), weaveNetwork},
		{"network", "create", bridgeNetwork},
		{"run", "-d", "--name", "idle", "--network", weaveNetwork, dockerlab.Image, "tool", "idle"},
	} {
		if _, err := h.Docker(args...); err != nil {
			return err
		}
	}
	return nil
}

func awaitPeers(ctx context.Context, hosts []*dockerlab.Host) error {
	for _, h := range hosts {
		if err := awaitPeersOf(ctx, h, len(hosts)-1); err != nil {
			return err
		}
	}
	return nil
}

func awaitPeersOf(ctx context.Context, h *dockerlab.Host, count int) error {
	for end := time.Now().Add(peersLimit); ; {
		out, err := h.Weave("status", "peers", "--json")
		if err == nil && strings.Count(out, `"up"`) >= count {
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(fmt.Errorf("%s has no %d peers after %s: %s", h.Name(), count, peersLimit, out), err)
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// idle measures the daemons of hosts where a container runs and is silent.
func (b *bench) idle(ctx context.Context, system string, hosts []*dockerlab.Host) error {
	if err := pause(ctx, settleTime); err != nil {
		return err
	}
	pids, used := make([]int, len(hosts)), make([]time.Duration, len(hosts))
	for i, h := range hosts {
		var err error
		if pids[i], err = h.PluginPID(); err != nil || pids[i] == 0 {
			return errors.Join(fmt.Errorf("%s has no daemon", h.Name()), err)
		}
		if used[i], err = cpuTime(pids[i]); err != nil {
			return err
		}
	}
	start := time.Now()
	if err := pause(ctx, idleTime); err != nil {
		return err
	}
	for i, h := range hosts {
		now, err := cpuTime(pids[i])
		if err != nil {
			return err
		}
		ram, err := resident(pids[i])
		if err != nil {
			return err
		}
		percent := 100 * (now - used[i]).Seconds() / time.Since(start).Seconds()
		b.result.Add(report.Sample{System: system, Measure: report.IdleCPU, Way: h.Name(), Value: percent})
		b.result.Add(report.Sample{System: system, Measure: report.IdleRAM, Way: h.Name(), Value: ram})
		b.say("%s, idle daemon of %s: %.2f %% of a core, %.0f MiB resident", system, h.Name(), percent, ram)
	}
	return nil
}

// resident is a process's memory in MiB.
func resident(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest + " ?")[0], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no memory", pid)
}

// dockerRuns times docker run on both networks, in turns.
func (b *bench) dockerRuns(ctx context.Context, h *dockerlab.Host) error {
	networks := []struct{ system, name string }{{"bridge", bridgeNetwork}, {sealed, weaveNetwork}}
	for round := range b.runs + 1 { // the first warms up
		for i := range networks {
			n := networks[(i+round)%len(networks)]
			start := time.Now()
			if _, err := h.RunContext(ctx, "docker", "run", "--rm", "--network", n.name, dockerlab.Image, "true"); err != nil {
				return err
			}
			if round > 0 {
				b.result.Add(report.Sample{System: n.system, Measure: report.DockerRun, Way: h.Name(), Round: round - 1, Value: time.Since(start).Seconds()})
			}
		}
	}
	for _, n := range networks {
		median, _ := b.result.Median(n.system, "", report.DockerRun)
		b.say("docker run on %s: %.3f s, median of %d", n.name, median, b.runs)
	}
	return nil
}
