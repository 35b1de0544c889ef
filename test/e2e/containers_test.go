package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"weave/test/dockerlab"
)

// refusedWeave runs the weave command, which must fail with an error that holds
// every one of the words.
func refusedWeave(t *testing.T, h *dockerlab.Host, words []string, args ...string) {
	t.Helper()
	out, err := h.Weave(args...)
	if err == nil {
		t.Errorf("weave %s succeeded: %s", strings.Join(args, " "), out)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not say %q: %v", word, err)
		}
	}
}

// hostsAtWork returns hosts whose plugin can be asked: one that starts lets Docker
// wait, but no command.
func hostsAtWork(t *testing.T, n int) []*dockerlab.Host {
	t.Helper()
	hs := hosts(t, n)
	for _, h := range hs {
		eventually(t, soon, func() error {
			if s, err := statusOf(h); err != nil || s.Peer == "" {
				return fmt.Errorf("the plugin of %s still starts: %v", h.Name(), err)
			}
			return nil
		})
	}
	return hs
}

// ordinary runs a container on Docker's own network alone.
func ordinary(t *testing.T, h *dockerlab.Host) container {
	t.Helper()
	return run(t, h, "bridge", nil)
}

// weaveRun runs a container by weave run, in the background.
func weaveRun(t *testing.T, h *dockerlab.Host, addresses ...string) container {
	t.Helper()
	c := container{t, h, "bridge", uniqueName("container")}
	t.Cleanup(func() { _, _ = h.Docker("rm", "-f", c.name) })
	args := slices.Concat([]string{"run"}, addresses, []string{"-dit", "--name", c.name, "--stop-timeout=1", dockerlab.Image}, idle())
	if out := weave(t, h, args...); len(out) != 64 {
		t.Errorf("weave run -d printed %q, want the ID", out)
	}
	return c
}

// weaveNetworks lists those on a host that weave attach made.
func weaveNetworks(t *testing.T, h *dockerlab.Host) []string {
	t.Helper()
	return strings.Fields(docker(t, h, "network", "ls", "--filter", "label=org.weave.made=attach", "--format", "{{.Name}}"))
}

// pings fails if the address answers, or does not, other than is wanted.
func (c container) pings(to string, want bool) {
	c.t.Helper()
	if want {
		c.reaches(to, soon)
		return
	}
	if out, err := c.try("ping", "-c1", "-W1", to); err == nil {
		c.t.Errorf("%s reaches %s: %s", c.name, to, out)
	}
}

// TestAttachAndRun: containers of two hosts on two subnets, by weave attach and
// weave run.
func TestAttachAndRun(t *testing.T) {
	hs := hostsAtWork(t, 2)
	h1, h2 := hs[0], hs[1]
	a, other := ordinary(t, h1), ordinary(t, h2)
	if out := weave(t, h1, "attach", "192.168.0.2/24", a.name); out != "192.168.0.2" {
		t.Errorf("attach printed %q", out)
	}
	b, c := weaveRun(t, h1, "192.168.1.2/24"), weaveRun(t, h2, "192.168.0.3/24")
	check := func() {
		t.Helper()
		a.pings("192.168.0.3", true)
		c.pings("192.168.0.2", true)
		b.pings("192.168.0.2", false)
		c.pings("192.168.1.2", false)
		if n := len(a.ifaces()); n != 2 {
			t.Errorf("%d interfaces, want Docker's and weave's", n)
		}
	}
	check()
	ps := weave(t, h1, "ps", "-a")
	for _, line := range [][]string{
		{a.name, "192.168.0.2", "weave-192.168.0.0-24", nickname(h1)}, {b.name, "192.168.1.2"}, {c.name, "192.168.0.3", nickname(h2)},
	} {
		if !hasLine(ps, line) {
			t.Errorf("weave ps does not tell %q:\n%s", line, ps)
		}
	}
	if out := weave(t, h1, "attach", "192.168.0.2/24", a.name); out != "192.168.0.2" {
		t.Errorf("attach to what it is attached to printed %q", out)
	}

	refusedWeave(t, h2, []string{"192.168.0.2", a.name, nickname(h1)}, "attach", "192.168.0.2/24", other.name)
	refusedWeave(t, h2, []string{"192.168.0.2", a.name, nickname(h1)}, "run", "192.168.0.2/24", "--name", "refused", dockerlab.Image, "true")
	refused(t, h2, []string{"No such"}, "inspect", "refused")

	var restarts errgroup.Group
	for _, x := range []container{a, b, c} {
		restarts.Go(func() error {
			_, err := x.host.Docker("restart", x.name)
			return err
		})
	}
	if err := restarts.Wait(); err != nil {
		t.Fatal(err)
	}
	check()

	if out := weave(t, h1, "detach", "192.168.0.2/24", a.name); out != "192.168.0.2" {
		t.Errorf("detach printed %q", out)
	}
	eventually(t, soon, func() error {
		if n := len(a.ifaces()); n != 1 {
			return fmt.Errorf("%d interfaces after it was detached", n)
		}
		return nil
	})
	weave(t, h1, "detach", b.name)
	weave(t, h2, "detach", c.name)
	for _, h := range hs {
		if left := weaveNetworks(t, h); len(left) > 0 {
			t.Errorf("networks left on %s: %v", h.Name(), left)
		}
	}
}

