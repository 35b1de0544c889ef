package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weave/plugin/config"
	"weave/plugin/control"
	"weave/plugin/managed"
)

// Plugin is the managed plugin of the local engine, whether it is there or not.
type Plugin interface {
	State(ctx context.Context) (managed.State, error)
	// Lock keeps other commands from changing the plugin until release is called.
	Lock(ctx context.Context) (release func(), err error)
	Launch(ctx context.Context, r managed.Request) (managed.Outcome, error)
	Stop(ctx context.Context) (ran bool, err error)
	Remove(ctx context.Context) error
	// Networks lists those that need the plugin.
	Networks(ctx context.Context) ([]managed.Network, error)
	// RemoveNetwork also takes the containers off that run on it.
	RemoveNetwork(ctx context.Context, n managed.Network) error
	// Wipe deletes what the plugin kept on disk, which State was of, and tells
	// whether there was anything.
	Wipe(s managed.State) (some bool, err error)
}

// How long a plugin that was started may take until it answers, and how often it
// is asked.
const (
	answerLimit = 30 * time.Second
	answerEvery = 100 * time.Millisecond
	askLimit    = 5 * time.Second // for a plugin that is not expected to be there
)

// launchFlags are the flags of weave launch.
type launchFlags struct {
	password, passwordFile  string
	noPassword, noDiscovery bool
	asJSON                  bool
	set                     string
	settings                map[string]*string // by the name of the setting
}

func (a *app) launchCommand() *cobra.Command {
	var f launchFlags
	cmd := &cobra.Command{
		Use:   "launch [PEER...]",
		Short: "Install, start or upgrade the plugin on this host",
		Long: `Make the managed plugin ` + managed.Name + ` out of this very program, give it the
settings, start it, and wait until it answers. PEER is the name or address of a
host of the cluster, as HOST or HOST:PORT; one is enough, and none is needed to
begin a cluster.

If the plugin is there already, its settings are kept but for those given; PEERs,
if any are given, replace those from before. If it was made of another version
of weave, it is replaced: networks and containers stay, and containers run on.
If nothing is to be changed, nothing is.

The password goes from the file into ` + config.HostState + `/` + managed.PasswordFile + `, which only root may
read, and is kept from then on. A setting that is given as '' has its default
again.`,
		Example: `  sudo weave launch --password-file ./password
  sudo weave launch --password-file ./password host1.example.org
  pass show weave | sudo weave launch --password-file - 192.0.2.7 192.0.2.8:6790
  sudo weave launch --mtu 1400 --log-level debug`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, peers []string) error {
			r, err := f.request(cmd, peers)
			if err != nil {
				return err
			}
			return a.launch(cmd, r, f.asJSON)
		},
	}
	f.add(cmd)
	return cmd
}

// add makes a flag of each setting of config.json that has no other way in.
func (f *launchFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.passwordFile, "password-file", "", "file with the cluster's password; - is the standard input")
	flags.StringVar(&f.password, "password", "", "the cluster's password; other users see it in the list of processes, so prefer --password-file")
	flags.BoolVar(&f.noPassword, "no-password", false, "go without the password that was set: frames are no longer encrypted")
	f.settings = map[string]*string{}
	for _, s := range managed.AllSettings() {
		switch s.Name {
		case config.Password, config.PasswordFile, config.Peers:
			continue
		}
		if name, ok := flagOf(s.Name); ok {
			f.settings[s.Name] = flags.String(name, "", s.Description)
		}
		if s.Name == config.Discover {
			flags.BoolVar(&f.noDiscovery, "no-discovery", false, "the same as --discover off")
		}
	}
	flags.StringVar(&f.set, "set", "", "settings by their own names, as `'NAME=VALUE ...'`, for scripts; state.source is one, too")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON for programs")
	words := func(words ...string) cobra.CompletionFunc {
		return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	}
	for flag, complete := range map[string]cobra.CompletionFunc{
		"discover":  words(string(config.DiscoverOn), string(config.DiscoverLAN), string(config.DiscoverOff)),
		"networks":  words("local", "everywhere"),
		"log-level": words("debug", "info", "warning", "error"),
	} {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic(err) // no such flag
		}
	}
}

// flagOf returns the flag of a setting of the environment: --tcp-port of
// WEAVE_TCP_PORT.
func flagOf(setting string) (flag string, ok bool) {
	name, ok := strings.CutPrefix(setting, "WEAVE_")
	return strings.ReplaceAll(strings.ToLower(name), "_", "-"), ok
}

// request reads the flags, and the password.
func (f *launchFlags) request(cmd *cobra.Command, peers []string) (managed.Request, error) {
	if err := errors.Join(oneOf(cmd, "password", "password-file", "no-password"), oneOf(cmd, "discover", "no-discovery")); err != nil {
		return managed.Request{}, err
	}
	set, err := managed.ParseSettings(f.set)
	if err != nil {
		return managed.Request{}, err
	}
	for setting, value := range f.settings {
		if flag, _ := flagOf(setting); cmd.Flags().Changed(flag) {
			set[setting] = *value
		}
	}
	if f.noDiscovery {
		set[config.Discover] = string(config.DiscoverOff)
	}
	if len(peers) > 0 {
		set[config.Peers] = strings.Join(peers, ",")
	}
	r := managed.Request{Set: set}
	switch {
	case f.noPassword:
		set[config.Password], set[config.PasswordFile] = "", ""
		return r, nil
	case cmd.Flags().Changed("password"):
		r.Password = &f.password
	case cmd.Flags().Changed("password-file"):
		text, err := readPassword(f.passwordFile, cmd.InOrStdin())
		if err != nil {
			return r, err
		}
		r.Password = &text
	}
	if r.Password != nil && *r.Password == "" {
		return r, errors.New("the password is empty; --no-password goes without one")
	}
	return r, nil
}

