package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"weave/test/dockerlab"
)

const (
	// gone is how soon a name that nobody has any more leaves the answers.
	gone = 10 * time.Second
	// usuallyGone is how soon in most cases: a busy machine may be late once.
	usuallyGone = 2 * time.Second
)

// TestNames: a container of one host is found from another by all that it is called,
// on its segment only, as long as it runs, and Docker's own names stay.
func TestNames(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	out := startOutside(t, hs[0])
	netw := network(t, hs, "--subnet", subnet())
	other := network(t, hs, "--subnet", subnet(), "-o", "weave.dns=local-first")
	alias, everywhere := uniqueName("alias"), uniqueName("everywhere")
	web := run(t, hs[0], netw, []string{"--network-alias", alias, "--network-alias", everywhere, "--hostname", "ws-" + alias})
	asker := run(t, hs[1], netw, out.options("--network-alias", everywhere))
	here := run(t, hs[0], netw, out.options())
	stranger := run(t, hs[1], other, out.options("--network-alias", everywhere))
	guest := run(t, hs[1], "container:"+asker.name, nil)

	short := docker(t, hs[0], "inspect", "-f", "{{.Id}}", web.name)[:12]
	for _, name := range []string{web.name, alias, strings.ToUpper(alias), "ws-" + alias, short, web.name + ".weave.local", alias + ".weave.local."} {
		for _, c := range []container{asker, here} {
			c.finds(name, web.ip())
		}
	}
	asker.findsAs(web.ip(), web.name)
	asker.finds(asker.name, asker.ip())
	for _, c := range []container{asker, guest} {
		c.looksUp("udp", alias, web.ip())
		c.looksUp("tcp", web.name+".weave.local", web.ip())
		c.looksUp("udp", web.ip(), called(web.name, alias, everywhere, "ws-"+alias, short))
	}
	if asked := out.wasAsked(); slices.ContainsFunc(asked, func(q string) bool { return strings.Contains(q, alias) }) {
		t.Errorf("names of ours were asked outside: %q", asked) // those of their other kind of address, too
	}
	asker.asksOutside(out)
	for _, name := range []string{web.name, alias, web.name + ".weave.local"} {
		stranger.misses(name)
	}
	stranger.finds(stranger.name, stranger.ip())
	comesFirst(t, asker, everywhere, web.ip(), asker.ip())

	docker(t, hs[0], "pause", web.name)
	asker.finds(alias, web.ip())
	docker(t, hs[0], "unpause", web.name)
	renamed, address := uniqueName("renamed"), web.ip()
	docker(t, hs[0], "rename", web.name, renamed)
	asker.finds(renamed, address)
	asker.misses(web.name)
	docker(t, hs[0], "rename", renamed, web.name)
	asker.finds(web.name, address)

	docker(t, hs[1], "network", "connect", "--alias", alias, other, asker.name)
	stranger.finds(alias, on(other, asker).ip())
	asker.finds(stranger.name, stranger.ip())
	docker(t, hs[1], "network", "disconnect", other, asker.name)
	stranger.misses(alias)
	asker.misses(stranger.name)
	asker.finds(alias, web.ip())
	localFirst(t, everywhere, here, stranger, other)
	besideDockers(t, asker)
	madeByHand(t, asker, stranger, web)
	timeGone(t, web, alias, asker, here)
}

// called are the names of an address, in order, joined by spaces.
func called(names ...string) string {
	slices.Sort(names)
	return strings.Join(names, ".weave.local. ") + ".weave.local."
}

// on is the container as it is seen on another of its networks.
func on(network string, c container) container {
	c.net = network
	return c
}

// comesFirst holds which of a name's addresses are told first, each at times.
func comesFirst(t *testing.T, c container, name string, want ...string) {
	t.Helper()
	const asked, most = 10, 200 // others may ask in between, which turns the order, too
	first := map[string]bool{}
	for n := 0; n < asked || n < most && len(first) < len(want); n++ {
		eventually(t, gone, func() error {
			_, all, err := c.asks(name, dnsmessage.TypeA)
			if err != nil || len(all) < 2 {
				return errors.Join(err, fmt.Errorf("%s is told %s for name %s", c.name, all, name))
			}
			first[all[0]] = true
			return nil
		})
	}
	for _, address := range want {
		if !first[address] || len(first) != len(want) {
			t.Fatalf("of name %s %s is told %v first, want %s", name, c.name, first, want)
		}
	}
}

// localFirst holds that on a network with that order the address of the same host comes
// first, whatever the others are.
func localFirst(t *testing.T, alias string, here, there container, netw string) {
	t.Helper()
	docker(t, here.host, "network", "connect", "--alias", alias, netw, here.name)
	near, far := there.ip(), on(netw, here).ip()
	there.finds(alias, near+" "+far)
	comesFirst(t, there, alias, near)
	comesFirst(t, here, alias+".weave.local", far) // before those on its other network, which has no order
}

