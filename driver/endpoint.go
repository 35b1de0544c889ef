package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	api "github.com/docker/go-plugins-helpers/network"
)

// CreateEndpoint gives an endpoint its MAC address. The answer holds it only
// if Docker gave none: Docker takes an answer for a change of its own.
func (d *Driver) CreateEndpoint(_ context.Context, req *api.CreateEndpointRequest) (*api.CreateEndpointResponse, error) {
	rec, err := d.createEndpoint(req)
	if err != nil {
		return nil, fmt.Errorf("create endpoint %s: %w", short(req.EndpointID), err)
	}
	answer := &api.EndpointInterface{}
	if !rec.GivenMAC {
		answer.MacAddress = rec.MAC.String()
	}
	return &api.CreateEndpointResponse{Interface: answer}, nil
}

func (d *Driver) createEndpoint(req *api.CreateEndpointRequest) (endpointRecord, error) {
	n, err := d.hold(req.NetworkID)
	if err != nil {
		return endpointRecord{}, err
	}
	defer n.op.RUnlock()
	want, err := parseEndpoint(req, n.rec.Subnets)
	if err != nil {
		return want, err
	}
	e, fresh, err := d.claimEndpoint(want)
	if clash := (*clashError)(nil); errors.As(err, &clash) && d.buryDead(clash.with, &want) {
		e, fresh, err = d.claimEndpoint(want)
	}
	if err != nil {
		return want, err
	}
	defer e.op.Unlock()
	if fresh {
		return want, d.finishEndpoint(n, e)
	}
	if !e.rec.sameRequest(&want) {
		return want, errors.New("it exists already, with other settings")
	}
	return want, nil
}

// parseEndpoint checks a request and returns the record that it asks for,
// still without the names of links.
func parseEndpoint(req *api.CreateEndpointRequest, subnets []netip.Prefix) (endpointRecord, error) {
	rec := endpointRecord{ID: req.EndpointID, Network: req.NetworkID}
	if err := checkID("endpoint", req.EndpointID); err != nil {
		return rec, err
	}
	if req.Interface == nil {
		return rec, errors.New("the request has no interface")
	}
	for _, text := range []string{req.Interface.Address, req.Interface.AddressIPv6} {
		if text == "" {
			continue
		}
		addr, err := netip.ParsePrefix(text)
		if err != nil {
			return rec, fmt.Errorf("address %.80q: %w", text, err)
		}
		if !slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Contains(addr.Addr()) }) {
			return rec, fmt.Errorf("address %s is outside the network's subnets %s", addr, subnets)
		}
		rec.Addrs = append(rec.Addrs, addr)
	}
	if len(rec.Addrs) == 0 {
		return rec, errors.New("no address was given: create the network with --ipam-driver weave")
	}
	if req.Interface.MacAddress == "" {
		rec.MAC = deriveMAC(rec.Addrs[0].Addr())
		return rec, nil
	}
	mac, err := parseMAC(req.Interface.MacAddress)
	rec.MAC, rec.GivenMAC = hardwareAddr(mac), true
	return rec, err
}

// clashError says that another endpoint of this host has an address.
type clashError struct {
	what string
	id   string // of the other
	with *endpoint
}

func (e *clashError) Error() string {
	return fmt.Sprintf("%s belongs to endpoint %s of this network already", e.what, short(e.id))
}

// claimEndpoint enters an endpoint into the map, or finds the one of that ID.
// Either is returned with op locked.
func (d *Driver) claimEndpoint(want endpointRecord) (e *endpoint, fresh bool, err error) {
	for {
		d.mu.Lock()
		e := d.endpoints[want.ID]
		if e == nil {
			e, err := d.addEndpoint(want)
			d.mu.Unlock()
			return e, true, err
		}
		d.mu.Unlock()
		e.op.Lock()
		if !e.gone {
			return e, false, nil
		}
		e.op.Unlock()
	}
}

// addEndpoint puts a new endpoint into the map. d.mu is held.
func (d *Driver) addEndpoint(rec endpointRecord) (*endpoint, error) {
	links := make(map[string]bool, len(d.endpoints))
	for _, other := range d.endpoints {
		links[other.rec.Link] = true
		if other.rec.Network != rec.Network {
			continue
		}
		if other.rec.MAC.String() == rec.MAC.String() {
			return nil, &clashError{what: "MAC address " + rec.MAC.String(), id: other.rec.ID, with: other}
		}
		for _, a := range rec.Addrs {
			if other.rec.has(a.Addr()) {
				return nil, &clashError{what: "address " + a.Addr().String(), id: other.rec.ID, with: other}
			}
		}
	}
	rec.Link = pickDigits(rec.ID, func(digits string) bool { return links[digits] })
	e := &endpoint{rec: rec}
	e.op.Lock()
	d.endpoints[rec.ID] = e
	return e, nil
}

// buryDead removes an endpoint whose end nobody told us: its container was in a
// sandbox and died, so its link is gone, or Docker gave up creating it before
// that, and now gives one of its addresses to another. It tells whether it did.
func (d *Driver) buryDead(e *endpoint, heir *endpointRecord) bool {
	e.op.Lock()
	defer e.op.Unlock()
	switch {
	case e.gone:
		return true
	case e.rec.Joined:
		if alive, err := d.kernel.HasLink(e.rec.hostLink()); err != nil || alive {
			return false
		}
	case !slices.ContainsFunc(heir.Addrs, func(a netip.Prefix) bool { return e.rec.has(a.Addr()) }):
		return false
	}
	return d.discard(e) == nil
}

