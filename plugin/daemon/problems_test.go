package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"weave/driver/host"
	"weave/ipam"
	"weave/mesh"
	"weave/mesh/id"
	"weave/mesh/lan"
	"weave/mesh/transport"
	"weave/plugin/config"
	"weave/plugin/control"
	"weave/plugin/sock"
	"weave/plugin/store"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// healthy is a host of which there is nothing to say.
func healthy() findings {
	return findings{up: time.Hour, status: &control.Status{
		Peer: "self", Nickname: "left", Password: true, Port: 6783,
		Peers: []control.Peer{{ID: "other", Nickname: "right", State: control.Up}},
		Seeds: []control.Seed{
			{Address: "right:6783", Met: true, Tried: time.Unix(1, 0)},
			{Address: "left:6783", Self: true, Tried: time.Unix(1, 0)},
			{Address: "new:6783"},
		},
		Endpoints: []control.Endpoint{
			{ID: "e1", Container: "web", Addresses: []netip.Addr{addr("10.1.0.1"), addr("fd00::1")}, Segment: "a", Host: "left", Peer: "self", Local: true},
			{ID: "e2", Addresses: []netip.Addr{addr("10.1.0.1")}, Segment: "b", Host: "right", Peer: "other"},
		},
		IPAM: []control.Pool{{Subnet: netip.MustParsePrefix("10.1.0.0/16")}},
	}}
}

