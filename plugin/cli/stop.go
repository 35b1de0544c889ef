package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"weave/plugin/config"
	"weave/plugin/control"
	"weave/plugin/managed"
)

// stopped is what weave stop did, as JSON tells it: stopped, removed or unchanged.
type stopped struct {
	Outcome string `json:"outcome"`
}

func (a *app) stopCommand() *cobra.Command {
	var remove, force, asJSON bool
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Stop the plugin; networks and containers stay",
		Long: `Disable the managed plugin. Networks, containers and their addresses stay, and
weave launch starts it again with the settings that it had.

While it is stopped, no container can be started on a weave network, and nothing
goes to other hosts; but where no password is set, the kernel's VXLAN goes on.

With --remove it is also removed from Docker, unless there are networks that
need it. What is in ` + config.HostState + ` stays; weave reset deletes that, too.`,
		Example: `  sudo weave stop
  sudo weave stop --remove`,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plugin, err := a.Plugin(cmd.Context())
			if err != nil {
				return err
			}
			progress := newProgress(cmd.ErrOrStderr())
			defer progress.done()
			outcome, lines, err := a.stop(cmd.Context(), plugin, remove, force, progress)
			if err != nil {
				return err
			}
			progress.done()
			if asJSON {
				return printJSON(cmd.OutOrStdout(), stopped{outcome})
			}
			p := newPrinter(cmd.OutOrStdout(), a.Now())
			for _, line := range lines {
				p.line("%s", line)
			}
			return p.err
		},
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "remove the plugin from Docker; keys and addresses stay on disk")
	cmd.Flags().BoolVar(&force, "force", false, "with --remove: although there are networks that need it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

// stop returns what stopPlugin does.
func (a *app) stop(ctx context.Context, plugin Plugin, remove, force bool, progress *progress) (outcome string, lines []string, err error) {
	release, err := lock(ctx, plugin, progress)
	if err != nil {
		return "", nil, err
	}
	defer release()
	state, err := plugin.State(ctx)
	if err == nil {
		err = a.unmanaged(ctx, state, "stop it as it was started, as by `systemctl stop weave`")
	}
	switch {
	case err != nil:
		return "", nil, err
	case remove:
		return removePlugin(ctx, plugin, state, force, progress)
	}
	return stopPlugin(ctx, plugin, progress)
}

// stopPlugin returns what came of it, for programs and in lines for people.
func stopPlugin(ctx context.Context, plugin Plugin, progress *progress) (outcome string, lines []string, err error) {
	progress.step("Stopping the plugin")
	ran, err := plugin.Stop(ctx)
	if err != nil {
		return "", nil, err
	}
	if !ran {
		return unchanged, []string{"Nothing to do: the plugin does not run."}, nil
	}
	return "stopped", []string{
		"Stopped. Networks and containers stay. Until `weave launch`:",
		"  no container can be started on weave networks, and no such network made or removed",
		"  nothing goes to other hosts, except by the kernel's VXLAN where no password is set",
	}, nil
}

// removePlugin returns what stopPlugin does.
func removePlugin(ctx context.Context, plugin Plugin, state managed.State, force bool, progress *progress) (outcome string, lines []string, err error) {
	if !state.There {
		return unchanged, []string{"Nothing to do: the plugin is not installed."}, nil
	}
	networks, err := plugin.Networks(ctx)
	if err != nil {
		return "", nil, err
	}
	if len(networks) > 0 && !force {
		first := "Remove"
		if !state.Enabled {
			first = "Start it with weave launch, remove"
		}
		return "", nil, fmt.Errorf(`nothing was removed: there are networks that need the plugin. %s the containers on them, and then:
  docker network rm %s
--force removes the plugin all the same, and leaves the networks, and links and packet filters until the host boots`, first, names(networks))
	}
	progress.step("Removing the plugin")
	if err := plugin.Remove(ctx); err != nil {
		return "", nil, err
	}
	return "removed", []string{"Removed. Keys and addresses are still in " + config.HostState + "; `weave reset` deletes them."}, nil
}

func names(networks []managed.Network) string {
	all := make([]string, len(networks))
	for i, n := range networks {
		all[i] = clean(n.Name)
	}
	return strings.Join(all, " ")
}

func (a *app) resetCommand() *cobra.Command {
	var force, asJSON bool
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Leave the cluster, and delete all that weave has on this host",
		Long: `Take this host out of its cluster: remove its weave networks, have another host
inherit its addresses, remove the plugin, and delete what is in ` + config.HostState + `:
the identity, the addresses, the password. Nothing brings them back. A host that
is launched afterwards is a new one.

It asks first. While containers run on weave networks it refuses; --force takes
them off these networks, and asks nothing.`,
		Example: `  sudo weave reset
  sudo weave reset --force`,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plugin, err := a.Plugin(cmd.Context())
			if err != nil {
				return err
			}
			progress := newProgress(cmd.ErrOrStderr())
			defer progress.done()
			r := reset{app: a, plugin: plugin, force: force, progress: progress, p: newPrinter(cmd.OutOrStdout(), a.Now())}
			ask := r.p
			if asJSON {
				ask = newPrinter(cmd.ErrOrStderr(), a.Now()) // what is asked is no JSON
			}
			departure, asked, err := r.run(cmd.Context(), ask, cmd.InOrStdin())
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(cmd.OutOrStdout(), r.outcome(departure, asked))
			}
			return r.report(departure, asked)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "ask nothing, and take running containers off weave networks")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

