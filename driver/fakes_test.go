package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	api "github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"weave/driver/host"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errInjected = errors.New("injected")

// faults fails the calls that a test names, and counts all.
type faults struct {
	mu    sync.Mutex
	fail  map[string]bool
	calls map[string]int
}

func (f *faults) call(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls == nil {
		f.calls = make(map[string]int)
	}
	f.calls[name]++
	if f.fail[name] {
		return fmt.Errorf("%s: %w", name, errInjected)
	}
	return nil
}

func (f *faults) set(names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = make(map[string]bool)
	for _, n := range names {
		f.fail[n] = true
	}
}

// link is one of the fake kernel's.
type link struct {
	bridge bool
	master string
	mtu    int
	mac    string
	peer   string
	addrs  string // of the host, on a bridge
}

// fakeKernel is a kernel in memory. That a port's bridge or link must exist is
// the kernel's rule too.
type fakeKernel struct {
	*faults
	mu       sync.Mutex
	links    map[string]link
	retired  map[string]string // the sandbox that each link was retired from last
	routes   []host.Route
	firewall bool
	exposed  []host.Exposed
	forwards bool
}

func (k *fakeKernel) change(name string, f func() error) error {
	if err := k.call(name); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return f()
}

func (k *fakeKernel) EnsureBridge(b host.Bridge) error {
	return k.change("EnsureBridge", func() error {
		k.links[b.Name] = link{bridge: true, mtu: b.MTU, addrs: addrs(b)}
		return nil
	})
}

func addrs(b host.Bridge) string {
	if len(b.Addrs) == 0 {
		return ""
	}
	return fmt.Sprint(b.MAC, b.Addrs)
}

func (k *fakeKernel) RemoveBridge(name string) error {
	return k.change("RemoveBridge", func() error {
		delete(k.links, name)
		return nil
	})
}

func (k *fakeKernel) AttachPort(bridge, name string) error {
	return k.change("AttachPort", func() error {
		if !k.links[bridge].bridge {
			return fmt.Errorf("no bridge %s", bridge)
		}
		if !k.firewall {
			return fmt.Errorf("bridge %s carries frames outside the firewall", bridge)
		}
		l, ok := k.links[name]
		if !ok {
			return fmt.Errorf("no link %s", name)
		}
		l.master = bridge
		k.links[name] = l
		return nil
	})
}

func (k *fakeKernel) CreateVeth(name, peer string, mtu int, mac net.HardwareAddr) error {
	return k.change("CreateVeth", func() error {
		k.links[name] = link{peer: peer, mtu: mtu}
		k.links[peer] = link{peer: name, mtu: mtu, mac: mac.String()}
		return nil
	})
}

func (k *fakeKernel) RetireLink(name, sandbox string) error {
	return k.change("RetireLink", func() error {
		if _, ok := k.links[name]; ok {
			k.retired[name] = sandbox
		}
		delete(k.links, k.links[name].peer)
		delete(k.links, name)
		return nil
	})
}

func (k *fakeKernel) HasLink(name string) (ok bool, err error) {
	err = k.change("HasLink", func() error {
		_, ok = k.links[name]
		return nil
	})
	return ok, err
}

func (k *fakeKernel) Routes() (routes []host.Route, err error) {
	err = k.change("Routes", func() error {
		routes = slices.Clone(k.routes)
		return nil
	})
	return routes, err
}

func (k *fakeKernel) EnsureFirewall(exposed ...host.Exposed) ([]host.Blocked, error) {
	return nil, k.change("EnsureFirewall", func() error {
		k.firewall, k.exposed = true, exposed
		return nil
	})
}

func (k *fakeKernel) Forwards(netip.Addr) (bool, error) { return k.forwards, k.call("Forwards") }

func (k *fakeKernel) RemoveFirewall() error {
	return k.change("RemoveFirewall", func() error {
		k.firewall, k.exposed = false, nil
		return nil
	})
}

// reboot loses what a kernel loses.
func (k *fakeKernel) reboot() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.links)
	k.firewall, k.exposed = false, nil
}

func (k *fakeKernel) names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.links))
}

func (k *fakeKernel) link(name string) link {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.links[name]
}

// fakeFabric is a mesh in memory; its ports are links of the kernel.
type fakeFabric struct {
	*faults
	kernel    *fakeKernel
	mu        sync.Mutex
	mtu       int
	joined    map[string]Segment
	announced map[string]Endpoint
	holders   map[string]Holder // segment + " " + address
}

func (f *fakeFabric) port(key string) string {
	return "wvt" + pickDigits(key, func(string) bool { return false })
}

