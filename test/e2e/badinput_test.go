package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"weave/test/dockerlab"
)

func TestBadNetworks(t *testing.T) {
	hs := hosts(t, 1)
	h := hs[0]
	awaitNoRetired(t, hs)
	before, linksBefore := docker(t, h, "network", "ls", "-q"), links(t, hs)
	tests := []struct {
		name  string
		args  []string
		words []string
	}{
		{"unknown option", []string{"-o", "weave.nonsense=1"}, []string{"weave.nonsense"}},
		{"option of nobody", []string{"-o", "colour=blue"}, []string{"colour"}},
		{"MTU is no number", []string{"-o", "weave.mtu=huge"}, []string{"weave.mtu", "huge"}},
		{"MTU is too small", []string{"-o", "weave.mtu=10"}, []string{"weave.mtu", "10"}},
		{"underlay's subnet", []string{"--subnet", "10.99.0.0/24"}, []string{"10.99.0.0/24"}},
		{"around the underlay", []string{"--subnet", "10.99.0.0/16"}, []string{"10.99.0.0/16"}},
		{"Docker's own subnet", []string{"--subnet", "172.17.0.0/16"}, []string{"172.17.0.0/16"}},
		{"too small", []string{"--subnet", "10.98.0.0/31"}, []string{"10.98.0.0/31"}},
		{"loopback", []string{"--subnet", "127.0.0.0/8"}, []string{"127.0.0.0/8"}},
		{"multicast", []string{"--subnet", "224.0.0.0/16"}, []string{"224.0.0.0/16"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			name := uniqueName("bad")
			args := append([]string{"network", "create", "-d", "weave", "--ipam-driver", "weave"}, test.args...)
			if !refused(t, h, test.words, append(args, name)...) {
				docker(t, h, "network", "rm", name)
			}
		})
	}
	if after := docker(t, h, "network", "ls", "-q"); after != before {
		t.Errorf("networks were %q, are %q", before, after)
	}
	if after := links(t, hs); !slices.Equal(after, linksBefore) {
		t.Errorf("links were %v, are %v", linksBefore, after)
	}
}

// TestSecondNetworkOnOneSegment: refused with the first one's name, unless it
// is told apart by -o weave.segment.
func TestSecondNetworkOnOneSegment(t *testing.T) {
	hs := hosts(t, 1)
	sub := subnet()
	first := network(t, hs, "--subnet", sub)
	name := uniqueName("second")
	refused(t, hs[0], []string{sub}, "network", "create", "-d", "weave", "--ipam-driver", "weave", "--subnet", sub, name)
	id := docker(t, hs[0], "network", "inspect", "-f", "{{.Id}}", first)
	_, err := hs[0].Docker("network", "create", "-d", "weave", "--ipam-driver", "weave", "--subnet", sub, name)
	if err == nil || !strings.Contains(err.Error(), first) && !strings.Contains(err.Error(), id[:12]) {
		t.Errorf("the error names neither %s nor %s: %v", first, id[:12], err)
	}
}

