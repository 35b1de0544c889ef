package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"weave/plugin/config"
	"weave/plugin/control"
	"weave/plugin/managed"
)

func (a *app) stopCommand() *cobra.Command {
	var remove, force bool
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
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plugin, err := a.Plugin(cmd.Context())
			if err != nil {
				return err
			}
			p := newPrinter(cmd.OutOrStdout(), a.Now())
			progress := newProgress(cmd.ErrOrStderr())
			defer progress.done()
			if remove {
				return removePlugin(cmd.Context(), plugin, force, progress, p)
			}
			return stopPlugin(cmd.Context(), plugin, progress, p)
		},
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "remove the plugin from Docker; keys and addresses stay on disk")
	cmd.Flags().BoolVar(&force, "force", false, "with --remove: although there are networks that need it")
	return cmd
}

func stopPlugin(ctx context.Context, plugin Plugin, progress *progress, p *printer) error {
	progress.step("Stopping the plugin")
	ran, err := plugin.Stop(ctx)
	progress.done()
	if err != nil {
		return err
	}
	if !ran {
		p.line("Nothing to do: the plugin does not run.")
		return p.err
	}
	p.line("Stopped. Networks and containers stay. Until `weave launch`:")
	p.line("  no container can be started on weave networks, and no such network made or removed")
	p.line("  nothing goes to other hosts, except by the kernel's VXLAN where no password is set")
	return p.err
}

func removePlugin(ctx context.Context, plugin Plugin, force bool, progress *progress, p *printer) error {
	state, err := plugin.State(ctx)
	if err != nil {
		return err
	}
	if !state.There {
		p.line("Nothing to do: the plugin is not installed.")
		return p.err
	}
	networks, err := plugin.Networks(ctx)
	if err != nil {
		return err
	}
	if len(networks) > 0 && !force {
		return fmt.Errorf(`nothing was removed: there are networks that need the plugin. Remove the containers on them, and then:
  docker network rm %s
--force removes the plugin all the same, and leaves the networks, and links and packet filters until the host boots`, names(networks))
	}
	progress.step("Removing the plugin")
	if err := plugin.Remove(ctx); err != nil {
		return err
	}
	progress.done()
	p.line("Removed. Keys and addresses are still in %s; `weave reset` deletes them.", config.HostState)
	return p.err
}

func names(networks []managed.Network) string {
	all := make([]string, len(networks))
	for i, n := range networks {
		all[i] = clean(n.Name)
	}
	return strings.Join(all, " ")
}

func (a *app) resetCommand() *cobra.Command {
	var force bool
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
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plugin, err := a.Plugin(cmd.Context())
			if err != nil {
				return err
			}
			progress := newProgress(cmd.ErrOrStderr())
			defer progress.done()
			r := reset{app: a, plugin: plugin, force: force, progress: progress, p: newPrinter(cmd.OutOrStdout(), a.Now())}
			return r.run(cmd.Context(), cmd.InOrStdin())
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "ask nothing, and take running containers off weave networks")
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
}

func (r *reset) run(ctx context.Context, in io.Reader) error {
	if err := r.look(ctx); err != nil {
		return err
	}
	if !r.force {
		if err := r.confirm(in); err != nil {
			return err
		}
	}
	if err := r.removeNetworks(ctx); err != nil {
		return fmt.Errorf("%w; the plugin and its state are still there", err)
	}
	departure, asked := r.leave(ctx)
	r.progress.step("Removing the plugin")
	if err := r.plugin.Remove(ctx); err != nil {
		return fmt.Errorf("%w; its state is still there", err)
	}
	if err := r.plugin.Wipe(r.state); err != nil {
		return err
	}
	r.progress.done()
	return r.report(departure, asked)
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
		case err != nil && !r.force:
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
	if err := r.unmanaged(ctx, r.state); err != nil {
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

func (r *reset) confirm(in io.Reader) error {
	r.p.line("This takes the host out of its cluster, and deletes its identity, its addresses and the password in %s.", config.HostState)
	if len(r.networks) > 0 {
		r.p.line("These networks are removed: %s", names(r.networks))
	}
	r.p.line("Type yes to go on:")
	answer, err := bufio.NewReader(io.LimitReader(in, 1<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return errors.Join(r.p.err, errors.New("nothing was changed"))
	}
	return r.p.err
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
