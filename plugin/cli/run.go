package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"weave/plugin/attach"
)

// exitError ends weave with a status of its own; without an error all has been
// said.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// statusInterrupted is what shells say of a command that was ended by Ctrl-C.
const statusInterrupted = 130

// ExitStatus is that of the process for an error of Execute.
func ExitStatus(err error) int {
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.status
	}
	if errors.Is(err, context.Canceled) {
		return statusInterrupted
	}
	return 1
}

func (a *app) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run [ADDRESS...] DOCKER-RUN-ARGUMENTS...",
		Short: "Run a new container that has addresses on weave networks",
		Long: `Run a new container as docker run does, with all of its flags, which has
addresses on weave networks from its start, besides its usual network.

` + addressForms + `

If an address cannot be had, no container is left. The exit status is that of the
container, or 125 if it did not start. A word that looks like an address but is
an image goes behind "--". With -d the container's ID is printed; with --json, which
stands before Docker's flags, too, its addresses as well.`,
		Example: `  sudo weave run 192.168.0.2/24 -d --name web -p 8080:80 nginx
  sudo weave run net:10.5.0.0/16 --rm -it alpine sh
  sudo weave run --rm alpine ip addr
  sudo weave run --json net:default -d nginx | jq -r .container`,
		DisableFlagsInUseLine: true,
		DisableFlagParsing:    true, // they are Docker's
		ValidArgsFunction:     a.complete(subnets),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := parseRun(args)
			switch {
			case err != nil:
			case r.help:
				return cmd.Help()
			default:
				err = a.run(cmd, r)
			}
			if _, ok := errors.AsType[*exitError](err); err != nil && !ok {
				err = &exitError{attach.StatusNotStarted, err}
			}
			return err
		},
	}
	cmd.Flags().Bool("json", false, "print JSON for programs") // parseRun reads it; this is for help
	return cmd
}

// run makes the container, connects it, and starts it; before it is started, all
// of that is taken back if one step fails.
func (a *app) run(cmd *cobra.Command, r *runArgs) error {
	ctx := cmd.Context()
	if r.socket != "" {
		a.socket = r.socket
	}
	status, wants, err := a.wants(ctx, r.wants, true)
	if err != nil {
		return err
	}
	docker, err := a.Docker()
	if err != nil {
		return err
	}
	if err := docker.Check(ctx, wants, holder(status)); err != nil {
		return err
	}
	c := &newContainer{docker: docker, cidFile: r.cidFile}
	if c.id, err = createContainer(cmd, docker.Host(), r.create); err != nil {
		return err
	}
	progress := newProgress(cmd.ErrOrStderr())
	progress.step("Waiting for Docker to connect the container")
	c.attached, err = docker.Attach(ctx, attach.Request{Container: c.id, Wants: wants, Holder: holder(status), Fresh: true})
	progress.done()
	if err == nil {
		err = a.start(cmd, c, r, wants)
	}
	if _, ran := errors.AsType[*exitError](err); err == nil || ran {
		return err
	}
	code := attach.StatusNotStarted
	if e, ok := errors.AsType[*attach.StartError](err); ok {
		code = e.Status
	}
	return &exitError{code, errors.Join(err, c.discard(ctx))}
}

// newContainer is one that was not started yet.
type newContainer struct {
	docker   Docker
	id       string
	attached *attach.Attached // nil before
	cidFile  string
}

// discard takes back all that was made for it.
func (c *newContainer) discard(ctx context.Context) error {
	err := c.docker.Discard(ctx, c.id)
	if c.attached != nil {
		err = errors.Join(err, c.docker.Undo(ctx, c.attached))
	}
	if c.cidFile != "" {
		_ = os.Remove(c.cidFile) // it would be in the way of the next try
	}
	return err
}

// started is a container in the background, as JSON tells it.
type started struct {
	Container string  `json:"container"` // ID
	Addresses []given `json:"addresses"` // on weave networks; fewer, if it has ended by then
}

// start starts the container; an exitError is how it ended.
func (a *app) start(cmd *cobra.Command, c *newContainer, r *runArgs, wants []attach.Want) error {
	if err := cmd.Context().Err(); err != nil {
		return err
	}
	if !r.detach {
		return a.foreground(cmd, c, r)
	}
	if err := c.docker.Start(cmd.Context(), c.id); err != nil {
		return err
	}
	err := a.printStarted(cmd, c, r.json, wants)
	if err != nil {
		return &exitError{1, err} // it runs all the same
	}
	return nil
}

func (a *app) printStarted(cmd *cobra.Command, c *newContainer, asJSON bool, wants []attach.Want) error {
	if !asJSON {
		p := newPrinter(cmd.OutOrStdout(), a.Now())
		p.line("%s", c.id)
		return p.err
	}
	addrs, err := c.docker.Addresses(cmd.Context(), c.id, wants)
	return errors.Join(printJSON(cmd.OutOrStdout(), started{c.id, listGiven(addrs)}), err)
}

// createContainer has the docker command create the container, so that all that
// docker run understands is understood, and returns its ID.
func createContainer(cmd *cobra.Command, host string, args []string) (id string, err error) {
	create := exec.CommandContext(cmd.Context(), "docker", append([]string{"--host", host, "create"}, args...)...)
	var out bytes.Buffer
	create.Stdout, create.Stderr = &out, cmd.ErrOrStderr()
	err = create.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("weave run needs the docker command: install Docker's command line, too")
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return "", &exitError{status: attach.StatusNotStarted} // docker has said why
	}
	if err != nil {
		return "", fmt.Errorf("docker create: %w", err)
	}
	lines := strings.Fields(out.String())
	if len(lines) == 0 || !dockerID.MatchString(lines[len(lines)-1]) {
		return "", fmt.Errorf("docker create names no container: %.200q", out.String())
	}
	return lines[len(lines)-1], nil
}

// foreground starts the container and stays with it until it ends.
func (a *app) foreground(cmd *cobra.Command, c *newContainer, r *runArgs) error {
	ctx := context.WithoutCancel(cmd.Context()) // signals are the container's
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passed()...)
	defer signal.Stop(signals)
	wait, err := c.docker.Foreground(ctx, c.id, attach.Console{
		In: os.Stdin, Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr(), Terminal: terminal(),
		Signals: signals, SigProxy: !r.noProxy, DetachKeys: r.detachKeys,
	})
	if err != nil {
		return err
	}
	status, err := wait(ctx)
	if status != 0 || err != nil {
		return &exitError{status, err}
	}
	return nil
}

// passed are the signals that a container in the foreground gets, and the one that
// tells that the terminal has another size.
func passed() []os.Signal {
	return []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGWINCH}
}
