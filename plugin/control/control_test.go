package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"go.uber.org/goleak"

	"weave/plugin/sock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fakeDaemon struct {
	status  Status
	results []ConnectResult
	err     error
	got     []string
	checks  []Check
}

func (d *fakeDaemon) Status(context.Context) (Status, error) { return d.status, d.err }
func (d *fakeDaemon) Connect(_ context.Context, addrs []string) ([]ConnectResult, error) {
	d.got = addrs
	return d.results, d.err
}

func (d *fakeDaemon) RemovePeer(_ context.Context, peer string, gone bool) (Removal, error) {
	d.got = []string{peer, strconv.FormatBool(gone)}
	return Removal{Peer: peer, Heir: "h1"}, d.err
}

func (d *fakeDaemon) Leave(context.Context) (Departure, error) {
	return Departure{Peer: "aaaa", Others: 1}, d.err
}

func (d *fakeDaemon) Prime(context.Context) (Primed, error) {
	d.got = []string{"prime"}
	return Primed{Subnet: netip.MustParsePrefix("10.32.0.0/16"), Free: 3, Waiting: "right"}, d.err
}

func (d *fakeDaemon) Doctor(context.Context) ([]Check, error) {
	d.got = []string{"doctor"}
	return d.checks, d.err
}

func (d *fakeDaemon) Forget(_ context.Context, addrs []string) error {
	d.got = addrs
	return d.err
}

func quiet() *logrus.Entry {
	log, _ := test.NewNullLogger()
	return logrus.NewEntry(log)
}

// serve runs the API for d and returns a client.
func serve(t *testing.T, d Daemon) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weave", "weave.sock")
	l, err := sock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- sock.Serve(ctx, NewServer(d, quiet()), l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return NewClient(path)
}

func full() Status {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	addr := netip.MustParseAddrPort("192.0.2.2:6783")
	return Status{
		Version: "1.2.3", Protocol: 1, Peer: "aaaa", Nickname: "left", Password: true, Port: 6783,
		Address: netip.MustParseAddr("192.0.2.1"), Started: at,
		Range: netip.MustParsePrefix("10.32.0.0/12"), DefaultSubnet: netip.MustParsePrefix("10.32.0.0/16"),
		Problems: []Problem{{Warning, "what", "do"}},
		Refusals: []Refusal{{addr.Addr(), "wrong password", "set it", 3, at}},
		Peers:    []Peer{{ID: "bbbb", Nickname: "right", State: Up, Path: "direct UDP", Address: addr, Addresses: []netip.AddrPort{addr}, RTT: time.Millisecond, PathMTU: 1500, Since: at, Heard: at, Sent: 1, Received: 2, Error: "e", Frames: Sealed, FramesWhy: "f"}},
		Seeds:    []Seed{{Address: "right:6783", Met: true, Tried: at}},
		Segments: []Segment{{Key: "10.32.0.0/16", Subnet: netip.MustParsePrefix("10.32.0.0/16"), ID: "0123", MTU: 1400,
			Networks: []Network{{"n1", "net"}}, Members: []string{"left"}, Endpoints: 1}},
		Endpoints: []Endpoint{{ID: "e1", Container: "web", MAC: "02:00:00:00:00:01", Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.1")},
			Network: "net", Segment: "10.32.0.0/16", Host: "left", Peer: "aaaa", Local: true}},
		Exposed: []Exposed{exposed()},
		IPAM:    []Pool{{Subnet: netip.MustParsePrefix("10.32.0.0/16"), Size: 65534, Owned: 2, Leased: 1, Free: 1, Owners: []Owner{{"aaaa", "left", 2}}, Conflicts: []string{"c"}, Trouble: []string{"t"}}},
		Dropped: map[string]uint64{"forged": 1},
	}
}

