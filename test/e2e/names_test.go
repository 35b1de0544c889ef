package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// gone is how soon a name that nobody has any more leaves the answers.
const gone = 10 * time.Second

// TestNames: a container of one host is found from another by all that it is called,
// on its segment only, as long as it runs, and Docker's own names stay.
func TestNames(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	netw := network(t, hs, "--subnet", subnet())
	other := network(t, hs, "--subnet", subnet())
	alias := uniqueName("alias")
	web := run(t, hs[0], netw, []string{"--network-alias", alias, "--hostname", "ws-" + alias})
	asker, here := run(t, hs[1], netw, nobodyOutside()), run(t, hs[0], netw, nil)
	stranger := run(t, hs[1], other, nobodyOutside())

	short := docker(t, hs[0], "inspect", "-f", "{{.Id}}", web.name)[:12]
	for _, name := range []string{web.name, alias, strings.ToUpper(alias), "ws-" + alias, short, web.name + ".weave.local", alias + ".weave.local."} {
		for _, c := range []container{asker, here} {
			c.finds(name, web.ip())
		}
	}
	asker.in(t).findsAs(web.ip(), web.name)
	asker.finds(asker.name, asker.ip())
	for _, name := range []string{web.name, alias, web.name + ".weave.local"} {
		stranger.misses(name)
	}
	stranger.finds(stranger.name, stranger.ip())

	docker(t, hs[0], "pause", web.name)
	asker.finds(alias, web.ip())
	docker(t, hs[0], "unpause", web.name)
	renamed, address := uniqueName("renamed"), web.ip()
	docker(t, hs[0], "rename", web.name, renamed)
	asker.finds(renamed, address)
	docker(t, hs[0], "rename", renamed, web.name)
	asker.finds(web.name, address)
	docker(t, hs[0], "stop", web.name)
	asker.misses(web.name)
	asker.misses(alias)
	docker(t, hs[0], "start", web.name)
	asker.finds(alias, web.ip())

	docker(t, hs[1], "network", "connect", "--alias", alias, other, asker.name)
	stranger.finds(alias, docker(t, hs[1], "inspect", "-f", "{{(index .NetworkSettings.Networks \""+other+"\").IPAddress}}", asker.name))
	asker.finds(stranger.name, stranger.ip())
	docker(t, hs[1], "network", "disconnect", other, asker.name)
	stranger.misses(alias)
	asker.misses(stranger.name)
	asker.finds(alias, web.ip())
	madeByHand(t, asker, stranger)
}

// madeByHand adds names, and takes them back.
func madeByHand(t *testing.T, asker, stranger container) {
	t.Helper()
	name, h := uniqueName("printer")+".example.org", asker.host
	weave(t, h, "dns-add", name, "192.0.2.7")
	asker.finds(name, "192.0.2.7")
	stranger.finds(name, "192.0.2.7")
	weave(t, h, "dns-add", name, "192.0.2.8", "--network", stranger.net)
	stranger.finds(name, "192.0.2.7 192.0.2.8")
	asker.finds(name, "192.0.2.7")
	if got := weave(t, h, "dns-lookup", "192.0.2.8"); !strings.Contains(got, name) {
		t.Errorf("weave dns-lookup prints %q", got)
	}
	weave(t, h, "dns-remove", name)
	weave(t, h, "dns-remove", name, "192.0.2.8", "--network", stranger.net)
	asker.misses(name)
	stranger.misses(name)
}

// TestNamesOff: a network may leave names to Docker.
func TestNamesOff(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	netw := network(t, hs, "--subnet", subnet(), "-o", "weave.dns=off")
	web, asker, beside := run(t, hs[0], netw, nil), run(t, hs[1], netw, nobodyOutside()), run(t, hs[1], netw, nil)
	asker.finds(beside.name, beside.ip()) // by Docker
	asker.misses(web.name)
	if rules := inSandbox(t, asker, "nft", "list", "tables"); strings.Contains(rules, "weave") {
		t.Errorf("rules in a sandbox that is to be left alone: %s", rules)
	}
}

