package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	api "github.com/docker/go-plugins-helpers/network"

	"weave/driver/host"
)

// CreateNetwork joins this host to the segment of a new network.
func (d *Driver) CreateNetwork(ctx context.Context, req *api.CreateNetworkRequest) error {
	want, err := parseNetwork(req)
	if err != nil {
		return fmt.Errorf("create network: %w", err)
	}
	n, fresh, err := d.claimNetwork(want)
	switch {
	case err != nil:
	case fresh:
		err = d.finishNetwork(ctx, n)
		n.op.Unlock()
	default:
		if !n.rec.sameRequest(&want) {
			err = errors.New("it exists already, with other settings")
		}
		n.op.RUnlock()
	}
	if err != nil {
		return fmt.Errorf("create network %s: %w", d.describe(want.ID), err)
	}
	return nil
}

// claimNetwork enters a network into the map, or finds the one of that ID. A
// fresh one is returned with op locked, another with op locked for reading.
func (d *Driver) claimNetwork(want networkRecord) (n *network, fresh bool, err error) {
	for {
		d.mu.Lock()
		n := d.networks[want.ID]
		if n == nil {
			n, err := d.addNetwork(want)
			d.mu.Unlock()
			return n, true, err
		}
		d.mu.Unlock()
		n.op.RLock()
		if !n.gone {
			return n, false, nil
		}
		n.op.RUnlock()
	}
}

// addNetwork puts a new network into the map. d.mu is held.
func (d *Driver) addNetwork(rec networkRecord) (*network, error) {
	bridges := make(map[string]bool, len(d.networks))
	for _, other := range d.networks {
		if other.rec.Segment == rec.Segment {
			return nil, d.segmentTaken(rec.Segment, other.rec.ID)
		}
		bridges[other.rec.Bridge] = true
	}
	// The name follows from the segment, so that a bridge left by a crash is
	// found again.
	rec.Bridge = bridgePrefix + pickDigits(rec.Segment, func(digits string) bool {
		return bridges[bridgePrefix+digits]
	})
	n := &network{rec: rec}
	n.op.Lock()
	d.networks[rec.ID] = n
	return n, nil
}

// segmentTaken says that another network is on the segment. It may be one that
// Docker deleted unseen, which is cleared away in time. plugin/attach knows the
// refusal by its first words.
func (d *Driver) segmentTaken(segment, other string) error {
	return fmt.Errorf("this host is on segment %s already, by network %s: "+
		"use that network, another --subnet, or -o %s=NAME for a second segment with the same subnet; a network that Docker no longer lists goes away within a minute",
		segment, d.describe(other), segmentKey)
}

// finishNetwork does the slow part of creating a network, and undoes
// everything if that fails. n.op is held.
func (d *Driver) finishNetwork(ctx context.Context, n *network) error {
	err := d.checkRoutes(&n.rec)
	if err == nil {
		if err = d.bringUp(ctx, n); err == nil {
			err = save(d.store, networkBucket, n.rec.ID, n.rec)
		}
		if err != nil {
			err = errors.Join(err, d.takeDown(n))
		}
	}
	if err != nil {
		d.forgetNetwork(n)
	}
	return err
}

// checkRoutes refuses subnets that the host can reach without us: it would not
// reach them any more, or the containers not each other.
func (d *Driver) checkRoutes(rec *networkRecord) error {
	routes, err := d.kernel.Routes()
	if err != nil {
		return err
	}
	for _, route := range routes {
		if route.Prefix.Bits() == 0 || strings.HasPrefix(route.Link, host.Prefix) {
			continue
		}
		for _, subnet := range rec.Subnets {
			if subnet.Overlaps(route.Prefix) {
				return fmt.Errorf("subnet %s overlaps the host's route %s: choose another --subnet, "+
					"or remove the route", subnet, describeRoute(route))
			}
		}
	}
	return nil
}

func describeRoute(r host.Route) string {
	if r.Link == "" {
		return r.Prefix.String()
	}
	return r.Prefix.String() + " through " + r.Link
}

