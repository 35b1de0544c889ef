package cli

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weave/plugin/control"
)

func (a *app) psCommand() *cobra.Command {
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:   "ps [CONTAINER...]",
		Short: "List the containers on weave networks, and their addresses",
		Long: `List the containers of this host that are on weave networks, a line for each
network: or those that are named, or with -a those of all hosts.`,
		Example: `  sudo weave ps
  sudo weave ps -a
  sudo weave ps --json web`,
		ValidArgsFunction: a.complete(func(s control.Status) []string { return containers(s.Endpoints, all) }),
		RunE: func(cmd *cobra.Command, args []string) error {
			status, err := a.named(cmd.Context())
			if err != nil {
				return err
			}
			if status.Peer == "" {
				problems(newPrinter(cmd.ErrOrStderr(), a.Now()), status)
				return errNoParts
			}
			chosen, err := choose(status.Endpoints, args, all)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), chosen)
			}
			p := newPrinter(cmd.OutOrStdout(), a.Now())
			p.table([]column{left("CONTAINER"), left("MAC"), left("ADDRESS"), left("NETWORK"), left("HOST")}, psRows(chosen))
			return p.err
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those of all hosts")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

// How long the names of containers that have just come may take, and how often
// the plugin is asked for them.
const (
	namesLimit = time.Second
	namesEvery = 50 * time.Millisecond
)

// named returns the status as soon as all containers of this host have names in
// it: the plugin learns one some moments after weave attach has ended.
func (a *app) named(ctx context.Context) (control.Status, error) {
	for end := time.Now().Add(namesLimit); ; {
		status, err := a.client().Status(ctx)
		nameless := slices.ContainsFunc(status.Endpoints, func(e control.Endpoint) bool {
			return e.Local && e.Container == "" && e.Kind != control.KindHost
		})
		if err != nil || !nameless || time.Now().After(end) {
			return status, err
		}
		select {
		case <-ctx.Done():
			return status, ctx.Err()
		case <-time.After(namesEvery):
		}
	}
}

// choose leaves those of containers with one of the names, and of this host
// unless those of all are wanted. Each name must be there.
func choose(endpoints []control.Endpoint, names []string, all bool) ([]control.Endpoint, error) {
	chosen := []control.Endpoint{}
	found := map[string]bool{}
	for _, e := range endpoints {
		if (all || e.Local) && (len(names) == 0 || slices.Contains(names, e.Container)) {
			chosen, found[e.Container] = append(chosen, e), true
		}
	}
	for _, name := range names {
		switch {
		case found[name]:
		case all:
			return nil, fmt.Errorf("no container %.80q is on a weave network", name)
		default:
			return nil, fmt.Errorf("no container %.80q of this host is on a weave network; -a looks on all hosts", name)
		}
	}
	return chosen, nil
}

// psRows names a network of another host by its segment: its name is not known
// here.
func psRows(endpoints []control.Endpoint) [][]string {
	var rows [][]string
	for _, e := range endpoints {
		addrs := make([]string, len(e.Addresses))
		for i, a := range e.Addresses {
			addrs[i] = a.String()
		}
		network := e.Network
		if network == "" {
			network = e.Segment
		}
		if dockerID.MatchString(network) { // its name is not known yet
			network = shortID(network)
		}
		rows = append(rows, []string{whose(e), e.MAC, orDash(strings.Join(addrs, " ")), network, orDash(e.Host)})
	}
	return rows
}

var dockerID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// containers lists the names that weave ps knows.
func containers(endpoints []control.Endpoint, all bool) []string {
	var names []string
	for _, e := range endpoints {
		if (all || e.Local) && e.Container != "" {
			names = append(names, clean(e.Container))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
