package daemon

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/sirupsen/logrus"

	"weave/driver"
	"weave/driver/host"
	"weave/ipam"
	"weave/ipam/ring"
	"weave/mesh"
	"weave/mesh/id"
	"weave/mesh/tunnel"
	"weave/plugin/config"
	"weave/plugin/engine"
	"weave/plugin/store"
)

// parts is what the plugin is made of. All of it is set by build and never
// changed, but for blocked and unlike.
type parts struct {
	store      *store.Store
	kernel     *host.Kernel
	node       *mesh.Node
	allocator  *ipam.Allocator
	driver     *driver.Driver
	engine     *engine.Client
	names      *networkNames
	departures *departures
	exposing   *exposing
	examiner   *examiner
	naming     *naming
	identity   id.Identity
	addresses  []netip.Addr // on the underlay, the first for VXLAN and the MTU

	blocked atomic.Pointer[[]host.Blocked]    // what the firewall keeps us from
	unlike  atomic.Pointer[map[string]string] // networks that are not the same everywhere, by name
	joined  bell                              // this host's endpoints have changed
	told    bell                              // other hosts' notes or endpoints, or this one's, have
	removed chan struct{}                     // buffered: this host was removed from the cluster
}

// close gives back what build took and Run does not.
func (p *parts) close() {
	p.kernel.Close()
	if p.node != nil {
		_ = p.node.Close()
	}
	if p.store != nil {
		_ = p.store.Close()
	}
}

// build makes the parts, from the disk up. On an error nothing is left open.
func build(version string, cfg config.Config, log *logrus.Entry) (*parts, error) {
	p := &parts{kernel: host.New(), engine: engine.New(cfg.EngineSocket()), removed: make(chan struct{}, 1), joined: newBell(), told: newBell()}
	if err := p.open(version, cfg, log); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *parts) open(version string, cfg config.Config, log *logrus.Entry) (err error) {
	if p.store, err = store.Open(cfg.StateFile()); err != nil {
		return err
	}
	if p.identity, err = identity(p.store); err != nil {
		return err
	}
	if p.names, err = loadNetworkNames(p.store, log); err != nil {
		return err
	}
	if p.addresses = []netip.Addr{cfg.Address}; !cfg.Address.IsValid() {
		if p.addresses, err = p.kernel.DefaultAddrs(); err != nil {
			return err
		}
	}
	return p.join(version, cfg, log)
}

// join builds allocator, node and driver, which need each other.
func (p *parts) join(version string, cfg config.Config, log *logrus.Entry) (err error) {
	c := &cluster{self: ring.Peer(p.identity.ID.String()), log: log}
	p.allocator, err = ipam.New(ipam.Config{
		Self: c.self, Range: cfg.IPAllocRange, Store: p.store, Cluster: c,
		Busy: p.busy, InUse: p.inUse, Log: log,
		Held: c.held, Holders: c.holders, Gone: c.gone, OnClash: p.onClash, OnRemoved: p.onRemoved,
	})
	if err != nil {
		return err
	}
	meshCfg := mesh.Config{
		Identity: p.identity, Password: cfg.Password, Nickname: cfg.Nickname,
		Listen: listenAddr(cfg), Advertise: p.addresses, Peers: cfg.Peers, VXLANPort: cfg.VXLANPort(), TCPPort: cfg.TCPPort, Proxy: cfg.Proxy, Store: p.store, Log: log,
		Discovery: discovery(cfg.Discover),
		Replicas:  map[string]mesh.Replica{replicaRings: rings{p.allocator}},
		Answer:    p.answer,
		Changed:   p.told.ring,
	}
	mtu, err := p.mtu(cfg.MTU, meshCfg.Overhead())
	if err != nil {
		return err
	}
	if p.node, err = mesh.New(meshCfg); err != nil {
		return err
	}
	c.node = p.node
	p.departures = newDepartures(p.node.Alive, p.removeGone, log)
	p.examiner = newExaminer(version, p.node.Try)
	if err := p.disown(); err != nil {
		return err
	}
	f := fabric{p.node, p.allocator, mtu}
	p.exposing = &exposing{allocator: p.allocator, holder: f.Holder, names: p.names, engine: p.engine, log: log}
	p.driver, err = driver.New(driver.Config{
		Kernel: kernel{p.kernel, cfg.Run}, Fabric: f, Store: p.store,
		NetworkName: p.names.network, Self: p.identity.ID.String(), Lost: p.exposing.lose, Changed: p.joined.ring, Log: log,
	})
	p.exposing.driver = p.driver
	return err
}

// mtu is that of a segment that nobody has chosen one for: as set, else what the
// underlay leaves.
func (p *parts) mtu(set, overhead int) (int, error) {
	if set != 0 {
		return set, nil
	}
	underlay, err := p.kernel.UnderlayMTU(p.addresses[0])
	return min(underlay-overhead, tunnel.MaxMTU), err // loopback and InfiniBand have more
}

// listenAddr is where the mesh listens: on the address that the operator named,
// else on all.
func listenAddr(cfg config.Config) netip.AddrPort {
	if cfg.Address.IsValid() {
		return netip.AddrPortFrom(cfg.Address, cfg.Port)
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), cfg.Port)
}

func discovery(d config.Discovery) mesh.Discovery {
	switch d {
	case config.DiscoverLAN:
		return mesh.DiscoverLAN
	case config.DiscoverOff:
		return mesh.DiscoverNone
	}
	return mesh.DiscoverPeers
}

// busy lists the prefixes that the host's routes use. Default routes are in
// nobody's way.
func (p *parts) busy() ([]netip.Prefix, error) {
	routes, err := p.kernel.Routes()
	if err != nil {
		return nil, err
	}
	return inTheWay(routes), nil
}

// inTheWay are the destinations of routes but those that follow from our own
// networks: that is no reason to refuse one of them when it is made again.
func inTheWay(routes []host.Route) (out []netip.Prefix) {
	for _, r := range routes {
		if r.Prefix.Bits() > 0 && !strings.HasPrefix(r.Link, host.Prefix) {
			out = append(out, r.Prefix)
		}
	}
	return out
}

// inUse tells whether any host has a network, or told of a route, that overlaps a
// prefix.
func (p *parts) inUse(prefix netip.Prefix) bool {
	if routesOverlap(p.node.Notes(topicRoutes), prefix) {
		return true
	}
	for _, key := range p.node.SegmentKeys() {
		if subnet, err := netip.ParsePrefix(key); err == nil && subnet.Overlaps(prefix) {
			return true
		}
	}
	return false
}

// The bucket and the key that keep the private key.
const (
	bucketIdentity = "identity"
	keyPrivate     = "private"
)

// identity loads the peer's key, or makes one at the first start. Whoever loses
// it is a new peer.
func identity(s *store.Store) (id.Identity, error) {
	values, err := s.Load(bucketIdentity)
	if err != nil {
		return id.Identity{}, fmt.Errorf("load identity: %w", err)
	}
	if raw, ok := values[keyPrivate]; ok {
		return id.FromPrivate(raw)
	}
	if len(values) > 0 {
		return id.Identity{}, errors.New("state has an identity without a key")
	}
	made, err := id.Generate(rand.Reader)
	if err != nil {
		return id.Identity{}, err
	}
	if err := s.Apply(bucketIdentity, map[string][]byte{keyPrivate: made.Private}); err != nil {
		return id.Identity{}, fmt.Errorf("store identity: %w", err)
	}
	return made, nil
}
