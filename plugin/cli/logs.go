package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

const (
	defaultLogLines = 100
	maxLogLines     = 1 << 20
	maxEntry        = 1 << 20 // bytes of the journal's JSON for one line
)

func (a *app) logsCommand() *cobra.Command {
	var follow, asJSON bool
	var lines int
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Show the plugin's log",
		Long: `Show the end of the plugin's log, which is part of the Docker Engine's in the
host's journal. weave launch --log-level debug makes it say more.

With --json each line is an object with the keys "time", "level" and "msg", and
what else the line tells; one that has another form is all "msg".`,
		Example: `  sudo weave logs
  sudo weave logs -f -n 20
  sudo weave logs --json | jq 'select(.level == "error")'`,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if lines < 0 || lines > maxLogLines {
				return fmt.Errorf("%d lines, want 0 to %d", lines, maxLogLines)
			}
			plugin, err := a.Plugin(cmd.Context())
			if err != nil {
				return err
			}
			state, err := plugin.State(cmd.Context())
			if err != nil {
				return err
			}
			if !state.There {
				return errors.New("the managed plugin is not on this host; of a daemon that runs without it: journalctl -u weave")
			}
			return showLog(cmd.Context(), state.ID, lines, follow, func(line string) error {
				if asJSON {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(logFields(line))
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), clean(line))
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new lines as they come")
	cmd.Flags().IntVarP(&lines, "lines", "n", defaultLogLines, "how many of the last lines to show")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs, one object to a line")
	return cmd
}

// showLog hands over the last lines of the plugin with that ID, and then perhaps
// those that follow, until show returns an error. They are as they were logged:
// for a terminal they must be made clean.
func showLog(ctx context.Context, id string, lines int, follow bool, show func(line string) error) error {
	if _, err := exec.LookPath("journalctl"); err != nil {
		return noJournal(id)
	}
	// From the end, so that a long journal is not read as a whole.
	var last []string
	var cursor string
	some := false
	err := readJournal(ctx, []string{"--reverse"}, func(e entry) bool {
		if !some {
			some, cursor = true, e.Cursor
		}
		if text, ours := e.line(id); ours && len(last) < lines {
			last = append(last, text)
		}
		return len(last) < lines
	})
	if err != nil {
		return err
	}
	if !some {
		return noJournal(id)
	}
	slices.Reverse(last)
	for _, text := range last {
		if err := show(text); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	var failed error
	err = readJournal(ctx, []string{"--follow", "--lines=all", "--after-cursor=" + cursor}, func(e entry) bool {
		if text, ours := e.line(id); ours {
			failed = show(text)
		}
		return failed == nil
	})
	if ctx.Err() != nil {
		return nil // somebody has seen enough
	}
	return errors.Join(err, failed)
}

func noJournal(id string) error {
	return fmt.Errorf("there is no journal of the unit docker on this host: the plugin's log is in the Docker Engine's, which is what dockerd writes, often to /var/log/docker.log; its lines have plugin=%s", clean(id))
}

// entry is one of the journal's.
type entry struct {
	Cursor  string          `json:"__CURSOR"`
	Message json.RawMessage `json:"MESSAGE"` // a string, or bytes that are none
}

// readJournal calls f for the entries of the engine until that returns false.
func readJournal(ctx context.Context, args []string, f func(entry) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	args = append([]string{"--unit=docker.service", "--output=json", "--no-pager", "--quiet"}, args...)
	cmd := exec.CommandContext(ctx, "journalctl", args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	scan := bufio.NewScanner(out)
	scan.Buffer(nil, maxEntry)
	enough := false
	for !enough && scan.Scan() {
		var e entry
		if json.Unmarshal(scan.Bytes(), &e) == nil {
			enough = !f(e)
		}
	}
	cancel()
	if err := cmd.Wait(); err != nil && !enough && scan.Err() == nil && complaint.Len() > 0 {
		return fmt.Errorf("read the journal: %s", clean(strings.TrimSpace(complaint.String())))
	}
	return scan.Err()
}

// line returns what the plugin itself wrote: dockerd wraps it into a line of its
// own, as msg, with the plugin's ID.
func (e entry) line(id string) (text string, ours bool) {
	var message string
	if id == "" || json.Unmarshal(e.Message, &message) != nil || !strings.Contains(message, "plugin="+id) {
		return "", false
	}
	_, rest, found := strings.Cut(message, " msg=")
	if !found {
		return message, true
	}
	if quoted, err := strconv.QuotedPrefix(rest); err == nil {
		text, _ = strconv.Unquote(quoted)
	} else {
		text, _, _ = strings.Cut(rest, " ")
	}
	return strings.TrimRight(text, "\n"), true
}

// logFields are the fields of a line of the plugin's log, key=value with values
// that may be quoted; of a line that is none, "msg" is all of it.
func logFields(line string) map[string]string {
	fields := map[string]string{}
	for rest := line; rest != ""; rest = strings.TrimPrefix(rest, " ") {
		key, value, found := strings.Cut(rest, "=")
		if !found || key == "" || strings.ContainsAny(key, " \"") {
			return map[string]string{"msg": line}
		}
		if quoted, err := strconv.QuotedPrefix(value); err == nil {
			fields[key], _ = strconv.Unquote(quoted)
			rest = value[len(quoted):]
			continue
		}
		fields[key], rest, _ = strings.Cut(value, " ")
	}
	return fields
}
