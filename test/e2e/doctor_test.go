package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"weave/plugin/control"
	"weave/test/dockerlab"
	"weave/test/netlab"
)

// examine is weave doctor: what is not well, and its exit status.
func examine(t *testing.T, h *dockerlab.Host) (bad []control.Check, status int) {
	t.Helper()
	out, err := h.Weave("doctor", "--json")
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	var checks []control.Check
	if err := json.Unmarshal([]byte(out), &checks); err != nil || len(checks) < 4 {
		t.Fatalf("%v:\n%s", err, out)
	}
	return slices.DeleteFunc(checks, func(c control.Check) bool { return c.Verdict == control.OK }), status
}

// TestDoctor: where all is well the doctor finds nothing; where other hosts get
// through by TCP only, or the plugin is down, it says so.
func TestDoctor(t *testing.T) {
	t.Parallel()
	hs := spareCluster(t, 2)
	net := network(t, hs, "--subnet", subnet())
	run(t, hs[0], net, nil)
	eventually(t, soon, func() error {
		if bad, status := examine(t, hs[0]); len(bad) > 0 || status != 0 {
			return fmt.Errorf("exit status %d, not well: %+v", status, bad)
		}
		return nil
	})
	if err := common.lab.Net().CutLink(hs[0].Net(), hs[1].Net(), netlab.UDP); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, func() error {
		bad, status := examine(t, hs[0])
		named := func(c control.Check) bool {
			return c.Name == "reachable" && c.Verdict == control.Warned && strings.Contains(c.Found, nickname(hs[1])+" gets through to this one by TCP only")
		}
		if !slices.ContainsFunc(bad, named) || status != 0 {
			return fmt.Errorf("exit status %d, not well: %+v", status, bad)
		}
		return nil
	})
	if out := weave(t, hs[0], "report"); strings.Contains(out, sparePassword) || !strings.Contains(out, "by TCP only") || !json.Valid([]byte(out)) {
		t.Errorf("the report:\n%s", out)
	}
	if err := hs[0].DisablePlugin(); err != nil {
		t.Fatal(err)
	}
	bad, status := examine(t, hs[0])
	if i := slices.IndexFunc(bad, func(c control.Check) bool { return c.Name == "plugin" }); i < 0 || !strings.Contains(bad[i].Do, "docker plugin enable") || status != 1 {
		t.Errorf("exit status %d, not well: %+v", status, bad)
	}
}