// bringUp joins the segment and makes the bridge with its port. It can be
// repeated. n.op is held.
func (d *Driver) bringUp(ctx context.Context, n *network) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	want := Segment{Key: n.rec.Segment, MTU: n.rec.WantMTU}
	if n.rec.MTU != 0 {
		want.MTU = n.rec.MTU // what the segment had when we joined it first
	}
	port, err := d.fabric.JoinSegment(ctx, want)
	if err != nil {
		return fmt.Errorf("join segment %s: %w", n.rec.Segment, err)
	}
	if err := n.rec.checkMTU(port.MTU); err != nil {
		return fmt.Errorf("join segment %s: %w", n.rec.Segment, err)
	}
	if err := d.kernel.EnsureBridge(d.bridge(n, port.MTU)); err != nil {
		return err
	}
	// Before the bridge can carry anything, it is kept apart from the others.
	if _, err := d.EnsureFirewall(); err != nil {
		return err
	}
	if err := d.kernel.AttachPort(n.rec.Bridge, port.Link); err != nil {
		return err
	}
	d.mu.Lock()
	n.rec.port, n.rec.MTU = port.Link, port.MTU
	d.mu.Unlock()
	n.up = true
	return nil
}

// takeDown is the reverse of bringUp. n.op is held.
func (d *Driver) takeDown(n *network) error {
	n.up = false
	d.mu.Lock()
	n.rec.port = ""
	d.mu.Unlock()
	err := d.kernel.RemoveBridge(n.rec.Bridge)
	if leave := d.fabric.LeaveSegment(n.rec.Segment); leave != nil {
		err = errors.Join(err, fmt.Errorf("leave segment %s: %w", n.rec.Segment, leave))
	}
	return err
}

// forgetNetwork takes a network out of the map and the firewall. n.op is held.
func (d *Driver) forgetNetwork(n *network) {
	n.gone = true
	d.mu.Lock()
	delete(d.networks, n.rec.ID)
	d.mu.Unlock()
	d.changed()
	if _, err := d.EnsureFirewall(); err != nil { // the rules are only too many
		d.log.WithError(err).WithField("network", n.rec.ID).Warn("firewall not updated")
	}
}

// DeleteNetwork leaves the segment of a network, with all endpoints that are
// left on it. When it fails, it can be repeated.
func (d *Driver) DeleteNetwork(_ context.Context, req *api.DeleteNetworkRequest) error {
	d.mu.Lock()
	n := d.networks[req.NetworkID]
	d.mu.Unlock()
	if n == nil {
		return nil
	}
	lost, err := d.removeNetwork(n)
	for _, e := range lost {
		d.lost(req.NetworkID, e)
	}
	if err != nil {
		return fmt.Errorf("delete network %s: %w", d.describe(req.NetworkID), err)
	}
	return nil
}

// removeNetwork also returns what was exposed on the network and is no more.
func (d *Driver) removeNetwork(n *network) (lost []Exposure, err error) {
	n.op.Lock()
	defer n.op.Unlock()
	if n.gone {
		return nil, nil
	}
	for _, e := range d.endpointsOf(n) {
		if err := d.removeEndpoint(e); err != nil {
			return nil, err
		}
	}
	if lost, err = d.dropExposures(n); err != nil {
		return lost, err
	}
	if err := d.takeDown(n); err != nil {
		return lost, err
	}
	if err := erase(d.store, networkBucket, n.rec.ID); err != nil {
		return lost, err
	}
	d.forgetNetwork(n)
	return lost, nil
}

// hold finds a network and keeps it from being deleted until the caller
// unlocks op for reading.
func (d *Driver) hold(id string) (*network, error) {
	for {
		d.mu.Lock()
		n := d.networks[id]
		d.mu.Unlock()
		if n == nil {
			return nil, fmt.Errorf("network %.64q is %w: remove it and create it again", id, ErrUnknown)
		}
		n.op.RLock()
		if !n.gone {
			return n, nil
		}
		n.op.RUnlock()
	}
}

// holdUp is hold for work that needs the bridge: it brings a network up that
// Restore has not reached yet.
func (d *Driver) holdUp(ctx context.Context, id string) (*network, error) {
	for {
		n, err := d.hold(id)
		if err != nil || n.up {
			return n, err
		}
		n.op.RUnlock()
		if err := d.restore(ctx, n); err != nil {
			return nil, err
		}
	}
}
