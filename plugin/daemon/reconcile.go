package daemon

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"

	"weave/driver"
	"weave/ipam"
	"weave/plugin/engine"
)

// How the Engine is asked. What it does not know in two rounds, a roundEvery
// apart, is taken for leaked: in one round it may be on its way.
const (
	namesEvery = time.Second      // while some container has no name here
	roundEvery = 30 * time.Second // to compare all
	firstRound = 10 * time.Second // after the start
	nameTries  = 20               // rounds of namesEvery for one network or endpoint
)

// ipamDriver is what users call us; see also mayAskUs.
const ipamDriver = "weave"

// What the reconciler needs of the Engine, the driver and the allocator.
type (
	networkSource interface {
		NetworkByID(ctx context.Context, id string) (engine.Network, error)
		Networks(ctx context.Context) ([]engine.Network, error)
	}
	endpointKeeper interface {
		Networks() []driver.NetworkStatus
		Endpoints() []driver.EndpointStatus
		Exposed() []driver.ExposedStatus
		SetContainerName(endpointID, name string) error
		Purge(endpointIDs ...string) error
		DeleteNetwork(ctx context.Context, req *network.DeleteNetworkRequest) error
	}
	leaseKeeper interface {
		Leases() []ipam.Lease
		Status() []ipam.PoolStatus
		ReleaseAddress(ctx context.Context, poolID string, addr netip.Addr) error
		ReleasePool(ctx context.Context, poolID string) error
	}
)

// reconciler compares what we have with what the Engine has, in the background:
// containers' names come from there, and so does the news of what was deleted
// while the plugin was disabled. Its fields belong to run.
type reconciler struct {
	engine    networkSource
	driver    endpointKeeper
	allocator leaseKeeper
	names     *networkNames
	log       *logrus.Entry

	tries map[string]int // of networks and endpoints without a name
	last  round
}

// leaseName tells one lease from a later one of the same address.
type leaseName struct {
	addr  netip.Addr
	pool  string
	since time.Time
}

func newReconciler(p *parts, log *logrus.Entry) *reconciler {
	return &reconciler{engine: p.engine, driver: p.driver, allocator: p.allocator, names: p.names, log: log}
}

func (r *reconciler) run(ctx context.Context) error {
	naming := time.NewTicker(namesEvery)
	defer naming.Stop()
	comparing := time.NewTimer(firstRound)
	defer comparing.Stop()
	r.nameAll(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-naming.C:
			r.nameAll(ctx)
		case <-comparing.C:
			r.compareAll(ctx)
			comparing.Reset(roundEvery)
		}
	}
}

// nameAll asks for the networks that lack a name, or have an endpoint that
// does; for each a number of times.
func (r *reconciler) nameAll(ctx context.Context) {
	ask, tries := map[string]bool{}, map[string]int{}
	want := func(id, network string) {
		tries[id] = r.tries[id]
		if tries[id] < nameTries {
			tries[id]++
			ask[network] = true
		}
	}
	for _, n := range r.driver.Networks() {
		if n.Name == "" {
			want(n.ID, n.ID)
		}
	}
	for _, e := range r.driver.Endpoints() {
		if e.Joined && e.Container == "" {
			want(e.ID, e.Network)
		}
	}
	r.tries = tries
	for id := range ask {
		if known, err := r.engine.NetworkByID(ctx, id); err == nil {
			r.name(known)
		}
	}
}

func (r *reconciler) name(known engine.Network) {
	r.names.set(known.ID, known.Name)
	for _, e := range known.Endpoints {
		if e.ContainerName == "" {
			continue
		}
		if err := r.driver.SetContainerName(e.ID, e.ContainerName); err != nil {
			r.log.WithFields(logrus.Fields{"endpoint": e.ID, "network": known.ID}).WithError(err).Warn("container's name not told")
		}
	}
}

// round is what one comparison has found out.
type round struct {
	networks []driver.NetworkStatus
	exposed  []driver.ExposedStatus
	listed   []engine.Network          // all that the Engine has, without their endpoints
	known    map[string]engine.Network // those of networks with their endpoints, by ID

	missing  map[string]bool    // networks and endpoints that the Engine does not know
	unneeded map[leaseName]bool // leases that nobody has
	balance  map[string]int     // by pool ID: Docker's requests, less the Engine's networks
	warned   map[string]bool    // pool IDs whose lack of requests was logged
}

// compareAll gives back what the Engine does not know for the second time.
// What is held is listed first: it is older than what the Engine tells of it.
func (r *reconciler) compareAll(ctx context.Context) {
	leases, pools := r.allocator.Leases(), r.allocator.Status()
	endpoints, exposed, networks := r.driver.Endpoints(), r.driver.Exposed(), r.driver.Networks()
	last := r.last
	r.last = round{}
	listed, err := r.engine.Networks(ctx)
	if err != nil {
		r.log.WithError(err).Debug("nothing to compare with")
		return
	}
	now := round{
		networks: networks, exposed: exposed, listed: listed, known: map[string]engine.Network{},
		missing: map[string]bool{}, unneeded: map[leaseName]bool{}, warned: map[string]bool{},
		balance: balance(pools, listed),
	}
	r.inspect(ctx, now)
	now.findMissing(endpoints)
	r.dropMissing(ctx, last, now, endpoints)
	r.dropLeases(ctx, last, now, leases, endpoints)
	r.dropPools(ctx, last, now)
	r.warnOfPools(last, now)
	r.last = now
}