func TestProblems(t *testing.T) {
	if got := healthy().problems(); len(got) != 0 {
		t.Errorf("healthy: %v", got)
	}
	trouble := func(err error) func(*findings) {
		return func(f *findings) { f.trouble = map[string]error{"start": fmt.Errorf("outer: %w", err)} }
	}
	for name, c := range map[string]struct {
		change func(*findings)
		sev    control.Severity
		words  []string // of what and what to do
	}{
		"setting": {func(f *findings) {
			f.settings = []config.Problem{{Setting: "WEAVE_MTU", Value: "12", Why: "too small", WayOut: "leave it out"}}
		}, control.Error, []string{"WEAVE_MTU=12", "too small", "-> leave it out"}},
		"names": {func(f *findings) {
			f.deaf = map[string]error{"/run/docker/netns/1": errFirst, "/run/docker/netns/2": errFirst}
		}, control.Warning, []string{"by name: first", "-> see the plugin's log"}},
		"lost name": {func(f *findings) { f.nameless = []string{"printer 10.1.0.0/16"} }, control.Warning,
			[]string{`name "printer" on segment 10.1.0.0/16`, "is gone", "-> add it anew: weave dns-add"}},
		"task":              {trouble(errFirst), control.Error, []string{"cannot start: outer: first", "-> see the plugin's log"}},
		"two errors":        {trouble(errors.Join(errFirst, errSecond)), control.Error, []string{"cannot start: outer: first; second"}},
		"port taken":        {trouble(syscall.EADDRINUSE), control.Error, []string{"-> stop the program that uses the port", "WEAVE_PORT"}},
		"names' port taken": {trouble(doorError{syscall.EADDRINUSE}), control.Error, []string{"WEAVE_DNS_LISTEN", "5353"}},
		"names' address":    {trouble(doorError{syscall.EADDRNOTAVAIL}), control.Error, []string{"WEAVE_DNS_LISTEN to an address"}},
		"no address":        {trouble(syscall.EADDRNOTAVAIL), control.Error, []string{"WEAVE_ADDRESS"}},
		"corrupt":           {trouble(store.ErrCorrupt), control.Error, []string{"corrupt state", "backup"}},
		"format":            {trouble(store.ErrFormat), control.Error, []string{"version"}},
		"locked":            {trouble(store.ErrLocked), control.Error, []string{"-> stop the other weave"}},
		"socket taken":      {trouble(sock.ErrInUse), control.Error, []string{"-> stop the other weave"}},
		"disk full":         {trouble(syscall.ENOSPC), control.Error, []string{"room"}},
		"firewall": {func(f *findings) {
			f.blocked = []host.Blocked{{Family: "IPv4", Command: "iptables-legacy -I"}}
		}, control.Error, []string{"IPv4 firewall", "-> run `iptables-legacy -I`"}},
		"TAP": {func(f *findings) { f.failures = map[string]string{"10.1.0.0/16": "bad file"} }, control.Error, []string{"10.1.0.0/16", "bad file"}},
		"clash": {func(f *findings) { f.status.Endpoints[1].Segment = "a" }, control.Error,
			[]string{"address 10.1.0.1 on segment a", "web on left", "endpoint e2 on right", "--ipam-driver weave"}},
		"no leases": {func(f *findings) {
			f.status.IPAM = []control.Pool{{Trouble: []string{"off"}}, {Trouble: []string{"off"}}}
		}, control.Error, []string{"off"}},
		"pool": {func(f *findings) { f.status.IPAM[0].Conflicts = []string{"twice"} }, control.Error, []string{"pool 10.1.0.0/16: twice", "restart the container"}},
		"removal": {func(f *findings) { f.waiting = []waiting{{"old", []string{"m1", "m2"}}} }, control.Warning,
			[]string{"removed host old", "m1, m2", "-> start weave there", "`weave rmpeer`"}},
		"no password": {func(f *findings) { f.status.Password = false }, control.Warning,
			[]string{"no password", "6783", "weave launch --password-file"}},
		"LAN": {func(f *findings) { f.lan = "eth0: operation not permitted" }, control.Warning,
			[]string{"same LAN", "eth0: operation not permitted", "-> let out UDP port 6785", "WEAVE_PEERS"}},
		"TCP port": {func(f *findings) { f.tcpPort = fmt.Errorf("listen on tcp [::]:443: %w", syscall.EADDRINUSE) }, control.Error,
			[]string{"WEAVE_TCP_PORT only", "[::]:443: address already in use", "-> stop the program that uses the port"}},
		"unlike": {func(f *findings) { f.unlike = map[string]string{"app": "network app is another one"} }, control.Warning,
			[]string{"network app is another one", "-> remove or rename"}},
		"loss": {func(f *findings) {
			f.status.Peers[0].Loss, f.status.Peers[0].Lossy, f.status.Peers[0].Path = 0.12, true, "direct UDP"
		}, control.Warning, []string{"host right: 12% of the pings to it, by direct UDP, are lost", "-> look whether the network"}},
		"loss of relays": {func(f *findings) {
			f.status.Peers[0].Lossy, f.status.Peers[0].Path, f.status.Peers[0].Via = true, "relay", "third"
		}, control.Warning, []string{"by relay via third"}},
		"seed": {func(f *findings) {
			f.status.Seeds[2].Tried, f.status.Seeds[2].Error = time.Unix(1, 0), "no answer"
		}, control.Warning, []string{"new:6783: no answer", "UDP and TCP"}},
		"peer": {func(f *findings) { f.status.Peers[0].State = control.Connecting }, control.Warning,
			[]string{"host right does not answer", "UDP and TCP"}},
		"peer's password": {func(f *findings) {
			f.status.Peers[0].State, f.status.Peers[0].Error = control.Down, "password differs"
		}, control.Warning, []string{"host right is not connected: password differs", "-> give all hosts the same password"}},
		"full pool": {func(f *findings) { f.status.Segments = []control.Segment{{Subnet: f.status.IPAM[0].Subnet}} },
			control.Warning, []string{"pool 10.1.0.0/16 is full", "larger --subnet"}},
	} {
		f := healthy()
		c.change(&f)
		got := f.problems()
		if len(got) != 1 {
			t.Errorf("%s: %v", name, got)
			continue
		}
		text := got[0].What + " -> " + got[0].Do
		for _, w := range c.words {
			if got[0].Severity != c.sev || !strings.Contains(text, w) {
				t.Errorf("%s: %s: %q lacks %q", name, got[0].Severity, text, w)
			}
		}
	}
}