// reset is one run of weave reset.
type reset struct {
	*app
	plugin   Plugin
	force    bool
	progress *progress
	p        *printer

	state    managed.State
	networks []managed.Network
	left     []managed.Network // that could not be removed
	wiped    bool              // there was something on disk
}

// run returns what leave does.
func (r *reset) run(ctx context.Context, ask *printer, in io.Reader) (d control.Departure, asked bool, err error) {
	if err := r.look(ctx); err != nil {
		return d, false, err
	}
	if !r.force {
		if err := r.confirm(ask, in); err != nil {
			return d, false, err
		}
	}
	release, err := lock(ctx, r.plugin, r.progress)
	if err != nil {
		return d, false, err
	}
	defer release()
	if err := r.look(ctx); err != nil { // while it was asked, or waited
		return d, false, err
	}
	if err := r.removeNetworks(ctx); err != nil {
		return d, false, fmt.Errorf("%w; the plugin and its state are still there", err)
	}
	d, asked = r.leave(ctx)
	r.progress.step("Removing the plugin")
	if err := r.plugin.Remove(ctx); err != nil {
		return d, asked, fmt.Errorf("%w; its state is still there", err)
	}
	if r.wiped, err = r.plugin.Wipe(r.state); err != nil {
		return d, asked, err
	}
	r.progress.done()
	return d, asked, nil
}

// wasReset is what weave reset did, as JSON tells it.
type wasReset struct {
	Peer     string   `json:"peer,omitempty"` // this host's ID in the cluster, if it was to be had
	Asked    bool     `json:"asked"`          // the plugin looked for hosts that remove this one
	Helpers  []string `json:"helpers"`        // those that do: with none, weave rmpeer --gone PEER is left to do, if there are others
	Others   int      `json:"others"`         // hosts of the cluster besides this one
	Networks []string `json:"networks"`       // that were removed
	Left     []string `json:"left"`           // that Docker could not remove
}

func (r *reset) outcome(d control.Departure, asked bool) wasReset {
	out := wasReset{Peer: d.Peer, Asked: asked, Helpers: append([]string{}, d.Helpers...), Others: d.Others, Networks: []string{}, Left: []string{}}
	for _, n := range r.networks {
		list := &out.Networks
		if slices.ContainsFunc(r.left, func(x managed.Network) bool { return x.ID == n.ID && x.Name == n.Name }) {
			list = &out.Left
		}
		*list = append(*list, n.Name)
	}
	return out
}

