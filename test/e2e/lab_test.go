// Package e2e tests the plugin as users meet it: Docker Engines on hosts of
// their own, `docker network create -d weave`, containers that talk. It has no
// code but its tests; what needs no Docker is tested beside its package.
package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"weave/test/dockerlab"
	"weave/test/netlab"
)

const (
	password = "correct horse battery staple"
	seed     = "10.99.0.1" // h1
	spare    = 201         // number of the first host that a test adds for itself
)

// workers is how many containers are started at once: the machine's cores are
// the limit.
const workers = 6

const (
	soon      = 10 * time.Second // a mesh that is whole again
	noticed   = 60 * time.Second // what happened unseen, by comparing with the engine
	afterBoot = 60 * time.Second // a host that has just booted, on a busy machine
)

// shared holds the lab that all tests use, made by the first that needs it:
// h1 seeds, every other host knows h1 alone.
type shared struct {
	lab   *dockerlab.Lab
	hosts []*dockerlab.Host
	err   error
}

var common shared

var sequence atomic.Int32

func TestMain(m *testing.M) {
	code := m.Run()
	if common.lab != nil {
		if err := common.lab.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			code = 1
		}
	}
	os.Exit(code)
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// hosts returns the first n hosts of the lab with the plugin in each.
func hosts(t *testing.T, n int) []*dockerlab.Host {
	t.Helper()
	requireRoot(t)
	for common.err == nil && len(common.hosts) < n {
		common.err = common.grow()
	}
	if common.err != nil {
		t.Fatalf("no lab: %v", common.err)
	}
	t.Cleanup(func() { keepLogs(t, common.hosts) })
	for _, h := range common.hosts[:n] {
		for _, other := range common.hosts[:n] {
			if h != other {
				awaitPeer(t, h, other)
			}
		}
	}
	return common.hosts[:n:n]
}

func (s *shared) grow() error {
	if s.lab == nil {
		if err := dockerlab.Sweep(); err != nil {
			return err
		}
		lab, err := dockerlab.New(netlab.UniqueName())
		if err != nil {
			return err
		}
		s.lab = lab
	}
	h, err := addHost(s.lab, len(s.hosts)+1, password)
	if err != nil {
		return err
	}
	s.hosts = append(s.hosts, h)
	return nil
}

// addHost boots host n with the plugin; h1 is everybody's seed.
func addHost(lab *dockerlab.Lab, n int, password string) (*dockerlab.Host, error) {
	h, err := lab.AddHost(n)
	if err != nil {
		return h, err
	}
	settings := map[string]string{"WEAVE_PASSWORD": password, "WEAVE_NICKNAME": nickname(h)}
	if n > 1 {
		settings["WEAVE_PEERS"] = seed
	}
	return h, h.InstallPlugin(pluginDir(), settings)
}

func pluginDir() string { return filepath.Join(dockerlab.BuildDir(), "plugin") }

// nickname is long enough not to turn up in random bytes.
func nickname(h *dockerlab.Host) string { return "nickname-of-" + h.Name() }

// keepLogs shows the end of the engines' logs, without what they say day in,
// day out, when a test has failed. The plugins' output is part of it.
func keepLogs(t *testing.T, hosts []*dockerlab.Host) {
	if !t.Failed() {
		return
	}
	const last = 40
	for _, h := range hosts {
		log, err := os.ReadFile(h.LogPath())
		if err != nil {
			t.Log(err)
			continue
		}
		var lines []string
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "plugin=") || strings.Contains(line, "level=error") {
				lines = append(lines, line)
			}
		}
		t.Logf("log of %s:\n%s", h.Name(), strings.Join(lines[max(0, len(lines)-last):], ""))
	}
}

