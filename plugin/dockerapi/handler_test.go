package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is both drivers. It notes the last request and answers with what the
// test put there.
type fake struct {
	got      any
	err      error
	pool     Pool
	addr     netip.Prefix
	panicked string
}

func (f *fake) note(req any) error {
	f.got = req
	if f.panicked != "" {
		panic(f.panicked)
	}
	return f.err
}

func (f *fake) CreateNetwork(_ context.Context, r *network.CreateNetworkRequest) error {
	return f.note(r)
}
func (f *fake) DeleteNetwork(_ context.Context, r *network.DeleteNetworkRequest) error {
	return f.note(r)
}
func (f *fake) CreateEndpoint(_ context.Context, r *network.CreateEndpointRequest) (*network.CreateEndpointResponse, error) {
	return &network.CreateEndpointResponse{Interface: &network.EndpointInterface{MacAddress: "02:00:00:00:00:01"}}, f.note(r)
}
func (f *fake) DeleteEndpoint(_ context.Context, r *network.DeleteEndpointRequest) error {
	return f.note(r)
}
func (f *fake) EndpointInfo(_ context.Context, r *network.InfoRequest) (*network.InfoResponse, error) {
	return &network.InfoResponse{Value: map[string]string{"k": "v"}}, f.note(r)
}
func (f *fake) Join(_ context.Context, r *network.JoinRequest) (*network.JoinResponse, error) {
	return &network.JoinResponse{InterfaceName: network.InterfaceName{SrcName: "wvc1", DstPrefix: "eth"}}, f.note(r)
}
func (f *fake) Leave(_ context.Context, r *network.LeaveRequest) error { return f.note(r) }

func (f *fake) RequestPool(_ context.Context, r RequestPool) (Pool, error) { return f.pool, f.note(r) }
func (f *fake) ReleasePool(_ context.Context, id string) error             { return f.note(id) }
func (f *fake) RequestAddress(_ context.Context, r RequestAddress) (netip.Prefix, error) {
	return f.addr, f.note(r)
}
func (f *fake) ReleaseAddress(_ context.Context, id string, a netip.Addr) error {
	return f.note(id + " " + a.String())
}

type gateFunc func(context.Context) (Drivers, error)

func (g gateFunc) Ready(ctx context.Context) (Drivers, error) { return g(ctx) }

func (f *fake) Ready(context.Context) (Drivers, error) { return Drivers{f, f}, nil }

func quiet() *logrus.Entry {
	log, _ := test.NewNullLogger()
	return logrus.NewEntry(log)
}

// post sends body to path and returns the status and the answer.
func post(t *testing.T, gate Gate, path, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	NewHandler(gate, quiet()).ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
	if got := w.Header().Get("Content-Type"); got != "application/vnd.docker.plugins.v1.1+json" {
		t.Errorf("%s: content type %q", path, got)
	}
	return w.Code, strings.TrimSpace(w.Body.String())
}

// errText returns the text of an error answer.
func errText(t *testing.T, answer string) string {
	t.Helper()
	var e struct{ Err string }
	if err := json.Unmarshal([]byte(answer), &e); err != nil || e.Err == "" {
		t.Fatalf("answer %q holds no error (%v)", answer, err)
	}
	return e.Err
}

func TestFixedAnswers(t *testing.T) {
	never := gateFunc(func(context.Context) (Drivers, error) { return Drivers{}, errors.New("not ready") })
	for path, want := range map[string]string{
		"/Plugin.Activate":                           `{"Implements":["NetworkDriver","IpamDriver"]}`,
		"/NetworkDriver.GetCapabilities":             `{"Scope":"local","ConnectivityScope":"global","GwAllocChecker":true}`,
		"/NetworkDriver.GwAllocCheck":                `{"SkipIPv4":true,"SkipIPv6":true}`,
		"/NetworkDriver.DiscoverNew":                 `{}`,
		"/NetworkDriver.DiscoverDelete":              `{}`,
		"/NetworkDriver.ProgramExternalConnectivity": `{}`,
		"/NetworkDriver.RevokeExternalConnectivity":  `{}`,
		"/IpamDriver.GetCapabilities":                `{"RequiresMACAddress":false,"RequiresRequestReplay":false}`,
		"/IpamDriver.GetDefaultAddressSpaces":        `{"LocalDefaultAddressSpace":"weavelocal","GlobalDefaultAddressSpace":"weaveglobal"}`,
	} {
		if status, got := post(t, never, path, ""); status != http.StatusOK || got != want {
			t.Errorf("%s: %d %s, want %s", path, status, got, want)
		}
	}
}

