package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"weave/plugin/control"
	"weave/plugin/sock"
)

// now is when all scripts take place.
func now() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"weave": runWeave, "docker": runDocker})
}

// runWeave is main of the binary, with a fixed version and clock.
func runWeave() {
	cmd := New(Options{
		Version: "1.2.3",
		Now:     now,
		Daemon: func(context.Context) error {
			fmt.Println("the daemon runs")
			return nil
		},
		Plugin: func(context.Context) (Plugin, error) { return openFake() },
		Host:   fakeHost{},
		Docker: newFakeDocker,
	})
	if err := cmd.ExecuteContext(context.Background()); err != nil {
		if text := Explain(err); text != "" {
			fmt.Fprintln(os.Stderr, text)
		}
		os.Exit(ExitStatus(err))
	}
}

// TestScripts runs testdata/script. There `plugin FILE` runs a plugin whose
// status is in FILE, on $WEAVE_SOCKET. It can be told to connect to any address
// but those that begin with "bad"; "self" is its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(e *testscript.Env) error {
			full, err := os.ReadFile("testdata/status.json")
			if err != nil {
				return err
			}
			e.Vars = append(e.Vars, "WEAVE_SOCKET="+filepath.Join(e.WorkDir, "weave.sock"), "NO_COLOR=",
				"GORACE=atexit_sleep_ms=0") // the race detector would hold up each exit by a second
			return os.WriteFile(filepath.Join(e.WorkDir, "full.json"), full, 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"plugin": startPlugin, "status": wantStatus},
	})
}

type fakeDaemon struct {
	status control.Status
	primes *atomic.Int32 // how often Prime was called
}

func (d fakeDaemon) Status(context.Context) (control.Status, error) {
	if d.status.Nickname == "broken" {
		return control.Status{}, errors.New("the state is locked")
	}
	if d.status.Nickname == "late" && d.primes.Add(1) == 1 { // the first answer has no name yet
		s := d.status
		s.Endpoints = slices.Clone(s.Endpoints)
		s.Endpoints[0].Container = ""
		return s, nil
	}
	return d.status, nil
}

func (d fakeDaemon) Connect(_ context.Context, addrs []string) ([]control.ConnectResult, error) {
	var results []control.ConnectResult
	for _, a := range addrs {
		r := control.ConnectResult{Address: a, Peer: "rightrightrightrightrightr", Nickname: "right"}
		switch {
		case strings.HasPrefix(a, "bad"):
			r = control.ConnectResult{Address: a, Error: "no answer", Do: "start weave there"}
		case a == "self":
			r = control.ConnectResult{Address: a, Self: true}
		}
		results = append(results, r)
	}
	return results, nil
}

func (d fakeDaemon) Prime(context.Context) (control.Primed, error) {
	if d.primes.Add(1) == 1 {
		return control.Primed{Waiting: "host right has to come"}, nil
	}
	return control.Primed{Subnet: d.status.DefaultSubnet, Free: 32767}, nil
}

func (d fakeDaemon) Forget(_ context.Context, addrs []string) error {
	for _, a := range addrs {
		if strings.HasPrefix(a, "bad") {
			return fmt.Errorf("forget peer address %s: no such address was given", a)
		}
	}
	return nil
}

func (d fakeDaemon) Doctor(ctx context.Context) ([]control.Check, error) {
	if d.status.Nickname == "alien" {
		return nil, control.ErrOld
	}
	checks := []control.Check{{Name: "clock", Verdict: control.OK, Found: "those of 2 other hosts show the same time"}}
	if d.status.Nickname == "blocked" {
		checks = append(checks, control.Check{Name: "reachable", Verdict: control.Failed, Found: "host h2\x1b does not get through to this one by UDP", Do: "let in UDP to port 6783"},
			control.Check{Name: "routes", Verdict: control.Warned, Found: "a route overlaps", Do: "use another --subnet"})
	}
	return checks, nil
}

func (d fakeDaemon) RemovePeer(_ context.Context, peer string, gone bool) (control.Removal, error) {
	if peer == "alive" {
		return control.Removal{}, errors.New("host alive is alive; stop weave there first")
	}
	if peer == "h4" {
		return control.Removal{Peer: "deaddeaddeaddeaddeaddeadde", Nickname: peer, Heir: "h1", Missing: []string{"h5", "h6"}}, nil
	}
	pool := control.RemovedPool{Subnet: netip.MustParsePrefix("10.40.0.0/16"), Addresses: 32768}
	if !gone {
		pool.Held = []netip.Addr{netip.MustParseAddr("10.40.128.7")}
	}
	return control.Removal{
		Peer: "deaddeaddeaddeaddeaddeadde", Nickname: peer, Heir: "h1", Pools: []control.RemovedPool{pool},
	}, nil
}

func (d fakeDaemon) Leave(context.Context) (control.Departure, error) {
	switch d.status.Nickname {
	case "lonely":
		return control.Departure{Peer: "leftleftleftleftleftleftle"}, nil
	case "cut-off":
		return control.Departure{Peer: "leftleftleftleftleftleftle", Others: 2}, nil
	}
	return control.Departure{Peer: "leftleftleftleftleftleftle", Others: 2, Helpers: []string{"h1", "h3"}}, nil
}

// wantStatus runs a command that ends with the exit status in front of it.
func wantStatus(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || strconv.Itoa(exit.ExitCode()) != args[0] {
		ts.Fatalf("want exit status %s: %v", args[0], err)
	}
}