func TestStatus(t *testing.T) {
	want := full()
	got, err := serve(t, &fakeDaemon{status: want}).Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestZeroStatus holds that a plugin that knows nothing yet can say so.
func TestZeroStatus(t *testing.T) {
	got, err := serve(t, &fakeDaemon{}).Status(context.Background())
	if err != nil || !reflect.DeepEqual(got, withLists(Status{})) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestListsAreNeverNull holds for every list in every answer, whatever fields it
// will get.
func TestListsAreNeverNull(t *testing.T) {
	for _, v := range []any{
		withLists(Status{}), withLists([]ConnectResult(nil)), withLists(Removal{}), withLists(Departure{}), withLists([]Exposed(nil)), withLists([]Check(nil)),
		withLists(Status{
			Problems: make([]Problem, 1), Refusals: make([]Refusal, 1), Peers: make([]Peer, 1), Seeds: make([]Seed, 1),
			Segments: make([]Segment, 1), Endpoints: make([]Endpoint, 1), IPAM: make([]Pool, 1), Exposed: make([]Exposed, 1),
		}),
		withLists(Removal{Pools: make([]RemovedPool, 1)}),
	} {
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(out), "null") {
			t.Errorf("null in %s", out)
		}
	}
}

func TestPrime(t *testing.T) {
	d := &fakeDaemon{}
	got, err := serve(t, d).Prime(context.Background())
	if want := (Primed{netip.MustParsePrefix("10.32.0.0/16"), 3, "right"}); err != nil || got != want || !reflect.DeepEqual(d.got, []string{"prime"}) {
		t.Errorf("got %+v, %v", got, err)
	}
	d.err = errors.New("still starting")
	if _, err := serve(t, d).Prime(context.Background()); err == nil || err.Error() != "still starting" {
		t.Errorf("got %v", err)
	}
}

// TestOldPlugin: one that does not know a request is told from one that refuses it.
func TestOldPlugin(t *testing.T) {
	c := serve(t, &fakeDaemon{})
	if err := c.call(context.Background(), http.MethodPost, "/v1/of-tomorrow", nil, &struct{}{}); !errors.Is(err, ErrOld) {
		t.Errorf("got %v", err)
	}
}

// TestNewPlugin: what a newer one tells besides is left out.
func TestNewPlugin(t *testing.T) {
	c := serveHTTP(t, http.StatusOK, `{"version": "99", "weather": {"sun": true}, "peers": [{"nickname": "h2", "mood": "fine"}]}`)
	s, err := c.Status(context.Background())
	if err != nil || s.Version != "99" || len(s.Peers) != 1 || s.Peers[0].Nickname != "h2" {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestDoctor(t *testing.T) {
	d := &fakeDaemon{checks: []Check{{"clock", Warned, "it is late", "set it"}}}
	got, err := serve(t, d).Doctor(context.Background())
	if err != nil || !reflect.DeepEqual(got, d.checks) || !reflect.DeepEqual(d.got, []string{"doctor"}) {
		t.Errorf("got %+v, %v", got, err)
	}
	h := NewServer(d, quiet()).Handler
	for body, want := range map[string]int{"{}": http.StatusOK, "": http.StatusBadRequest, `{"peer":"x"}`: http.StatusBadRequest, "[]": http.StatusBadRequest} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, doctorPath, strings.NewReader(body)))
		if w.Code != want {
			t.Errorf("%q: %d, want %d", body, w.Code, want)
		}
	}
}

func TestConnect(t *testing.T) {
	d := &fakeDaemon{results: []ConnectResult{{Address: "a:6783", Peer: "bbbb", Nickname: "right"}, {Address: "b:1", Error: "no answer"}}}
	got, err := serve(t, d).Connect(context.Background(), []string{"a", "b:1"})
	if err != nil || !reflect.DeepEqual(got, d.results) || !reflect.DeepEqual(d.got, []string{"a", "b:1"}) {
		t.Errorf("got %+v, %v; daemon got %v", got, err, d.got)
	}
}

func TestRemovePeer(t *testing.T) {
	d := &fakeDaemon{}
	got, err := serve(t, d).RemovePeer(context.Background(), "h3", true)
	if err != nil || got.Heir != "h1" || !reflect.DeepEqual(d.got, []string{"h3", "true"}) {
		t.Errorf("RemovePeer: %+v, %v; the daemon got %q", got, err, d.got)
	}
	if _, err := serve(t, d).RemovePeer(context.Background(), "", false); err == nil {
		t.Error("removed nobody")
	}
}

