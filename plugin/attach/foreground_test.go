package attach

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// foreground is an engine with one container, whose end of the connection is in
// the test's hands.
type foreground struct {
	*fake
	stream    net.Conn // the container's end
	end       chan container.WaitResponse
	lost      chan error
	condition container.WaitCondition
	killed    chan string
	size      client.ContainerResizeOptions
	startErr  error
	started   bool
}

func newForeground(t *testing.T) (*Docker, *foreground, *container.InspectResponse) {
	d, f := newFake()
	g := &foreground{fake: f, end: make(chan container.WaitResponse, 1), lost: make(chan error, 1), killed: make(chan string, 9)}
	d.api = g
	t.Cleanup(func() {
		if g.stream != nil {
			_ = g.stream.Close()
		}
	})
	return d, g, f.containers["web"]
}

func (g *foreground) ContainerAttach(context.Context, string, client.ContainerAttachOptions) (client.ContainerAttachResult, error) {
	ours, theirs := net.Pipe()
	g.stream = theirs
	return client.ContainerAttachResult{HijackedResponse: client.NewHijackedResponse(ours, "")}, nil
}

func (g *foreground) ContainerWait(_ context.Context, _ string, o client.ContainerWaitOptions) client.ContainerWaitResult {
	g.condition = o.Condition
	return client.ContainerWaitResult{Result: g.end, Error: g.lost}
}

func (g *foreground) ContainerStart(context.Context, string, client.ContainerStartOptions) (client.ContainerStartResult, error) {
	g.started = true
	return client.ContainerStartResult{}, g.startErr
}

func (g *foreground) ContainerKill(_ context.Context, _ string, o client.ContainerKillOptions) (client.ContainerKillResult, error) {
	g.killed <- o.Signal
	return client.ContainerKillResult{}, nil
}

func (g *foreground) ContainerResize(_ context.Context, _ string, o client.ContainerResizeOptions) (client.ContainerResizeResult, error) {
	g.size = o
	return client.ContainerResizeResult{}, nil
}

// frame is output as the engine sends it: 1 is standard output, 2 is the other.
func frame(stream byte, text string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{stream, 0, 0, 0}, uint32(len(text))), text...)
}

func TestForeground(t *testing.T) {
	d, g, c := newForeground(t)
	c.Config.OpenStdin, c.HostConfig.AutoRemove = true, true
	var out, errOut bytes.Buffer
	wait, err := d.Foreground(t.Context(), "web", Console{In: strings.NewReader("in"), Out: &out, Err: &errOut})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		in := make([]byte, 10)
		n, _ := g.stream.Read(in)
		g.end <- container.WaitResponse{StatusCode: 7} // what was written before still arrives
		_, _ = g.stream.Write(append(frame(1, string(in[:n])+" out"), frame(2, "bad")...))
		_ = g.stream.Close()
	}()
	status, err := wait(t.Context())
	if status != 7 || err != nil || out.String() != "in out" || errOut.String() != "bad" || g.condition != container.WaitConditionRemoved {
		t.Errorf("status %d, %v, output %q and %q, waited until %s", status, err, &out, &errOut, g.condition)
	}
}

func TestForegroundSignals(t *testing.T) {
	for proxy, want := range map[bool]int{true: 5, false: 128 + 15} {
		d, g, _ := newForeground(t)
		signals := make(chan os.Signal, 1)
		wait, err := d.Foreground(t.Context(), "web", Console{Signals: signals, SigProxy: proxy})
		if err != nil {
			t.Fatal(err)
		}
		signals <- syscall.SIGTERM
		if proxy {
			go func() {
				if name := <-g.killed; name != "SIGTERM" {
					t.Errorf("it gets %s", name)
				}
				_ = g.stream.Close()
				g.end <- container.WaitResponse{StatusCode: 5}
			}()
		}
		if status, err := wait(t.Context()); status != want || err != nil {
			t.Errorf("proxy %t: status %d, %v", proxy, status, err)
		}
	}
}

// terminalOf is a terminal of that size.
type terminalOf struct {
	width, height int
	raw           *bool
}

func (t terminalOf) Raw() (func(), error) {
	*t.raw = true
	return func() { *t.raw = false }, nil
}

func (t terminalOf) Size() (int, int, error) { return t.width, t.height, nil }

// TestDetachKeys: the engine ends the streams of a container that runs on. One
// that has only closed its output is not that.
func TestDetachKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, running := range []bool{true, false} {
			d, g, c := newForeground(t)
			c.Config.Tty, c.Config.OpenStdin, c.State.Running = true, true, running
			raw := false
			read, write := io.Pipe()
			wait, err := d.Foreground(t.Context(), "web", Console{In: read, Out: os.Stderr, Terminal: terminalOf{99, 33, &raw}})
			if err != nil {
				t.Fatal(err)
			}
			_ = g.stream.Close()
			if !running {
				g.end <- container.WaitResponse{StatusCode: 3}
			}
			status, err := wait(t.Context())
			if err != nil || (status == 0) != running || raw || g.size != (client.ContainerResizeOptions{Width: 99, Height: 33}) {
				t.Errorf("running %t: status %d, %v, raw %t, size %+v", running, status, err, raw, g.size)
			}
			_, _ = write.Close(), read.Close()
		}
	})
}

func TestNoTerminal(t *testing.T) {
	d, g, c := newForeground(t)
	c.Config.Tty, c.Config.OpenStdin = true, true
	_, err := d.Foreground(t.Context(), "web", Console{})
	says(t, err, "terminal", "leave -t out")
	if g.started {
		t.Error("it was started")
	}
}

// TestStartFails: the status is what docker run would give.
func TestStartFails(t *testing.T) {
	for text, want := range map[string]int{
		"exec: \"x\": executable file not found in $PATH": 127,
		"exec: \"/x\": permission denied":                 126,
		"exec: \"/\": is a directory":                     126,
		"address 10.1.0.2: in use":                        125,
	} {
		d, g, _ := newForeground(t)
		g.startErr = errors.New("Error response from daemon: " + text)
		_, err := d.Foreground(t.Context(), "web", Console{})
		e, ok := errors.AsType[*StartError](err)
		if !ok || e.Status != want || e.Error() != text {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

func TestEngineLost(t *testing.T) {
	d, g, _ := newForeground(t)
	wait, err := d.Foreground(t.Context(), "web", Console{})
	if err != nil {
		t.Fatal(err)
	}
	g.lost <- syscall.ECONNREFUSED
	_, err = wait(t.Context())
	says(t, err, "wait for the container", "does not answer")
}
