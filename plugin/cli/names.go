package cli

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"weave/plugin/control"
)

func (a *app) dnsAddCommand() *cobra.Command {
	var network string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "dns-add NAME ADDRESS...",
		Short: "Have containers find addresses by a name",
		Long: `Have containers on all hosts find addresses by a name: of this host, of things
outside, of whatever has no name of its own. It is seen on all weave networks, or
with --network on one only, and stays until weave dns-remove takes it back on this
host. Containers have their names without this.

Addresses are added to those that the name has.`,
		Example: `  sudo weave dns-add printer 192.0.2.7
  sudo weave dns-add db.example.org 10.32.0.9 10.32.0.10 --network app`,
		Args:              nameAndAddresses(2),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := nameRequest(args, network)
			if err != nil {
				return err
			}
			if err := a.client().AddName(cmd.Context(), r); err != nil || !asJSON {
				return err
			}
			return printJSON(cmd.OutOrStdout(), r)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	a.networkFlag(cmd, &network)
	return cmd
}

func (a *app) dnsRemoveCommand() *cobra.Command {
	var network string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "dns-remove NAME [ADDRESS...]",
		Short: "Take back names that weave dns-add was given",
		Long: `Take back what weave dns-add was given on this host: addresses of a name, or all
that it has there if none is given. For a name that was added with --network say
the same --network.`,
		Example: `  sudo weave dns-remove printer
  sudo weave dns-remove db.example.org 10.32.0.10 --network app`,
		Args: nameAndAddresses(1),
		ValidArgsFunction: a.complete(func(s control.Status) []string {
			return namesOf(s, func(x control.Name) bool { return x.Made && x.Peer == s.Peer })
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := nameRequest(args, network)
			if err != nil {
				return err
			}
			if err := a.client().RemoveName(cmd.Context(), r); err != nil || !asJSON {
				return err
			}
			return printJSON(cmd.OutOrStdout(), r)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	a.networkFlag(cmd, &network)
	return cmd
}

func (a *app) dnsLookupCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "dns-lookup NAME|ADDRESS",
		Short: "Show who is called by a name, or what an address is called",
		Long: `Show the addresses that a name has on the networks of all hosts, or the names that
an address has. A container is answered with those of its own networks only.

The exit status is 1 if there is none.`,
		Example: `  sudo weave dns-lookup web
  sudo weave dns-lookup 10.32.0.2 --json`,
		Args:              oneName,
		ValidArgsFunction: a.complete(func(s control.Status) []string { return namesOf(s, func(control.Name) bool { return true }) }),
		RunE: func(cmd *cobra.Command, args []string) error {
			status, err := a.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if status.DNS == nil {
				return errNoParts
			}
			found := lookup(status.DNS, args[0])
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), found)
			} else {
				p := newPrinter(cmd.OutOrStdout(), a.Now())
				p.nameTable(found)
				err = p.err
			}
			if err == nil && len(found) == 0 {
				err = fmt.Errorf("nothing is called %.80q", args[0])
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

func (a *app) networkFlag(cmd *cobra.Command, network *string) {
	cmd.Flags().StringVar(network, "network", "", "the weave network that it is for, by name, ID or subnet (default all)")
	_ = cmd.RegisterFlagCompletionFunc("network", a.complete(func(s control.Status) (words []string) { // the flag exists
		for _, seg := range s.Segments {
			for _, n := range seg.Networks {
				words = append(words, clean(n.Name))
			}
		}
		return words
	}))
}

func oneName(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("give one name or address, as in: %s web", cmd.CommandPath())
	}
	return nil
}

// nameAndAddresses checks that there are enough arguments.
func nameAndAddresses(least int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least {
			return fmt.Errorf("too few arguments, want: %s", cmd.UseLine())
		}
		return nil
	}
}

func nameRequest(args []string, network string) (control.NameRequest, error) {
	r := control.NameRequest{Name: args[0], Addresses: []netip.Addr{}, Network: network}
	for _, s := range args[1:] {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return r, fmt.Errorf("address %.80q: want one such as 10.32.0.9", s)
		}
		r.Addresses = append(r.Addresses, addr)
	}
	return r, nil
}

// lookup finds what has a name, with or without the domain, or an address.
func lookup(d *control.DNS, what string) []control.Name {
	addr, err := netip.ParseAddr(what)
	name := strings.TrimSuffix(strings.ToLower(strings.TrimSuffix(what, ".")), "."+d.Domain)
	return slices.DeleteFunc(slices.Clone(d.Names), func(x control.Name) bool {
		if err == nil {
			return x.Address != addr.Unmap()
		}
		return x.Name != name
	})
}

// namesOf lists some names, each once.
func namesOf(s control.Status, want func(control.Name) bool) (words []string) {
	if s.DNS == nil {
		return nil
	}
	for _, x := range s.DNS.Names {
		if want(x) {
			words = append(words, clean(x.Name))
		}
	}
	return slices.Compact(words)
}

// namesView is `weave status dns`.
func namesView(p *printer, s control.Status) {
	if s.DNS == nil {
		return
	}
	p.line("Names are answered in %s of this host, with or without .%s behind them.", count(uint64(s.DNS.Sandboxes), "container", "containers"), clean(s.DNS.Domain))
	if s.DNS.Listen.IsValid() {
		p.line("They are answered to others on %s.", s.DNS.Listen)
	}
	q := s.DNS.Questions
	p.line("Questions since the start: %d answered here, %d by others, %d by nobody, %d dropped.", q.Answered, q.Passed, q.Failed, q.Dropped)
	if len(s.DNS.Names) > 0 {
		p.line("")
		p.nameTable(s.DNS.Names)
	}
}

func (p *printer) nameTable(names []control.Name) {
	if len(names) == 0 {
		return
	}
	var rows [][]string
	for _, x := range names {
		segment, whose, host := x.Segment, x.Container, orDash(x.Host)
		if segment == "" {
			segment = "all"
		}
		if x.Made {
			whose = "(dns-add)"
		}
		if x.Local {
			host += " (here)"
		}
		rows = append(rows, []string{x.Name, x.Address.String(), segment, orDash(whose), host})
	}
	p.table([]column{left("NAME"), left("ADDRESS"), left("SEGMENT"), left("CONTAINER"), left("HOST")}, rows)
}