// TestBadCalls sends the plugin what no engine should.
func TestBadCalls(t *testing.T) {
	hs := hosts(t, 1)
	before := pluginPIDs(t, hs)
	client := unixClient(hs[0].Path("/run/docker/plugins/weave.sock"))
	defer client.CloseIdleConnections()
	bodies := map[string]string{
		"empty":       "",
		"cut off":     `{"NetworkID":"`,
		"not JSON":    "junk",
		"wrong types": `{"NetworkID":7,"EndpointID":[],"PoolID":{},"Address":true,"Pool":1}`,
		"no fields":   "{}",
		"null":        "null",
		"strange IDs": `{"NetworkID":"../../etc","EndpointID":"\u0000","PoolID":"x","Address":"x","Pool":"x","AddressSpace":"x"}`,
		"huge":        `{"NetworkID":"` + strings.Repeat("x", 8<<20) + `"}`,
	}
	calls := []string{
		"NetworkDriver.CreateNetwork", "NetworkDriver.DeleteNetwork", "NetworkDriver.CreateEndpoint", "NetworkDriver.DeleteEndpoint",
		"NetworkDriver.EndpointOperInfo", "NetworkDriver.Join", "NetworkDriver.Leave",
		"IpamDriver.RequestPool", "IpamDriver.ReleasePool", "IpamDriver.RequestAddress", "IpamDriver.ReleaseAddress",
	}
	fine := map[[2]string]string{
		{"IpamDriver.RequestPool", "no fields"}:   "that asks for any pool",
		{"IpamDriver.ReleasePool", "strange IDs"}: "what is not there is released",
	}
	for _, call := range calls {
		for name, body := range bodies {
			if fine[[2]string{call, name}] != "" {
				continue
			}
			if err := callFails(client, call, body); err != nil {
				t.Errorf("%s with body %s: %v", call, name, err)
			}
		}
	}
	for _, call := range []string{ // answered alike whatever they say
		"NetworkDriver.GetCapabilities", "NetworkDriver.GwAllocCheck", "NetworkDriver.DiscoverNew", "NetworkDriver.DiscoverDelete",
		"NetworkDriver.ProgramExternalConnectivity", "NetworkDriver.RevokeExternalConnectivity",
		"IpamDriver.GetCapabilities", "IpamDriver.GetDefaultAddressSpaces",
	} {
		for name, body := range bodies {
			if err := callFails(client, call, body); err == nil || !strings.Contains(err.Error(), "status 200") {
				t.Errorf("%s with body %s: %v", call, name, err)
			}
		}
	}
	if after := pluginPIDs(t, hs); after != before {
		t.Errorf("the plugin was %s, is %s", before, after)
	}
	net := network(t, hs, "--subnet", subnet())
	run(t, hs[0], net, nil)
}

// unixClient speaks HTTP to a unix socket.
func unixClient(socket string) *http.Client {
	return &http.Client{
		Timeout: 90 * time.Second, // as commands have
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}},
	}
}

// callFails returns nil if the plugin answers the call with an error.
func callFails(client *http.Client, call, body string) error {
	response, err := client.Post("http://plugin/"+call, "application/json", strings.NewReader(body))
	if err != nil {
		if strings.Contains(err.Error(), "broken pipe") || strings.Contains(err.Error(), "connection reset") {
			return nil // it stopped reading
		}
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	var answer struct{ Err string }
	if err := json.Unmarshal(text, &answer); err != nil || answer.Err == "" {
		return fmt.Errorf("status %d, answer %.200q names no error", response.StatusCode, text)
	}
	return nil
}

// TestBadSettings: the plugin serves, refuses work by the setting's name, and
// says so in its status.
func TestBadSettings(t *testing.T) {
	beside(t)
	h := spareHost(t, nil)
	for _, test := range []struct{ setting, bad string }{
		{"WEAVE_IPALLOC_RANGE", "ten"},
		{"WEAVE_IPALLOC_RANGE", "10.0.0.0/31"},
		{"WEAVE_PORT", "http"},
		{"WEAVE_PORT", "70000"},
		{"WEAVE_PEERS", "a:b:c"},
		{"WEAVE_ADDRESS", "nowhere"},
		{"WEAVE_ADDRESS", "192.0.2.1"},
		{"WEAVE_MTU", "12"},
		{"WEAVE_LOG_LEVEL", "loud"},
		{"WEAVE_PASSWORD_FILE", "no-such-file"},
	} {
		t.Run(test.setting+"="+test.bad, func(t *testing.T) {
			set(t, h, test.setting, test.bad)
			refused(t, h, []string{test.setting, test.bad}, creation(uniqueName("bad"), "--subnet", subnet())...)
			if out := weave(t, h, "status"); !strings.Contains(out, test.setting) || !strings.Contains(out, test.bad) {
				t.Errorf("the status does not name the setting:\n%s", out)
			}
			set(t, h, test.setting, "")
		})
	}
	run(t, h, network(t, []*dockerlab.Host{h}, "--subnet", subnet()), nil)
}

// set changes a setting of the plugin, as a person does: while it is disabled.
func set(t *testing.T, h *dockerlab.Host, setting, value string) {
	t.Helper()
	err := errors.Join(h.DisablePlugin(), h.SetPlugin(map[string]string{setting: value}), h.EnablePlugin())
	if err != nil {
		t.Fatal(err)
	}
}