// removeNetworks removes them while there is a plugin to do it. With --force, one
// that stays is no reason to stay.
func (r *reset) removeNetworks(ctx context.Context) error {
	if !r.state.Enabled {
		r.left = r.networks
		return nil
	}
	for _, n := range r.networks {
		r.progress.step("Removing network " + n.Name)
		err := r.plugin.RemoveNetwork(ctx, n)
		switch {
		case err != nil && (!r.force || ctx.Err() != nil):
			return err
		case err != nil:
			r.left = append(r.left, n)
		}
	}
	return nil
}

// look finds out what there is, and whether it may go.
func (r *reset) look(ctx context.Context) (err error) {
	if r.state, err = r.plugin.State(ctx); err != nil {
		return err
	}
	if err := r.unmanaged(ctx, r.state, "end that first, as by `systemctl disable --now weave`"); err != nil {
		return err
	}
	if r.networks, err = r.plugin.Networks(ctx); err != nil || r.force {
		return err
	}
	for _, n := range r.networks {
		if len(n.Containers) > 0 {
			return fmt.Errorf("nothing was changed: on network %s run containers: %s. Stop them, or see `weave reset --help` for --force",
				clean(n.Name), clean(strings.Join(n.Containers, ", ")))
		}
	}
	if len(r.networks) > 0 && !r.state.Enabled {
		return fmt.Errorf("nothing was changed: without the plugin Docker cannot remove its networks (%s). Start it first: weave launch; --force leaves them", names(r.networks))
	}
	return nil
}

func (r *reset) confirm(ask *printer, in io.Reader) error {
	ask.line("This takes the host out of its cluster, and deletes its identity, its addresses and the password in %s.", config.HostState)
	if len(r.networks) > 0 {
		ask.line("These networks are removed: %s", names(r.networks))
	}
	ask.line("Type yes to go on:")
	answer, err := bufio.NewReader(io.LimitReader(in, 1<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return errors.Join(ask.err, errors.New("nothing was changed"))
	}
	return ask.err
}

// leave asks other hosts to remove this one. A plugin that does not run, or does
// not know how, is no reason to keep it.
func (r *reset) leave(ctx context.Context) (d control.Departure, asked bool) {
	if !r.state.Enabled {
		return d, false
	}
	r.progress.step("Asking other hosts to remove this one")
	d, err := r.client().Leave(ctx)
	if err == nil {
		return d, true
	}
	if status, err := r.client().Status(ctx); err == nil {
		d.Peer, d.Others = status.Peer, len(status.Peers)
	}
	return d, false
}

func (r *reset) report(d control.Departure, asked bool) error {
	if !r.state.There && len(r.networks) == 0 && !r.wiped {
		r.p.line("Nothing to do: the plugin is not installed, and nothing of it is on disk.")
		return r.p.err
	}
	r.p.line("Removed: the plugin, its networks, and all that was in %s.", config.HostState)
	if len(r.left) > 0 {
		r.p.line("Networks are left, which Docker cannot remove without the plugin. After another weave launch: docker network rm %s", names(r.left))
	}
	switch {
	case len(d.Helpers) > 0:
		r.p.line("This host leaves the cluster: %s sees to it within some seconds.", clean(strings.Join(d.Helpers, ", ")))
	case asked && d.Others == 0:
		r.p.line("No other host was part of its cluster.")
	case d.Peer != "":
		r.p.line("No other host could be asked to remove this one. Type on one of them:")
		r.p.line("  weave rmpeer --gone %s", clean(d.Peer))
	default:
		r.p.line("If it was part of a cluster, weave status peers on another host shows it as down. Type there:")
		r.p.line("  weave rmpeer --gone PEER")
	}
	return r.p.err
}