func TestProblemsInOrder(t *testing.T) {
	f := healthy()
	f.status.Password = false
	f.trouble = map[string]error{"b": errFirst, "a": errFirst}
	got := f.problems()
	if len(got) != 3 || !strings.Contains(got[0].What, "cannot a") || got[2].Severity != control.Warning {
		t.Errorf("%v", got)
	}
	// Right after the start peers have not had the time to answer, and what
	// is not known yet is no problem.
	f = healthy()
	f.up, f.status.Peers[0].State = time.Second, control.Down
	if got := f.problems(); len(got) != 0 {
		t.Errorf("just started: %v", got)
	}
	// A service has its password from elsewhere.
	f = healthy()
	f.status.Password, f.status.Service = false, true
	if got := f.problems(); len(got) != 1 || strings.Contains(got[0].Do, "weave launch") || !strings.Contains(got[0].Do, config.PasswordFile) {
		t.Errorf("a service: %v", got)
	}
	f = findings{status: &control.Status{}, settings: []config.Problem{{Setting: "WEAVE_PASSWORD", Why: "w", WayOut: "o"}}}
	if got := f.problems(); len(got) != 1 {
		t.Errorf("a bad password is not a missing one: %v", got)
	}
}

func TestPeerStatus(t *testing.T) {
	for _, c := range []struct {
		alive bool
		path  string
		want  control.PeerState
	}{
		{true, transport.StateUp, control.Up},
		{false, transport.StateUp, control.Connecting},
		{true, transport.StateConnecting, control.Connecting},
		{false, transport.StateConnecting, control.Connecting},
		{false, transport.StateDown, control.Down},
		{true, transport.StateDown, control.Connecting},
		{false, "", control.Down},
	} {
		x := mesh.Peer{ID: id.PeerID{1}, Nickname: "n", Alive: c.alive, Path: transport.PeerStatus{State: c.path, MTU: 1400, LastError: "e"}}
		got := peerStatus(x)
		if got.State != c.want || (got.State == control.Up) != (got.Error == "") || (got.State == control.Up) != (got.PathMTU == 1400) {
			t.Errorf("alive %v, path %q: %+v", c.alive, c.path, got)
		}
	}
}

// What is told of a path is of the one in use.
func TestPathStatus(t *testing.T) {
	path, keys := time.Unix(1000, 0), time.Unix(2000, 0)
	x := mesh.Peer{Alive: true, NAT: mesh.NATCone, Path: transport.PeerStatus{
		State: transport.StateUp, PathSince: path, Established: keys, Pings: 80, LostPings: 20, Lossy: true,
	}}
	got := peerStatus(x)
	if got.Loss != 0.25 || !got.Lossy || got.Pings != 80 || !got.PathSince.Equal(path) || !got.KeysSince.Equal(keys) || got.NAT != "cone" {
		t.Errorf("%+v", got)
	}
	x.Path.Pings, x.Path.LostPings, x.Path.Lossy = 0, 0, false
	if got := peerStatus(x); got.Loss != 0 || got.Pings != 0 {
		t.Errorf("no ping is due: %+v", got)
	}
	x.Alive, x.Path.Pings, x.Path.Lossy = false, 80, true
	if got := peerStatus(x); got.Pings != 0 || got.Lossy || !got.PathSince.IsZero() || !got.KeysSince.IsZero() {
		t.Errorf("it is not up: %+v", got)
	}
}