// inspect asks for all of each network of ours.
func (r *reconciler) inspect(ctx context.Context, now round) {
	here := map[string]bool{}
	for _, n := range now.networks {
		here[n.ID] = true
		known, err := r.engine.NetworkByID(ctx, n.ID)
		switch {
		case err == nil:
			now.known[n.ID] = known
			r.name(known)
		case errors.Is(err, engine.ErrNotFound):
			now.missing[n.ID] = true
		}
	}
	r.names.keep(here)
}

// findMissing adds the endpoints that networks of the Engine do not have.
func (now *round) findMissing(endpoints []driver.EndpointStatus) {
	for _, e := range endpoints {
		known, ok := now.known[e.Network]
		isThis := func(x engine.Endpoint) bool { return x.ID == e.ID }
		if ok && !slices.ContainsFunc(known.Endpoints, isThis) {
			now.missing[e.ID] = true
		}
	}
}

func (r *reconciler) dropMissing(ctx context.Context, last, now round, endpoints []driver.EndpointStatus) {
	gone := func(id string) bool { return now.missing[id] && last.missing[id] }
	for _, e := range endpoints {
		if gone(e.ID) || gone(e.Network) {
			r.dropEndpoint(ctx, e)
		}
	}
	for _, n := range now.networks {
		if gone(n.ID) {
			r.dropNetwork(ctx, n)
		}
	}
}

// dropEndpoint gives an endpoint back, and its leases unless another network
// of the same subnet has them.
func (r *reconciler) dropEndpoint(ctx context.Context, e driver.EndpointStatus) {
	log := r.log.WithFields(logrus.Fields{"endpoint": e.ID, "network": e.Network})
	if err := r.driver.Purge(e.ID); err != nil {
		log.WithError(err).Warn("endpoint that Docker deleted unseen is still here")
		return
	}
	log.Info("endpoint that Docker deleted unseen is removed")
	others, exposed := r.driver.Endpoints(), r.driver.Exposed()
	for _, l := range r.allocator.Leases() {
		if l.Kind == ipam.KindLease && holds(e, l) && !isExposed(exposed, l) && !slices.ContainsFunc(others, func(o driver.EndpointStatus) bool { return holds(o, l) }) {
			r.release(ctx, l)
		}
	}
}

// holds tells whether a lease is of an endpoint's address.
func holds(e driver.EndpointStatus, l ipam.Lease) bool {
	return slices.ContainsFunc(e.Addrs, func(a netip.Prefix) bool { return a.Addr() == l.Addr && a.Masked() == l.Pool })
}

// isExposed tells whether a lease is of an address of this host itself.
func isExposed(exposed []driver.ExposedStatus, l ipam.Lease) bool {
	return slices.ContainsFunc(exposed, func(x driver.ExposedStatus) bool { return x.Addr.Addr() == l.Addr && x.Addr.Masked() == l.Pool })
}

func (r *reconciler) release(ctx context.Context, l ipam.Lease) {
	log := r.log.WithFields(logrus.Fields{"addr": l.Addr.String(), "pool": l.PoolID})
	if err := r.allocator.ReleaseAddress(ctx, l.PoolID, l.Addr); err != nil {
		log.WithError(err).Warn("address that nobody has is still leased")
		return
	}
	log.Info("address that nobody has is given back")
}

func (r *reconciler) dropNetwork(ctx context.Context, n driver.NetworkStatus) {
	log := r.log.WithField("network", n.ID)
	if err := r.driver.DeleteNetwork(ctx, &network.DeleteNetworkRequest{NetworkID: n.ID}); err != nil {
		log.WithError(err).Warn("network that Docker deleted unseen is still here")
		return
	}
	log.Info("network that Docker deleted unseen is removed")
}

// dropLeases gives back what Docker took, or what outlived its endpoint, and
// nobody has had for two rounds.
func (r *reconciler) dropLeases(ctx context.Context, last, now round, leases []ipam.Lease, endpoints []driver.EndpointStatus) {
	for _, l := range leases {
		if l.Kind != ipam.KindLease || now.needs(l, endpoints) {
			continue
		}
		name := leaseName{l.Addr, l.PoolID, l.Since}
		if now.unneeded[name] = true; last.unneeded[name] {
			r.release(ctx, l)
		}
	}
}

// leaked counts the leases that nobody has, and that were to be given back long
// ago. It is for a reconciler that does not run.
func (r *reconciler) leaked(ctx context.Context) (n int, err error) {
	leases, endpoints := r.allocator.Leases(), r.driver.Endpoints()
	now := round{networks: r.driver.Networks(), exposed: r.driver.Exposed(), known: map[string]engine.Network{}, missing: map[string]bool{}}
	if now.listed, err = r.engine.Networks(ctx); err != nil {
		return 0, err
	}
	if r.inspect(ctx, now); ctx.Err() != nil {
		return 0, ctx.Err()
	}
	for _, l := range leases {
		if l.Kind == ipam.KindLease && time.Since(l.Since) > 3*roundEvery && !now.needs(l, endpoints) {
			n++
		}
	}
	return n, nil
}

