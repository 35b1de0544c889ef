package driver

import (
	"context"
	"errors"
	"fmt"
	"net"

	api "github.com/docker/go-plugins-helpers/network"
)

const (
	// dstPrefix and a number are an interface's name in the container.
	dstPrefix = "ethwe"
	// multicastRoute keeps multicast on the overlay: by the default route it
	// would leave through docker_gwbridge and reach nobody.
	multicastRoute = "224.0.0.0/4"
	routeConnected = 1 // Docker's number of a route without a next hop
)

// Join makes the pair of links for an endpoint, of which Docker moves one into
// the sandbox, and tells the other hosts about the endpoint. The answer names
// no gateway, so that Docker gives the container its own way out.
func (d *Driver) Join(ctx context.Context, req *api.JoinRequest) (*api.JoinResponse, error) {
	rec, err := d.join(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("join endpoint %s: %w", short(req.EndpointID), err)
	}
	answer := &api.JoinResponse{
		InterfaceName: api.InterfaceName{SrcName: rec.containerLink(), DstPrefix: dstPrefix},
	}
	if rec.Multicast {
		answer.StaticRoutes = []*api.StaticRoute{{Destination: multicastRoute, RouteType: routeConnected}}
	}
	return answer, nil
}

func (d *Driver) join(ctx context.Context, req *api.JoinRequest) (endpointRecord, error) {
	n, err := d.holdUp(ctx, req.NetworkID)
	if err != nil {
		return endpointRecord{}, err
	}
	defer n.op.RUnlock()
	e := d.findEndpoint(req.NetworkID, req.EndpointID)
	if e == nil {
		return endpointRecord{}, fmt.Errorf("it is %w", ErrUnknown)
	}
	e.op.Lock()
	defer e.op.Unlock()
	if e.gone {
		return endpointRecord{}, fmt.Errorf("it is %w", ErrUnknown)
	}
	done, err := d.plugged(e, req.SandboxKey)
	if err == nil && !done {
		err = d.plug(n, e, req.SandboxKey)
	}
	return e.rec, err
}

// plugged tells whether an endpoint is in that sandbox already. e.op is held.
func (d *Driver) plugged(e *endpoint, sandbox string) (bool, error) {
	if !e.announced || e.rec.Sandbox != sandbox {
		return false, nil
	}
	return d.kernel.HasLink(e.rec.hostLink())
}

// plug connects an endpoint to its bridge, or leaves no trace. e.op is held.
func (d *Driver) plug(n *network, e *endpoint, sandbox string) error {
	err := d.checkHolders(n, e)
	if err != nil {
		return err
	}
	d.enterSandbox(e, sandbox)
	if err = d.makeLinks(n, e); err == nil {
		if err = save(d.store, endpointBucket, e.rec.ID, e.rec); err == nil {
			err = d.announce(n, e)
		}
	}
	if err != nil {
		err = errors.Join(err, d.leave(e))
	}
	return err
}

// enterSandbox notes an endpoint's sandbox. The first one with an IPv4 address
// gets the multicast route; a second route of the same is an error to Docker.
func (d *Driver) enterSandbox(e *endpoint, sandbox string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	multicast := e.rec.Addrs[0].Addr().Is4()
	for _, other := range d.endpoints {
		if other != e && other.rec.Joined && other.rec.Multicast && other.rec.Sandbox == sandbox {
			multicast = false
		}
	}
	e.rec.Joined, e.rec.Sandbox, e.rec.Multicast = true, sandbox, multicast
}

func (d *Driver) makeLinks(n *network, e *endpoint) error {
	name, peer := e.rec.hostLink(), e.rec.containerLink()
	if err := d.kernel.CreateVeth(name, peer, n.rec.MTU, net.HardwareAddr(e.rec.MAC)); err != nil {
		return err
	}
	return d.kernel.AttachPort(n.rec.Bridge, name)
}

// announce tells the other hosts about an endpoint. e.op is held.
func (d *Driver) announce(n *network, e *endpoint) error {
	if err := d.fabric.Announce(d.announcement(&e.rec)); err != nil {
		return fmt.Errorf("announce on segment %s: %w", n.rec.Segment, err)
	}
	d.setAnnounced(e, true)
	return nil
}

func (d *Driver) setAnnounced(e *endpoint, announced bool) {
	d.mu.Lock()
	e.announced = announced
	d.mu.Unlock()
	d.changed()
}

// Leave takes an endpoint out of its sandbox. When it fails, it can be
// repeated.
func (d *Driver) Leave(_ context.Context, req *api.LeaveRequest) error {
	e := d.findEndpoint(req.NetworkID, req.EndpointID)
	if e == nil {
		return nil
	}
	e.op.Lock()
	defer e.op.Unlock()
	if e.gone {
		return nil
	}
	if err := d.leave(e); err != nil {
		return fmt.Errorf("leave endpoint %s: %w", short(req.EndpointID), err)
	}
	return nil
}

// leave is the reverse of plug. e.op is held.
func (d *Driver) leave(e *endpoint) error {
	if err := d.unplug(e); err != nil {
		return err
	}
	if !e.rec.Joined {
		return nil
	}
	next := e.rec
	next.Joined, next.Sandbox, next.Multicast = false, "", false
	if err := save(d.store, endpointBucket, next.ID, next); err != nil {
		return err
	}
	d.setRecord(e, next)
	return nil
}

// unplug withdraws an endpoint and removes its links. e.op is held.
func (d *Driver) unplug(e *endpoint) error {
	if e.announced {
		if err := d.fabric.Withdraw(e.rec.ID); err != nil {
			return fmt.Errorf("withdraw: %w", err)
		}
		d.setAnnounced(e, false)
	}
	return d.kernel.RetireLink(e.rec.hostLink(), e.rec.Sandbox)
}