func TestFramesStatus(t *testing.T) {
	up := transport.PeerStatus{State: transport.StateUp}
	relayed := transport.PeerStatus{State: transport.StateUp, Relayed: true}
	for _, c := range []struct {
		x    mesh.Peer
		want control.Carrier
		why  string
	}{
		{mesh.Peer{Alive: true, Path: up, Fast: true}, control.VXLAN, ""},
		{mesh.Peer{Alive: true, Path: up, FastWhy: "blocked"}, control.Sealed, "blocked"},
		{mesh.Peer{Path: up, Fast: true, FastWhy: "blocked"}, "", ""},
		{mesh.Peer{Alive: true, Path: transport.PeerStatus{State: transport.StateUp, TCP: true}}, control.TCP, ""},
		{mesh.Peer{Alive: true, Path: relayed, Route: mesh.Route{Hops: 3}}, control.Relay, ""},
	} {
		if got := peerStatus(c.x); got.Frames != c.want || got.FramesWhy != c.why {
			t.Errorf("%+v: frames by %q, %q", c.x, got.Frames, got.FramesWhy)
		}
	}
}

func TestRefusalStatus(t *testing.T) {
	now := time.Now()
	late, early, old := now.Add(-time.Second), now.Add(-time.Minute), now.Add(-refusalAge)
	all := []transport.Refusal{
		{Addr: addr("192.0.2.1"), Reason: "password differs", Count: 3, At: late},
		{Addr: addr("192.0.2.2"), Reason: "protocol version 3, ours is 2", Count: 1, At: late},
		{Addr: addr("192.0.2.1"), Reason: "password differs", Count: 2, At: early, ByThem: true},
		{Addr: addr("192.0.2.3"), Reason: "odd", Count: 1, At: early, ByThem: true},
		{Addr: addr("192.0.2.3"), Reason: "even", Count: 1, At: early},
		{Addr: addr("192.0.2.4"), Reason: "password differs", Count: 1, At: early}, // has joined since
		{Addr: addr("192.0.2.5"), Reason: "password differs", Count: 1, At: old},
		{Addr: addr("fd00::4"), Reason: "password differs", Count: 1, At: early}, // of the one that has joined
		{Addr: addr("10.0.0.4"), Reason: "password differs", Count: 1, At: late}, // another host has that address, too
	}
	want := []struct {
		host  string
		count uint64
		do    string
	}{
		{"192.0.2.1", 5, "--password-file"}, {"192.0.2.2", 1, "same version"},
		{"192.0.2.3", 1, "that host's plugin"}, {"192.0.2.3", 1, "this plugin"}, {"10.0.0.4", 1, "--password-file"},
	}
	joined := mesh.Peer{Alive: true, Since: now.Add(-30 * time.Second)}
	joined.Path.Addr = netip.MustParseAddrPort("192.0.2.4:6783")
	joined.Path.Candidates = []netip.AddrPort{joined.Path.Addr, netip.MustParseAddrPort("[fd00::4]:6783"), netip.MustParseAddrPort("10.0.0.4:6783")}
	gone := mesh.Peer{Since: now}
	gone.Path.Addr = netip.MustParseAddrPort("192.0.2.2:6783")
	settled := map[netip.Addr]time.Time{}
	settle(settled, joined, now)
	settle(settled, gone, now)
	got := refusalStatus(all, settled, now, false)
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i, w := range want {
		if got[i].Address != addr(w.host) || got[i].Count != w.count || !strings.Contains(got[i].Do, w.do) {
			t.Errorf("got %+v, want %+v", got[i], w)
		}
	}
	if !got[0].Last.Equal(late) {
		t.Errorf("the last time was %s, want %s", got[0].Last, late)
	}
}

