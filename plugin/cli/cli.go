// Package cli is the command line of the `weave` binary. Its verbs talk to the
// running plugin over the control API, those for containers to Docker, too, have
// package managed make and remove the plugin, and write to the terminal.
//
// It touches neither the network nor the kernel nor the plugin's state, and
// knows of nothing that the control API and Docker do not tell.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weave/plugin/control"
	"weave/plugin/managed"
)

const (
	socketEnv     = "WEAVE_SOCKET"
	defaultSocket = "/run/weave/weave.sock"
)

// Options is what the commands need from the binary that they are part of.
type Options struct {
	Version string
	Now     func() time.Time                // the clock that ages are told by
	Daemon  func(ctx context.Context) error // runs the plugin until ctx ends
	// Plugin finds the managed plugin of the local engine.
	Plugin func(ctx context.Context) (Plugin, error)
	Docker func() (Docker, error) // the local engine
	Host   Host                   // examined by the doctor
}

// app is shared by all verbs.
type app struct {
	Options
	socket string // of --socket
}

// New returns the root command. Its Execute returns errors that Explain makes
// fit for a person.
func New(o Options) *cobra.Command {
	a := &app{Options: o}
	root := &cobra.Command{
		Use:   "weave",
		Short: "One network for the containers of many Docker hosts",
		Long: `weave starts, shows and steers the weave network plugin of this host.

Networks are made with Docker's own commands, on each host that shall be part:

  docker network create -d weave --ipam-driver weave --subnet 10.32.0.0/16 mynet

The same subnet on two hosts is the same network.`,
		Example: `  sudo weave launch --password-file FILE host2.example.org
  sudo weave status
  sudo weave connect host2.example.org`,
		Version:       o.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate("weave {{.Version}}\n")
	root.PersistentFlags().StringVar(&a.socket, "socket", "",
		"control socket of the plugin (default $"+socketEnv+", or "+defaultSocket+")")
	root.AddCommand(a.statusCommand(), a.connectCommand(), a.forgetCommand(), a.rmpeerCommand(), a.versionCommand(), a.daemonCommand())
	root.AddCommand(a.launchCommand(), a.stopCommand(), a.resetCommand(), a.logsCommand())
	root.AddCommand(a.exposeCommand(), a.hideCommand())
	root.AddCommand(a.attachCommand(), a.detachCommand(), a.runCommand(), a.psCommand(), a.primeCommand())
	root.AddCommand(a.dnsAddCommand(), a.dnsRemoveCommand(), a.dnsLookupCommand())
	root.AddCommand(a.doctorCommand(), a.reportCommand(), a.manCommand())
	explainCompletion(root)
	root.SetFlagErrorFunc(flagError)
	return root
}

// flagError says where to look. What strconv thought of a number is left out: the
// flag and its value have been named by then.
func flagError(cmd *cobra.Command, err error) error {
	text, _, _ := strings.Cut(err.Error(), ": strconv.")
	return fmt.Errorf("%s; see `%s --help`", text, cmd.CommandPath())
}

// noArguments is for verbs that take none.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var below []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			below = append(below, sub.Name())
		}
	}
	if len(below) > 0 {
		return fmt.Errorf("there is no %q: give one of %s", cmd.CommandPath()+" "+args[0], strings.Join(below, ", "))
	}
	return fmt.Errorf("%s takes no arguments, and got %.80q; see `%[1]s --help`", cmd.CommandPath(), args[0])
}

// oneOf refuses more than one of some flags.
func oneOf(cmd *cobra.Command, names ...string) error {
	var set []string
	for _, name := range names {
		if cmd.Flags().Changed(name) {
			set = append(set, "--"+name)
		}
	}
	if len(set) > 1 {
		return fmt.Errorf("%s exclude each other: give one", strings.Join(set, " and "))
	}
	return nil
}

// asked is what was asked of Docker when a command was interrupted.
var asked = regexp.MustCompile(`[A-Z][a-z]+ "http://[^"]*": `)

// Explain returns the text for an error of Execute: what is wrong, and what the
// user can do. It is empty where that has been said.
func Explain(err error) string {
	if e, ok := errors.AsType[*exitError](err); ok && e.err == nil {
		return ""
	}
	text := "weave: " + cleanLines(err.Error())
	if errors.Is(err, context.Canceled) {
		text = strings.ReplaceAll(asked.ReplaceAllString(text, ""), context.Canceled.Error(), "interrupted")
	}
	switch {
	case errors.Is(err, control.ErrNotRunning):
		text += startHints(unitFile)
	case errors.Is(err, control.ErrPermission), errors.Is(err, managed.ErrNotRoot):
		text += "\n  Try again with sudo."
	case errors.Is(err, managed.ErrNoEngine):
		text += "\n  Start it:  sudo systemctl start docker"
	case errors.Is(err, managed.ErrRemote):
		text += "\n  Run weave on that host, or without DOCKER_HOST."
	case errors.Is(err, managed.ErrNotOurs):
		text += "\n  See it:     docker plugin inspect " + managed.Name + `
  Remove it:  docker plugin rm -f ` + managed.Name
	case errors.Is(err, managed.ErrNoTUN):
		text += "\n  Load it:  sudo modprobe tun"
	}
	return text
}