// hasLine tells whether one line of a table has all of the cells.
func hasLine(table string, cells []string) bool {
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if !slices.ContainsFunc(cells, func(cell string) bool { return !slices.Contains(fields, cell) }) {
			return true
		}
	}
	return false
}

// TestAttachUndone: a step that fails takes back those before it.
func TestAttachUndone(t *testing.T) {
	hs := hostsAtWork(t, 1)
	h := hs[0]
	c := ordinary(t, h)
	before := docker(t, h, "network", "ls", "-q")
	fine, busy := subnet(), subnet()
	net := network(t, hs, "--subnet", busy, "--aux-address", "router="+inSubnet(busy, 9))
	bad := inSubnet(busy, 9) + "/24"
	refusedWeave(t, h, []string{inSubnet(busy, 9), "gateway or auxiliary"}, "attach", "net:"+fine, bad, c.name)
	refusedWeave(t, h, []string{"gateway or auxiliary"}, "run", "net:"+fine, bad, "-d", "--name", "undone", dockerlab.Image, "true")
	refusedWeave(t, h, []string{"gateway or auxiliary"}, "run", "net:"+fine, bad, "--name", "undone", dockerlab.Image, "true")
	refused(t, h, []string{"No such"}, "inspect", "undone")
	// The subnet of the engine's own route is refused when the second network is made.
	refusedWeave(t, h, []string{"10.99.0.0/24", "route"}, "attach", "net:"+fine, "net:10.99.0.0/24", c.name)
	eventually(t, soon, func() error { // links go some moments after the container has left
		if n := len(c.ifaces()); n != 1 {
			return fmt.Errorf("%d interfaces, want one", n)
		}
		return nil
	})
	docker(t, h, "network", "inspect", net)
	if err := removeNetwork(t, h, net); err != nil {
		t.Fatal(err)
	}
	if after := docker(t, h, "network", "ls", "-q"); after != before {
		t.Errorf("networks were %q, are %q", before, after)
	}
	docker(t, h, "restart", c.name)                  // what it was not connected to is forgotten
	docker(t, h, creation(net, "--subnet", busy)...) // for the clean-up
}

