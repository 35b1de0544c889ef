// Package dockerlab runs several Docker hosts on one machine: each is a host of
// netlab with a Docker Engine of its own, its own /run, /etc/docker and /var/lib,
// and a PID namespace, so that a host can be switched off like a real one and
// takes every process and mount with it.
//
// It needs root, docker.io, iproute2, iptables and busybox-static, and for
// Compose docker-compose, touches neither the machine's engine nor its
// containerd, and knows of the plugin only how to install it: what the plugin
// must do is for package e2e to say.
package dockerlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"weave/test/netlab"
)

// baseDir is on a disk: overlay file systems do not stack on every tmpfs.
const baseDir = "/var/tmp"

// Image is the one image that every host has: busybox's applets and, as
// /bin/tool, the test tool.
const Image = "busybox:latest"

var errNoBusybox = errors.New("a static busybox is needed (Debian: apt-get install busybox-static)")

// Lab is a set of Docker hosts on one wire. Its methods may be called
// concurrently, but for Close; hosts are independent of each other.
type Lab struct {
	net   *netlab.Lab
	dir   string
	image string

	prototype, plugin string // of Prepare: /var/lib of a host, the folder of the plugin there

	mu    sync.Mutex
	hosts map[int]*Host // guarded by mu
}

// New makes a lab without hosts; see netlab.New about the name.
func New(name string) (*Lab, error) {
	l := &Lab{dir: filepath.Join(baseDir, name), hosts: map[int]*Host{}}
	if err := os.Mkdir(l.dir, 0o711); err != nil {
		return nil, fmt.Errorf("docker lab: %w", err)
	}
	err := l.makeImage()
	if err == nil {
		err = l.makePrograms()
	}
	if err == nil {
		l.net, err = netlab.New(name)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("docker lab: %w", err), os.RemoveAll(l.dir))
	}
	return l, nil
}

// Net returns the network below, for captures.
func (l *Lab) Net() *netlab.Lab { return l.net }

// Prepare boots host number n, installs the plugin from a folder without enabling
// it, and switches the host off again. Hosts that are added later begin with a copy
// of its disk: an engine takes seconds to pack image and plugin. It is to be called
// before the first AddHost.
func (l *Lab) Prepare(n int, plugin string) error {
	h, err := l.AddHost(n)
	if err != nil {
		return err
	}
	err = h.createPlugin(plugin)
	disk := filepath.Join(l.dir, "prototype")
	if err = errors.Join(err, h.Stop()); err == nil {
		if err = h.PowerOff(); err == nil {
			err = os.Rename(filepath.Join(h.dir, "var-lib"), disk)
		}
	}
	if err = errors.Join(err, l.RemoveHost(h)); err == nil {
		l.prototype, l.plugin = disk, plugin
	}
	return err
}

// AddHost makes host number n (see netlab) and boots it: when it returns, the
// engine answers and has the image.
func (l *Lab) AddHost(n int) (*Host, error) {
	name := fmt.Sprintf("h%d", n)
	h := &Host{lab: l, n: n, name: name, hostname: name}
	h.dir = filepath.Join(l.dir, h.name)
	for _, sub := range []string{"cgroup", "etc-docker", "var-lib", "docker-cli", "home"} {
		if err := os.MkdirAll(filepath.Join(h.dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("host %s: %w", h.name, err)
		}
	}
	l.mu.Lock()
	l.hosts[n] = h
	l.mu.Unlock()
	err := h.Configure(false)
	if err == nil && l.prototype != "" {
		h.madeOf = l.plugin
		err = exec.Command("cp", "-a", "--reflink=auto", l.prototype+"/.", filepath.Join(h.dir, "var-lib")).Run()
	}
	if err == nil {
		err = h.Boot()
	}
	if err == nil && l.prototype == "" {
		_, err = h.Docker("import", "--change", `CMD ["sh"]`, l.image, Image)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("host %s: %w", h.name, err), l.RemoveHost(h))
	}
	return h, nil
}

// RemoveHost switches the host off and deletes all that it kept.
func (l *Lab) RemoveHost(h *Host) error {
	l.mu.Lock()
	delete(l.hosts, h.n)
	l.mu.Unlock()
	return errors.Join(h.PowerOff(), os.RemoveAll(h.dir))
}

// Close removes all hosts and the lab's files.
func (l *Lab) Close() error {
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, l.RemoveHost(h))
	}
	return errors.Join(append(errs, Remove(l.net.Name()))...)
}

// Remove deletes the named lab, whoever made it: processes, control groups,
// files and namespaces.
func Remove(name string) error {
	hosts, err := netlab.Hosts(name)
	if err != nil {
		return err
	}
	errs := make([]error, 0, len(hosts)+2)
	for _, path := range hosts {
		errs = append(errs, killAll(path), removeCgroups(filepath.Base(path)))
	}
	errs = append(errs, os.RemoveAll(filepath.Join(baseDir, name)), netlab.Remove(name))
	return errors.Join(errs...)
}

// Sweep removes the labs of processes that are gone.
func Sweep() error {
	dead, err := netlab.Dead()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range dead {
		errs = append(errs, Remove(name))
	}
	return errors.Join(errs...)
}

func (l *Lab) makeImage() error {
	tool := filepath.Join(l.dir, "tool")
	build := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", tool, "weave/test/tool")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build test tool: %w\n%s", err, bytes.TrimSpace(out))
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w: %w", err, errNoBusybox)
	}
	if static, err := isStatic(busybox); err != nil || !static {
		return errors.Join(err, errNoBusybox)
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list applets of %s: %w", busybox, err)
	}
	l.image = filepath.Join(l.dir, "image.tar")
	return writeImage(l.image, busybox, tool, strings.Fields(string(applets)))
}
