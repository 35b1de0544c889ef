package engine

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs an engine that answers version to a ping and h to the rest.
func serve(t *testing.T, version string, h http.HandlerFunc) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/_ping" {
			w.Header().Set("Api-Version", version)
			return
		}
		h(w, r)
	})}
	ended := make(chan error)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-ended
	})
	return New(path)
}

// answer is what engine 20.10 says of a network, shortened.
const answer = `{"Name":"net1","Id":"abc123","Created":"2026-11-23T08:24:16.917340468Z","Scope":"local","Driver":"weave","EnableIPv6":true,
"IPAM":{"Driver":"weave","Options":{},"Config":[{"Subnet":"10.97.0.0/24","IPRange":"10.97.0.0/28","Gateway":"0.0.0.0","AuxiliaryAddresses":{"router":"10.97.0.9","dns":"10.97.0.8","odd":""}},{"Subnet":"fd97::/64","Gateway":"::/0"}]},
"Containers":{
 "c2":{"Name":"web","EndpointID":"e2","MacAddress":"02:42:0a:61:00:03","IPv4Address":"10.97.0.3/24","IPv6Address":"fd97::3/64"},
 "ep-e1":{"Name":"gone","EndpointID":"e1","MacAddress":"","IPv4Address":"10.97.0.2/24","IPv6Address":""}},
"Options":{"weave.segment":"blue"},"Labels":{"com.docker.compose.project":"shop"}}`

