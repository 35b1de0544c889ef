// Package netlab makes hosts out of network namespaces: each has one uplink,
// and the uplinks meet on a bridge in a namespace of its own, never in the root
// namespace, whose packet filter would have a say in what passes.
//
//	wvlab-PID-N-h1     wvlab-PID-N-wires    wvlab-PID-N-h2
//	  eth0 ──────────── h1 ─ bridge ─ h2 ──────────── eth0
//	10.99.0.1           10.99.0.254           10.99.0.2
//
// The package knows nothing of Docker and runs no program: see dockerlab.
package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	netnsDir = "/run/netns"
	prefix   = "wvlab-"
	bridge   = "bridge"
	uplink   = "eth0"
	mtu      = 1500
)

// Outside4 is the address in the wires namespace that hosts have as their
// default gateway; it answers pings, so it stands for the world outside.
var Outside4 = netip.MustParseAddr("10.99.0.254")

var bridgeMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0xfe}

var outside6 = netip.MustParseAddr("fd99::fe")

var sequence atomic.Int32

// UniqueName returns a lab name that holds this process's ID, which is what
// Sweep goes by.
func UniqueName() string {
	return fmt.Sprintf("%s%d-%d", prefix, os.Getpid(), sequence.Add(1))
}

// Lab is a set of hosts on one wire. Its methods may be called concurrently, but
// for what ends a host, or all, while others use it.
type Lab struct{ name string }

// New makes the wires of a lab. Namespaces begin with the lab's name; a lab
// whose name does not come from UniqueName outlives its process until Remove.
func New(name string) (*Lab, error) {
	l := &Lab{name: name}
	if err := addNamespace(l.wires()); err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	if err := inNamespace(l.wires(), setUpWires); err != nil {
		return nil, errors.Join(fmt.Errorf("lab %s: wires: %w", name, err), l.Close())
	}
	return l, nil
}

// Name returns the name given to New.
func (l *Lab) Name() string { return l.name }

// AddHost makes host number n (1 to 250) with its uplink, addresses 10.99.0.n and
// fd99::n and a default route.
func (l *Lab) AddHost(n int) (*Host, error) {
	if n < 1 || n > 250 {
		return nil, fmt.Errorf("lab %s: host number %d is not in 1..250", l.name, n)
	}
	h := &Host{
		lab:  l,
		name: fmt.Sprintf("h%d", n),
		ip4:  netip.AddrFrom4([4]byte{10, 99, 0, byte(n)}),
		ip6:  netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x99, 15: byte(n)}),
	}
	if err := addNamespace(h.Namespace()); err != nil {
		return nil, fmt.Errorf("host %s: %w", h.name, err)
	}
	if err := h.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("host %s: %w", h.name, err), l.RemoveHost(h))
	}
	return h, nil
}

// RemoveHost deletes the host's uplink and namespace; its number is free again.
// Processes that still run in it keep the namespace alive without a name.
func (l *Lab) RemoveHost(h *Host) error {
	return errors.Join(h.onPort(netlink.LinkDel), deleteNamespace(h.Namespace()))
}

// Close deletes every namespace of the lab.
func (l *Lab) Close() error { return Remove(l.name) }

func (l *Lab) wires() string { return l.name + "-wires" }

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

func setUpWires() error {
	// Frames between hosts pass this bridge unfiltered, like a switch.
	if err := writeSysctl("net/bridge/bridge-nf-call-iptables", "0"); err != nil {
		return err
	}
	// An address of its own: one of the ports' would change as hosts come and go,
	// and hosts would go on sending to the old one.
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge, MTU: mtu, HardwareAddr: bridgeMAC}}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	return bringUp(bridge, Outside4, outside6)
}

// bringUp sets the link and loopback up and adds the addresses (/24 and /64).
func bringUp(name string, addrs ...netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	for _, addr := range addrs {
		bits := 24
		if addr.Is6() {
			bits = 64
		}
		parsed, err := netlink.ParseAddr(netip.PrefixFrom(addr, bits).String())
		if err != nil {
			return fmt.Errorf("address %s: %w", addr, err)
		}
		if addr.Is6() {
			parsed.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, parsed); err != nil {
			return fmt.Errorf("add address %s: %w", addr, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("link lo: %w", err)
	}
	return errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(link))
}

func addNamespace(name string) error {
	return onOwnThread(func() error {
		ns, err := netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("add namespace %s: %w", name, err)
		}
		return ns.Close()
	})
}

// deleteNamespace removes a name that may be half made: a file on which nothing
// is mounted.
func deleteNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err == nil || errors.Is(err, unix.EINVAL) {
		err = os.Remove(path)
	}
	if errors.Is(err, unix.EBUSY) {
		err = onOwnThread(func() error { return removeCovered(path) })
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete namespace %s: %w", name, err)
	}
	return nil
}

// removeCovered removes a name on which something is mounted below what can be
// seen: the first `ip netns add` after us has mounted the whole directory upon
// itself, with all names in it. In a mount namespace of our own the layers can be
// taken off; to remove a name there is to remove it everywhere.
func removeCovered(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for {
		if err := unix.Unmount(netnsDir, unix.MNT_DETACH); err != nil {
			return err
		}
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
		if err := os.Remove(path); !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
}

func inNamespace(name string, f func() error) error {
	return onOwnThread(func() error {
		ns, err := netns.GetFromName(name)
		if err != nil {
			return fmt.Errorf("open namespace %s: %w", name, err)
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter namespace %s: %w", name, err)
		}
		return f()
	})
}

// onOwnThread runs f on a thread that is thrown away afterwards: a goroutine
// that ends while locked takes its thread, in whatever namespace, with it. Only
// the main thread would stay, and by it others judge where the process is.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := onOwnThread(f) // elsewhere, while this thread is held
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// writeSysctl writes below /proc/sys for the calling thread's namespace.
func writeSysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}
