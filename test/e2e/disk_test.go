package e2e

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"weave/plugin/control"
	"weave/test/dockerlab"
)

// errorsOf joins the errors among the problems that a host's status names.
func errorsOf(t *testing.T, h *dockerlab.Host) string {
	t.Helper()
	var all []string
	for _, p := range status(t, h).Problems {
		if p.Severity == control.Error {
			all = append(all, p.What+": "+p.Do)
		}
	}
	return strings.Join(all, "\n")
}

func sayError(t *testing.T, h *dockerlab.Host, words ...string) {
	t.Helper()
	eventually(t, soon, func() error {
		text := errorsOf(t, h)
		for _, word := range words {
			if !strings.Contains(text, word) {
				return fmt.Errorf("the status of %s does not say %q: %s", h.Name(), word, text)
			}
		}
		return nil
	})
}

func sayNoError(t *testing.T, h *dockerlab.Host) {
	t.Helper()
	eventually(t, soon, func() error {
		if text := errorsOf(t, h); text != "" {
			return fmt.Errorf("the status of %s says: %s", h.Name(), text)
		}
		return nil
	})
}

// TestDamagedState: a plugin that cannot read its state says so, does nothing
// and leaves the file as it is; with the file put back all is as before.
func TestDamagedState(t *testing.T) {
	beside(t)
	h := spareHost(t, nil)
	net := network(t, []*dockerlab.Host{h}, "--subnet", subnet())
	c := run(t, h, net, nil)
	before := status(t, h).Peer
	if err := h.DisablePlugin(); err != nil {
		t.Fatal(err)
	}
	path := h.Path("/var/lib/weave/weave.db")
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const head = 2 * 4096 // the pages that say where the others are
	damages := map[string][]byte{
		"empty":      {},
		"cut short":  sound[:head],
		"zeros":      append(bytes.Clone(sound[:head]), make([]byte, len(sound)-head)...),
		"other file": []byte(strings.Repeat("not a state file\n", 1000)),
	}
	put := func(content []byte) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, damage := range damages {
		put(damage)
		if err := h.EnablePlugin(); err != nil {
			t.Fatal(err)
		}
		sayError(t, h, "weave.db", "corrupt", "backup")
		if name == "cut short" { // once: the engine's call waits for the plugin to recover
			refused(t, h, []string{"weave.db", "corrupt"}, creation("refused", "--subnet", subnet())...)
		}
		if err := h.DisablePlugin(); err != nil {
			t.Fatal(err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, damage) {
			t.Errorf("%s: the file was touched: %v", name, err)
		}
	}
	put(sound)
	if err := h.EnablePlugin(); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, func() error {
		if after := status(t, h).Peer; after != before {
			return fmt.Errorf("the peer was %s, is %q", before, after)
		}
		return nil
	})
	sayNoError(t, h)
	run(t, h, net, nil).reaches(c.ip(), soon)
	addresses(t, []*dockerlab.Host{h}, net)
}

// TestFullDisk: without room for its state a plugin gives out nothing new, says
// why, and serves what runs, even if it has to start anew; with room again all
// is as before.
func TestFullDisk(t *testing.T) {
	beside(t)
	const (
		folder = "/var/lib/small"
		noRoom = "no space left on device"
		most   = 60 // containers whose leases fit into what the state file has to spare
	)
	h := emptyHost(t)
	onHost := func(command string) {
		t.Helper()
		if out, err := h.Run("sh", "-c", command); err != nil {
			t.Fatal(out, err)
		}
	}
	onHost("mkdir " + folder + " && mount -t tmpfs -o size=2m tmpfs " + folder)
	if err := install(h, map[string]string{"state.source": folder}); err != nil {
		t.Fatal(err)
	}
	alone := []*dockerlab.Host{h}
	net := network(t, alone, "--subnet", subnet())
	a, b := run(t, h, net, nil), run(t, h, net, nil)
	onHost("dd if=/dev/zero of=" + folder + "/rest bs=4k; true")
	var err error
	for n := 0; err == nil && n < most; n++ {
		err = start(h, net)
	}
	if err == nil || !strings.Contains(err.Error(), noRoom) {
		t.Fatalf("with the disk full: %v", err)
	}
	sayError(t, h, noRoom, "room on the disk")
	a.reaches(b.ip(), soon)
	held := addresses(t, alone, net)

	before := pluginPIDs(t, alone)
	if err := h.KillPlugin(); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, func() error {
		pid, err := h.PluginPID()
		if err == nil && (pid == 0 || fmt.Sprint([]int{pid}) == before) {
			err = fmt.Errorf("plugin %s is %d now", before, pid)
		}
		return err
	})
	a.reaches(b.ip(), soon)
	refused(t, h, []string{noRoom}, "run", "--rm", "--net", net, dockerlab.Image, "true")
	sayError(t, h, noRoom, "room on the disk")
	if got := addresses(t, alone, net); !slices.Equal(got, held) {
		t.Errorf("containers had %v, have %v", held, got)
	}

	onHost("rm " + folder + "/rest")
	run(t, h, net, nil).reaches(a.ip(), soon)
	sayNoError(t, h)
}