// unitFile is where examples/weave.service is put.
const unitFile = "/etc/systemd/system/weave.service"

// startHints says how to start what does not run: the service, where there is a
// unit for it.
func startHints(unit string) string {
	if _, err := os.Stat(unit); err == nil {
		return `
  See it:    systemctl status weave
  Start it:  sudo systemctl start weave`
	}
	return `
  See it:    docker plugin ls
  Start it:  sudo weave launch`
}

func (a *app) client() *control.Client {
	path := a.socket
	if path == "" {
		path = os.Getenv(socketEnv)
	}
	if path == "" {
		path = defaultSocket
	}
	return control.NewClient(strings.TrimPrefix(path, "unix://"))
}

func (a *app) connectCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "connect HOST[:PORT]...",
		Short: "Join the cluster that other hosts are part of",
		Long: `Connect this host to others, by name or address. One host of a cluster is
enough: the others are found through it. Addresses that do not answer are
tried again until they do, also after a restart of the plugin; weave forget
ends that. This host itself is left out, so that all can be given one list.

The exit status is 1 if one of the hosts was not reached at once.`,
		Example: `  sudo weave connect 192.0.2.7
  sudo weave connect host2.example.org:6790 '[2001:db8::7]:6783'`,
		Args:              addresses,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			progress := newProgress(cmd.ErrOrStderr())
			progress.step("Connecting to " + strings.Join(args, ", "))
			results, err := a.client().Connect(cmd.Context(), args)
			progress.done()
			if err != nil {
				return err
			}
			if asJSON {
				return errors.Join(printJSON(cmd.OutOrStdout(), results), unreached(results))
			}
			return printConnected(newPrinter(cmd.OutOrStdout(), a.Now()), results)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

// forgotten is what weave forget did, as JSON tells it.
type forgotten struct {
	Forgotten []string `json:"forgotten"` // as they were named
}

func (a *app) forgetCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "forget HOST[:PORT]...",
		Short: "Take back addresses that weave connect was given",
		Long: `Take back addresses that weave connect was given: they are tried no more. Hosts
that were met stay connected. Addresses in the setting WEAVE_PEERS are changed
there.`,
		Example:           `  sudo weave forget 192.0.2.7`,
		Args:              addresses,
		ValidArgsFunction: a.complete(forgettable),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.client().Forget(cmd.Context(), args); err != nil || !asJSON {
				return err
			}
			return printJSON(cmd.OutOrStdout(), forgotten{args})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

// addresses checks that there is an argument.
func addresses(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("give the address of a host, as in: %s 192.0.2.7", cmd.CommandPath())
	}
	return nil
}

// printConnected tells what came of each address, and returns an error if one
// was not reached.
func printConnected(p *printer, results []control.ConnectResult) error {
	for _, r := range results {
		switch {
		case r.Error != "":
			p.line("%s: %s", clean(r.Address), clean(r.Error))
			if r.Do != "" {
				p.line("  -> %s", clean(r.Do))
			}
		case r.Self:
			p.line("%s: this is this host, left out", clean(r.Address))
		default:
			p.line("%s: connected to %s", clean(r.Address), peerName(r.Nickname, r.Peer))
		}
	}
	if p.err != nil {
		return p.err
	}
	return unreached(results)
}

// unreached returns an error if an address was not reached.
func unreached(results []control.ConnectResult) error {
	failed := 0
	for _, r := range results {
		if r.Error != "" {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d not reached; the plugin goes on trying (weave forget ends that)", failed, len(results))
	}
	return nil
}

// versions are what weave version tells.
type versions struct {
	Command  string `json:"command"`
	Plugin   string `json:"plugin,omitempty"`
	Protocol int    `json:"protocol,omitempty"` // between hosts
	Error    string `json:"error,omitempty"`    // why the plugin does not tell
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version of this command and of the running plugin",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := a.client().Status(cmd.Context())
			if asJSON {
				v := versions{Command: a.Version, Plugin: status.Version, Protocol: status.Protocol}
				if err != nil {
					v.Error = err.Error()
				}
				return printJSON(cmd.OutOrStdout(), v)
			}
			p := newPrinter(cmd.OutOrStdout(), a.Now())
			p.line("command  %s", a.Version)
			if err != nil {
				p.line("plugin   %s", cleanLines(err.Error()))
				return p.err
			}
			p.line("plugin   %s, protocol %d", clean(status.Version), status.Protocol)
			return p.err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

func (a *app) daemonCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "daemon",
		Short: "Run the plugin in the foreground (dockerd does that)",
		Long: `Run the plugin until it gets SIGTERM. dockerd starts this command when the
managed plugin is enabled. The settings come from the environment, see
"docker plugin inspect weavenet".

It also runs without the managed plugin, as a service of the host: then the
state is in /var/lib/weave and the sockets are below /run, as with it, and the
settings are those of the service. See examples/weave.service.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.Daemon(cmd.Context()) },
	}
}
