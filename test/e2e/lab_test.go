// Package e2e tests the plugin as users meet it: Docker Engines on hosts of
// their own, `docker network create -d weave`, containers that talk. It has no
// code but its tests; what needs no Docker is tested beside its package.
package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"weave/test/dockerlab"
)

// workers is how many containers are started at once: the machine's cores are
// the limit.
const workers = 6

const (
	whole     = 10 * time.Second // a mesh that could heal
	soon      = 30 * time.Second // what takes less than 5 s where no other tests run
	noticed   = 60 * time.Second // what happened unseen, by comparing with the engine
	afterBoot = 60 * time.Second // a host that has just booted, on a busy machine
)

var sequence atomic.Int32

// eventually repeats f until it succeeds, less and less often: other tests need
// the processors.
func eventually(t *testing.T, limit time.Duration, f func() error) {
	t.Helper()
	const shortest, longest = 50 * time.Millisecond, 500 * time.Millisecond
	end := time.Now().Add(limit)
	for pause := shortest; ; pause = min(2*pause, longest) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %s: %v", limit, err)
		}
		time.Sleep(pause)
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

// ask asks the engine's API, which is cheaper than a command.
func ask(h *dockerlab.Host, path string, answer any) error {
	return askFor(h, http.MethodGet, path, nil, answer)
}

// askFor is ask with another method, and a body; answer may be nil.
func askFor(h *dockerlab.Host, method, path string, body, answer any) error {
	client := unixClient(h.Path("/run/docker.sock"))
	defer client.CloseIdleConnections()
	var sent bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&sent).Encode(body); err != nil {
			return err
		}
	}
	if !strings.HasPrefix(path, "/v1.") {
		path = "/v1.41" + path // that of the oldest engine
	}
	request, err := http.NewRequest(method, "http://docker"+path, &sent)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("engine of %s: %w", h.Name(), err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return err
	case response.StatusCode >= http.StatusBadRequest:
		return fmt.Errorf("engine of %s: %s %s: %s: %s", h.Name(), method, path, response.Status, text)
	case answer == nil:
		return nil
	}
	return json.Unmarshal(text, answer)
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
		if isSpare(h) {
			continue
		}
		t.Cleanup(func() {
			if err := removeNetwork(t, h, name); err != nil {
				t.Error(err)
			}
		})
	}
	return name
}

// removeNetwork removes a network that no container is on. An engine that starts
// and stops containers of one network in parallel, whatever its driver, seldom
// miscounts them (moby issue 42119, open), and keeps the network until it is
// restarted though it lists nobody on it: that is no fault of the plugin's.
func removeNetwork(t *testing.T, h *dockerlab.Host, name string) error {
	t.Helper()
	err := askFor(h, http.MethodDelete, "/networks/"+name, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "has active endpoints") {
		return err
	}
	listed, listErr := containersOn(h, name)
	if listErr != nil || len(listed) > 0 {
		return errors.Join(err, listErr, fmt.Errorf("it lists %v", listed))
	}
	t.Logf("the engine has miscounted: %v", err)
	return nil
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
	if !isSpare(h) {
		t.Cleanup(func() {
			if err := remove(h, c.name); err != nil {
				t.Error(err)
			}
		})
	}
	docker(t, h, args...)
	return c
}

// occupy runs containers on random hosts at once, all of which must start.
func occupy(t *testing.T, hosts []*dockerlab.Host, net string, containers int) {
	t.Helper()
	if !isSpare(hosts[0]) {
		t.Cleanup(func() { together(t, hosts, func(h *dockerlab.Host) error { return removeAll(h, net) }) })
	}
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
func start(h *dockerlab.Host, net string) error { return launch(h, "", net, nil) }

// launch does what `docker run -d` asks of the engine, for a container that is
// idle; it may have no name, and more settings.
func launch(h *dockerlab.Host, name, net string, more map[string]any) error {
	settings := map[string]any{
		"Image": dockerlab.Image, "Cmd": idle(), "HostConfig": map[string]any{"NetworkMode": net},
	}
	maps.Copy(settings, more)
	var created struct{ ID string }
	err := askFor(h, http.MethodPost, "/containers/create?name="+name, settings, &created)
	if err != nil {
		return err
	}
	return askFor(h, http.MethodPost, "/containers/"+created.ID+"/start", nil, nil)
}

// remove is `docker rm -f`: a container that is not there is removed.
func remove(h *dockerlab.Host, name string) error {
	err := askFor(h, http.MethodDelete, "/containers/"+name+"?force=1", nil, nil)
	if err != nil && strings.Contains(err.Error(), "No such container") {
		return nil
	}
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
		listed, err := containersOn(h, net)
		if err != nil {
			t.Error(err)
		}
		all = append(all, listed...)
	}
	slices.Sort(all)
	if len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Errorf("an address twice: %v", all)
	}
	return all
}

// containersOn returns the IPv4 addresses of a host's containers on a network, as
// the engine lists them.
func containersOn(h *dockerlab.Host, net string) (all []string, err error) {
	var known struct {
		Containers map[string]struct{ IPv4Address string }
	}
	err = ask(h, "/networks/"+net, &known)
	for _, c := range known.Containers {
		all = append(all, c.IPv4Address)
	}
	return all, err
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
	var known struct {
		NetworkSettings struct{ Networks map[string]map[string]any }
	}
	if err := ask(c.host, "/containers/"+c.name+"/json", &known); err != nil {
		c.t.Fatal(err)
	}
	value, found := known.NetworkSettings.Networks[c.net][field].(string)
	if !found {
		c.t.Fatalf("%s has no %s on %s", c.name, field, c.net)
	}
	return value
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