// TestAttachAtOnce: commands that want the same at once do not disturb each other.
func TestAttachAtOnce(t *testing.T) {
	h := hostsAtWork(t, 1)[0]
	sub := subnet()
	a, b := ordinary(t, h), ordinary(t, h)
	var all errgroup.Group
	for _, args := range [][]string{{inSubnet(sub, 2) + "/24", a.name}, {inSubnet(sub, 2) + "/24", a.name}, {"net:" + sub, b.name}, {"net:" + sub, b.name}} {
		all.Go(func() error {
			_, err := h.Weave(append([]string{"attach"}, args...)...)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	b.pings(inSubnet(sub, 2), true)
	for _, c := range []container{a, b} {
		weave(t, h, "detach", "net:"+sub, c.name)
	}
	if left := weaveNetworks(t, h); len(left) > 0 {
		t.Errorf("networks left: %v", left)
	}
}

// TestAttachManyForms: what an address may be, and a network of two families.
func TestAttachManyForms(t *testing.T) {
	hs := hostsAtWork(t, 2)
	sub4, sub6, alone6 := subnet(), subnet6(), subnet6()
	net := network(t, hs[:1], "--ipv6", "--subnet", sub4, "--subnet", sub6)
	wish6, other6 := strings.Replace(sub6, "/", "9/", 1), strings.Replace(alone6, "/", "8/", 1)
	a, b := ordinary(t, hs[0]), ordinary(t, hs[1])
	got := strings.Fields(weave(t, hs[0], "attach", "ip:"+inSubnet(sub4, 7)+"/24", wish6, other6, "net:default", a.name))
	if len(got) != 4 || got[0] != inSubnet(sub4, 7) || got[1]+"/64" != wish6 || got[2]+"/64" != other6 || !strings.HasPrefix(got[3], "10.32.") {
		t.Errorf("attach gave %v", got)
	}
	if n := len(a.ifaces()); n != 4 { // bridge, one network of two families, IPv6, default
		t.Errorf("%d interfaces: %+v", n, a.ifaces())
	}
	if out := docker(t, hs[0], "inspect", "-f", "{{range $name, $x := .NetworkSettings.Networks}}{{$name}} {{end}}", a.name); !strings.Contains(out, net) {
		t.Errorf("it is on %s, want network %s", out, net)
	}
	weave(t, hs[1], "attach", b.name) // net:default
	weave(t, hs[1], "attach", "net:"+alone6, b.name)
	b.pings(got[2], true)
	b.pings(got[3], true)
	if out := weave(t, hs[1], "prime"); !strings.HasPrefix(out, "10.32.0.0/16: ") {
		t.Errorf("prime says %q", out)
	}
	for _, c := range []container{a, b} {
		weave(t, c.host, "detach", c.name)
		if left := weaveNetworks(t, c.host); len(left) > 0 {
			t.Errorf("left are networks %v", left)
		}
		eventually(t, soon, func() error {
			if left := c.ifaces(); len(left) != 1 {
				return fmt.Errorf("left are interfaces %v", left)
			}
			return nil
		})
	}
}

func TestAttachRefused(t *testing.T) {
	h := hostsAtWork(t, 1)[0]
	c := ordinary(t, h)
	onHost := uniqueName("container")
	docker(t, h, append([]string{"run", "-d", "--rm", "--name", onHost, "--net", "host", dockerlab.Image}, idle()...)...)
	t.Cleanup(func() { docker(t, h, "rm", "-f", onHost) })
	before := docker(t, h, "network", "ls", "-q")
	refusedWeave(t, h, []string{"no container", "nobody"}, "attach", "192.168.7.2/24", "nobody")
	refusedWeave(t, h, []string{"--network host", "weave expose"}, "attach", "192.168.7.2/24", onHost)
	refusedWeave(t, h, []string{"192.168.7.0/24", "own"}, "attach", "192.168.7.0/24", c.name)
	refusedWeave(t, h, []string{"192.168.7.255/24", "broadcast"}, "attach", "192.168.7.255/24", c.name)
	refusedWeave(t, h, []string{"no weave network"}, "detach", c.name)
	refusedWeave(t, h, []string{"--network none"}, "run", "192.168.7.2/24", "--network", "none", dockerlab.Image, "true")
	docker(t, h, "stop", c.name)
	refusedWeave(t, h, []string{"docker start " + c.name}, "attach", "192.168.7.2/24", c.name)
	if after := docker(t, h, "network", "ls", "-q"); after != before {
		t.Errorf("networks were %q, are %q", before, after)
	}
}

// TestWeaveRunInTheForeground: output, exit status and signals are the
// container's, and --rm removes it.
func TestWeaveRunInTheForeground(t *testing.T) {
	h := hostsAtWork(t, 1)[0]
	sub := subnet()
	t.Cleanup(func() {
		if err := removeNetwork(t, h, "weave-"+strings.ReplaceAll(sub, "/", "-")); err != nil {
			t.Error(err)
		}
	})
	address := inSubnet(sub, 5)
	script := "tool addrs | grep -q " + address + "/24 && echo yes && exit 7"
	out, err := h.Weave("run", address+"/24", "--rm", "-e", "A=1", dockerlab.Image, "sh", "-c", script)
	if out != "yes" || exitCode(err) != 7 {
		t.Errorf("got %q, %v", out, err)
	}
	for _, option := range []string{"--rm", "-i", "-d"} {
		out, err := h.Weave("run", "net:"+sub, "--name=nothing", option, dockerlab.Image, "no-such-command")
		if exitCode(err) != 127 {
			t.Errorf("got %q, exit status %d, %v", out, exitCode(err), err)
		}
		refused(t, h, []string{"No such"}, "inspect", "nothing")
	}
	out, err = h.Run("sh", "-c", fmt.Sprintf("echo there and back | %s/weave run net:%s --rm -i %s sh -c 'cat; echo bad >&2'", dockerlab.BuildDir(), sub, dockerlab.Image))
	if out != "there and back" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
	// On a terminal, whose size the container hears of once it runs.
	typed := fmt.Sprintf("%s/weave run net:%s --rm -it %s timeout 20 sh -c 'until stty size | grep 33.99; do sleep 0.1; done; exit 3'", dockerlab.BuildDir(), sub, dockerlab.Image)
	out, err = h.Run("script", "-qec", "stty rows 33 cols 99; "+typed, "/dev/null")
	if exitCode(err) != 3 {
		t.Errorf("got %q, %v", out, err)
	}
	refusedWeave(t, h, []string{"terminal"}, "run", "net:"+sub, "--rm", "-it", dockerlab.Image, "true")
	name := uniqueName("container")
	outer := fmt.Sprintf(`%s/weave run net:%s --rm --name %s %s sh -c "trap 'echo got it; exit 5' TERM; touch /ready; while :; do sleep 0.1; done" &
		until docker exec %[3]s test -e /ready 2>/dev/null; do sleep 0.1; done; kill -TERM $!; wait $!`, dockerlab.BuildDir(), sub, name, dockerlab.Image)
	out, err = h.Run("sh", "-c", outer)
	if out != "got it" || exitCode(err) != 5 {
		t.Errorf("got %q, exit status %d, %v", out, exitCode(err), err)
	}
	if left := docker(t, h, "ps", "-aq", "--filter", "name="+name); left != "" {
		t.Errorf("left is container %s", left)
	}
}

func exitCode(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return 0
}
