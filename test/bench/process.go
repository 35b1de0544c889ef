package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// duplex is the two pipes to an agent.
type duplex struct {
	io.ReadCloser
	w io.WriteCloser
}

func (d duplex) Write(b []byte) (int, error) { return d.w.Write(b) }
func (d duplex) Close() error                { return errors.Join(d.ReadCloser.Close(), d.w.Close()) }

type pipe struct{ parent, child *os.File }

// pipes returns the standard input and output of a child.
func pipes() (in, out pipe, err error) {
	if in.child, in.parent, err = os.Pipe(); err != nil {
		return in, out, err
	}
	if out.parent, out.child, err = os.Pipe(); err != nil {
		return in, out, errors.Join(err, in.child.Close(), in.parent.Close())
	}
	return in, out, nil
}

// process is a child; done is closed when it has ended, and err is set then.
type process struct {
	name string
	pid  int
	log  string
	done chan struct{}
	err  error
}

// program is what to run as a child.
type program struct {
	space         string // the network namespace to run in
	log           string // the file that takes what it says
	stdin, stdout *os.File
	env           []string // beside this process's
	cloneflags    uintptr
	args          []string // the absolute path of the program, and its arguments
}

// start runs a program. The kernel ends it when this process ends, however
// that comes: see thread.
func (t thread) start(r program) (*process, error) {
	out, err := os.Create(r.log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command("nsenter", append([]string{"--net=" + filepath.Join("/run/netns", r.space)}, r.args...)...)
	cmd.Env = append(os.Environ(), r.env...)
	cmd.Stderr = out
	if cmd.Stdout = out; r.stdin != nil {
		cmd.Stdin, cmd.Stdout = r.stdin, r.stdout
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: r.cloneflags}
	name := strings.Join(append([]string{filepath.Base(r.args[0])}, r.args[1:]...), " ")
	if err := t.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, pid: cmd.Process.Pid, log: r.log, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// lastWords is the end of what the process said.
func (p *process) lastWords() string {
	const enough = 1000
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text[max(0, len(text)-enough):]))
}

// stop ends the process and waits for it.
func (p *process) stop() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.Kill(p.pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end %s: %w", p.name, err)
		}
		select {
		case <-p.done:
			return nil
		case <-time.After(stopLimit):
		}
	}
	return fmt.Errorf("end %s: still there", p.name)
}

const stopLimit = 3 * time.Second

// thread runs functions one after another on a thread that never ends: a child's
// parent, as far as Pdeathsig goes, is the thread that started it.
type thread chan func()

func newThread() thread {
	t := make(thread)
	go func() {
		runtime.LockOSThread()
		for f := range t {
			f()
		}
	}()
	return t
}

func (t thread) do(f func() error) error {
	done := make(chan error, 1)
	t <- func() { done <- f() }
	return <-done
}
