package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"weave/plugin/control"
)

func (a *app) rmpeerCommand() *cobra.Command {
	var asJSON, gone bool
	cmd := &cobra.Command{
		Use:   "rmpeer PEER",
		Short: "Remove a host that is gone for good, and hand its addresses over",
		Long: `Remove a host that is gone for good from the cluster: by its peer ID, the
beginning of one, or its name, as weave status peers shows them. Another host
inherits the addresses that it owned. Run it on any one host.

If another host is out of reach at that time, its addresses stay unused until
that one is back or removed as well: it may have got some of them.

Addresses that its containers may still have are not given out. If the host
and its containers are destroyed, say so with --gone, also later, and they are.

A host that answers is not removed: stop the plugin there first. One that comes
back after all joins as a new peer and keeps its containers' addresses.`,
		Example: `  sudo weave rmpeer h3
  sudo weave rmpeer --gone sf2nahbyw3fq`,
		Args:              onePeer,
		ValidArgsFunction: a.complete(removable),
		RunE: func(cmd *cobra.Command, args []string) error {
			progress := newProgress(cmd.ErrOrStderr())
			progress.step("Asking the other hosts")
			r, err := a.client().RemovePeer(cmd.Context(), args[0], gone)
			progress.done()
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), r)
			}
			return printRemoval(newPrinter(cmd.OutOrStdout(), a.Now()), r)
		},
	}
	cmd.Flags().BoolVar(&gone, "gone", false, "its containers are gone as well: give out their addresses")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

func onePeer(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return errors.New("give the peer, as in: weave rmpeer h3")
	}
	return nil
}

func printRemoval(p *printer, r control.Removal) error {
	if len(r.Missing) > 0 {
		printMissing(p, r)
	} else {
		p.line("Removed %s. What it owned is %s's now.", peerName(r.Nickname, r.Peer), clean(r.Heir))
	}
	if r.Pending {
		p.line("%s does not answer at the moment, and will take it over when it does.", clean(r.Heir))
	}
	held := 0
	for _, pool := range r.Pools {
		p.line("  %s: %s", pool.Subnet, count(pool.Addresses, "address", "addresses"))
		held += len(pool.Held)
	}
	if held > 0 {
		p.line("Not given out, since its containers may still have them:")
		for _, pool := range r.Pools {
			for _, addr := range pool.Held {
				p.line("  %s", addr)
			}
		}
		p.line("If those containers are gone for good: weave rmpeer --gone %s", clean(r.Peer))
	}
	return p.err
}

// printMissing says what keeps the heir from taking over anything.
func printMissing(p *printer, r control.Removal) {
	p.line("Removed %s. %s takes over what it owned as soon as these hosts have told what it gave them:", peerName(r.Nickname, r.Peer), clean(r.Heir))
	for _, host := range r.Missing {
		p.line("  %s", clean(host))
	}
	p.line("Start weave there. If one is gone for good as well: weave rmpeer %s", clean(r.Missing[0]))
}
