package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weave/driver"
	"weave/driver/host"
	"weave/ipam"
	"weave/ipam/ring"
	"weave/mesh"
	"weave/mesh/id"
	"weave/plugin/dockerapi"
	"weave/plugin/engine"
	"weave/plugin/sandbox"
)

// kernel is the host's, which reaches into sandboxes.
type kernel struct {
	*host.Kernel
	run string // where the host's /run is
}

// RetireLink implements driver.Kernel.
func (k kernel) RetireLink(name, key string) error {
	return k.Kernel.RetireLink(name, func(link, peer int) error { return sandbox.Hide(sandboxPath(k.run, key), link, peer) })
}

// fabric is the mesh as the network driver sees it.
type fabric struct {
	node      *mesh.Node
	allocator *ipam.Allocator
	mtu       int // of a segment that nobody has chosen one for
}

// JoinSegment implements driver.Fabric.
func (f fabric) JoinSegment(_ context.Context, s driver.Segment) (driver.Port, error) {
	mtu := s.MTU
	if mtu == 0 {
		mtu = f.mtu
	}
	link, mtu, err := f.node.JoinSegment(s.Key, mtu)
	return driver.Port{Link: link, MTU: mtu}, err
}

// LeaveSegment implements driver.Fabric.
func (f fabric) LeaveSegment(key string) error { return f.node.LeaveSegment(key) }

// Announce implements driver.Fabric. An endpoint whose address belongs to a
// container of another host, since two clusters merged, stays unannounced until
// its container restarts.
func (f fabric) Announce(e driver.Endpoint) error {
	return announce(f.node, f.allocator, announced(e))
}

func announced(e driver.Endpoint) mesh.Endpoint {
	out := mesh.Endpoint{ID: e.ID, Segment: e.Segment, Container: e.Container, OfHost: e.OfHost}
	copy(out.MAC[:], e.MAC)
	for _, a := range e.Addrs {
		out.Addrs, out.Bits = append(out.Addrs, a.Addr()), append(out.Bits, a.Bits())
	}
	return out
}

// What announce needs of the node and the allocator.
type (
	announcer interface {
		Announce(e mesh.Endpoint) error
		Withdraw(endpointID string)
	}
	clashList interface{ Clashes() []ipam.Clash }
)

// announce looks for a clash again afterwards: onClash may have looked for the
// endpoint just before it was there.
func announce(n announcer, l clashList, e mesh.Endpoint) error {
	if !clashes(l.Clashes(), e) {
		if err := n.Announce(e); err != nil || !clashes(l.Clashes(), e) {
			return err
		}
	}
	n.Withdraw(e.ID)
	return nil
}

// Withdraw implements driver.Fabric.
func (f fabric) Withdraw(endpointID string) error {
	f.node.Withdraw(endpointID)
	return nil
}

// Holder implements driver.Fabric.
func (f fabric) Holder(segment string, addr netip.Addr) (driver.Holder, bool) {
	e, ok := f.node.Holder(segment, addr)
	if !ok {
		return driver.Holder{}, false
	}
	return driver.Holder{Host: f.node.Nickname(e.Owner), Container: e.Container, Endpoint: e.ID, OfHost: e.OfHost}, true
}

// pools is the allocator as Docker's IPAM calls see it.
type pools struct {
	allocator leaser
	driver    addressBook
	engine    networkLister
	started   time.Time // leases that are older are from before this run

	reclaiming sync.Mutex
}

// What pools needs of the allocator, the driver and the Engine.
type (
	leaser interface {
		RequestPool(ctx context.Context, r ipam.PoolRequest) (ipam.PoolReply, error)
		ReleasePool(ctx context.Context, id string) error
		RequestAddress(ctx context.Context, r ipam.AddressRequest) (netip.Prefix, error)
		ReleaseAddress(ctx context.Context, poolID string, addr netip.Addr) error
		Leases() []ipam.Lease
		Status() []ipam.PoolStatus
	}
	addressBook interface {
		Networks() []driver.NetworkStatus
		Endpoints() []driver.EndpointStatus
		Exposed() []driver.ExposedStatus
	}
	networkLister interface {
		Networks(ctx context.Context) ([]engine.Network, error)
	}
)

// engineLimit bounds a question that Docker's call waits for.
const engineLimit = 2 * time.Second

func newPools(a leaser, d addressBook, e networkLister) *pools {
	return &pools{allocator: a, driver: d, engine: e, started: time.Now()}
}

// RequestPool implements dockerapi.IpamDriver.
func (p *pools) RequestPool(ctx context.Context, r dockerapi.RequestPool) (dockerapi.Pool, error) {
	got, err := p.allocator.RequestPool(ctx, ipam.PoolRequest{Pool: r.Pool, SubPool: r.SubPool, Options: r.Options, V6: r.V6})
	return dockerapi.Pool{ID: got.ID, Prefix: got.Pool}, err
}