func TestLeave(t *testing.T) {
	got, err := serve(t, &fakeDaemon{}).Leave(context.Background())
	if want := (Departure{Peer: "aaaa", Others: 1, Helpers: []string{}}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestOldDaemon: what an older plugin does not know is told apart from what it
// refuses.
func TestOldDaemon(t *testing.T) {
	c := serveHTTP(t, http.StatusNotFound, "404 page not found\n")
	if _, err := c.Leave(context.Background()); !errors.Is(err, ErrOld) {
		t.Errorf("%v", err)
	}
}

func TestForget(t *testing.T) {
	d := &fakeDaemon{}
	if err := serve(t, d).Forget(context.Background(), []string{"a", "b:1"}); err != nil || !reflect.DeepEqual(d.got, []string{"a", "b:1"}) {
		t.Errorf("%v; daemon got %v", err, d.got)
	}
}

func TestDaemonError(t *testing.T) {
	c := serve(t, &fakeDaemon{err: errors.New("state is corrupt")})
	if _, err := c.Status(context.Background()); err == nil || err.Error() != "state is corrupt" {
		t.Errorf("Status: %v", err)
	}
	if _, err := c.Connect(context.Background(), []string{"a"}); err == nil || err.Error() != "state is corrupt" {
		t.Errorf("Connect: %v", err)
	}
	if err := c.Forget(context.Background(), []string{"a"}); err == nil || err.Error() != "state is corrupt" {
		t.Errorf("Forget: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	h := NewServer(&fakeDaemon{}, quiet()).Handler
	tooMany, err := json.Marshal(addresses{make([]string, maxAddresses+1)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{http.MethodPost, statusPath, "", http.StatusMethodNotAllowed},
		{http.MethodGet, connectPath, "", http.StatusMethodNotAllowed},
		{http.MethodGet, "/", "", http.StatusNotFound},
		{http.MethodGet, leavePath, "", http.StatusMethodNotAllowed},
		{http.MethodPost, leavePath, "", http.StatusBadRequest},
		{http.MethodPost, leavePath, `{"peer":"h2"}`, http.StatusBadRequest},
		{http.MethodPost, connectPath, "", http.StatusBadRequest},
		{http.MethodPost, connectPath, "{", http.StatusBadRequest},
		{http.MethodPost, connectPath, `{"addresses":[]}`, http.StatusBadRequest},
		{http.MethodPost, connectPath, string(tooMany), http.StatusBadRequest},
		{http.MethodPost, connectPath, `{"addresses":["` + strings.Repeat("x", maxRequest) + `"]}`, http.StatusBadRequest},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		if w.Code != c.status {
			t.Errorf("%s %s %.40s: %d, want %d", c.method, c.path, c.body, w.Code, c.status)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if _, err := NewClient(path).Status(context.Background()); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), path) {
		t.Errorf("no socket: %v", err)
	}
	l, err := sock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(filepath.Dir(path), "stale")
	if err := errors.Join(os.Rename(path, stale), l.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(stale).Status(context.Background()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("stale socket: %v", err)
	}
}

func TestTranslate(t *testing.T) {
	c := NewClient("/run/s")
	denied := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}
	if err := c.translate(denied); !errors.Is(err, ErrPermission) {
		t.Errorf("EACCES: %v", err)
	}
	asking := func(err error) error { return &url.Error{Op: "Get", URL: "http://weave/v1/status", Err: err} }
	if err := c.translate(asking(context.Canceled)); err != context.Canceled {
		t.Errorf("interrupted: %v", err)
	}
	if err := c.translate(asking(context.DeadlineExceeded)); !strings.Contains(err.Error(), "does not answer on /run/s in time") {
		t.Errorf("late: %v", err)
	}
	if err := c.translate(asking(io.ErrUnexpectedEOF)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("other error: %v", err)
	}
}

func TestStrangeAnswers(t *testing.T) {
	for body, want := range map[string]string{
		"":       "malformed answer",
		"<html>": "malformed answer",
	} {
		c := serveHTTP(t, http.StatusOK, body)
		if _, err := c.Status(context.Background()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", body, err)
		}
	}
	c := serveHTTP(t, http.StatusTeapot, "no JSON")
	if _, err := c.Status(context.Background()); err == nil || !strings.Contains(err.Error(), "418") {
		t.Errorf("teapot: %v", err)
	}
}

// serveHTTP serves one fixed answer.
func serveHTTP(t *testing.T, status int, body string) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := sock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})}
	ended := make(chan error)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-ended
	})
	return NewClient(path)
}

func (d *fakeDaemon) AddName(_ context.Context, r NameRequest) error { return d.takeName("add", r) }

func (d *fakeDaemon) RemoveName(_ context.Context, r NameRequest) error {
	return d.takeName("remove", r)
}

func (d *fakeDaemon) takeName(verb string, r NameRequest) error {
	d.got = []string{verb, r.Name, r.Network, fmt.Sprint(r.Addresses)}
	return d.err
}

// TestNames holds that what is asked of names arrives, and that what asks for nothing is
// refused.
func TestNames(t *testing.T) {
	d := &fakeDaemon{}
	c := serve(t, d)
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	for _, x := range []struct {
		do   func(context.Context, NameRequest) error
		r    NameRequest
		want []string // nil: refused
	}{
		{c.AddName, NameRequest{"db", addrs, "app"}, []string{"add", "db", "app", "[192.0.2.7]"}},
		{c.RemoveName, NameRequest{"db", addrs, ""}, []string{"remove", "db", "", "[192.0.2.7]"}},
		{c.RemoveName, NameRequest{Name: "db"}, []string{"remove", "db", "", "[]"}},
		{c.AddName, NameRequest{Name: "db"}, nil},
		{c.AddName, NameRequest{Addresses: addrs}, nil},
		{c.RemoveName, NameRequest{}, nil},
		{c.AddName, NameRequest{Name: "db", Addresses: make([]netip.Addr, maxAddresses+1)}, nil},
	} {
		d.got = nil
		if err := x.do(context.Background(), x.r); (err == nil) != (x.want != nil) || !slices.Equal(d.got, x.want) {
			t.Errorf("%+v: got %q, %v, want %q", x.r.Name, d.got, err, x.want)
		}
	}
}