// finishEndpoint does the slow part of creating an endpoint. e.op is held.
func (d *Driver) finishEndpoint(n *network, e *endpoint) error {
	err := d.checkHolders(n, e)
	if err == nil {
		err = save(d.store, endpointBucket, e.rec.ID, e.rec)
	}
	if err != nil {
		d.forgetEndpoint(e)
	}
	return err
}

// checkHolders refuses addresses that are in use on another host.
func (d *Driver) checkHolders(n *network, e *endpoint) error {
	for _, a := range e.rec.Addrs {
		holder, ok := d.fabric.Holder(n.rec.Segment, a.Addr())
		if !ok {
			continue
		}
		return fmt.Errorf("address %s is already in use on host %q by %s: "+
			"give networks that share a subnet one address pool with --ipam-driver weave",
			a.Addr(), holder.Host, holder.describe())
	}
	return nil
}

func (h Holder) describe() string {
	if h.OfHost {
		return "the host itself"
	}
	if h.Container == "" {
		return "endpoint " + short(h.Endpoint)
	}
	return fmt.Sprintf("container %q (%s)", h.Container, short(h.Endpoint))
}

// DeleteEndpoint forgets an endpoint. When it fails, it can be repeated.
func (d *Driver) DeleteEndpoint(_ context.Context, req *api.DeleteEndpointRequest) error {
	e := d.findEndpoint(req.NetworkID, req.EndpointID)
	if e == nil {
		return nil
	}
	if err := d.removeEndpoint(e); err != nil {
		return fmt.Errorf("delete endpoint %s: %w", short(req.EndpointID), err)
	}
	return nil
}

// Purge deletes endpoints that Docker no longer knows, as DeleteEndpoint does.
func (d *Driver) Purge(endpointIDs ...string) error {
	var errs []error
	for _, id := range endpointIDs {
		d.mu.Lock()
		e := d.endpoints[id]
		d.mu.Unlock()
		if e == nil {
			continue
		}
		if err := d.removeEndpoint(e); err != nil {
			errs = append(errs, fmt.Errorf("purge endpoint %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func (d *Driver) removeEndpoint(e *endpoint) error {
	e.op.Lock()
	defer e.op.Unlock()
	if e.gone {
		return nil
	}
	return d.discard(e)
}

// discard withdraws an endpoint, removes its links and forgets it. e.op is
// held.
func (d *Driver) discard(e *endpoint) error {
	if err := d.unplug(e); err != nil {
		return err
	}
	if err := erase(d.store, endpointBucket, e.rec.ID); err != nil {
		return err
	}
	d.forgetEndpoint(e)
	return nil
}

// forgetEndpoint takes an endpoint out of the map. e.op is held.
func (d *Driver) forgetEndpoint(e *endpoint) {
	e.gone = true
	d.mu.Lock()
	delete(d.endpoints, e.rec.ID)
	d.mu.Unlock()
	d.changed()
}

// EndpointInfo returns what `docker network inspect` may show.
func (d *Driver) EndpointInfo(_ context.Context, req *api.InfoRequest) (*api.InfoResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, n := d.endpoints[req.EndpointID], d.networks[req.NetworkID]
	if e == nil || n == nil || e.rec.Network != req.NetworkID {
		return nil, fmt.Errorf("endpoint %.64q of network %.64q is %w", req.EndpointID, req.NetworkID, ErrUnknown)
	}
	return &api.InfoResponse{Value: map[string]string{
		"weave.segment": n.rec.Segment,
		"weave.mac":     e.rec.MAC.String(),
		"weave.link":    e.rec.hostLink(),
	}}, nil
}

// SetContainerName tells the other hosts the name of the container that an
// endpoint belongs to, and keeps it. An unknown endpoint is success: it was
// deleted meanwhile.
func (d *Driver) SetContainerName(endpointID, name string) error {
	d.mu.Lock()
	e := d.endpoints[endpointID]
	d.mu.Unlock()
	if e == nil {
		return nil
	}
	e.op.Lock()
	defer e.op.Unlock()
	if e.gone || e.rec.Container == name {
		return nil
	}
	next := e.rec
	next.Container = name
	if e.announced {
		if err := d.fabric.Announce(d.announcement(&next)); err != nil {
			return fmt.Errorf("name endpoint %s: announce: %w", endpointID, err)
		}
	}
	if err := save(d.store, endpointBucket, next.ID, next); err != nil {
		return fmt.Errorf("name endpoint %s: %w", endpointID, err)
	}
	d.setRecord(e, next)
	return nil
}

// findEndpoint returns an endpoint of a network, or nil.
func (d *Driver) findEndpoint(networkID, endpointID string) *endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.endpoints[endpointID]
	if e == nil || e.rec.Network != networkID {
		return nil
	}
	return e
}

func (d *Driver) endpointsOf(n *network) []*endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []*endpoint
	for _, e := range d.endpoints {
		if e.rec.Network == n.rec.ID {
			all = append(all, e)
		}
	}
	return all
}

// setRecord puts a record in place. e.op is held.
func (d *Driver) setRecord(e *endpoint, rec endpointRecord) {
	d.mu.Lock()
	e.rec = rec
	d.mu.Unlock()
	d.changed()
}

// announcement is what others learn of an endpoint. Its network is in the map.
func (d *Driver) announcement(rec *endpointRecord) Endpoint {
	d.mu.Lock()
	segment := d.networks[rec.Network].rec.Segment
	d.mu.Unlock()
	return Endpoint{
		ID: rec.ID, Segment: segment, MAC: slices.Clone(net.HardwareAddr(rec.MAC)), Addrs: slices.Clone(rec.Addrs), Container: rec.Container,
	}
}