func TestNetworkByID(t *testing.T) {
	c := serve(t, "1.41", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/v1.41/networks/abc123" {
			t.Errorf("got %s %s", r.Method, r.URL)
		}
		_, _ = io.WriteString(w, answer)
	})
	got, err := c.NetworkByID(context.Background(), "abc123")
	if err != nil {
		t.Fatal(err)
	}
	want := Network{
		ID: "abc123", Name: "net1", Driver: "weave", IPv6: true, Options: map[string]string{"weave.segment": "blue"},
		Labels: map[string]string{"com.docker.compose.project": "shop"},
		IPAM: IPAM{Driver: "weave", Options: map[string]string{}, Pools: []Pool{
			{
				Subnet: netip.MustParsePrefix("10.97.0.0/24"), Range: netip.MustParsePrefix("10.97.0.0/28"),
				Auxiliary: map[string]netip.Addr{"dns": netip.MustParseAddr("10.97.0.8"), "router": netip.MustParseAddr("10.97.0.9")},
			},
			{Subnet: netip.MustParsePrefix("fd97::/64")},
		}},
		Endpoints: []Endpoint{
			{ID: "e1", ContainerName: "gone", Addresses: []netip.Prefix{netip.MustParsePrefix("10.97.0.2/24")}},
			{
				ID: "e2", ContainerID: "c2", ContainerName: "web", MAC: "02:42:0a:61:00:03",
				Addresses: []netip.Prefix{netip.MustParsePrefix("10.97.0.3/24"), netip.MustParsePrefix("fd97::3/64")},
			},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// list is what engine 20.10 says of all its networks, shortened; two of them
// are odd.
const list = `[
{"Name":"bridge","Id":"b1","Driver":"bridge","IPAM":{"Driver":"default","Options":null,"Config":[{"Subnet":"172.17.0.0/16"}]},"ConfigOnly":false,"Containers":{}},
{"Name":"none","Id":"b2","Driver":"null","IPAM":{"Driver":"default","Options":null,"Config":[]},"ConfigOnly":false,"Containers":{}},
{"Name":"net1","Id":"abc123","Driver":"weave","IPAM":{"Driver":"weavenet:latest","Config":[{"Subnet":"10.97.0.0/24","IPRange":"10.97.0.0/28","Gateway":"0.0.0.0"}]},"ConfigOnly":false},
{"Name":"odd","Id":"b3","Driver":"weave","IPAM":{"Driver":"weave","Config":[{"Subnet":""},{"Subnet":"10.98.0.7/24","IPRange":"?"}]}},
{"Name":"bare","Id":"b4","Driver":"x","IPAM":null},
{"Name":"settings","Id":"b5","Driver":"null","IPAM":{"Driver":"weave","Config":[{"Subnet":"10.97.0.0/24"}]},"ConfigOnly":true}]`

func TestNetworks(t *testing.T) {
	c := serve(t, "1.41", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/v1.41/networks" {
			t.Errorf("got %s %s", r.Method, r.URL)
		}
		_, _ = io.WriteString(w, list)
	})
	got, err := c.Networks(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	want := []Network{
		{ID: "b1", Name: "bridge", Driver: "bridge", IPAM: IPAM{Driver: "default", Pools: []Pool{{Subnet: netip.MustParsePrefix("172.17.0.0/16")}}}},
		{ID: "b2", Name: "none", Driver: "null", IPAM: IPAM{Driver: "default"}},
		{ID: "abc123", Name: "net1", Driver: "weave", IPAM: IPAM{Driver: "weavenet:latest", Pools: []Pool{
			{Subnet: netip.MustParsePrefix("10.97.0.0/24"), Range: netip.MustParsePrefix("10.97.0.0/28")},
		}}},
		{ID: "b3", Name: "odd", Driver: "weave", IPAM: IPAM{Driver: "weave", Pools: []Pool{{Subnet: netip.MustParsePrefix("10.98.0.0/24")}}}},
		{ID: "b4", Name: "bare", Driver: "x"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestNoList holds that half a list is not taken for a list.
func TestNoList(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		want   string
	}{
		"engine's word": {http.StatusInternalServerError, `{"message":"disk on fire"}`, "500: disk on fire"},
		"cut short":     {http.StatusOK, list[:len(list)-1], "malformed answer"},
		"another form":  {http.StatusOK, `{"networks":[]}`, "malformed answer"},
		"empty":         {http.StatusOK, `[]`, "named none"},
		"null":          {http.StatusOK, `null`, "named none"},
	} {
		t.Run(name, func(t *testing.T) {
			client := serve(t, "1.41", func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			if got, err := client.Networks(context.Background()); err == nil || !strings.Contains(err.Error(), c.want) || got != nil {
				t.Errorf("got %v, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		version string
		status  int
		body    string
		want    string
		missing bool
	}{
		"not there":     {"1.41", http.StatusNotFound, `{"message":"network abc123 not found"}`, "no such network", true},
		"another one":   {"1.41", http.StatusOK, `{"Id":"abc1234567"}`, "no such network", true},
		"engine's word": {"1.41", http.StatusInternalServerError, `{"message":"disk on fire"}`, "500: disk on fire", false},
		"no JSON":       {"1.41", http.StatusBadGateway, strings.Repeat("x", 10_000), "502: xxx", false},
		"cut short":     {"1.41", http.StatusOK, `{"Id":"abc`, "malformed answer", false},
		"no version":    {"", http.StatusOK, `{}`, "API version", false},
		"odd version":   {"1.41/../..", http.StatusOK, `{}`, "API version", false},
	} {
		t.Run(name, func(t *testing.T) {
			client := serve(t, c.version, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			_, err := client.NetworkByID(context.Background(), "abc123")
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrNotFound) != c.missing {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && len(err.Error()) > 700 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestSilentEngine(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	c := serve(t, "1.41", func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	if _, err := c.NetworkByID(ctx, "abc123"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestNoEngine(t *testing.T) {
	_, err := New(filepath.Join(t.TempDir(), "no.sock")).NetworkByID(context.Background(), "abc123")
	if !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// TestLocalEngine reads from this machine's engine, if it has one.
func TestLocalEngine(t *testing.T) {
	const path = "/var/run/docker.sock"
	if _, err := os.Stat(path); err != nil {
		t.Skip("no Docker Engine here")
	}
	c := New(path)
	ctx := context.Background()
	all, err := c.Networks(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range all {
		if n.Name != "bridge" {
			continue
		}
		got, err := c.NetworkByID(ctx, n.ID)
		if err != nil || got.ID != n.ID || got.Name != "bridge" || got.Driver != "bridge" {
			t.Errorf("got %+v, %v", got, err)
		}
		if _, err := c.NetworkByID(ctx, n.ID[:12]); !errors.Is(err, ErrNotFound) {
			t.Errorf("start of an ID: got %v, want ErrNotFound", err)
		}
	}
	if _, err := c.NetworkByID(ctx, strings.Repeat("0", 64)); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown ID: got %v, want ErrNotFound", err)
	}
}

func TestVersionAndPlugins(t *testing.T) {
	c := serve(t, "1.41", func(w http.ResponseWriter, r *http.Request) {
		answers := map[string]string{
			"/v1.41/version": `{"Version":"20.10.24","ApiVersion":"1.41","KernelVersion":"6.1.0","Os":"linux"}`,
			"/v1.41/plugins": `[{"Id":"0123","Name":"weavenet:latest","Enabled":true,"Settings":{"Env":["WEAVE_MTU=1400"]},"Config":{"Entrypoint":["/weave","daemon"]}}]`,
		}
		_, _ = io.WriteString(w, answers[r.URL.Path])
	})
	v, err := c.Version(context.Background())
	if want := (Version{"20.10.24", "1.41", "6.1.0"}); v != want || err != nil {
		t.Errorf("got %+v, %v", v, err)
	}
	plugins, err := c.Plugins(context.Background())
	want := []Plugin{{"0123", "weavenet:latest", true, []string{"/weave", "daemon"}, []string{"WEAVE_MTU=1400"}}}
	if !reflect.DeepEqual(plugins, want) || err != nil {
		t.Errorf("got %+v, %v", plugins, err)
	}
	broken := serve(t, "1.41", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	if _, err := broken.Version(context.Background()); err == nil {
		t.Error("a version out of nothing")
	}
	if _, err := broken.Plugins(context.Background()); err == nil {
		t.Error("plugins out of nothing")
	}
}