// eventually repeats f until it succeeds.
func eventually(t *testing.T, limit time.Duration, f func() error) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %s: %v", limit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// docker runs the docker command, which must succeed.
func docker(t *testing.T, h *dockerlab.Host, args ...string) string {
	t.Helper()
	out, err := h.Docker(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refused runs the docker command, which must fail with an error that holds
// every one of the words. It reports whether the command failed.
func refused(t *testing.T, h *dockerlab.Host, words []string, args ...string) bool {
	t.Helper()
	out, err := h.Docker(args...)
	if err == nil {
		t.Errorf("docker %s succeeded: %s", strings.Join(args, " "), out)
		return false
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not say %q: %v", word, err)
		}
	}
	return true
}

func uniqueName(kind string) string { return fmt.Sprintf("%s-number-%d", kind, sequence.Add(1)) }

// subnet returns a /24 that no other test uses.
func subnet() string {
	n := sequence.Add(1)
	return fmt.Sprintf("10.%d.%d.0/24", 64+n/250, n%250)
}

// smallSubnet returns one with a longer mask.
func smallSubnet(bits int) string {
	return fmt.Sprintf("%s/%d", strings.TrimSuffix(subnet(), "/24"), bits)
}

// inSubnet returns the address number n of a subnet made by subnet.
func inSubnet(subnet string, n int) string {
	return strings.TrimSuffix(subnet, "0/24") + fmt.Sprint(n)
}

// creation is the docker command that creates a network.
func creation(name string, args ...string) []string {
	return append(append([]string{"network", "create", "-d", "weave", "--ipam-driver", "weave"}, args...), name)
}

// network creates one network on every host and returns its name.
func network(t *testing.T, hosts []*dockerlab.Host, args ...string) string {
	t.Helper()
	name := uniqueName("net")
	for _, h := range hosts {
		docker(t, h, creation(name, args...)...)
		t.Cleanup(func() {
			if _, err := h.Docker("network", "rm", name); err != nil {
				t.Error(err)
			}
		})
	}
	return name
}

type container struct {
	t    *testing.T
	host *dockerlab.Host
	net  string
	name string
}

// in returns the container for use in a subtest.
func (c container) in(t *testing.T) container {
	c.t = t
	return c
}

// idle is what a container does that only waits to be used by exec.
func idle() []string { return []string{"tool", "idle"} }

// run starts a container on a network, with options for docker run.
func run(t *testing.T, h *dockerlab.Host, net string, options []string, command ...string) container {
	t.Helper()
	c := container{t, h, net, uniqueName("container")}
	if len(command) == 0 {
		command = idle()
	}
	args := append([]string{"run", "-d", "--name", c.name, "--net", net, "--stop-timeout", "1"}, options...)
	args = append(append(args, dockerlab.Image), command...)
	t.Cleanup(func() {
		if _, err := h.Docker("rm", "-f", c.name); err != nil {
			t.Error(err)
		}
	})
	docker(t, h, args...)
	return c
}

// occupy runs containers on random hosts at once, all of which must start.
func occupy(t *testing.T, hosts []*dockerlab.Host, net string, containers int) {
	t.Helper()
	t.Cleanup(func() { together(t, hosts, func(h *dockerlab.Host) error { return removeAll(h, net) }) })
	var group errgroup.Group
	group.SetLimit(workers)
	for range containers {
		h := hosts[rand.IntN(len(hosts))]
		group.Go(func() error { return start(h, net) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// start runs a container that nobody needs to know.
func start(h *dockerlab.Host, net string) error {
	_, err := h.Docker(append([]string{"run", "-d", "--net", net, dockerlab.Image}, idle()...)...)
	return err
}

// removeAll removes a host's containers of a network, but for some.
func removeAll(h *dockerlab.Host, net string, but ...string) error {
	out, err := h.Docker("ps", "-a", "--format", "{{.Names}}", "--filter", "network="+net)
	names := slices.DeleteFunc(strings.Fields(out), func(name string) bool { return slices.Contains(but, name) })
	if err != nil || len(names) == 0 {
		return err
	}
	_, err = h.Docker(append([]string{"rm", "-f"}, names...)...)
	return err
}

// addresses returns the IPv4 addresses that hosts' running containers have on a
// network, in order; each must be there once.
func addresses(t *testing.T, hosts []*dockerlab.Host, net string) []string {
	t.Helper()
	var all []string
	for _, h := range hosts {
		out := docker(t, h, "network", "inspect", "-f", "{{range .Containers}}{{.IPv4Address}} {{end}}", net)
		all = append(all, strings.Fields(out)...)
	}
	slices.Sort(all)
	if len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Errorf("an address twice: %v", all)
	}
	return all
}

// together calls f for all hosts at once.
func together(t *testing.T, hosts []*dockerlab.Host, f func(h *dockerlab.Host) error) {
	t.Helper()
	var group errgroup.Group
	for _, h := range hosts {
		group.Go(func() error { return f(h) })
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// serve starts echo servers for TCP and UDP on port 7000 in the container.
func (c container) serve() container {
	c.t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		docker(c.t, c.host, "exec", "-d", c.name, "tool", "echo", network, ":7000")
	}
	eventually(c.t, soon, func() error {
		_, err := c.try("tool", "send", "tcp", "127.0.0.1:7000")
		return err
	})
	return c
}

// exec runs a command in the container, which must succeed.
func (c container) exec(command ...string) string {
	c.t.Helper()
	out, err := c.try(command...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c container) try(command ...string) (string, error) {
	return c.host.Docker(append([]string{"exec", c.name}, command...)...)
}

func (c container) inspect(field string) string {
	c.t.Helper()
	return docker(c.t, c.host, "inspect", "-f", fmt.Sprintf(`{{(index .NetworkSettings.Networks %q).%s}}`, c.net, field), c.name)
}

func (c container) ip() string { c.t.Helper(); return c.inspect("IPAddress") }

func (c container) mac() string { c.t.Helper(); return c.inspect("MacAddress") }

type iface struct {
	Name  string
	MAC   string
	MTU   int
	Addrs []string
}

// ifaces returns the container's interfaces without lo.
func (c container) ifaces() []iface {
	c.t.Helper()
	var all, some []iface
	if err := json.Unmarshal([]byte(c.exec("tool", "addrs")), &all); err != nil {
		c.t.Fatal(err)
	}
	for _, i := range all {
		if i.Name != "lo" {
			some = append(some, i)
		}
	}
	return some
}

// iface returns the container's interface on its network.
func (c container) iface() iface {
	c.t.Helper()
	ip := c.ip() + "/"
	for _, i := range c.ifaces() {
		for _, a := range i.Addrs {
			if strings.HasPrefix(a, ip) {
				return i
			}
		}
	}
	c.t.Fatalf("%s has no interface with %s", c.name, ip)
	return iface{}
}

// reaches fails unless to answers a ping within the limit.
func (c container) reaches(to string, limit time.Duration) {
	c.t.Helper()
	eventually(c.t, limit, func() error {
		_, err := c.try("ping", "-c1", "-W1", to)
		return err
	})
}
