// Package driver is what Docker's network driver calls mean: networks join
// this host to a segment, endpoints get a MAC address and a pair of links,
// sandboxes get one of them. All of it is durable before Docker has its
// answer, and can be asked for twice.
//
// The kernel, the mesh and the disk are behind small interfaces. The package
// knows nothing of addresses being leased, of other hosts, or of HTTP, and it
// never calls Docker.
//
// # Locks
//
// Driver.mu guards the maps and the records, and is held for no longer than it
// takes to look at them. Work that is slow (kernel, disk, mesh) runs under the
// lock of the thing it is for: network.op, shared by work on the network's
// endpoints, and endpoint.op. This host's own addresses on a segment are part of
// their network. They are taken in the order network.op,
// endpoint.op, Driver.mu, and never two of a kind. A new network or endpoint
// enters its map with op locked, so that its names are reserved while others
// wait for the outcome.
package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"weave/driver/host"
)

// ErrUnknown says that Docker asks about a network or an endpoint that this
// driver does not know.
var ErrUnknown = errors.New("not known to the weave driver")

// ErrCorrupt says that stored state cannot be understood. Nothing was changed.
var ErrCorrupt = errors.New("stored state is corrupt")

// joinTimeout limits how long the mesh may take to join a segment, so that no
// call of Docker's hangs.
const joinTimeout = 15 * time.Second

// Kernel is what the driver needs of the host's kernel. All calls are
// idempotent, limited in time and safe for concurrent use; *host.Kernel is one.
type Kernel interface {
	EnsureBridge(b host.Bridge) error
	RemoveBridge(name string) error
	AttachPort(bridge, link string) error
	CreateVeth(name, peer string, mtu int, mac net.HardwareAddr) error
	// RetireLink deletes a pair of links, of which one is in a sandbox or, before
	// Docker has moved it, is not.
	RetireLink(name, sandbox string) error
	HasLink(name string) (bool, error)
	Routes() ([]host.Route, error)
	EnsureFirewall(exposed ...host.Exposed) ([]host.Blocked, error)
	RemoveFirewall() error
	Forwards(addr netip.Addr) (bool, error)
}

// Fabric is what the driver needs of the mesh. All calls are idempotent: to
// join a segment again answers the same, to leave or withdraw what is not
// there is success. None but JoinSegment may wait for another host.
type Fabric interface {
	// JoinSegment makes this host a member. The port that it returns must keep
	// its name for as long as the host stays a member.
	JoinSegment(ctx context.Context, s Segment) (Port, error)
	LeaveSegment(key string) error
	// Announce tells the others where an endpoint is; again, with changes, to
	// replace what it told them.
	Announce(e Endpoint) error
	Withdraw(endpointID string) error
	// Holder returns who has an address in a segment on another host.
	Holder(segment string, addr netip.Addr) (Holder, bool)
}

// Store keeps state on disk. Apply is atomic, has reached the disk when it
// returns, and deletes the keys whose value is nil.
type Store interface {
	Load(bucket string) (map[string][]byte, error)
	Apply(bucket string, changes map[string][]byte) error
}

// Segment is what a network wants to join. MTU is 0 where it does not care;
// the segment's first host decides.
type Segment struct {
	Key string
	MTU int
}

// Port is the link towards the mesh, to be put into the bridge, and the
// segment's MTU.
type Port struct {
	Link string
	MTU  int
}

// Endpoint is what the other hosts learn of an endpoint.
type Endpoint struct {
	ID        string
	Segment   string
	MAC       net.HardwareAddr
	Addrs     []netip.Prefix // with the lengths of their subnets
	Container string         // name, empty while unknown
	OfHost    bool           // it is the host's own, see Expose
}

// Holder is who has an address on another host. Container may be empty.
type Holder struct {
	Host      string
	Container string
	Endpoint  string // ID
	OfHost    bool   // the host itself has it
}

// Config is what a Driver is made of.
type Config struct {
	Kernel Kernel
	Fabric Fabric
	Store  Store
	// NetworkName returns Docker's name of a network, or "". It is optional and
	// must answer at once.
	NetworkName func(id string) string
	// Self tells this host from all others.
	Self string
	// Lost is told, without a lock held, what was exposed on a network that Docker
	// removed. It is optional.
	Lost func(network string, e Exposure)
	// Changed is called after networks or endpoints have changed. It is optional,
	// must not block, and may be called under a lock of an endpoint or network.
	Changed func()
	Log     *logrus.Entry
}

// Driver serves Docker's network driver calls. It is safe for concurrent use.
type Driver struct {
	kernel      Kernel
	fabric      Fabric
	store       Store
	networkName func(id string) string
	self        string
	lost        func(network string, e Exposure)
	changed     func()
	log         *logrus.Entry

	firewall sync.Mutex // held from looking for networks to having that applied
	fenced   bool       // a firewall is there for networks of ours; guarded by firewall

	mu        sync.Mutex
	networks  map[string]*network
	endpoints map[string]*endpoint
	exposures map[netip.Prefix]*exposure // written under their network's op, too
}

