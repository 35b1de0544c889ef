package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"weave/plugin/attach"
	"weave/plugin/control"
)

// madeByExpose is what a network is labelled with that weave expose makes.
const madeByExpose = "expose"

// How targets are written, besides as an address.
const (
	ofPool        = "net:"
	defaultTarget = ofPool + "default"
)

func (a *app) exposeCommand() *cobra.Command {
	var asJSON bool
	var r control.ExposeRequest
	var exports, imports []string
	cmd := &cobra.Command{
		Use:   "expose [CIDR...]",
		Short: "Give this host an address on a network, as if it were a container",
		Long: `Give this host an address on a weave network, so that containers on all hosts
reach what runs on this host, and this host reaches them. An address is given as
192.168.0.1/24, or leased from a subnet by net:192.168.0.0/24, or from the default
one by net:default, which is also what is used if none is named. If this host has
no network with the subnet, one is made: weave-192.168.0.0-24. Prints the address.

It stays over restarts of the plugin, of Docker and of the host, until weave hide
takes it back or the network is removed. The host's own firewall still decides
which of its ports answer. Nothing passes through the host, unless it is asked to:

--masquerade lets the containers of the subnet out through this host, by its own
address, to wherever it leads. They need a route by the exposed address.

--export 8080:192.168.0.2:80 has each address of this host, but for those of
loopback, answer on port 8080 for a container, on whichever host that is.

--import 5432:192.0.2.7:5432 has the exposed address answer on port 5432 for what
only this host reaches.

Ports are those of TCP, or of UDP with 53/udp:… IPv6 is written 80:[fd00::2]:80, and
wants net.ipv6.conf.all.forwarding=1 on the host. What an address is for is added
to when it is exposed again, and ends with weave hide.`,
		Example: `  sudo weave expose
  sudo weave expose 192.168.0.1/24
  sudo weave expose net:192.168.0.0/24 --masquerade
  sudo weave expose 192.168.0.1/24 --export 8080:192.168.0.2:80 --import 53/udp:192.0.2.53:53`,
		ValidArgsFunction: a.complete(exposable),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if r.Exports, err = parseForwards("export", exports); err != nil {
				return err
			}
			if r.Imports, err = parseForwards("import", imports); err != nil {
				return err
			}
			progress := newProgress(cmd.ErrOrStderr())
			progress.step("Waiting for the network and the address")
			all, err := a.expose(cmd.Context(), args, r)
			progress.done()
			if err != nil {
				return err
			}
			return a.printExposed(cmd, all, asJSON)
		},
	}
	cmd.Flags().BoolVar(&r.Masquerade, "masquerade", false, "let containers of the subnet out through this host")
	cmd.Flags().StringArrayVar(&exports, "export", nil, "publish a container's port on this host, as `PORT[/udp]:ADDRESS:PORT`")
	cmd.Flags().StringArrayVar(&imports, "import", nil, "give containers a port that this host reaches, as `PORT[/udp]:ADDRESS:PORT`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

func (a *app) hideCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "hide [CIDR...]",
		Short: "Take back addresses that weave expose gave this host",
		Long: `Take back addresses that weave expose gave this host, with all that they were
for; all of them if none is named. Prints them. A network that weave made is
removed with the last that used it; others stay.`,
		Example: `  sudo weave hide
  sudo weave hide 192.168.0.1/24`,
		ValidArgsFunction: a.complete(hideable),
		RunE: func(cmd *cobra.Command, args []string) error {
			status, err := a.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			targets, err := parseTargets(args, status.DefaultSubnet)
			if err != nil {
				return err
			}
			docker, err := a.Docker() // first, so that no network is left for want of it
			if err != nil {
				return err
			}
			progress := newProgress(cmd.ErrOrStderr())
			defer progress.done()
			progress.step("Taking addresses back")
			all, err := a.client().Hide(cmd.Context(), targets)
			progress.done()
			if err != nil {
				return err
			}
			return errors.Join(a.printExposed(cmd, all, asJSON), a.removeUnused(cmd.Context(), docker, all))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

// removeUnused removes the networks that were there for what was hidden only.
func (a *app) removeUnused(ctx context.Context, docker Docker, hidden []control.Exposed) error {
	if len(hidden) == 0 {
		return nil
	}
	status, err := a.client().Status(ctx)
	if err != nil {
		return err
	}
	return docker.RemoveUnused(ctx, subnetsOf(hidden), subnetsOf(status.Exposed))
}

// subnetsOf are those that this host itself has an address of.
func subnetsOf(all []control.Exposed) (subnets []netip.Prefix) {
	for _, x := range all {
		subnets = append(subnets, x.Address.Masked())
	}
	return subnets
}

func (a *app) printExposed(cmd *cobra.Command, all []control.Exposed, asJSON bool) error {
	if asJSON {
		return printJSON(cmd.OutOrStdout(), all)
	}
	p := newPrinter(cmd.OutOrStdout(), a.Now())
	for _, x := range all {
		p.line("%s", x.Address.Addr())
	}
	return p.err
}

// expose makes the networks that are missing, and removes them again if that does
// not help.
func (a *app) expose(ctx context.Context, args []string, r control.ExposeRequest) (all []control.Exposed, err error) {
	if len(args) == 0 {
		args = []string{defaultTarget}
	}
	status, err := a.client().Status(ctx)
	if err != nil {
		return nil, err
	}
	if status.Peer == "" {
		return nil, errors.New("the plugin does no work yet: weave status says why")
	}
	if r.Targets, err = parseTargets(args, status.DefaultSubnet); err != nil {
		return nil, err
	}
	if len(r.Targets) > 1 && len(r.Exports)+len(r.Imports) > 0 {
		return nil, errors.New("--export and --import are for one address: name one")
	}
	docker, err := a.Docker()
	if err != nil {
		return nil, err
	}
	var made []string
	defer func() {
		for _, name := range made {
			if err != nil {
				err = errors.Join(err, docker.Remove(context.WithoutCancel(ctx), name))
			}
		}
	}()
	for _, t := range r.Targets {
		if hasSubnet(status, t.Subnet) {
			continue
		}
		name, created, err := docker.Network(ctx, t.Subnet, madeByExpose)
		if err != nil {
			return nil, err
		}
		if created {
			made = append(made, name)
		}
	}
	return a.client().Expose(ctx, r)
}

func hasSubnet(s control.Status, subnet netip.Prefix) bool {
	return slices.ContainsFunc(s.Segments, func(seg control.Segment) bool { return seg.Subnet == subnet })
}

func parseTargets(args []string, standard netip.Prefix) (all []control.Target, err error) {
	for _, arg := range args {
		t, err := parseTarget(arg, standard)
		if err != nil {
			return nil, err
		}
		if slices.Contains(all, t) {
			return nil, fmt.Errorf("%s is named twice", arg)
		}
		all = append(all, t)
	}
	return all, nil
}

// parseTarget reads 192.168.0.1/24, net:192.168.0.0/24 or net:default.
func parseTarget(arg string, standard netip.Prefix) (control.Target, error) {
	want, err := attach.Parse(arg, standard)
	if err == nil && !want.Subnet.IsValid() {
		err = control.ErrOld
	}
	return control.Target{Subnet: want.Subnet, Address: want.Addr}, err
}

func parseForwards(flag string, args []string) (all []control.Forward, err error) {
	for _, arg := range args {
		f, ok := parseForward(arg)
		if !ok {
			return nil, fmt.Errorf("--%s %.80q: want PORT:ADDRESS:PORT, as 8080:192.168.0.2:80, or PORT/udp:ADDRESS:PORT", flag, arg)
		}
		all = append(all, f)
	}
	return all, nil
}

func parseForward(arg string) (f control.Forward, ok bool) {
	from, to, _ := strings.Cut(arg, ":")
	number, protocol, named := strings.Cut(from, "/")
	if !named {
		protocol = "tcp"
	}
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil || port == 0 || protocol != "tcp" && protocol != "udp" {
		return f, false
	}
	f = control.Forward{Protocol: protocol, Port: uint16(port)}
	f.To, err = netip.ParseAddrPort(to)
	return f, err == nil && f.To.Port() != 0
}

// exposable offers the default subnet, and those of this host's networks.
func exposable(s control.Status) []string {
	words := []string{defaultTarget}
	for _, seg := range s.Segments {
		if seg.Subnet.IsValid() {
			words = append(words, ofPool+seg.Subnet.String())
		}
	}
	return words
}

func hideable(s control.Status) []string {
	words := make([]string, len(s.Exposed))
	for i, x := range s.Exposed {
		words[i] = x.Address.String()
	}
	return words
}

// exposedSummary is left out where nothing is exposed: few need it.
func exposedSummary(p *printer, s control.Status) {
	if len(s.Exposed) > 0 {
		p.heading("Exposed: %s of this host", count(uint64(len(s.Exposed)), "address", "addresses"))
		exposedTable(p, s)
	}
}

func exposedView(p *printer, s control.Status) {
	if len(s.Exposed) == 0 {
		p.line("This host has no address on its networks. Give it one with: weave expose CIDR")
		return
	}
	exposedTable(p, s)
}

// exposedTable has a line for each address, and one for each thing more that it
// is for.
func exposedTable(p *printer, s control.Status) {
	var rows [][]string
	for _, x := range s.Exposed {
		uses := exposedUses(x)
		rows = append(rows, []string{x.Address.String(), orDash(x.Network), x.MAC, uses[0]})
		for _, use := range uses[1:] {
			rows = append(rows, []string{"", "", "", use})
		}
	}
	p.table([]column{left("ADDRESS"), left("LOCAL NETWORK"), left("MAC"), left("ALSO FOR")}, rows)
}

func exposedUses(x control.Exposed) (uses []string) {
	if x.Masquerade {
		uses = append(uses, "containers on their way out")
	}
	for _, f := range x.Exports {
		uses = append(uses, fmt.Sprintf("export of %s as port %d/%s", f.To, f.Port, f.Protocol))
	}
	for _, f := range x.Imports {
		uses = append(uses, fmt.Sprintf("import of %s as port %d/%s", f.To, f.Port, f.Protocol))
	}
	if len(uses) == 0 {
		uses = []string{"-"}
	}
	return uses
}
