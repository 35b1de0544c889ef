package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"weave/driver"
	"weave/ipam"
	"weave/plugin/engine"
)

// fakeEngine is a Docker Engine; it answers err, or noList instead of the list
// of its networks, while that is set.
type fakeEngine struct {
	networks    map[string]engine.Network
	err, noList error
	asked       int
}

func (f *fakeEngine) Networks(context.Context) ([]engine.Network, error) {
	if f.noList != nil {
		return nil, f.noList
	}
	all := slices.Collect(maps.Values(f.networks))
	for i := range all {
		all[i].Endpoints = nil
	}
	return all, nil
}

func (f *fakeEngine) NetworkByID(_ context.Context, id string) (engine.Network, error) {
	f.asked++
	if f.err != nil {
		return engine.Network{}, f.err
	}
	n, ok := f.networks[id]
	if !ok {
		return n, fmt.Errorf("ask for %s: %w", id, engine.ErrNotFound)
	}
	return n, nil
}

// nameDisk keeps names, but where it is nil.
type nameDisk map[string][]byte

func (d nameDisk) Load(string) (map[string][]byte, error) { return d, nil }

func (d nameDisk) Apply(_ string, changes map[string][]byte) error {
	if d == nil {
		return errors.New("the disk is full")
	}
	for id, name := range changes {
		if d[id] = name; name == nil {
			delete(d, id)
		}
	}
	return nil
}

// noNames are those of a disk, of which there are none yet in most tests.
func noNames(d nameDisk) *networkNames {
	n, err := loadNetworkNames(d, quiet())
	if err != nil {
		panic(err) // this disk can be read
	}
	return n
}

// fakeDriver keeps networks and endpoints; what stuck names is not removed.
type fakeDriver struct {
	networks  []driver.NetworkStatus
	endpoints []driver.EndpointStatus
	exposed   []driver.ExposedStatus
	stuck     map[string]bool
	told      map[string]string // container names by endpoint
	purged    time.Time         // when an endpoint was, last
}

func (f *fakeDriver) Networks() []driver.NetworkStatus   { return slices.Clone(f.networks) }
func (f *fakeDriver) Endpoints() []driver.EndpointStatus { return slices.Clone(f.endpoints) }
func (f *fakeDriver) Exposed() []driver.ExposedStatus    { return slices.Clone(f.exposed) }

func (f *fakeDriver) SetContainerName(endpointID, name string) error {
	f.told[endpointID] = name
	for i := range f.endpoints {
		if f.endpoints[i].ID == endpointID {
			f.endpoints[i].Container = name
		}
	}
	return nil
}

func (f *fakeDriver) Purge(ids ...string) error {
	for _, id := range ids {
		if f.stuck[id] {
			return errors.New("link is busy")
		}
		f.purged = time.Now()
		f.endpoints = slices.DeleteFunc(f.endpoints, func(e driver.EndpointStatus) bool { return e.ID == id })
	}
	return nil
}

func (f *fakeDriver) DeleteNetwork(_ context.Context, req *network.DeleteNetworkRequest) error {
	if f.stuck[req.NetworkID] {
		return errors.New("bridge is busy")
	}
	f.networks = slices.DeleteFunc(f.networks, func(n driver.NetworkStatus) bool { return n.ID == req.NetworkID })
	return nil
}

// fakeLeases keeps leases, and how often each pool is requested.
type fakeLeases struct {
	leases []ipam.Lease
	refs   map[string]int
}

func (f *fakeLeases) Leases() []ipam.Lease { return slices.Clone(f.leases) }

func (f *fakeLeases) Status() []ipam.PoolStatus {
	var out []ipam.PoolStatus
	for _, id := range slices.Sorted(maps.Keys(f.refs)) {
		pool, err := ipam.PoolOf(id)
		if err != nil {
			panic(err)
		}
		h := ipam.HandleStatus{ID: id, Refs: f.refs[id]}
		if n := len(out); n > 0 && out[n-1].Pool == pool {
			out[n-1].Handles = append(out[n-1].Handles, h)
		} else {
			out = append(out, ipam.PoolStatus{Pool: pool, Handles: []ipam.HandleStatus{h}})
		}
	}
	return out
}

func (f *fakeLeases) ReleaseAddress(_ context.Context, poolID string, addr netip.Addr) error {
	f.leases = slices.DeleteFunc(f.leases, func(l ipam.Lease) bool { return l.PoolID == poolID && l.Addr == addr })
	return nil
}

func (f *fakeLeases) ReleasePool(_ context.Context, poolID string) error {
	if f.refs[poolID]--; f.refs[poolID] == 0 {
		delete(f.refs, poolID)
	}
	return nil
}
