package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"weave/plugin/attach"
	"weave/plugin/control"
)

// Docker is what the verbs for containers need of the local Docker Engine.
type Docker interface {
	Host() string // as in DOCKER_HOST
	Containers(ctx context.Context) ([]string, error)
	Check(ctx context.Context, wants []attach.Want, holder attach.Holder) error
	Attach(ctx context.Context, r attach.Request) (*attach.Attached, error)
	Undo(ctx context.Context, a *attach.Attached) error
	Addresses(ctx context.Context, container string, wants []attach.Want) ([]attach.Address, error)
	Detach(ctx context.Context, container string, wants []attach.Want, keep []netip.Prefix) ([]attach.Address, error)
	Start(ctx context.Context, id string) error
	Foreground(ctx context.Context, id string, console attach.Console) (wait func(context.Context) (int, error), err error)
	Discard(ctx context.Context, id string) error
	// Network returns the name of the weave network with a subnet. If there is
	// none it makes one, and notes what for.
	Network(ctx context.Context, subnet netip.Prefix, made string) (name string, created bool, err error)
	Remove(ctx context.Context, network string) error
	// RemoveUnused removes the networks of subnets that weave made and no container
	// is on, but for those to keep.
	RemoveUnused(ctx context.Context, subnets, keep []netip.Prefix) error
}

// addressForms is told by each verb that takes addresses.
const addressForms = `An ADDRESS is one of
  192.168.0.2/24        this address of the subnet 192.168.0.0/24; IPv6, too
  net:192.168.0.0/24    any address of that subnet that is free
  net:default           any address of the default subnet, the same on all
                        hosts: the first /16 of WEAVE_IPALLOC_RANGE
and without one net:default is meant. The same subnet on two hosts is the same
network; other subnets are apart from it. Where this host has no Docker network
with that subnet it is made, as weave-192.168.0.0-24.`