// network is a network of Docker's on this host.
type network struct {
	op sync.RWMutex

	// Written under op.
	up   bool // bridge and port exist, and the segment is joined
	gone bool // no longer in the map

	// Written under op and Driver.mu, so either suffices to read it.
	rec networkRecord
}

// endpoint is a container's attachment to a network.
type endpoint struct {
	op sync.Mutex

	// Guarded by op.
	gone bool // no longer in the map

	// Written under op and Driver.mu, so either suffices to read them.
	rec       endpointRecord
	announced bool
}

// New loads the stored state. It touches neither kernel nor mesh: see Restore.
func New(cfg Config) (*Driver, error) {
	d := &Driver{
		kernel:      cfg.Kernel,
		fabric:      cfg.Fabric,
		store:       cfg.Store,
		networkName: cfg.NetworkName,
		self:        cfg.Self,
		lost:        cfg.Lost,
		changed:     cfg.Changed,
		log:         cfg.Log,
		networks:    make(map[string]*network),
		endpoints:   make(map[string]*endpoint),
		exposures:   make(map[netip.Prefix]*exposure),
	}
	if d.lost == nil {
		d.lost = func(string, Exposure) {}
	}
	if d.changed == nil {
		d.changed = func() {}
	}
	if d.networkName == nil {
		d.networkName = func(string) string { return "" }
	}
	if err := d.load(); err != nil {
		return nil, fmt.Errorf("load networks: %w", err)
	}
	d.fenced = len(d.networks) > 0
	return d, nil
}

// NetworkStatus is a network as others may see it.
type NetworkStatus struct {
	ID       string
	Name     string // Docker's, empty while unknown
	Segment  string
	Subnets  []netip.Prefix
	Bridge   string
	Port     string // link towards the mesh, empty until the network is up
	MTU      int
	Internal bool
	Up       bool // ready for endpoints
	DNS      DNS
}

// EndpointStatus is an endpoint as others may see it.
type EndpointStatus struct {
	ID        string
	Network   string
	Segment   string
	Addrs     []netip.Prefix // address and length of the subnet
	MAC       net.HardwareAddr
	Link      string // on the host
	Joined    bool   // in a sandbox
	Announced bool   // told to the other hosts
	Sandbox   string
	Container string // name, empty while unknown
}

// Networks returns all networks, ordered by ID.
func (d *Driver) Networks() []NetworkStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]NetworkStatus, 0, len(d.networks))
	for _, id := range slices.Sorted(maps.Keys(d.networks)) {
		r := d.networks[id].rec
		all = append(all, NetworkStatus{
			ID: id, Name: d.networkName(id), Segment: r.Segment, Subnets: slices.Clone(r.Subnets), Bridge: r.Bridge,
			Port: r.port, MTU: r.MTU, Internal: r.Internal, Up: r.port != "", DNS: r.DNS,
		})
	}
	return all
}

// Endpoints returns all endpoints, ordered by ID.
func (d *Driver) Endpoints() []EndpointStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]EndpointStatus, 0, len(d.endpoints))
	for _, id := range slices.Sorted(maps.Keys(d.endpoints)) {
		e := d.endpoints[id]
		all = append(all, EndpointStatus{
			ID: id, Network: e.rec.Network, Segment: d.networks[e.rec.Network].rec.Segment,
			Addrs: slices.Clone(e.rec.Addrs), MAC: slices.Clone(net.HardwareAddr(e.rec.MAC)), Link: e.rec.hostLink(),
			Joined: e.rec.Joined, Announced: e.announced, Sandbox: e.rec.Sandbox, Container: e.rec.Container,
		})
	}
	return all
}

// EnsureFirewall brings the host's firewall into the state that the networks
// need, and returns what stands in the way and only the host's owner can
// change. It is cheap when nothing is to be done. The last network takes the
// firewall with it; one that an earlier run left, when it lost its state, may
// still be needed by what runs on.
func (d *Driver) EnsureFirewall() ([]host.Blocked, error) {
	d.firewall.Lock()
	defer d.firewall.Unlock()
	d.mu.Lock()
	wanted, exposed := len(d.networks) > 0, d.hostExposed()
	d.mu.Unlock()
	if wanted {
		d.fenced = true
		return d.kernel.EnsureFirewall(exposed...)
	}
	if d.fenced {
		if err := d.kernel.RemoveFirewall(); err != nil {
			return nil, err
		}
		d.fenced = false
	}
	return nil, nil
}

// describe names a network for people: short ID, and name where it is known.
func (d *Driver) describe(networkID string) string {
	if name := d.networkName(networkID); name != "" {
		return fmt.Sprintf("%q (%s)", name, short(networkID))
	}
	return short(networkID)
}

// short shortens an ID as Docker does.
func short(id string) string { return id[:min(len(id), 12)] }

// checkID refuses what cannot be an ID of Docker's.
func checkID(what, id string) error {
	if id == "" || len(id) > 64 || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		return fmt.Errorf("%s ID %.80q: want 1 to 64 lower-case letters and digits", what, id)
	}
	return nil
}
