package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weave/plugin/control"
	"weave/plugin/doctor"
)

// Host is the host as it is seen from outside the plugin; package doctor has it.
type Host interface {
	Examine(ctx context.Context, a doctor.Answer) []control.Check
	Facts(ctx context.Context) doctor.Facts
}

// Statuses that the doctor exits with besides 0.
const (
	exitFailed   = 1
	exitUnlooked = 2
)

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Examine this host, the plugin and the way to the other hosts",
		Long: `Look for what may be wrong, on this host and between it and the others, and tell
the way out of it. Other hosts are asked whether they get through to this one by
new connections, which firewalls must let in, what their time is, and which
version they run. Nothing is changed.

It is of use, too, while the plugin does not run: then it tells why not, as far
as that can be seen.

Each check has one of these verdicts:

  ok         nothing is wrong
  warning    something works less well than it should, or may be meant
  failed     something does not work
  not known  it could not be looked at

The exit status is 1 if a check failed, 2 if the plugin could not be asked, as
without root, and else 0.`,
		Example: `  sudo weave doctor
  sudo weave doctor --json | jq -r '.[] | select(.verdict == "failed") | .found'`,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			progress := newProgress(cmd.ErrOrStderr())
			progress.step("Asking the plugin and the other hosts")
			_, checks, _ := a.examine(cmd.Context())
			progress.done()
			if err := cmd.Context().Err(); err != nil {
				return &exitError{exitUnlooked, err}
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), checks); err != nil {
					return err
				}
				return doctorStatus(checks)
			}
			p := newPrinter(cmd.OutOrStdout(), a.Now())
			printChecks(p, checks)
			if p.err != nil {
				return p.err
			}
			return doctorStatus(checks)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

// examine asks the plugin, and looks at what is outside it. The error is why the
// plugin has no status.
func (a *app) examine(ctx context.Context) (control.Status, []control.Check, error) {
	answer := doctor.Answer{Command: a.Version}
	asking, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	status, err := a.client().Status(asking)
	var inside []control.Check
	answer.Err = err
	if err == nil {
		answer.Version = status.Version
		inside, answer.Err = a.client().Doctor(ctx)
	}
	return status, append(a.Host.Examine(ctx, answer), inside...), err
}

// gravity orders the verdicts: what is wrong comes first.
func gravity(v control.Verdict) int {
	return slices.Index([]control.Verdict{control.Failed, control.Warned, control.Undecided, control.OK}, v)
}

func printChecks(p *printer, checks []control.Check) {
	sorted := slices.Clone(checks)
	slices.SortStableFunc(sorted, func(a, b control.Check) int { return gravity(a.Verdict) - gravity(b.Verdict) })
	wide := 0
	for _, c := range sorted {
		wide = max(wide, len(c.Name))
	}
	colors := map[control.Verdict]string{control.Failed: red, control.Warned: yellow, control.Undecided: bold, control.OK: green}
	verdictWide := len(control.Undecided)
	for _, c := range sorted {
		verdict := fmt.Sprintf("%-*s", verdictWide, clean(string(c.Verdict)))
		if sgr, ok := colors[c.Verdict]; ok {
			verdict = p.style(sgr, verdict)
		}
		p.line("%s  %-*s  %s", verdict, wide, clean(c.Name), clean(c.Found))
		if c.Do != "" {
			p.line("%*s  -> %s", verdictWide+2+wide, "", clean(c.Do))
		}
	}
	p.line("")
	p.line("%s", summary(sorted))
}

func summary(checks []control.Check) string {
	n := map[control.Verdict]int{}
	for _, c := range checks {
		n[c.Verdict]++
	}
	if n[control.OK] == len(checks) {
		return fmt.Sprintf("All %d checks are ok.", len(checks))
	}
	var parts []string
	for _, v := range []control.Verdict{control.Failed, control.Warned, control.Undecided, control.OK} {
		if n[v] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[v], v))
		}
	}
	return "Checks: " + strings.Join(parts, ", ") + "."
}

// doctorStatus is the exit status; what is wrong has been said.
func doctorStatus(checks []control.Check) error {
	has := func(f func(control.Check) bool) bool { return slices.ContainsFunc(checks, f) }
	switch {
	case has(func(c control.Check) bool { return c.Verdict == control.Failed }):
		return &exitError{status: exitFailed}
	case has(func(c control.Check) bool { return c.Name == "plugin" && c.Verdict == control.Undecided }):
		return &exitError{status: exitUnlooked}
	}
	return nil
}

// reportLog is how much of the log goes into a report, in lines.
const reportLog = 300

// report is all that helps somebody elsewhere to find out what is wrong.
type report struct {
	Time    time.Time       `json:"time"`
	Command string          `json:"command"` // its version
	Host    doctor.Facts    `json:"host"`
	Checks  []control.Check `json:"checks"`
	Status  *control.Status `json:"status"` // null if the plugin does not answer
	Log     []string        `json:"log"`    // the last lines of the plugin's
	Missing []string        `json:"missing"`
}

func (a *app) reportCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Write down all that helps to find out what is wrong",
		Long: `Write one JSON with all that helps somebody else to find out what is wrong: what
weave status and weave doctor tell, the settings, the versions of engine and
kernel, the plugin's links and packet filters, and the end of its log.

Passwords are left out, those of WEAVE_PROXY, too. Names and addresses of hosts
and containers are in it.`,
		Example: `  sudo weave report --out weave-report.json
  sudo weave report | jq .checks`,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			progress := newProgress(cmd.ErrOrStderr())
			progress.step("Asking the plugin and the other hosts")
			r := a.report(cmd.Context())
			progress.done()
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if out == "" {
				return printJSON(cmd.OutOrStdout(), r)
			}
			var text bytes.Buffer
			if err := printJSON(&text, r); err != nil {
				return err
			}
			return os.WriteFile(out, text.Bytes(), 0o600)
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "write to this file instead of standard output")
	return cmd
}

func (a *app) report(ctx context.Context) report {
	status, checks, err := a.examine(ctx)
	r := report{Time: a.Now().UTC(), Command: a.Version, Checks: checks, Host: a.Host.Facts(ctx), Log: []string{}, Missing: []string{}}
	if err == nil {
		r.Status = &status
	} else {
		r.Missing = append(r.Missing, "status: "+err.Error())
	}
	for _, p := range r.Host.Plugins {
		err := showLog(ctx, p.ID, reportLog, false, func(line string) error {
			r.Log = append(r.Log, r.Host.Hide(clean(line)))
			return nil
		})
		if err != nil {
			r.Missing = append(r.Missing, "log of "+p.Name+": "+err.Error())
		}
	}
	return r
}
