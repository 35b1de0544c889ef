package daemon

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"reflect"
	"syscall"
	"testing"

	"weave/driver"
	"weave/plugin/config"
	"weave/plugin/dns"
	"weave/plugin/sandbox"
)

// book is networks and endpoints of a driver.
type book struct {
	networks  []driver.NetworkStatus
	endpoints []driver.EndpointStatus
}

func (b book) Networks() []driver.NetworkStatus   { return b.networks }
func (b book) Endpoints() []driver.EndpointStatus { return b.endpoints }

// TestScopes holds what a sandbox sees: the segments of its networks, whichever
// containers share it, but of those without names.
func TestScopes(t *testing.T) {
	b := book{
		networks: []driver.NetworkStatus{
			{ID: "app", Segment: "10.32.0.0/16"}, {ID: "near", Segment: "name:near", DNS: driver.DNSLocalFirst}, {ID: "off", Segment: "10.34.0.0/16", DNS: driver.DNSOff},
		},
		endpoints: []driver.EndpointStatus{
			{ID: "1", Network: "app", Joined: true, Sandbox: "/var/run/docker/netns/a"},
			{ID: "2", Network: "near", Joined: true, Sandbox: "/run/docker/netns/a"},
			{ID: "3", Network: "off", Joined: true, Sandbox: "/var/run/docker/netns/a"},
			{ID: "4", Network: "off", Joined: true, Sandbox: "/var/run/docker/netns/b"},
			{ID: "5", Network: "app", Sandbox: "/var/run/docker/netns/c"},
			{ID: "6", Network: "app", Joined: true, Sandbox: "/var/run/docker/netns/../../../tmp/d"},
		},
	}
	n := &naming{driver: b, cfg: config.Config{Run: "/host/run"}, keeper: sandbox.NewKeeper(nil, quiet())}
	n.look()
	want := map[string][]dns.Scope{
		"/host/run/docker/netns/a": {{}, {Segment: "10.32.0.0/16"}, {Segment: "name:near", LocalFirst: true}},
		"/var/tmp/d":               {{}, {Segment: "10.32.0.0/16"}}, // as dockerd calls it
	}
	if got := *n.scopes.Load(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := *n.others.Load(); len(got) != 4 { // all of this host, and what is for all
		t.Errorf("others see %+v", got)
	}
	n.cfg.DNSSegments = []string{"10.32.0.0/16", "near"}
	n.look()
	if got, want := *n.others.Load(), []dns.Scope{{}, {Segment: "10.32.0.0/16"}, {Segment: "name:near"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("others see %+v, want %+v", got, want)
	}
}

// TestOpenDoor: names are answered by UDP and TCP on one port, and what is taken is not
// half open.
func TestOpenDoor(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(taken.Addr().String())
	if door, err := openDoor(context.Background(), at); !errors.As(err, new(doorError)) || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("opened %v: %v", door, err)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	door, err := openDoor(context.Background(), at)
	if err != nil {
		t.Fatal(err)
	}
	if door.UDP.LocalAddr().String() != at.String() || door.TCP.Addr().String() != at.String() {
		t.Errorf("listens on %v, %v", door.UDP.LocalAddr(), door.TCP.Addr())
	}
	_, _ = door.UDP.Close(), door.TCP.Close()
}