func (a *app) attachCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "attach [ADDRESS...] CONTAINER",
		Short: "Give a running container addresses on weave networks",
		Long: `Give a running container of this host addresses on weave networks, and print
them. It keeps the networks that it has, and comes back on all of them after a
restart, with the addresses that were named.

` + addressForms + `

If one address cannot be had, the container gets none.`,
		Example: `  sudo weave attach 192.168.0.2/24 web
  sudo weave attach 192.168.0.2/24 net:10.5.0.0/16 fd00::2/64 web
  sudo weave attach web`,
		Args:              container,
		ValidArgsFunction: a.completeAttach,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.attach(cmd, args[:len(args)-1], args[len(args)-1], asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

// given is an address of a container as JSON tells it.
type given struct {
	Address netip.Prefix `json:"address"`
	Network string       `json:"network"`
}

func listGiven(all []attach.Address) []given {
	list := []given{}
	for _, x := range all {
		list = append(list, given{x.Prefix, x.Network})
	}
	return list
}

func printGiven(w io.Writer, all []attach.Address) error { return printJSON(w, listGiven(all)) }

func (a *app) attach(cmd *cobra.Command, words []string, name string, asJSON bool) error {
	ctx := cmd.Context()
	status, wants, err := a.wants(ctx, words, true)
	if err != nil {
		return err
	}
	docker, err := a.Docker()
	if err != nil {
		return err
	}
	progress := newProgress(cmd.ErrOrStderr())
	progress.step("Waiting for Docker to connect " + name)
	done, err := docker.Attach(ctx, attach.Request{Container: name, Wants: wants, Holder: holder(status)})
	progress.done()
	if err != nil {
		return err
	}
	if asJSON {
		return printGiven(cmd.OutOrStdout(), done.Addresses)
	}
	out, note := newPrinter(cmd.OutOrStdout(), a.Now()), newPrinter(cmd.ErrOrStderr(), a.Now())
	for _, addr := range done.Addresses {
		if addr.Old {
			note.line("%s has %s already, on network %s", clean(name), addr.Addr(), clean(addr.Network))
		}
		out.line("%s", addr.Addr())
	}
	return out.err
}

func (a *app) detachCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "detach [ADDRESS...] CONTAINER",
		Short: "Take a container off weave networks",
		Long: `Take a container of this host off the weave networks that are named by its
addresses there, as 192.168.0.2/24, or by subnet, as net:192.168.0.0/24; or off
all of them. The addresses that it had are printed.

A network that weave attach, weave run or weave expose made is removed with its
last container, unless this host itself has an address there.`,
		Example: `  sudo weave detach 192.168.0.2/24 web
  sudo weave detach web`,
		Args:              container,
		ValidArgsFunction: a.completeAttach,
		RunE: func(cmd *cobra.Command, args []string) error {
			status, wants, err := a.wants(cmd.Context(), args[:len(args)-1], false)
			if err != nil {
				return err
			}
			docker, err := a.Docker()
			if err != nil {
				return err
			}
			progress := newProgress(cmd.ErrOrStderr())
			progress.step("Waiting for Docker to disconnect " + args[len(args)-1])
			left, err := docker.Detach(cmd.Context(), args[len(args)-1], wants, subnetsOf(status.Exposed))
			progress.done()
			if asJSON {
				return errors.Join(err, printGiven(cmd.OutOrStdout(), left))
			}
			p := newPrinter(cmd.OutOrStdout(), a.Now())
			for _, addr := range left {
				p.line("%s", addr.Addr())
			}
			return errors.Join(err, p.err)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

// container checks that the last argument can be a container.
func container(cmd *cobra.Command, args []string) error {
	if len(args) == 0 || args[len(args)-1] == "" || attach.IsWant(args[len(args)-1]) {
		return fmt.Errorf("name the container, after the addresses, as in: %s 192.168.0.2/24 web", cmd.CommandPath())
	}
	return nil
}

// wants reads addresses as people write them; without any it is the default
// subnet, if that is meant. The plugin must be at work.
func (a *app) wants(ctx context.Context, words []string, orDefault bool) (control.Status, []attach.Want, error) {
	if len(words) == 0 && orDefault {
		words = []string{attach.AnyDefault}
	}
	var wants []attach.Want
	status, err := a.client().Status(ctx)
	for _, word := range words {
		want, bad := attach.Parse(word, status.DefaultSubnet)
		switch {
		case bad != nil:
			return status, nil, bad
		case err == nil && status.Peer == "":
			return status, nil, errors.New("the plugin does no work yet: weave status says why")
		case err == nil && !want.Subnet.IsValid():
			return status, nil, control.ErrOld
		case !slices.Contains(wants, want):
			wants = append(wants, want)
		}
	}
	return status, wants, err
}

// holder tells of each address whose it is, as far as has been announced.
func holder(s control.Status) attach.Holder {
	return func(segment string, addr netip.Addr) (string, bool) {
		for _, e := range s.Endpoints {
			if e.Segment != segment || !slices.Contains(e.Addresses, addr) {
				continue
			}
			who := "a container"
			if e.Container != "" {
				who = clean(e.Container)
			}
			if e.Local {
				return who + " on this host", true
			}
			return who + " on host " + clean(e.Host), true
		}
		return "", false
	}
}

// completeAttach offers subnets, and the containers that run.
func (a *app) completeAttach(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	words, directive := a.complete(subnets)(cmd, args, word)
	ctx, cancel := context.WithTimeout(cmd.Context(), completeLimit)
	defer cancel()
	if docker, err := a.Docker(); err == nil {
		names, _ := docker.Containers(ctx) // none to who may not ask
		words = append(words, names...)
	}
	return words, directive
}

// subnets lists those that an address can be of.
func subnets(s control.Status) []string {
	var words []string
	if s.DefaultSubnet.IsValid() {
		words = append(words, cobra.CompletionWithDesc(attach.AnyDefault, s.DefaultSubnet.String()))
	}
	for _, pool := range s.IPAM {
		words = append(words, attach.Want{Subnet: pool.Subnet}.String())
	}
	return words
}
