package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// Exit statuses of docker run for containers that did not start.
const (
	StatusNotStarted    = 125
	statusNotExecutable = 126
	statusNoCommand     = 127
)

const (
	detachGrace = time.Second     // after its output ended, for a container to end
	drainLimit  = 5 * time.Second // after a container ended, for the rest of its output
)

// StartError says that a container did not start.
type StartError struct {
	Status int // what docker run would exit with
	Err    error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// Start starts a container, without its output.
func (d *Docker) Start(ctx context.Context, id string) error {
	_, err := d.api.ContainerStart(ctx, id, client.ContainerStartOptions{})
	if err == nil {
		return nil
	}
	e := &StartError{StatusNotStarted, d.explain(err)}
	has := func(part string) bool { return strings.Contains(e.Error(), part) }
	switch {
	case has("executable file not found"), has("no such file or directory"):
		e.Status = statusNoCommand
	case has("permission denied"), has("is a directory"):
		e.Status = statusNotExecutable
	}
	return e
}

// Console is what a container in the foreground is connected to.
type Console struct {
	In         io.Reader
	Out, Err   io.Writer
	Terminal   Terminal // nil if In is none
	Signals    <-chan os.Signal
	SigProxy   bool // whether the container gets the signals
	DetachKeys string
}

// Terminal is the user's.
type Terminal interface {
	Raw() (restore func(), err error)
	Size() (width, height int, err error)
}

// session is a container in the foreground.
type session struct {
	docker    *Docker
	id        string
	tty, open bool // what it has: a terminal, a standard input
	conn      client.ContainerAttachResult
	end       client.ContainerWaitResult
	console   Console
	cancel    context.CancelFunc
}

// Foreground starts a container with its input and output connected. Unless there
// is an error, wait must be called: it carries input, output and signals until the
// container ends, and returns its exit status, or 0 if the user detached from it.
//
// The command `docker start --attach` would do nearly that: but in some versions
// it leaves the container alone when it is told to end.
func (d *Docker) Foreground(ctx context.Context, id string, console Console) (wait func(context.Context) (int, error), err error) {
	got, err := d.api.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return nil, d.explain(err)
	}
	c := got.Container
	s := &session{docker: d, id: id, console: console, tty: c.Config.Tty, open: c.Config.OpenStdin}
	if s.tty && s.open && console.Terminal == nil {
		return nil, errors.New("-it wants a terminal, which standard input is not: leave -t out")
	}
	until := container.WaitConditionNextExit
	if c.HostConfig.AutoRemove {
		until = container.WaitConditionRemoved
	}
	s.conn, err = d.api.ContainerAttach(ctx, id, client.ContainerAttachOptions{
		Stream: true, Stdin: s.open, Stdout: true, Stderr: true, DetachKeys: console.DetachKeys,
	})
	if err != nil {
		return nil, d.explain(err)
	}
	waiting, cancel := context.WithCancel(ctx)
	s.cancel = cancel
	s.end = d.api.ContainerWait(waiting, id, client.ContainerWaitOptions{Condition: until})
	if err := d.Start(ctx, id); err != nil {
		s.close()
		return nil, err
	}
	return s.wait, nil
}

func (s *session) close() {
	s.cancel()
	s.conn.Close()
}

func (s *session) wait(ctx context.Context) (status int, err error) {
	defer s.close()
	if s.tty && s.open {
		restore, err := s.console.Terminal.Raw()
		if err != nil {
			return 0, fmt.Errorf("set the terminal: %w", err)
		}
		defer restore()
	}
	s.resize(ctx)
	if s.open {
		go func() {
			_, _ = io.Copy(s.conn.Conn, s.console.In) // it ends with the container at the latest
			_ = s.conn.CloseWrite()
		}()
	}
	output := make(chan error, 1)
	go func() { output <- s.copyOutput() }()
	var silent <-chan time.Time
	for ended := output; ; {
		select {
		case received := <-s.console.Signals:
			if !s.signal(ctx, received) {
				return 128 + int(received.(syscall.Signal)), nil
			}
		case <-ended:
			ended = nil
			if s.open { // else nobody can have detached
				silent = time.After(detachGrace)
			}
		case <-silent:
			silent = nil
			if s.isRunning(ctx) {
				return 0, nil
			}
		case result := <-s.end.Result:
			if ended != nil {
				drain(output)
			}
			return int(result.StatusCode), nil
		case err := <-s.end.Error:
			return StatusNotStarted, fmt.Errorf("wait for the container: %w", s.docker.explain(err))
		}
	}
}

// drain waits for the rest of the output of a container that has ended.
func drain(output <-chan error) {
	select {
	case <-output:
	case <-time.After(drainLimit):
	}
}

func (s *session) copyOutput() error {
	if s.tty {
		_, err := io.Copy(s.console.Out, s.conn.Reader)
		return err
	}
	_, err := stdcopy.StdCopy(s.console.Out, s.console.Err, s.conn.Reader)
	return err
}

// signal passes a signal on; false means that it is for us.
func (s *session) signal(ctx context.Context, received os.Signal) bool {
	if received == syscall.SIGWINCH {
		s.resize(ctx)
		return true
	}
	if !s.console.SigProxy {
		return false
	}
	name := unix.SignalName(received.(syscall.Signal))
	_, _ = s.docker.api.ContainerKill(ctx, s.id, client.ContainerKillOptions{Signal: name}) // it may just have ended
	return true
}

// resize tells the container's terminal how large the user's is.
func (s *session) resize(ctx context.Context) {
	if !s.tty || s.console.Terminal == nil {
		return
	}
	if width, height, err := s.console.Terminal.Size(); err == nil && width > 0 && height > 0 {
		_, _ = s.docker.api.ContainerResize(ctx, s.id, client.ContainerResizeOptions{Width: uint(width), Height: uint(height)})
	}
}

func (s *session) isRunning(ctx context.Context) bool {
	got, err := s.docker.api.ContainerInspect(ctx, s.id, client.ContainerInspectOptions{})
	return err == nil && got.Container.State.Running
}