func startPlugin(ts *testscript.TestScript, _ bool, args []string) {
	d := fakeDaemon{primes: new(atomic.Int32)}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &d.status))
	l, err := sock.Listen(ts.Getenv("WEAVE_SOCKET"))
	ts.Check(err)
	log, _ := test.NewNullLogger()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- sock.Serve(ctx, control.NewServer(d, logrus.NewEntry(log)), l) }()
	ts.Defer(func() {
		cancel()
		ts.Check(<-ended)
	})
}

func TestExplainPermission(t *testing.T) {
	got := Explain(fmt.Errorf("ask: %w", control.ErrPermission))
	if !strings.Contains(got, "sudo") {
		t.Error(got)
	}
}

func TestExplainInterrupted(t *testing.T) {
	err := fmt.Errorf("inspect the plugin: %w; it is still there", &url.Error{Op: "Get", URL: "http://docker/plugins", Err: context.Canceled})
	if got := Explain(err); got != "weave: inspect the plugin: interrupted; it is still there" {
		t.Error(got)
	}
	if got := ExitStatus(err); got != 130 {
		t.Errorf("exit status %d", got)
	}
}

// TestStartHints: a host whose daemon is a service is told of that.
func TestStartHints(t *testing.T) {
	unit := filepath.Join(t.TempDir(), "weave.service")
	if got := startHints(unit); !strings.Contains(got, "sudo weave launch") {
		t.Error(got)
	}
	if err := os.WriteFile(unit, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := startHints(unit); !strings.Contains(got, "systemctl start weave") || strings.Contains(got, "launch") {
		t.Error(got)
	}
}

func TestColor(t *testing.T) {
	var out bytes.Buffer
	p := newPrinter(&out, now())
	if p.color {
		t.Error("color for a buffer")
	}
	p.color = true
	problems(p, control.Status{Problems: []control.Problem{{Severity: control.Error, What: "\x1b[2Jfire", Do: "run"}}})
	if got, want := out.String(), "\x1b[1;31merror\x1b[0m: ?[2Jfire\n  -> run\n\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestWidth: the tables of an ordinary cluster fit a terminal that is not wide.
func TestWidth(t *testing.T) {
	raw, err := os.ReadFile("testdata/status.json")
	if err != nil {
		t.Fatal(err)
	}
	var s control.Status
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	for i, text := range []func(*printer, control.Status){overview, peersView, segmentsView, endpointsView, exposedView, ipamView} {
		var out bytes.Buffer
		text(newPrinter(&out, now()), s)
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(line); n > 110 {
				t.Errorf("view %d has a line of %d columns: %s", i, n, line)
			}
		}
	}
}

func TestWantsColor(t *testing.T) {
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // a character device, too
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	if !wantsColor(tty) {
		t.Error("no color for a terminal")
	}
	if wantsColor(null) {
		t.Error("color for what is no terminal")
	}
	t.Setenv("NO_COLOR", "1")
	if wantsColor(tty) {
		t.Error("NO_COLOR has no effect")
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestWriteErrorIsKept(t *testing.T) {
	p := newPrinter(full{}, now())
	overview(p, control.Status{})
	if p.err == nil || p.err.Error() != "disk full" {
		t.Errorf("got %v", p.err)
	}
}

func TestUnits(t *testing.T) {
	p := newPrinter(io.Discard, now())
	age := func(d time.Duration) string { return p.age(now().Add(-d)) }
	for got, want := range map[string]string{
		p.age(time.Time{}):                         "-",
		age(-time.Second):                          "0s",
		age(59 * time.Second):                      "59s",
		age(3*time.Minute + 12*time.Second):        "3m12s",
		age(2*time.Hour + 59*time.Second):          "2h0m",
		age(23*time.Hour + 59*time.Minute):         "23h59m",
		age(76 * time.Hour):                        "3d4h",
		loss(control.Peer{Loss: 1}):                "-",
		loss(control.Peer{Pings: 1}):               "0%",
		loss(control.Peer{Pings: 3, Loss: 1. / 3}): "33%",
		duration(-time.Minute):                     "now",
		duration(999 * time.Millisecond):           "now",
		duration(time.Second):                      "1 second",
		duration(59 * time.Second):                 "59 seconds",
		duration(90 * time.Second):                 "1 minute",
		duration(23*time.Hour + 59*time.Minute):    "23 hours",
		duration(49 * time.Hour):                   "2 days",
		roundTrip(0):                               "-",
		roundTrip(250 * time.Microsecond):          "250 us",
		roundTrip(1234 * time.Microsecond):         "1.2 ms",
		roundTrip(34 * time.Millisecond):           "34 ms",
		roundTrip(1500 * time.Millisecond):         "1.5 s",
		size(0):                                    "0 B",
		size(999):                                  "999 B",
		size(1000):                                 "1.0 kB",
		size(999_960):                              "1.0 MB",
		size(18446744073709551615):                 "18.4 EB",
		share(0, 0):                                "0",
		share(1<<63, 1<<64-1):                      "9.2e18 of 1.8e19 (50%)",
		share(1<<64-1, 1<<64-1):                    "2^64 or more",
		share(1, 4):                                "1 of 4 (25%)",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func (d fakeDaemon) AddName(_ context.Context, r control.NameRequest) error {
	if r.Network == "none" {
		return errors.New(`no weave network "none" on this host`)
	}
	return nil
}

func (d fakeDaemon) RemoveName(_ context.Context, r control.NameRequest) error {
	if r.Name != "printer" || len(r.Addresses) > 0 {
		return fmt.Errorf("name %s: no such name was added on this host", r.Name)
	}
	return nil
}
