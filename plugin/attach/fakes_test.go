package attach

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"go.uber.org/goleak"

	"weave/plugin/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is an engine with containers and networks, as far as they matter here. What
// is not set here is not called.
type fake struct {
	api
	networks   []engine.Network
	containers map[string]*container.InspectResponse // by name, which is the ID
	fail       map[string]error                      // by call and name of the network
	made       []client.NetworkCreateOptions
	connected  []network.EndpointIPAMConfig
	onConnect  func()
	onCreate   func()
	refuse     bool             // what fails leaves no trace
	meanwhile  *engine.Network  // made by somebody else just before this host's is
	late       []engine.Network // listed from the second time on
}

func newFake(networks ...engine.Network) (*Docker, *fake) {
	f := &fake{networks: networks, containers: map[string]*container.InspectResponse{}, fail: map[string]error{}}
	for i := range f.networks {
		f.networks[i].ID = "id-of-" + f.networks[i].Name
	}
	f.add("web", "default", true)
	return &Docker{"unix:///fake.sock", f, f}, f
}

func weaveNetwork(name string, subnets ...string) engine.Network {
	n := engine.Network{Name: name, Driver: "weave", Labels: map[string]string{}, Options: map[string]string{}}
	for _, s := range subnets {
		n.IPAM.Pools = append(n.IPAM.Pools, engine.Pool{Subnet: netip.MustParsePrefix(s)})
	}
	return n
}

func (f *fake) add(name, mode string, running bool, networks ...string) {
	c := &container.InspectResponse{
		ID: name, Name: "/" + name, HostConfig: &container.HostConfig{NetworkMode: container.NetworkMode(mode)}, Config: &container.Config{},
		State:           &container.State{Running: running},
		NetworkSettings: &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{"bridge": {}}},
	}
	for _, n := range networks {
		c.NetworkSettings.Networks[n] = &network.EndpointSettings{}
		if running {
			c.NetworkSettings.Networks[n].NetworkID = "id-of-" + n
		}
	}
	f.containers[name] = c
}

func (f *fake) Networks(context.Context) ([]engine.Network, error) {
	if f.late != nil && len(f.networks) == 0 {
		f.networks, f.late = f.late, nil
		return nil, nil
	}
	return slices.Clone(f.networks), f.fail["list"]
}

func (f *fake) ContainerInspect(_ context.Context, name string, _ client.ContainerInspectOptions) (client.ContainerInspectResult, error) {
	c := f.containers[name]
	if c == nil {
		return client.ContainerInspectResult{}, fmt.Errorf("no such container: %w", errdefs.ErrNotFound)
	}
	copied := *c
	settings := *c.NetworkSettings
	settings.Networks = maps.Clone(settings.Networks)
	copied.NetworkSettings = &settings
	return client.ContainerInspectResult{Container: copied}, nil
}

func (f *fake) ContainerList(_ context.Context, o client.ContainerListOptions) (r client.ContainerListResult, err error) {
	for name, c := range f.containers {
		for n := range c.NetworkSettings.Networks {
			if (o.All || c.State.Running) && (len(o.Filters) == 0 || o.Filters["network"][n]) {
				r.Items = append(r.Items, container.Summary{Names: []string{"/" + name}})
			}
		}
	}
	return r, nil
}

func (f *fake) NetworkCreate(_ context.Context, name string, o client.NetworkCreateOptions) (client.NetworkCreateResult, error) {
	if f.onCreate != nil {
		f.onCreate()
	}
	if f.meanwhile != nil {
		f.networks = append(f.networks, *f.meanwhile)
	}
	if err := f.fail["create "+name]; err != nil {
		return client.NetworkCreateResult{}, err
	}
	n := weaveNetwork(name, o.IPAM.Config[0].Subnet.String())
	n.ID, n.Labels, n.Options = "id-of-"+name, o.Labels, o.Options
	f.networks, f.made = append(f.networks, n), append(f.made, o)
	return client.NetworkCreateResult{ID: n.ID}, nil
}

func (f *fake) byID(id string) engine.Network {
	i := slices.IndexFunc(f.networks, func(n engine.Network) bool { return n.ID == id })
	return f.networks[i]
}

func (f *fake) NetworkConnect(ctx context.Context, id string, o client.NetworkConnectOptions) (client.NetworkConnectResult, error) {
	if f.onConnect != nil {
		f.onConnect()
	}
	if err := ctx.Err(); err != nil {
		return client.NetworkConnectResult{}, err
	}
	n, c := f.byID(id), f.containers[o.Container]
	asked := network.EndpointIPAMConfig{}
	if o.EndpointConfig.IPAMConfig != nil {
		asked = *o.EndpointConfig.IPAMConfig
	}
	if err := f.fail["connect "+n.Name]; err != nil && o.EndpointConfig.IPAMConfig != nil {
		if !f.refuse {
			c.NetworkSettings.Networks[n.Name] = &network.EndpointSettings{IPAMConfig: &asked} // as engine 20.10 does
		}
		return client.NetworkConnectResult{}, err
	}
	f.connected = append(f.connected, asked)
	e := &network.EndpointSettings{IPAMConfig: &asked}
	if c.State.Running {
		e.NetworkID = id
		for _, p := range n.IPAM.Pools {
			if any := p.Subnet.Addr().Next().Next(); any.Is4() {
				e.IPAddress = any
			} else {
				e.GlobalIPv6Address = any
			}
		}
		if asked.IPv4Address.IsValid() {
			e.IPAddress = asked.IPv4Address
		}
		if asked.IPv6Address.IsValid() {
			e.GlobalIPv6Address = asked.IPv6Address
		}
	}
	c.NetworkSettings.Networks[n.Name] = e
	return client.NetworkConnectResult{}, nil
}

func (f *fake) NetworkDisconnect(ctx context.Context, id string, o client.NetworkDisconnectOptions) (client.NetworkDisconnectResult, error) {
	if err := ctx.Err(); err != nil {
		return client.NetworkDisconnectResult{}, err
	}
	delete(f.containers[o.Container].NetworkSettings.Networks, f.byID(id).Name)
	return client.NetworkDisconnectResult{}, f.fail["disconnect "+f.byID(id).Name]
}

func (f *fake) NetworkRemove(_ context.Context, id string, _ client.NetworkRemoveOptions) (client.NetworkRemoveResult, error) {
	if err := f.fail["remove "+f.byID(id).Name]; err != nil {
		return client.NetworkRemoveResult{}, err
	}
	f.networks = slices.DeleteFunc(f.networks, func(n engine.Network) bool { return n.ID == id })
	return client.NetworkRemoveResult{}, nil
}

// names lists what networks there are.
func (f *fake) names() (all []string) {
	for _, n := range f.networks {
		all = append(all, n.Name)
	}
	return all
}

// on lists the weave networks that a container is on.
func (f *fake) on(name string) []string {
	all := slices.Sorted(maps.Keys(f.containers[name].NetworkSettings.Networks))
	return slices.DeleteFunc(all, func(n string) bool { return n == "bridge" })
}

var errPlugin = errors.New("Error response from daemon: remote: IpamDriver.RequestAddress: address 10.2.0.9: in use as a gateway")