// readPassword reads a password from a file, or from in if its name is "-". One
// line end after it is not part of it.
func readPassword(name string, in io.Reader) (string, error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", fmt.Errorf("read the password: %w", err)
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, config.MaxPassword+3)) // with "\r\n", and one to see that it is more
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), nil
}

// launched is what weave launch did, as JSON tells it.
type launched struct {
	Outcome  string `json:"outcome"`
	Version  string `json:"version"`
	Peer     string `json:"peer"`
	Nickname string `json:"nickname"`
}

// unchanged is the outcome where there was nothing to do.
const unchanged = "unchanged"

var outcomes = map[managed.Outcome]string{
	managed.Unchanged: unchanged, managed.Created: "created", managed.Replaced: "upgraded",
	managed.Changed: "changed", managed.Started: "started",
}

func (a *app) launch(cmd *cobra.Command, r managed.Request, asJSON bool) error {
	ctx := cmd.Context()
	plugin, err := a.Plugin(ctx)
	if err != nil {
		return err
	}
	progress := newProgress(cmd.ErrOrStderr())
	defer progress.done()
	release, err := lock(ctx, plugin, progress)
	if err != nil {
		return err
	}
	defer release()
	state, err := plugin.State(ctx)
	if err != nil {
		return err
	}
	if err := a.unmanaged(ctx, state, "end that first, as by `systemctl disable --now weave`"); err != nil {
		return err
	}
	r.Step = progress.step
	outcome, err := plugin.Launch(ctx, r)
	if err != nil {
		return err
	}
	progress.step("Waiting for the plugin to answer")
	status, err := a.awaitAnswer(ctx)
	progress.done()
	if errors.Is(err, context.Canceled) {
		err = fmt.Errorf("the launch is done, but the plugin was not waited for: %w", err)
	}
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), launched{outcomes[outcome], status.Version, status.Peer, status.Nickname})
	}
	return printLaunched(newPrinter(cmd.OutOrStdout(), a.Now()), outcome, status)
}

// lock waits for other commands that change the plugin.
func lock(ctx context.Context, plugin Plugin, progress *progress) (release func(), err error) {
	progress.step("Waiting for another weave command to end")
	defer progress.done()
	return plugin.Lock(ctx)
}

// unmanaged returns an error if somebody runs the daemon in another way.
func (a *app) unmanaged(ctx context.Context, s managed.State, wayOut string) error {
	if s.Enabled {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if _, err := a.client().Status(ctx); err != nil {
		return nil //nolint:nilerr // nobody does
	}
	return errors.New("nothing was changed: weave runs on this host without the managed plugin; " + wayOut)
}

// awaitAnswer waits until the plugin does its work.
func (a *app) awaitAnswer(parent context.Context) (control.Status, error) {
	ctx, cancel := context.WithTimeout(parent, answerLimit)
	defer cancel()
	tick := time.NewTicker(answerEvery)
	defer tick.Stop()
	for {
		status, err := a.client().Status(ctx)
		if err == nil && status.Peer != "" || errors.Is(err, control.ErrPermission) {
			return status, err
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		if parent.Err() != nil {
			return status, parent.Err()
		}
		if err == nil && len(status.Problems) > 0 {
			return status, fmt.Errorf("the plugin runs but does no work yet: %s; %s (`weave status` tells more)", clean(status.Problems[0].What), clean(status.Problems[0].Do))
		}
		return status, fmt.Errorf("the plugin was started and does not answer within %s: see `weave logs`", answerLimit)
	}
}

func printLaunched(p *printer, outcome managed.Outcome, s control.Status) error {
	name := fmt.Sprintf("weave %s on %s", clean(s.Version), peerName(s.Nickname, s.Peer))
	switch outcome {
	case managed.Created:
		p.line("Started %s: plugin %s, port %d UDP and TCP.", name, managed.Name, s.Port)
		printNext(p, s)
	case managed.Replaced:
		p.line("Upgraded to %s. Settings, networks and containers are as they were, but for what was set now.", name)
	case managed.Changed:
		p.line("Changed the settings of %s. Networks and containers are as they were.", name)
	case managed.Started:
		p.line("Started %s, with the settings that it had.", name)
	default:
		p.line("Nothing to do: %s runs already, with these settings.", name)
	}
	return p.err
}

// printNext says what to do with a plugin that is new here.
func printNext(p *printer, s control.Status) {
	if !s.Password {
		p.line("No password is set: frames are not encrypted, and whoever reaches port %d can join.", s.Port)
	}
	p.line("")
	p.line("Next:")
	if len(s.Seeds) == 0 {
		same := ""
		if s.Password {
			same = ", with the same password"
		}
		p.line("  weave launch %s    on another host%s", orDash(address(s)), same)
	}
	p.line("  docker network create -d weave --ipam-driver weave --subnet 10.32.0.0/16 NAME    on each host")
	p.line("  weave status")
}

func address(s control.Status) string {
	if s.Address.IsValid() {
		return s.Address.String()
	}
	return s.Nickname
}