func TestCalls(t *testing.T) {
	pool4, pool6 := netip.MustParsePrefix("10.32.0.0/16"), netip.MustParsePrefix("fd00:1::/64")
	for _, c := range []struct {
		path, body string
		drivers    fake
		got        any
		answer     string
	}{
		{
			path:   "/NetworkDriver.CreateNetwork",
			body:   `{"NetworkID":"n1","Options":{"x":{"y":"z"}},"IPv4Data":[{"AddressSpace":"s","Pool":"10.32.0.0/16","Gateway":"0.0.0.0/0"}],"IPv6Data":[{"Pool":"fd00::/64","Gateway":"::/0"},{"Gateway":"fd00::1/64"}],"New":1}`,
			answer: `{}`,
			got: &network.CreateNetworkRequest{
				NetworkID: "n1", Options: map[string]any{"x": map[string]any{"y": "z"}},
				IPv4Data: []*network.IPAMData{{AddressSpace: "s", Pool: "10.32.0.0/16"}},
				IPv6Data: []*network.IPAMData{{Pool: "fd00::/64"}, {Gateway: "fd00::1/64"}},
			},
		},
		{path: "/NetworkDriver.DeleteNetwork", body: `{"NetworkID":"n1"}`, answer: `{}`, got: &network.DeleteNetworkRequest{NetworkID: "n1"}},
		{
			path: "/NetworkDriver.CreateEndpoint", body: `{"NetworkID":"n1","EndpointID":"e1"}`,
			answer: `{"Interface":{"Address":"","AddressIPv6":"","MacAddress":"02:00:00:00:00:01"}}`,
			got:    &network.CreateEndpointRequest{NetworkID: "n1", EndpointID: "e1", Interface: &network.EndpointInterface{}},
		},
		{path: "/NetworkDriver.DeleteEndpoint", body: `{"NetworkID":"n1","EndpointID":"e1"}`, answer: `{}`, got: &network.DeleteEndpointRequest{NetworkID: "n1", EndpointID: "e1"}},
		{path: "/NetworkDriver.EndpointOperInfo", body: `{"NetworkID":"n1","EndpointID":"e1"}`, answer: `{"Value":{"k":"v"}}`, got: &network.InfoRequest{NetworkID: "n1", EndpointID: "e1"}},
		{
			path: "/NetworkDriver.Join", body: `{"NetworkID":"n1","EndpointID":"e1","SandboxKey":"/var/run/docker/netns/1"}`,
			answer: `{"InterfaceName":{"SrcName":"wvc1","DstPrefix":"eth"},"Gateway":"","GatewayIPv6":"","StaticRoutes":null,"DisableGatewayService":false}`,
			got:    &network.JoinRequest{NetworkID: "n1", EndpointID: "e1", SandboxKey: "/var/run/docker/netns/1"},
		},
		{path: "/NetworkDriver.Leave", body: `{"NetworkID":"n1","EndpointID":"e1"}`, answer: `{}`, got: &network.LeaveRequest{NetworkID: "n1", EndpointID: "e1"}},

		{
			path: "/IpamDriver.RequestPool", body: `{"AddressSpace":"weavelocal","Pool":"10.32.0.0/16","SubPool":"10.32.4.0/24","Options":{"a":"b"},"V6":false}`,
			drivers: fake{pool: Pool{"p1", pool4}},
			answer:  `{"PoolID":"p1","Pool":"10.32.0.0/16","Data":{"com.docker.network.gateway":"0.0.0.0/0"}}`,
			got:     RequestPool{AddressSpace: "weavelocal", Pool: pool4, SubPool: netip.MustParsePrefix("10.32.4.0/24"), Options: map[string]string{"a": "b"}},
		},
		{
			path: "/IpamDriver.RequestPool", body: `{"AddressSpace":"weavelocal","V6":true}`,
			drivers: fake{pool: Pool{"p2", pool6}},
			answer:  `{"PoolID":"p2","Pool":"fd00:1::/64","Data":{"com.docker.network.gateway":"::/0"}}`,
			got:     RequestPool{AddressSpace: "weavelocal", V6: true},
		},
		{path: "/IpamDriver.ReleasePool", body: `{"PoolID":"p1"}`, answer: `{}`, got: "p1"},
		{
			path: "/IpamDriver.RequestAddress", body: `{"PoolID":"p1","Address":"","Options":null}`,
			drivers: fake{addr: netip.MustParsePrefix("10.32.0.7/16")},
			answer:  `{"Address":"10.32.0.7/16","Data":null}`, got: RequestAddress{PoolID: "p1"},
		},
		{
			path: "/IpamDriver.RequestAddress", body: `{"PoolID":"p1","Address":"10.32.0.1","Options":{"RequestAddressType":"com.docker.network.gateway"}}`,
			drivers: fake{addr: netip.MustParsePrefix("10.32.0.1/16")},
			answer:  `{"Address":"10.32.0.1/16","Data":null}`,
			got: RequestAddress{
				PoolID: "p1", Address: netip.MustParseAddr("10.32.0.1"), Gateway: true,
				Options: map[string]string{"RequestAddressType": "com.docker.network.gateway"},
			},
		},
		{ // the gateway that there is not, asked for by name
			path: "/IpamDriver.RequestAddress", body: `{"PoolID":"p1","Address":"0.0.0.0","Options":{"RequestAddressType":"com.docker.network.gateway"}}`,
			answer: `{"Address":"0.0.0.0/0","Data":null}`,
		},
		{path: "/IpamDriver.ReleaseAddress", body: `{"PoolID":"p1","Address":"10.32.0.7"}`, answer: `{}`, got: "p1 10.32.0.7"},
		{path: "/IpamDriver.ReleaseAddress", body: `{"PoolID":"p1","Address":"0.0.0.0"}`, answer: `{}`},
		{path: "/IpamDriver.ReleaseAddress", body: `{"PoolID":"p1","Address":"::"}`, answer: `{}`},
	} {
		t.Run(c.path[1:], func(t *testing.T) {
			status, answer := post(t, &c.drivers, c.path, c.body)
			if status != http.StatusOK || answer != c.answer {
				t.Errorf("got  %d %s\nwant %s", status, answer, c.answer)
			}
			if !reflect.DeepEqual(c.drivers.got, c.got) {
				t.Errorf("driver got %+v, want %+v", c.drivers.got, c.got)
			}
		})
	}
}

