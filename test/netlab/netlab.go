// Package netlab makes hosts out of network namespaces: each has one uplink,
// and the uplinks meet on a bridge in a namespace of its own, never in the root
// namespace, whose packet filter would have a say in what passes.
//
//	wvlab-PID-N-h1     wvlab-PID-N-wires    wvlab-PID-N-h2
//	  eth0 ──────────── h1 ─ bridge ─ h2 ──────────── eth0
//	10.99.0.1           10.99.0.254           10.99.0.2
//
// A host may be a Router, with a Network of its own behind it, and a NAT or a
// small MTU between the two:
//
//	wvlab-PID-N-h3-1   wvlab-PID-N-h3             wvlab-PID-N-wires
//	  eth0 ──────────── h1 ─ bridge (NAT) eth0 ──── h3 ─ bridge ─ …
//	10.99.8.1           10.99.8.254   10.99.0.3
//
// What makes a network hard is of three kinds, and changes while it runs:
//
//   - Between two hosts of one network: CutLink and HealLink, Connect for whole
//     shapes.
//   - On one host's cable: Cut, SetLoss, SetFilter, Delay and DelaySome. Set on a router,
//     they concern all that is behind it.
//   - At a router: SetNAT, SetMTU, Forward, DropMappings, and Renumber, as of any
//     host.
//
// ServeProxy is the HTTP proxy that some networks have for their only way out.
//
// The package knows nothing of Docker and runs no program: see dockerlab.
package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	prefix = "wvlab-"
	bridge = "bridge"
	uplink = "eth0"
	mtu    = 1500
)

// Outside4 is the address in the wires namespace that hosts have as their
// default gateway; it answers pings, so it stands for the world outside.
var Outside4 = netip.MustParseAddr("10.99.0.254")

var sequence atomic.Int32

// UniqueName returns a lab name that holds this process's ID, which is what
// Sweep goes by.
func UniqueName() string {
	return fmt.Sprintf("%s%d-%d", prefix, os.Getpid(), sequence.Add(1))
}

// Lab is a Network in a namespace of its own, the wires, and all that is behind
// its routers.
type Lab struct {
	*Network
	name string
}

// New makes the wires of a lab. Namespaces begin with the lab's name; a lab
// whose name does not come from UniqueName outlives its process until Remove.
func New(name string) (*Lab, error) {
	l := &Lab{Network: newNetwork(name, name+"-wires", "h", 0), name: name}
	if err := addNamespace(l.wires()); err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	if err := inNamespace(l.wires(), l.setUp); err != nil {
		return nil, errors.Join(fmt.Errorf("lab %s: wires: %w", name, err), l.Close())
	}
	return l, nil
}

// Name returns the name given to New.
func (l *Lab) Name() string { return l.name }

// Close deletes every namespace of the lab.
func (l *Lab) Close() error { return Remove(l.name) }

func (l *Lab) wires() string { return l.space }

// Remove deletes every namespace of the named lab, whoever made it.
func Remove(name string) error {
	paths, err := filepath.Glob(filepath.Join(netnsDir, name+"-*"))
	if err != nil {
		return fmt.Errorf("remove lab %s: %w", name, err)
	}
	var errs []error
	for _, path := range paths {
		errs = append(errs, deleteNamespace(filepath.Base(path)))
	}
	return errors.Join(errs...)
}

// Hosts returns the paths of the namespaces of the named lab's hosts.
func Hosts(name string) ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(netnsDir, name+"-h*"))
	if err != nil {
		return nil, fmt.Errorf("hosts of lab %s: %w", name, err)
	}
	return paths, nil
}

// Dead returns the names of labs whose process is gone: leftovers of killed runs.
func Dead() ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(netnsDir, prefix+"*-wires"))
	if err != nil {
		return nil, fmt.Errorf("find dead labs: %w", err)
	}
	var dead []string
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), "-wires")
		if !OwnerAlive(name) {
			dead = append(dead, name)
		}
	}
	return dead, nil
}

// OwnerAlive reports whether the process named in a lab's name runs, or might
// run: a name without a process counts as alive, so that nobody sweeps it.
func OwnerAlive(name string) bool {
	digits, _, _ := strings.Cut(strings.TrimPrefix(name, prefix), "-")
	pid, err := strconv.Atoi(digits)
	if err != nil || !strings.HasPrefix(name, prefix) {
		return true
	}
	return !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}