// needs tells whether somebody has a lease, or may have it.
func (now *round) needs(l ipam.Lease, endpoints []driver.EndpointStatus) bool {
	if isExposed(now.exposed, l) || slices.ContainsFunc(endpoints, func(e driver.EndpointStatus) bool { return holds(e, l) }) ||
		slices.ContainsFunc(now.listed, func(n engine.Network) bool { return mayAskUs(n) && reserves(n, l) }) {
		return true
	}
	for id := range now.users(l.Pool) {
		known, ok := now.known[id]
		if !ok { // not ours, or the Engine did not tell
			return true
		}
		for _, e := range known.Endpoints {
			if slices.ContainsFunc(e.Addresses, func(a netip.Prefix) bool { return a.Addr() == l.Addr }) {
				return true
			}
		}
	}
	return false
}

// users returns the IDs of the networks that may have addresses of a pool,
// whatever their driver.
func (now *round) users(pool netip.Prefix) map[string]bool {
	ids := map[string]bool{}
	for _, n := range now.networks {
		if slices.Contains(n.Subnets, pool) {
			ids[n.ID] = true
		}
	}
	for _, n := range now.listed {
		if mayAskUs(n) && hasSubnet(n, pool) {
			ids[n.ID] = true
		}
	}
	return ids
}

func hasSubnet(n engine.Network, pool netip.Prefix) bool {
	return slices.ContainsFunc(n.IPAM.Pools, func(p engine.Pool) bool { return p.Subnet == pool })
}

// reserves tells whether a network keeps an address free.
func reserves(n engine.Network, l ipam.Lease) bool {
	return slices.ContainsFunc(n.IPAM.Pools, func(p engine.Pool) bool { return p.Subnet == l.Pool && p.Reserves(l.Addr) })
}

// mayAskUs tells whether a network may have its addresses from us: it is not
// one of Docker's own IPAM drivers that it names. We are "weave", and also what
// the operator called the managed plugin.
func mayAskUs(n engine.Network) bool { return n.IPAM.Driver != "default" && n.IPAM.Driver != "null" }

// poolID is the ID that RequestPool gave, or would give, a network's pool.
func poolID(p engine.Pool) string {
	if p.Range.IsValid() {
		return p.Subnet.String() + "," + p.Range.String()
	}
	return p.Subnet.String()
}

// balance counts Docker's requests of each pool, less the networks that need one.
func balance(pools []ipam.PoolStatus, listed []engine.Network) map[string]int {
	b := map[string]int{}
	for _, p := range pools {
		for _, h := range p.Handles {
			b[h.ID] += h.Refs
		}
	}
	for _, n := range listed {
		if !mayAskUs(n) {
			continue
		}
		for _, p := range n.IPAM.Pools {
			b[poolID(p)]--
		}
	}
	return b
}

// dropPools gives back requests that have had no network for two rounds: Docker
// never got the answer, or deleted the network unseen.
func (r *reconciler) dropPools(ctx context.Context, last, now round) {
	networks := r.driver.Networks()
	for id := range now.balance {
		spare := min(last.balance[id], now.balance[id])
		if spare <= 0 || !now.explains(id, networks) {
			continue
		}
		log := r.log.WithField("pool", id)
		for range spare {
			if err := r.allocator.ReleasePool(ctx, id); err != nil {
				log.WithError(err).Warn("pool that no network has is still held")
				break
			}
			now.balance[id]--
			log.Info("pool that no network has is given back")
		}
	}
}

// explains tells whether the Engine's list accounts for all networks of ours
// with a pool, and for the pool's other IDs. Else nobody can say what is spare.
func (now *round) explains(id string, networks []driver.NetworkStatus) bool {
	pool, err := ipam.PoolOf(id)
	if err != nil {
		return false
	}
	for other, n := range now.balance {
		if p, err := ipam.PoolOf(other); n < 0 && err == nil && p == pool {
			return false
		}
	}
	return !slices.ContainsFunc(networks, func(n driver.NetworkStatus) bool {
		isListed := func(l engine.Network) bool { return l.ID == n.ID && hasSubnet(l, pool) }
		return slices.Contains(n.Subnets, pool) && !slices.ContainsFunc(now.listed, isListed)
	})
}

// warnOfPools tells once of networks whose pool has had too few requests for
// two rounds: without any, they get no addresses.
func (r *reconciler) warnOfPools(last, now round) {
	for _, n := range now.listed {
		if n.IPAM.Driver != ipamDriver {
			continue
		}
		for _, p := range n.IPAM.Pools {
			id := poolID(p)
			if last.balance[id] >= 0 || now.balance[id] >= 0 {
				continue
			}
			if now.warned[id] = true; !last.warned[id] {
				r.log.WithFields(logrus.Fields{"network": n.ID, "pool": id}).Warn("network's pool was not requested on this host; make the network anew")
			}
		}
	}
}