func TestRefusedRequests(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, c := range []struct{ path, body, want string }{
		{"/NetworkDriver.CreateNetwork", "", "empty request"},
		{"/NetworkDriver.CreateNetwork", " \n", "empty request"},
		{"/NetworkDriver.CreateNetwork", "null", "malformed"},
		{"/NetworkDriver.CreateNetwork", "[]", "malformed"},
		{"/NetworkDriver.CreateNetwork", "{", "malformed"},
		{"/NetworkDriver.CreateNetwork", `{"NetworkID":"n"}{}`, "malformed"},
		{"/NetworkDriver.CreateNetwork", `{"NetworkID":7}`, "malformed"},
		{"/NetworkDriver.CreateNetwork", `{}`, "network ID of 0"},
		{"/NetworkDriver.CreateNetwork", `{"NetworkID":"../../x"}`, "network ID"},
		{"/NetworkDriver.CreateNetwork", `{"NetworkID":"` + long + `"}`, "network ID of 300"},
		{"/NetworkDriver.CreateNetwork", `{"NetworkID":"n","IPv4Data":[null]}`, "pool is null"},
		{"/NetworkDriver.CreateNetwork", `{"NetworkID":"` + strings.Repeat("x", maxBody) + `"}`, "more than 1048576 bytes"},
		{"/NetworkDriver.Join", `{"NetworkID":"n"}`, "endpoint ID of 0"},
		{"/NetworkDriver.Leave", `{"NetworkID":"n","EndpointID":"a b"}`, "endpoint ID"},
		{"/NetworkDriver.AllocateNetwork", `{}`, "does not implement /NetworkDriver.AllocateNetwork"},
		{"/", `{}`, "does not implement"},
		{"/IpamDriver.RequestPool", `{"Pool":"10.32.0.0"}`, "not of the form"},
		{"/IpamDriver.RequestPool", `{"Pool":"10.32.0.0/33"}`, "not of the form"},
		{"/IpamDriver.RequestPool", `{"Pool":"10.32.1.0/16"}`, "did you mean 10.32.0.0/16?"},
		{"/IpamDriver.RequestPool", `{"Pool":"0.0.0.0/24"}`, "leave it out"},
		{"/IpamDriver.RequestPool", `{"Pool":"127.0.0.0/8"}`, "loopback"},
		{"/IpamDriver.RequestPool", `{"Pool":"224.0.0.0/16"}`, "multicast"},
		{"/IpamDriver.RequestPool", `{"Pool":"fe80::/64","V6":true}`, "link-local"},
		{"/IpamDriver.RequestPool", `{"Pool":"fd00::/64"}`, "address family"},
		{"/IpamDriver.RequestPool", `{"Pool":"10.32.0.0/16","V6":true}`, "address family"},
		{"/IpamDriver.RequestPool", `{"Pool":"::ffff:10.32.0.0/112","V6":true}`, "address family"},
		{"/IpamDriver.RequestPool", `{"SubPool":"10.32.0.0/24"}`, "name the --subnet"},
		{"/IpamDriver.RequestPool", `{"Pool":"10.32.0.0/16","SubPool":"10.33.0.0/24"}`, "not part of"},
		{"/IpamDriver.RequestPool", `{"Pool":"10.32.0.0/16","SubPool":"10.32.0.0/12"}`, "not part of"},
		{"/IpamDriver.ReleasePool", `{}`, "pool ID of 0"},
		{"/IpamDriver.ReleasePool", `{"PoolID":"` + long + `"}`, "pool ID of 300"},
		{"/IpamDriver.RequestAddress", `{"PoolID":"p","Address":"x"}`, "not an IP address"},
		{"/IpamDriver.RequestAddress", `{"PoolID":"p","Address":"fe80::1%eth0"}`, "not an IP address"},
		{"/IpamDriver.RequestAddress", `{"PoolID":"p","Address":"0.0.0.0"}`, "cannot be given"},
		{"/IpamDriver.ReleaseAddress", `{"PoolID":"p"}`, "no address"},
	} {
		drivers := &fake{}
		status, answer := post(t, drivers, c.path, c.body)
		if got := errText(t, answer); status == http.StatusOK || !strings.Contains(got, c.want) {
			t.Errorf("%s %.80s: %d %s, want an error with %q", c.path, c.body, status, got, c.want)
		}
		if drivers.got != nil {
			t.Errorf("%s %.80s: driver was called with %+v", c.path, c.body, drivers.got)
		}
	}
}

