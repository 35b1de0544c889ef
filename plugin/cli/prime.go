package cli

import (
	"time"

	"github.com/spf13/cobra"

	"weave/plugin/control"
)

// primeEvery is the pause before the plugin is asked again.
const primeEvery = time.Second

func (a *app) primeCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "prime",
		Short: "Wait until this host has addresses of the default subnet",
		Long: `Have the hosts agree who starts with which addresses of the default subnet, and
wait until this host has some. A container that then asks for one has not to wait
for that. It needs a majority of the hosts, and waits until there is one: for a
limit, put "timeout 60" before it.`,
		Example: `  sudo weave prime
  sudo timeout 60 weave prime`,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			primed, err := a.prime(cmd)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), primed)
			}
			p := newPrinter(cmd.OutOrStdout(), a.Now())
			p.line("%s: %s free on this host", primed.Subnet, count(primed.Free, "address", "addresses"))
			return p.err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

// prime asks until there is nothing to wait for, and tells for what it waits.
func (a *app) prime(cmd *cobra.Command) (control.Primed, error) {
	note := newPrinter(cmd.ErrOrStderr(), a.Now())
	said := ""
	for {
		primed, err := a.client().Prime(cmd.Context())
		if err != nil || primed.Waiting == "" {
			return primed, err
		}
		if primed.Waiting != said {
			said = primed.Waiting
			note.line("Waiting: %s", clean(said))
		}
		select {
		case <-cmd.Context().Done():
			return primed, cmd.Context().Err()
		case <-time.After(primeEvery):
		}
	}
}