// besideDockers has a container on a network of Docker's own as well: names of both
// are found.
func besideDockers(t *testing.T, c container) {
	t.Helper()
	bridge := uniqueName("bridge")
	docker(t, c.host, "network", "create", bridge)
	t.Cleanup(func() {
		if err := removeNetwork(t, c.host, bridge); err != nil {
			t.Error(err)
		}
	})
	neighbour := run(t, c.host, bridge, nil)
	docker(t, c.host, "network", "connect", bridge, c.name)
	c.finds(neighbour.name, neighbour.ip())
	c.finds(c.name, c.ip())
	c.findsAs(c.ip(), c.name)
	docker(t, c.host, "network", "disconnect", bridge, c.name)
	c.misses(neighbour.name)
}

// timeGone ends a container in several ways, and holds how soon all who ask are told
// that nobody has its name.
func timeGone(t *testing.T, c container, name string, askers ...container) {
	t.Helper()
	var took []time.Duration
	for i, command := range [][]string{{"stop"}, {"kill"}, {"rm", "-f"}} {
		if i > 0 {
			docker(t, c.host, "start", c.name)
			for _, a := range askers {
				a.finds(name, c.ip())
			}
		}
		docker(t, c.host, append(command, c.name)...)
		began := time.Now()
		for _, a := range askers {
			a.misses(name)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("a name is gone from all hosts %v after its container ended", took)
	if median := took[len(took)/2]; median > usuallyGone {
		t.Errorf("a name is gone %s after its container ended, want %s", median, usuallyGone)
	}
}

// madeByHand adds names, and takes them back. A container's name stays its own, too.
func madeByHand(t *testing.T, asker, stranger, web container) {
	t.Helper()
	name, h := uniqueName("printer")+".example.org", asker.host
	weave(t, h, "dns-add", name, "192.0.2.7")
	asker.finds(name, "192.0.2.7")
	asker.findsAs("192.0.2.7", name)
	stranger.finds(name, "192.0.2.7")
	weave(t, h, "dns-add", name, "192.0.2.8", "fd00::8", "--network", stranger.net)
	stranger.finds(name, "192.0.2.7 192.0.2.8 fd00::8")
	asker.finds(name, "192.0.2.7")
	if got := weave(t, h, "dns-lookup", "192.0.2.8"); !strings.Contains(got, name) {
		t.Errorf("weave dns-lookup prints %q", got)
	}
	weave(t, h, "dns-add", web.name, "192.0.2.9")
	asker.finds(web.name, web.ip()+" 192.0.2.9")
	_, err := web.host.Weave("dns-remove", web.name)
	if err == nil || !strings.Contains(err.Error(), nickname(h)) || !strings.Contains(err.Error(), "remove it there") {
		t.Errorf("removed on another host: %v", err)
	}
	weave(t, h, "dns-remove", web.name)
	asker.finds(web.name, web.ip())
	if _, err := h.Weave("dns-remove", web.name); err == nil || !strings.Contains(err.Error(), "no such name was added") {
		t.Errorf("a container's name is removed: %v", err)
	}
	weave(t, h, "dns-remove", name)
	weave(t, h, "dns-remove", name, "192.0.2.8", "fd00::8", "--network", stranger.net)
	asker.misses(name)
	stranger.misses(name)
}

// TestNamesOff: a network may leave names to Docker.
func TestNamesOff(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	out := startOutside(t, hs[1])
	netw := network(t, hs, "--subnet", subnet(), "-o", "weave.dns=off")
	web, asker, beside := run(t, hs[0], netw, nil), run(t, hs[1], netw, out.options()), run(t, hs[1], netw, nil)
	asker.finds(beside.name, beside.ip()) // by Docker
	asker.misses(web.name)
	if rules := inSandbox(t, asker, "nft", "list", "tables"); strings.Contains(rules, "weave") {
		t.Errorf("rules in a sandbox that is to be left alone: %s", rules)
	}
}

// TestNamesRestart: names work again soon after the plugin was killed, its rules are
// never doubled, and they go with a plugin that is disabled. Its hosts have a name
// server for others, too.
func TestNamesRestart(t *testing.T) {
	t.Parallel()
	sub := subnet()
	hs := spareHosts(t, 2, func(i int, first string) map[string]string {
		settings := joined(i, first)
		settings["WEAVE_DNS_LISTEN"] = []string{first, nobody}[i]
		settings["WEAVE_DNS_SEGMENTS"] = sub
		return settings
	})
	awaitPeers(t, hs)
	netw, other := network(t, hs, "--subnet", sub), network(t, hs, "--subnet", subnet())
	out := startOutside(t, hs[1])
	web, asker := run(t, hs[0], netw, nil), run(t, hs[1], netw, out.options())
	guest, hidden := run(t, hs[1], "container:"+asker.name, nil), run(t, hs[1], other, nil)
	asker.finds(web.name, web.ip())
	othersAsk(t, hs, netip.AddrPortFrom(hs[0].Net().IP4(), 53), []container{web, asker}, hidden)
	awaitDeaf(t, hs[1], "set WEAVE_DNS_LISTEN to an address of this host", nobody, "cannot assign requested address")

	before := inSandbox(t, asker, "nft", "list", "ruleset")
	for range 3 {
		if err := hs[1].KillPlugin(); err != nil {
			t.Fatal(err)
		}
		began, own, others := time.Now(), asker.ip(), web.ip()
		asker.finds(asker.name, own)
		asker.finds(web.name, others)
		t.Logf("after the plugin was killed, all names are answered within %s", time.Since(began).Round(time.Millisecond))
		guest.looksUp("udp", web.name, others)
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
	at := netip.AddrPortFrom(hs[1].Net().IP6(), 5353)
	free := occupyPort(t, hs[1], at)
	if err := hs[1].SetPlugin(map[string]string{"WEAVE_DNS_LISTEN": at.String()}); err != nil {
		t.Fatal(err)
	}
	if err := hs[1].EnablePlugin(); err != nil {
		t.Fatal(err)
	}
	asker.finds(web.name, web.ip())
	awaitDeaf(t, hs[1], "set WEAVE_DNS_LISTEN to another one", at.String(), "address already in use")
	free()
	othersAsk(t, hs, at, []container{web, asker}, hidden)
	if err := hs[0].PowerOff(); err != nil {
		t.Fatal(err)
	}
	eventually(t, noticed, func() error { return asker.missing(web.name) })
}

// nobody is an address that no host of the lab has.
const nobody = "10.99.0.250"

// othersAsk asks a host's server for others, from that host and from another: it
// answers for some containers, and for nothing else.
func othersAsk(t *testing.T, hs []*dockerlab.Host, server netip.AddrPort, known []container, hidden container) {
	t.Helper()
	eventually(t, gone, func() error {
		var said []string
		for _, h := range hs {
			s, err := statusOf(h)
			if err != nil || s.DNS == nil {
				return errors.Join(err, fmt.Errorf("%s: no names yet", h.Name()))
			}
			said = append(said, s.DNS.Listen.String())
		}
		if !slices.Contains(said, server.String()) {
			return fmt.Errorf("the hosts say to listen on %s, none on %s", said, server)
		}
		return nil
	})
	var reversed []string
	for _, c := range known {
		id := docker(t, c.host, "inspect", "-f", "{{.Id}}", c.name)[:12]
		reversed = append(reversed, called(id, c.name))
	}
	for _, h := range hs {
		for _, protocol := range []string{"udp", "tcp"} {
			is := func(name string, kind dnsmessage.Type, want dnsmessage.RCode, answer string) {
				t.Helper()
				eventually(t, gone, func() error {
					code, all, err := question{protocol: protocol, name: name, kind: kind}.tell(h.Net().NamespacePath(), server.String())
					if err == nil && (code != want || strings.Join(all, " ") != answer) {
						err = fmt.Errorf("%s by %s on %s: %v, %s; want %v, %s", name, protocol, h.Name(), code, all, want, answer)
					}
					return err
				})
			}
			for i, c := range known {
				is(c.name, dnsmessage.TypeA, dnsmessage.RCodeSuccess, c.ip())
				is(c.name+".weave.local", dnsmessage.TypeA, dnsmessage.RCodeSuccess, c.ip())
				is(c.name, dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, "")
				is(reverse(c.ip()), dnsmessage.TypePTR, dnsmessage.RCodeSuccess, reversed[i])
			}
			is(hidden.name, dnsmessage.TypeA, dnsmessage.RCodeRefused, "")
			is(hidden.name+".weave.local", dnsmessage.TypeA, dnsmessage.RCodeNameError, "")
			is(reverse(hidden.ip()), dnsmessage.TypePTR, dnsmessage.RCodeRefused, "")
			is("www.example.org", dnsmessage.TypeA, dnsmessage.RCodeRefused, "")
		}
	}
}

// awaitDeaf waits until a host's status says why others are not answered, by all of
// some words, and what to do about it.
func awaitDeaf(t *testing.T, h *dockerlab.Host, do string, words ...string) {
	t.Helper()
	eventually(t, soon, func() error {
		s, err := statusOf(h)
		if err != nil {
			return err
		}
		if s.DNS != nil && s.DNS.Listen.IsValid() {
			return fmt.Errorf("%s says to listen on %s", h.Name(), s.DNS.Listen)
		}
		for _, p := range s.Problems {
			missing := func(word string) bool { return !strings.Contains(p.What, word) }
			if strings.Contains(p.Do, do) && !slices.ContainsFunc(words, missing) {
				return nil
			}
		}
		return fmt.Errorf("%s has no problem with %q to do, of %q: %+v", h.Name(), do, words, s.Problems)
	})
}

// occupyPort has somebody else listen on a host, by TCP, until free is called.
func occupyPort(t *testing.T, h *dockerlab.Host, at netip.AddrPort) (free func()) {
	t.Helper()
	var l net.Listener
	if err := h.Net().Do(func() (err error) { l, err = net.Listen("tcp", at.String()); return err }); err != nil {
		t.Fatal(err)
	}
	free = func() { _ = l.Close() }
	t.Cleanup(free)
	return free
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