func TestOtherMethods(t *testing.T) {
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodHead} {
		w := httptest.NewRecorder()
		NewHandler(&fake{}, quiet()).ServeHTTP(w, httptest.NewRequest(method, "/Plugin.Activate", nil))
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != http.MethodPost {
			t.Errorf("%s: %d, Allow %q", method, w.Code, w.Header().Get("Allow"))
		}
	}
}

func TestDriverErrors(t *testing.T) {
	bodies := map[string]string{
		"/NetworkDriver.CreateEndpoint": `{"NetworkID":"n","EndpointID":"e"}`,
		"/NetworkDriver.Leave":          `{"NetworkID":"n","EndpointID":"e"}`,
		"/IpamDriver.RequestPool":       `{}`,
		"/IpamDriver.RequestAddress":    `{"PoolID":"p"}`,
	}
	for path, body := range bodies {
		status, answer := post(t, &fake{err: errors.New("pool is full")}, path, body)
		if got := errText(t, answer); status != http.StatusInternalServerError || got != "pool is full" {
			t.Errorf("%s: %d %s", path, status, got)
		}
		status, answer = post(t, &fake{panicked: "oh"}, path, body)
		if got := errText(t, answer); status != http.StatusInternalServerError || !strings.Contains(got, "bug in the weave plugin: oh") {
			t.Errorf("%s: %d %s", path, status, got)
		}
	}
}