// TestNamesRestart: names work again soon after the plugin was killed, its rules are
// never doubled, and they go with a plugin that is disabled.
func TestNamesRestart(t *testing.T) {
	t.Parallel()
	hs := spareHosts(t, 2, joined)
	awaitPeers(t, hs)
	netw := network(t, hs, "--subnet", subnet())
	web, asker := run(t, hs[0], netw, nil), run(t, hs[1], netw, nil)
	asker.finds(web.name, web.ip())
	before := inSandbox(t, asker, "nft", "list", "ruleset")
	for range 3 {
		if err := hs[1].KillPlugin(); err != nil {
			t.Fatal(err)
		}
		began, own, others := time.Now(), asker.ip(), web.ip()
		asker.finds(asker.name, own)
		asker.finds(web.name, others)
		t.Logf("after the plugin was killed, all names are answered within %s", time.Since(began).Round(time.Millisecond))
	}
	eventually(t, soon, func() error {
		after := inSandbox(t, asker, "nft", "list", "ruleset")
		if strings.Count(after, "table") != strings.Count(before, "table") || strings.Count(after, "\n") != strings.Count(before, "\n") {
			return fmt.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		return nil
	})
	if err := hs[1].DisablePlugin(); err != nil {
		t.Fatal(err)
	}
	if rules := inSandbox(t, asker, "nft", "list", "tables"); strings.Contains(rules, "weave") {
		t.Errorf("rules after an orderly stop: %s", rules)
	}
	asker.finds(asker.name, asker.ip()) // by Docker
	if err := hs[1].EnablePlugin(); err != nil {
		t.Fatal(err)
	}
	asker.finds(web.name, web.ip())
	if err := hs[0].PowerOff(); err != nil {
		t.Fatal(err)
	}
	eventually(t, noticed, func() error { return asker.missing(web.name) })
}

// nobodyOutside has Docker ask for unknown names where nobody listens, so that it knows
// soon.
func nobodyOutside() []string { return []string{"--dns", "127.0.0.1"} }

// finds waits until a name has certain addresses, joined by spaces.
func (c container) finds(name, addresses string) {
	c.t.Helper()
	eventually(c.t, gone, func() error {
		got, err := c.try("tool", "lookup", "-timeout=1s", "udp", name) // what is lost is asked again after 5 s by itself
		if err != nil || strings.Join(strings.Fields(got), " ") != addresses {
			return errors.Join(err, fmt.Errorf("%s finds %q by name %s, want %s", c.name, got, name, addresses))
		}
		return nil
	})
}

// findsAs waits until an address has a certain name.
func (c container) findsAs(address, name string) {
	c.t.Helper()
	eventually(c.t, gone, func() error {
		got, err := c.try("tool", "lookup", "udp", address)
		if names := strings.Fields(got); err != nil || !slices.Contains(names, name+".weave.local.") {
			return errors.Join(err, fmt.Errorf("%s finds %q for address %s, want %s", c.name, got, address, name))
		}
		return nil
	})
}

// misses waits until there is nothing by a name.
func (c container) misses(name string) {
	c.t.Helper()
	eventually(c.t, gone, func() error { return c.missing(name) })
}

// missing asks for a name that nobody has. Docker asks servers outside for it, and in
// the lab none of them answers.
func (c container) missing(name string) error {
	got, err := c.try("tool", "lookup", "-timeout=2s", "udp", name)
	if err == nil {
		return fmt.Errorf("%s finds %q by name %s", c.name, got, name)
	}
	for _, unknown := range []string{"no such host", "server misbehaving", "timeout"} {
		if strings.Contains(err.Error(), unknown) {
			return nil
		}
	}
	return err
}

// inSandbox runs a command of the host in a container's network namespace.
func inSandbox(t *testing.T, c container, command ...string) string {
	t.Helper()
	out, err := c.host.Run("nsenter", append([]string{"--net=" + filepath.Clean(sandboxOf(t, c))}, command...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
