package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"weave/test/bench/gen"
	"weave/test/netlab"
)

// pair is a system on two hosts of its own, with a load generator at each end.
// All systems of a run stand side by side, each on wires of its own.
type pair struct {
	lab      *netlab.Lab
	starter  thread
	dir      string // for the files of the daemons
	ends     [2]end
	daemons  []*process
	note     string // version and settings, for the table of systems
	mtu      int
	offloads map[port][]string           // that the links of the underlay have at first
	ready    func(context.Context) error // if set: what else to wait for once frames pass
	delays   []*netlab.Delay             // of harden
}

// end is one side: a host, and the network namespace where the load is.
type end struct {
	host  *netlab.Host
	space string     // name of the namespace: the host's, or a container's
	addr  netip.Addr // of the load generator, over the system
	agent *gen.Client
	gen   *process
}

func newPair(starter thread, dir string) (*pair, error) {
	lab, err := netlab.New(netlab.UniqueName())
	if err != nil {
		return nil, err
	}
	p := &pair{lab: lab, starter: starter, dir: dir}
	for i := range p.ends {
		h, err := lab.AddHost(i + 1)
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.ends[i] = end{host: h, space: h.Namespace(), addr: h.IP4()}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// addContainer makes the namespace of a container on side i. Its name begins
// with the lab's, so it goes with the lab.
func (p *pair) addContainer(i int, addr netip.Addr) error {
	e := &p.ends[i]
	e.space, e.addr = fmt.Sprintf("%s-c%d", p.lab.Name(), i+1), addr
	return onThread(func() error {
		ns, err := netns.NewNamed(e.space)
		if err != nil {
			return fmt.Errorf("add namespace %s: %w", e.space, err)
		}
		return ns.Close()
	})
}

// plugIn moves a link of the host into the container and brings it up as eth0.
func (e *end) plugIn(link, mac string, prefix netip.Prefix, mtu int) error {
	ns, err := netns.GetFromName(e.space)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", e.space, err)
	}
	defer ns.Close()
	err = e.host.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(l, int(ns))
	})
	if err != nil {
		return fmt.Errorf("move link %s: %w", link, err)
	}
	return inSpace(e.space, func() error { return bringUp(link, "eth0", mac, prefix, mtu) })
}

// bringUp configures a link of the calling thread's namespace. An empty MAC
// address leaves the link's.
func bringUp(link, name, mac string, prefix netip.Prefix, mtu int) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	if mac != "" {
		hw, err := net.ParseMAC(mac)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(l, hw); err != nil {
			return fmt.Errorf("set MAC address of %s: %w", link, err)
		}
	}
	if link != name {
		if err := netlink.LinkSetName(l, name); err != nil {
			return fmt.Errorf("rename %s: %w", link, err)
		}
	}
	addr, err := netlink.ParseAddr(prefix.String())
	if err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	err = errors.Join(netlink.LinkSetMTU(l, mtu), netlink.AddrAdd(l, addr), netlink.LinkSetUp(l), netlink.LinkSetUp(lo))
	if err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	return nil
}

// startAgents starts the load generators and waits until each reaches the other.
func (p *pair) startAgents(ctx context.Context) error {
	for i := range p.ends {
		e := &p.ends[i]
		in, out, err := pipes()
		if err != nil {
			return err
		}
		e.gen, err = p.starter.start(program{
			space: e.space, log: p.log("agent", i), stdin: in.child, stdout: out.child, args: []string{self(), "agent"},
		})
		err = errors.Join(err, in.child.Close(), out.child.Close())
		if err != nil {
			return errors.Join(fmt.Errorf("start load generator: %w", err), in.parent.Close(), out.parent.Close())
		}
		e.agent = gen.NewClient(duplex{out.parent, in.parent})
	}
	if err := p.awaitFrames(ctx); err != nil || p.ready == nil {
		return err
	}
	return p.ready(ctx)
}

// awaitFrames waits until each end reaches the other.
func (p *pair) awaitFrames(ctx context.Context) error {
	for i := range p.ends {
		if err := p.ends[i].agent.Await(ctx, p.ends[1-i].addr, startLimit); err != nil {
			return errors.Join(err, p.alive())
		}
	}
	return nil
}

// log is the file for what a process on side i says.
func (p *pair) log(name string, i int) string {
	return filepath.Join(p.dir, fmt.Sprintf("%s%d.log", name, i+1))
}

// alive tells whether all processes still run.
func (p *pair) alive() error {
	for _, d := range p.daemons {
		select {
		case <-d.done:
			return fmt.Errorf("%s ended: %v: %s", d.name, d.err, d.lastWords())
		default:
		}
	}
	return nil
}

// close ends the processes and removes the hosts.
func (p *pair) close() error {
	var errs []error
	for i := range p.ends {
		if p.ends[i].agent != nil {
			_ = p.ends[i].agent.Close()
			errs = append(errs, p.ends[i].gen.stop())
		}
	}
	for _, d := range p.daemons {
		errs = append(errs, d.stop())
	}
	return errors.Join(append(errs, p.lab.Close())...)
}

// startLimit bounds how long a system may take until frames pass.
const startLimit = 40 * time.Second
