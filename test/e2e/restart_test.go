package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weave/test/dockerlab"
)

// backAfter is how soon after kill -9 frames flow: within a second, and the
// engine waits for 0.1 s before it starts a plugin again. (The second time
// within 10 s it waits for twice as long, so that each host is killed once.)
const backAfter = 1100 * time.Millisecond

// TestPluginKilled: containers keep their interfaces, a TCP connection that is
// busy all the time survives, and frames flow again within a second. A busy
// machine may be late once; the median holds.
func TestPluginKilled(t *testing.T) {
	hs := hosts(t, 3)
	net := network(t, hs, "--subnet", subnet())
	server := run(t, hs[0], net, nil).serve()
	client := run(t, hs[1], net, nil, "tool", "hold", server.ip()+":7000")
	awaitBeats(t, client, soon)
	var pulses []container
	for _, h := range hs[1:] {
		pulses = append(pulses, run(t, h, net, nil, "tool", "pulse", server.ip()+":7000"))
		awaitBeats(t, pulses[len(pulses)-1], soon)
	}
	var silences []time.Duration
	for i, h := range hs {
		felt := pulses // by both, if it is the server's host
		if i > 0 {
			felt = pulses[i-1 : i]
		}
		silences = append(silences, killPlugin(t, h, felt)...)
		awaitBeats(t, client, soon)
	}
	slices.Sort(silences)
	t.Logf("silent after kill -9: %v", silences)
	if median := silences[len(silences)/2]; median > backAfter {
		t.Errorf("frames flow %s after kill -9, want %s", median, backAfter)
	}
	if running := docker(t, client.host, "inspect", "-f", "{{.State.Running}} {{.RestartCount}}", client.name); running != "true 0" {
		t.Errorf("the client ended: %s\n%s", running, docker(t, client.host, "logs", client.name))
	}
	fresh := run(t, hs[1], net, nil)
	fresh.reaches(server.ip(), soon)
}

// killPlugin returns how long the pulses were without an answer.
func killPlugin(t *testing.T, h *dockerlab.Host, pulses []container) (silences []time.Duration) {
	t.Helper()
	lines := func(c container) []string { return strings.Split(docker(t, c.host, "logs", c.name), "\n") }
	var seen []int
	for _, c := range pulses {
		seen = append(seen, len(lines(c)))
	}
	before := pluginPIDs(t, []*dockerlab.Host{h})
	if err := h.KillPlugin(); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, func() error { // what answers until then was under way
		if pid, err := h.PluginPID(); err != nil || pid == 0 || fmt.Sprint([]int{pid}) == before {
			return fmt.Errorf("the plugin of %s was not restarted: %d, %v", h.Name(), pid, err)
		}
		return nil
	})
	for i, c := range pulses {
		awaitBeats(t, c, soon)
		var longest time.Duration
		for _, line := range lines(c)[seen[i]:] {
			silent, err := time.ParseDuration(strings.TrimPrefix(line, "silent for "))
			if err != nil {
				t.Error(err)
			}
			longest = max(longest, silent)
		}
		silences = append(silences, longest)
	}
	return silences
}

// awaitBeats waits until the client has printed five lines: it has had answers.
func awaitBeats(t *testing.T, client container, limit time.Duration) {
	t.Helper()
	count := func() int { return strings.Count(docker(t, client.host, "logs", client.name), "\n") }
	before := count()
	eventually(t, limit, func() error {
		if now := count(); now < before+5 {
			return fmt.Errorf("%d beats, then %d", before, now)
		}
		return nil
	})
}

// TestRestarts: containers with a restart policy come back on their networks,
// with the addresses that --ip gave them, whatever befell their host, and
// whichever of them Docker starts first.
func TestRestarts(t *testing.T) {
	t.Parallel()
	hs := spareCluster(t, 2)
	h := hs[1]
	net := network(t, hs, "--subnet", subnet())
	always := []string{"--restart=always"}
	far, passing := run(t, hs[0], net, nil), run(t, h, net, nil)
	wish := passing.ip() // the one that the next container would get
	docker(t, h, "rm", "-f", passing.name)
	fixed := run(t, h, net, append([]string{"--ip", wish}, always...))
	roaming := run(t, h, net, always)
	far.reaches(fixed.ip(), soon)

	reconfigure := func(liveRestore bool) func() error {
		return func() error { return errors.Join(h.Configure(liveRestore), h.Restart()) }
	}
	kill := func() error { return errors.Join(h.Kill(), h.Start()) }
	steps := []struct {
		name string
		do   func() error
	}{
		{"engine restarted", h.Restart},
		{"engine killed", kill},
		{"host rebooted", h.Reboot},
		{"engine restarted for live-restore", reconfigure(true)},
		{"engine restarted with live-restore", h.Restart},
		{"engine killed with live-restore", kill},
		{"host rebooted with live-restore", h.Reboot},
		{"engine restarted for no live-restore", reconfigure(false)},
		{"plugin disabled and enabled", func() error { return errors.Join(h.DisablePlugin(), h.EnablePlugin()) }},
		{"plugin removed and made anew", func() error { return reinstall(h, joined(1, hs[0].Net().IP4().String())) }},
		{"engine restarted once more", h.Restart},
	}
	for _, step := range steps {
		begin := time.Now()
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		answers := time.Since(begin)
		for _, c := range []container{fixed, roaming} {
			eventually(t, afterBoot, func() error { return isBack(c) })
			far.reaches(c.ip(), afterBoot)
			c.reaches(far.ip(), soon)
			far.finds(c.name, c.ip())
			c.finds(far.name, far.ip())
		}
		if got := fixed.ip(); got != wish {
			t.Errorf("%s: --ip became %s", step.name, got)
		}
		if fixed.ip() == roaming.ip() || roaming.ip() == far.ip() {
			t.Errorf("%s: an address twice: %s %s %s", step.name, fixed.ip(), roaming.ip(), far.ip())
		}
		fresh := run(t, h, net, nil)
		far.reaches(fresh.ip(), soon)
		far.finds(fresh.name, fresh.ip())
		fresh.finds(fixed.name, fixed.ip())
		docker(t, h, "rm", "-f", fresh.name)
		t.Logf("%s: the engine answers after %s, all is well after %s", step.name,
			answers.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	}
}

func isBack(c container) error {
	running, err := c.host.Docker("inspect", "-f", "{{.State.Running}}", c.name)
	if err == nil && running != "true" {
		err = fmt.Errorf("%s does not run", c.name)
	}
	return err
}

// reinstall replaces the plugin as an upgrade does.
func reinstall(h *dockerlab.Host, settings map[string]string) error {
	if err := errors.Join(h.DisablePlugin(), h.RemovePlugin()); err != nil {
		return err
	}
	return install(h, settings)
}

// TestSeedIsDown: hosts that know each other stay together without their seed,
// give out addresses, and take it back.
func TestSeedIsDown(t *testing.T) {
	hs := hosts(t, 3)
	net := network(t, hs, "--subnet", subnet())
	b, c := run(t, hs[1], net, nil), run(t, hs[2], net, nil)
	a := run(t, hs[0], net, []string{"--restart=always"})
	b.reaches(c.ip(), soon)
	if err := hs[0].PowerOff(); err != nil {
		t.Fatal(err)
	}
	b.reaches(c.ip(), soon)
	fresh := run(t, hs[1], net, nil)
	fresh.reaches(c.ip(), soon)
	if err := hs[0].Boot(); err != nil {
		t.Fatal(err)
	}
	eventually(t, afterBoot, func() error { return isBack(a) })
	fresh.reaches(a.ip(), afterBoot)
	a.reaches(c.ip(), soon)
}