// ReleasePool implements dockerapi.IpamDriver.
func (p *pools) ReleasePool(ctx context.Context, poolID string) error {
	return p.allocator.ReleasePool(ctx, poolID)
}

// callTime is for all that one call of Docker's asks of the allocator.
const callTime = 9 * time.Second

// RequestAddress implements dockerapi.IpamDriver. Docker does not say whether
// an address is a container's or one that `--aux-address` keeps free, on all
// hosts alike; but the latter it asks for while it creates a network.
func (p *pools) RequestAddress(ctx context.Context, r dockerapi.RequestAddress) (netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	kind := ipam.KindLease
	switch {
	case r.Gateway:
		kind = ipam.KindGateway
	case r.Address.IsValid() && p.creating(ctx, r.PoolID):
		kind = ipam.KindReserved
	}
	req := ipam.AddressRequest{PoolID: r.PoolID, Address: r.Address, Kind: kind}
	got, err := p.allocator.RequestAddress(ctx, req)
	if kind == ipam.KindLease && r.Address.IsValid() && errors.Is(err, ipam.ErrInUse) {
		return p.reclaim(ctx, req, err)
	}
	return got, err
}

// creating tells whether Docker may be creating a network with a pool: it has
// requested the pool more often than there are networks that need it. Networks
// of our own are known here; for those of other drivers the Engine is asked. It
// does not answer while it starts, but then nobody creates a network either; and
// what is taken for a container's in error is only refused to other hosts.
func (p *pools) creating(ctx context.Context, poolID string) bool {
	pool, err := ipam.PoolOf(poolID)
	if err != nil {
		return false
	}
	status := p.allocator.Status()
	if requests(status, pool) <= p.networks(pool) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, engineLimit)
	defer cancel()
	listed, err := p.engine.Networks(ctx)
	return err == nil && balance(status, listed)[poolID] > 0
}

// networks counts the networks of our own that need a pool.
func (p *pools) networks(pool netip.Prefix) (n int) {
	for _, x := range p.driver.Networks() {
		if slices.Contains(x.Subnets, pool) {
			n++
		}
	}
	return n
}

// requests counts Docker's requests of a pool, by whatever ID.
func requests(status []ipam.PoolStatus, pool netip.Prefix) int {
	n := 0
	for _, s := range status {
		if s.Pool == pool {
			for _, h := range s.Handles {
				n += h.Refs
			}
		}
	}
	return n
}

// reclaim gives an address to the container that Docker names, if all that
// holds it is a lease from before this run without an endpoint: dockerd was
// killed between the two calls that make one, and has forgotten the first. Where
// networks of other drivers may have the pool, endpoints are not all known here.
func (p *pools) reclaim(ctx context.Context, req ipam.AddressRequest, refusal error) (netip.Prefix, error) {
	p.reclaiming.Lock()
	defer p.reclaiming.Unlock()
	if pool, err := ipam.PoolOf(req.PoolID); err != nil || requests(p.allocator.Status(), pool) > p.networks(pool) {
		return netip.Prefix{}, refusal
	}
	for _, l := range p.allocator.Leases() {
		if l.Addr != req.Address || l.PoolID != req.PoolID || l.Kind != ipam.KindLease || l.Since.After(p.started) {
			continue
		}
		isHolder := func(e driver.EndpointStatus) bool { return holds(e, l) }
		if slices.ContainsFunc(p.driver.Endpoints(), isHolder) || isExposed(p.driver.Exposed(), l) {
			continue
		}
		if err := p.allocator.ReleaseAddress(ctx, l.PoolID, l.Addr); err != nil {
			return netip.Prefix{}, err
		}
		return p.allocator.RequestAddress(ctx, req)
	}
	return netip.Prefix{}, refusal
}

// ReleaseAddress implements dockerapi.IpamDriver.
func (p *pools) ReleaseAddress(ctx context.Context, poolID string, addr netip.Addr) error {
	return p.allocator.ReleaseAddress(ctx, poolID, addr)
}

// rings is the allocator as gossip sees it.
type rings struct{ allocator *ipam.Allocator }

// Digest implements mesh.Replica.
func (r rings) Digest() []byte { return r.allocator.Digest() }

// Missing implements mesh.Replica.
func (r rings) Missing(digest []byte) []byte { return r.allocator.Missing(digest) }

// Merge implements mesh.Replica.
func (r rings) Merge(from id.PeerID, delta []byte) error {
	err := r.allocator.Merge(ring.Peer(from.String()), delta)
	if errors.Is(err, ring.ErrGap) {
		return fmt.Errorf("%w: %w", mesh.ErrGap, err)
	}
	return err
}