func (f *fakeFabric) JoinSegment(ctx context.Context, s Segment) (Port, error) {
	if err := f.call("JoinSegment"); err != nil {
		return Port{}, err
	}
	if err := ctx.Err(); err != nil {
		return Port{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.joined[s.Key] = s
	f.kernel.mu.Lock()
	defer f.kernel.mu.Unlock()
	f.kernel.links[f.port(s.Key)] = link{}
	mtu := s.MTU
	if mtu == 0 || f.mtu < mtu {
		mtu = f.mtu
	}
	return Port{Link: f.port(s.Key), MTU: mtu}, nil
}

func (f *fakeFabric) LeaveSegment(key string) error {
	if err := f.call("LeaveSegment"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.joined, key)
	f.kernel.mu.Lock()
	defer f.kernel.mu.Unlock()
	delete(f.kernel.links, f.port(key))
	return nil
}

func (f *fakeFabric) Announce(e Endpoint) error {
	if err := f.call("Announce"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.joined[e.Segment]; !ok {
		return fmt.Errorf("segment %s is not joined", e.Segment)
	}
	f.announced[e.ID] = e
	return nil
}

func (f *fakeFabric) Withdraw(id string) error {
	if err := f.call("Withdraw"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.announced, id)
	return nil
}

func (f *fakeFabric) Holder(segment string, addr netip.Addr) (Holder, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, ok := f.holders[segment+" "+addr.String()]
	return h, ok
}

// restart forgets what a mesh does not keep over a restart of the plugin.
func (f *fakeFabric) restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.joined)
	clear(f.announced)
}

func (f *fakeFabric) endpoint(id string) (Endpoint, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.announced[id]
	return e, ok
}

// fakeStore is a disk in memory.
type fakeStore struct {
	*faults
	mu      sync.Mutex
	buckets map[string]map[string][]byte
}

func (s *fakeStore) Load(bucket string) (map[string][]byte, error) {
	if err := s.call("Load"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.buckets[bucket]), nil
}

func (s *fakeStore) Apply(bucket string, changes map[string][]byte) error {
	if err := s.call("Apply"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[bucket] == nil {
		s.buckets[bucket] = make(map[string][]byte)
	}
	for k, v := range changes {
		if v == nil {
			delete(s.buckets[bucket], k)
		} else {
			s.buckets[bucket][k] = slices.Clone(v)
		}
	}
	return nil
}

func (s *fakeStore) dump() map[string]map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]map[string][]byte)
	for name, b := range s.buckets {
		if len(b) > 0 {
			all[name] = maps.Clone(b)
		}
	}
	return all
}

// rig is a driver with all that surrounds it.
type rig struct {
	*Driver
	*faults
	kernel *fakeKernel
	fabric *fakeFabric
	disk   *fakeStore
	lost   []string // exposed addresses that went with their networks
}

func newRig(t testing.TB) *rig {
	t.Helper()
	f := &faults{}
	k := &fakeKernel{faults: f, links: make(map[string]link), retired: make(map[string]string)}
	r := &rig{
		faults: f,
		kernel: k,
		fabric: &fakeFabric{
			faults: f, kernel: k, mtu: 1390, joined: make(map[string]Segment),
			announced: make(map[string]Endpoint), holders: make(map[string]Holder),
		},
		disk: &fakeStore{faults: f, buckets: make(map[string]map[string][]byte)},
	}
	r.restart(t)
	return r
}

// restart starts the plugin anew on the same disk and kernel.
func (r *rig) restart(t testing.TB) {
	t.Helper()
	r.fabric.restart()
	log := logrus.New()
	log.SetOutput(io.Discard)
	d, err := New(Config{
		Kernel: r.kernel, Fabric: r.fabric, Store: r.disk, Log: logrus.NewEntry(log), Self: "h1",
		Lost:        func(network string, e Exposure) { r.lost = append(r.lost, network+" "+e.Addr.String()) },
		NetworkName: func(id string) string { return map[string]string{"n1": "front"}[id] },
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Driver = d
}

const sandbox1 = "/var/run/docker/netns/1"

func createNetwork(id, pool string, options map[string]any) *api.CreateNetworkRequest {
	req := &api.CreateNetworkRequest{
		NetworkID: id,
		Options:   map[string]any{genericKey: options, enableIPv6Key: false},
		IPv4Data:  []*api.IPAMData{{Pool: pool, Gateway: "10.32.0.1/16"}},
	}
	if options == nil {
		req.Options[genericKey] = map[string]any{}
	}
	return req
}

func createEndpoint(network, id, addr string) *api.CreateEndpointRequest {
	return &api.CreateEndpointRequest{
		NetworkID: network, EndpointID: id, Interface: &api.EndpointInterface{Address: addr},
	}
}

func (r *rig) mustCreateNetwork(t testing.TB, id, pool string) {
	t.Helper()
	if err := r.CreateNetwork(t.Context(), createNetwork(id, pool, nil)); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) mustCreateEndpoint(t testing.TB, network, id, addr string) {
	t.Helper()
	if _, err := r.CreateEndpoint(t.Context(), createEndpoint(network, id, addr)); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) mustJoin(t testing.TB, network, id, sandbox string) *api.JoinResponse {
	t.Helper()
	res, err := r.Join(t.Context(), &api.JoinRequest{NetworkID: network, EndpointID: id, SandboxKey: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// mustBeEmpty fails if anything is left anywhere.
func (r *rig) mustBeEmpty(t interface{ Fatalf(string, ...any) }) {
	if names := r.kernel.names(); len(names) > 0 {
		t.Fatalf("links left: %v", names)
	}
	if d := r.disk.dump(); len(d) > 0 {
		t.Fatalf("left on disk: %s", d)
	}
	if len(r.fabric.joined) > 0 || len(r.fabric.announced) > 0 {
		t.Fatalf("left in the mesh: %v %v", r.fabric.joined, r.fabric.announced)
	}
	if len(r.Networks()) > 0 || len(r.Endpoints()) > 0 || len(r.Exposed()) > 0 {
		t.Fatalf("left in the driver: %v %v %v", r.Networks(), r.Endpoints(), r.Exposed())
	}
	if r.kernel.firewall {
		t.Fatalf("the firewall was left behind")
	}
}