func TestEndpointsInOrder(t *testing.T) {
	want := []control.Endpoint{
		{ID: "9", Local: true, Host: "z", Segment: "a", Addresses: []netip.Addr{addr("10.0.0.2")}},
		{ID: "8", Local: true, Host: "z", Segment: "a", Addresses: []netip.Addr{addr("10.0.0.10")}},
		{ID: "1", Local: true, Host: "z", Segment: "b"},
		{ID: "7", Host: "a", Segment: "b"},
		{ID: "2", Host: "b", Segment: "a"},
	}
	got := slices.Clone(want)
	slices.SortFunc(got, func(a, b control.Endpoint) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(got, compareEndpoints)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestPoolStatus(t *testing.T) {
	got := poolStatus(ipam.PoolStatus{
		Pool: netip.MustParsePrefix("10.1.0.0/24"), Leases: 3, Free: 5, LeasesOff: "off", Pieces: "many",
		Owners: []ipam.OwnerStatus{{Peer: "p", Host: "left", Addresses: 100}, {Peer: "q", Host: "right", Addresses: 154}},
		Conflicts: []ipam.Clash{{Addr: netip.MustParseAddr("10.1.0.9"), Host: "far", Kind: ipam.KindLease}, {Host: "far", Kind: ipam.KindGateway},
			{Host: "far", Kind: ipam.KindLease, Over: true}},
	}, "q", map[netip.Prefix]string{netip.MustParsePrefix("10.1.0.9/24"): "web"})
	if !strings.Contains(got.Conflicts[0], "web") || !strings.Contains(got.Conflicts[0], "far") {
		t.Errorf("%q", got.Conflicts)
	}
	if c := got.Conflicts[2]; !strings.Contains(c, "was that of") || !strings.Contains(c, "until it restarts") {
		t.Errorf("%q", c)
	}
	if got.Size != 256 || got.Owned != 154 || got.Leased != 3 || got.Free != 5 || len(got.Owners) != 2 || len(got.Conflicts) != 3 || !slices.Equal(got.Trouble, []string{"off", "many"}) {
		t.Errorf("%+v", got)
	}
	for prefix, want := range map[string]uint64{"10.0.0.0/8": 1 << 24, "10.0.0.1/32": 1, "fd00::/64": ^uint64(0), "fd00::/65": 1 << 63, "::/0": ^uint64(0)} {
		if n := size(netip.MustParsePrefix(prefix)); n != want {
			t.Errorf("size of %s: %d", prefix, n)
		}
	}
}

// TestPersist holds that trouble is known while it lasts, and no longer.
func TestPersist(t *testing.T) {
	d := &daemon{log: quiet(), trouble: map[string]error{}}
	tries := 0
	err := d.persist(t.Context(), "try", func() error {
		if tries++; tries == 2 {
			if !errors.Is(d.trouble["try"], errFirst) {
				t.Errorf("trouble %v", d.trouble)
			}
			return nil
		}
		return errFirst
	})
	if err != nil || len(d.trouble) != 0 || tries != 2 {
		t.Errorf("%v after %d tries, trouble %v", err, tries, d.trouble)
	}
}

// TestStatusPorts: the port of the fast path is named where there is one.
func TestStatusPorts(t *testing.T) {
	for password, want := range map[string]uint16{"": 6791, "secret": 0} {
		d := &daemon{cfg: config.Config{Port: 6790, Password: []byte(password)}}
		s, err := d.Status(t.Context())
		if err != nil || s.Port != 6790 || s.VXLANPort != want {
			t.Errorf("password %q: ports %d and %d, %v", password, s.Port, s.VXLANPort, err)
		}
	}
}

// TestDiscovery: each value of the setting means something else to the mesh, and no
// setting takes its port.
func TestDiscovery(t *testing.T) {
	if config.LANPort != lan.Port {
		t.Errorf("settings leave port %d alone, the LAN's is %d", config.LANPort, lan.Port)
	}
	for setting, want := range map[config.Discovery]mesh.Discovery{
		config.DiscoverOn: mesh.DiscoverPeers, config.DiscoverLAN: mesh.DiscoverLAN, config.DiscoverOff: mesh.DiscoverNone,
	} {
		if got := discovery(setting); got != want {
			t.Errorf("%s: %d", setting, got)
		}
	}
}