func TestPanicIsLogged(t *testing.T) {
	log, hook := test.NewNullLogger()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/IpamDriver.ReleasePool", strings.NewReader(`{"PoolID":"p"}`))
	NewHandler(&fake{panicked: "oh"}, logrus.NewEntry(log)).ServeHTTP(w, r)
	e := hook.LastEntry()
	if e == nil || e.Level != logrus.ErrorLevel || e.Data["panic"] != "oh" || !strings.Contains(e.Data["stack"].(string), "note") {
		t.Errorf("log entry %+v", e)
	}
}

func TestGateErrors(t *testing.T) {
	broken := gateFunc(func(context.Context) (Drivers, error) {
		return Drivers{}, errors.New("WEAVE_PORT=x: port is not a number")
	})
	status, answer := post(t, broken, "/IpamDriver.ReleasePool", `{"PoolID":"p"}`)
	if got := errText(t, answer); status != http.StatusServiceUnavailable || got != "the weave plugin does no work: WEAVE_PORT=x: port is not a number" {
		t.Errorf("%d %s", status, got)
	}
}

// TestSlowGate holds that a call is answered before dockerd gives up on it.
func TestSlowGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := gateFunc(func(ctx context.Context) (Drivers, error) {
			<-ctx.Done()
			return Drivers{}, ctx.Err()
		})
		status, answer := post(t, never, "/IpamDriver.ReleasePool", `{"PoolID":"p"}`)
		if got := errText(t, answer); status != http.StatusServiceUnavailable || !strings.Contains(got, "still starting") {
			t.Errorf("%d %s", status, got)
		}
	})
}

// slow hangs until its context ends.
type slow struct{ fake }

func (s *slow) Ready(context.Context) (Drivers, error) { return Drivers{s, s}, nil }
func (s *slow) ReleasePool(ctx context.Context, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestSlowDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, answer := post(t, &slow{}, "/IpamDriver.ReleasePool", `{"PoolID":"p"}`)
		if got := errText(t, answer); !strings.Contains(got, "could not finish within 20s") {
			t.Error(got)
		}
	})
}

// impatient gives up before the call does.
type impatient struct{ slow }

func (i *impatient) Ready(context.Context) (Drivers, error) { return Drivers{i, i}, nil }
func (i *impatient) ReleasePool(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return fmt.Errorf("host b: %w", i.slow.ReleasePool(ctx, id))
}

func TestOnlyTheCallsOwnLimitIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, answer := post(t, &impatient{}, "/IpamDriver.ReleasePool", `{"PoolID":"p"}`)
		if got := errText(t, answer); !strings.HasPrefix(got, "host b") {
			t.Error(got)
		}
	})
}

func TestCallsAreLogged(t *testing.T) {
	log, hook := test.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	w := httptest.NewRecorder()
	NewHandler(&fake{}, logrus.NewEntry(log)).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/Plugin.Activate", nil))
	e := hook.LastEntry()
	if e == nil || e.Level != logrus.DebugLevel || e.Data["call"] != "/Plugin.Activate" || e.Data["took"] == nil {
		t.Errorf("log entry %+v", e)
	}
	if _, err := io.ReadAll(w.Body); err != nil {
		t.Error(err)
	}
}

func FuzzHandler(f *testing.F) {
	paths := make([]string, 0, len(routes()))
	for path := range routes() {
		paths = append(paths, path)
	}
	for _, body := range []string{"", "{}", `{"NetworkID":"n","EndpointID":"e"}`, `{"PoolID":"p","Address":"::1"}`, `{"Pool":"10.0.0.0/8","SubPool":"10.1.0.0/16"}`, "[1]", `{"IPv4Data":[{}]}`} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, path := range paths {
			status, answer := post(t, &fake{}, path, body)
			if !json.Valid([]byte(answer)) || status != http.StatusOK && errText(t, answer) == "" {
				t.Fatalf("%s: %d %q", path, status, answer)
			}
		}
	})
}
