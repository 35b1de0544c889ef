package attach

import (
	"context"
	"io/fs"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"weave/plugin/engine"
)

func wants(t *testing.T, words ...string) (all []Want) {
	t.Helper()
	for _, word := range words {
		w, err := Parse(word, defaultSubnet)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, w)
	}
	return all
}

func nobody(string, netip.Addr) (string, bool) { return "", false }

func attachTo(t *testing.T, d *Docker, name string, words ...string) ([]string, error) {
	t.Helper()
	done, err := d.Attach(t.Context(), Request{Container: name, Wants: wants(t, words...), Holder: nobody})
	if err != nil {
		return nil, err
	}
	var all []string
	for _, a := range done.Addresses {
		text := a.String()
		if a.Old {
			text += " old"
		}
		all = append(all, text)
	}
	return all, nil
}

func equal(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func says(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one that says %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q: %v", w, err)
		}
	}
}

func TestAttachMakesNetworks(t *testing.T) {
	d, f := newFake()
	got, err := attachTo(t, d, "web", "192.168.0.9/24", "fd00::9/64", "net:default")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "addresses", got, "192.168.0.9/24", "fd00::9/64", "10.32.0.2/16")
	equal(t, "networks", f.names(), "weave-192.168.0.0-24", "weave-fd00---64", "weave-10.32.0.0-16")
	for i, o := range f.made {
		is6 := i == 1
		if o.Driver != "weave" || o.IPAM.Driver != "weave" || o.Labels[MadeLabel] != MadeByAttach || (o.EnableIPv6 != nil) != is6 || (o.Options[segmentOption] != "") != is6 {
			t.Errorf("network %d is made with %+v", i, o)
		}
	}
}

func TestAttachUsesNetworks(t *testing.T) {
	plugin := weaveNetwork("plugin", "10.2.0.0/24")
	plugin.Driver = "weavenet:latest"
	other := weaveNetwork("other", "10.3.0.0/24")
	other.Driver = "macvlan"
	d, f := newFake(weaveNetwork("both", "fd01::/64", "10.1.0.0/24"), plugin, other)
	got, err := attachTo(t, d, "web", "fd01::9/64", "net:10.2.0.0/24", "10.1.0.9/24", "net:10.3.0.0/24")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "addresses", got, "fd01::9/64", "10.2.0.2/24", "10.1.0.9/24", "10.3.0.2/24")
	equal(t, "its networks", f.on("web"), "both", "plugin", "weave-10.3.0.0-24")
	if first := f.connected[0]; first.IPv4Address.String() != "10.1.0.9" || first.IPv6Address.String() != "fd01::9" {
		t.Errorf("the network of two families is asked for %+v", first)
	}
}

func TestAttachAgain(t *testing.T) {
	d, f := newFake()
	if _, err := attachTo(t, d, "web", "10.1.0.9/24"); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"10.1.0.9/24", "net:10.1.0.0/24"} {
		got, err := attachTo(t, d, "web", word)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "addresses", got, "10.1.0.9/24 old")
	}
	_, err := attachTo(t, d, "web", "10.1.0.8/24")
	says(t, err, "web", "10.1.0.9", "weave detach")
	if len(f.connected) != 1 {
		t.Errorf("connected %d times", len(f.connected))
	}
}

// TestAttachRefuses: whatever is wrong is found before the first change.
func TestAttachRefuses(t *testing.T) {
	named := weaveNetwork("two", "10.1.0.0/24")
	named.Options[segmentOption] = "blue"
	taken := weaveNetwork("weave-10.9.0.0-24", "10.8.0.0/24")
	d, f := newFake(weaveNetwork("one", "10.1.0.0/24"), named, taken)
	f.add("on-host", "host", true)
	f.add("on-none", "none", true)
	f.add("on-other", "container:abc", true)
	f.add("stopped", "default", false)
	before := f.names()
	for _, c := range []struct {
		container string
		wants     string
		words     string
	}{
		{"nobody", "net:default", "nobody docker"},
		{"on-host", "net:default", "on-host host expose"},
		{"on-none", "net:default", "on-none none"},
		{"on-other", "net:default", "on-other container:abc"},
		{"stopped", "net:default", "docker start stopped"},
		{"web", "net:default 10.1.0.2/24", "one two --ip"},
		{"web", "net:default 10.9.0.2/24", "weave-10.9.0.0-24 exists"},
		{"web", "net:default 10.8.0.2/16", "10.8.0.0/16 10.8.0.0/24 weave-10.9.0.0-24 length"},
		{"web", "10.5.0.2/24 10.5.0.3/24", "10.5.0.2 10.5.0.3"},
		{"web", "10.5.0.2/24 10.5.0.3/16", "10.5.0.0/24 10.5.0.0/16 overlap"},
	} {
		_, err := attachTo(t, d, c.container, strings.Fields(c.wants)...)
		says(t, err, strings.Fields(c.words)...)
	}
	equal(t, "networks", f.names(), before...)
	if len(f.connected) > 0 {
		t.Errorf("connected %v", f.connected)
	}
}

// TestAddressInUse: the holder is that of the segment, not of an address that
// looks the same elsewhere.
func TestAddressInUse(t *testing.T) {
	blue := weaveNetwork("blue", "10.2.0.0/24")
	blue.Options[segmentOption] = "blue"
	d, f := newFake(weaveNetwork("dual", "fd01::/64", "10.1.0.0/24"), blue)
	var asked []string
	holder := func(segment string, addr netip.Addr) (string, bool) {
		asked = append(asked, segment)
		return "db on host h2", addr.String() == "10.4.0.9"
	}
	r := Request{Container: "web", Wants: wants(t, "fd01::9/64", "10.2.0.9/24", "10.3.0.9/24", "fd02::9/64", "10.4.0.9/24"), Holder: holder}
	_, err := d.Attach(t.Context(), r)
	says(t, err, "10.4.0.9", "db on host h2", "net:10.4.0.0/24")
	says(t, d.Check(t.Context(), r.Wants, holder), "db on host h2")
	equal(t, "segments", asked[:5], "10.1.0.0/24", "name:blue", "10.3.0.0/24", "name:fd02---64", "10.4.0.0/24")
	if len(f.connected)+len(f.made) > 0 {
		t.Error("something was done")
	}
}

func TestAttachTakesBack(t *testing.T) {
	for _, failing := range []string{"create weave-10.3.0.0-24", "connect weave-10.3.0.0-24"} {
		d, f := newFake(weaveNetwork("mine", "10.1.0.0/24"))
		f.fail[failing] = errPlugin
		_, err := attachTo(t, d, "web", "net:10.1.0.0/24", "net:10.2.0.0/24", "net:10.3.0.0/24")
		says(t, err, "weave-10.3.0.0-24", "address 10.2.0.9: in use as a gateway")
		if strings.Contains(err.Error(), "daemon") || strings.Contains(err.Error(), "IpamDriver") {
			t.Errorf("it speaks of the inner parts: %v", err)
		}
		equal(t, "networks", f.names(), "mine")
		equal(t, "its networks", f.on("web"))
	}
}

// TestAttachInterrupted: the step under way is waited for, so that it can be taken
// back; there is no other.
func TestAttachInterrupted(t *testing.T) {
	d, f := newFake()
	ctx, cancel := context.WithCancel(t.Context())
	f.onConnect = cancel
	_, err := d.Attach(ctx, Request{Container: "web", Wants: wants(t, "net:10.1.0.0/24", "net:10.2.0.0/24"), Holder: nobody})
	says(t, err, "canceled")
	if len(f.connected) != 1 || len(f.networks) > 0 || len(f.on("web")) > 0 {
		t.Errorf("connected %v, left %v, on %v", f.connected, f.names(), f.on("web"))
	}
}

// TestUndoGoesOn: taking back does not end with the caller's context.
func TestUndoGoesOn(t *testing.T) {
	d, f := newFake()
	ctx, cancel := context.WithCancel(t.Context())
	done, err := d.Attach(ctx, Request{Container: "web", Wants: wants(t, "net:default"), Holder: nobody})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := d.Undo(ctx, done); err != nil || len(f.networks) > 0 || len(f.on("web")) > 0 {
		t.Errorf("%v, left %v", err, f.networks)
	}
}

// TestNetworkMadeMeanwhile: two commands may make one at the same time.
func TestNetworkMadeMeanwhile(t *testing.T) {
	d, f := newFake()
	other := weaveNetwork("other", "10.1.0.0/24")
	other.ID = "id-of-other"
	f.meanwhile, f.fail["create weave-10.1.0.0-24"] = &other, errPlugin
	name, created, err := d.Network(t.Context(), netip.MustParsePrefix("10.1.0.0/24"), "expose")
	if name != "other" || created || err != nil {
		t.Errorf("got %s, %t, %v", name, created, err)
	}
}

func TestNetworkIsLabelled(t *testing.T) {
	d, f := newFake()
	name, created, err := d.Network(t.Context(), netip.MustParsePrefix("10.1.0.0/24"), "expose")
	if name != "weave-10.1.0.0-24" || !created || err != nil || f.made[0].Labels[MadeLabel] != "expose" {
		t.Errorf("got %s, %t, %v, %v", name, created, err, f.made)
	}
}

// TestFresh: a container that is to be started is only connected.
func TestFresh(t *testing.T) {
	d, f := newFake()
	f.add("new", "default", false)
	done, err := d.Attach(t.Context(), Request{Container: "new", Wants: wants(t, "10.1.0.9/24"), Holder: nobody, Fresh: true})
	if err != nil || len(done.Addresses) > 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	equal(t, "its networks", f.on("new"), "weave-10.1.0.0-24")
	if _, err := d.Attach(t.Context(), Request{Container: "new", Wants: wants(t, "10.1.0.9/24"), Holder: nobody, Fresh: true}); err != nil {
		t.Error(err)
	}
}

// TestAddresses: of a container that runs, of one that has ended, of one that is gone.
func TestAddresses(t *testing.T) {
	d, f := newFake(weaveNetwork("mine", "10.1.0.0/24"))
	f.add("ended", "default", false)
	if _, err := attachTo(t, d, "web", "10.1.0.9/24", "net:10.2.0.0/24"); err != nil {
		t.Fatal(err)
	}
	fresh := Request{Container: "ended", Wants: wants(t, "10.1.0.8/24", "net:10.2.0.0/24"), Holder: nobody, Fresh: true}
	if _, err := d.Attach(t.Context(), fresh); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"web": {"10.1.0.9/24 mine", "10.2.0.2/24 weave-10.2.0.0-24"}, "ended": {"10.1.0.8/24 mine"}, "gone": nil,
	} {
		all, err := d.Addresses(t.Context(), name, wants(t, "net:10.1.0.0/24", "net:10.2.0.0/24", "net:10.3.0.0/24"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []string
		for _, a := range all {
			got = append(got, a.String()+" "+a.Network)
		}
		equal(t, name, got, want...)
	}
}

func detach(t *testing.T, d *Docker, name string, words ...string) ([]string, error) {
	t.Helper()
	left, err := d.Detach(t.Context(), name, wants(t, words...), nil)
	var all []string
	for _, a := range left {
		all = append(all, a.String())
	}
	return all, err
}

func TestDetach(t *testing.T) {
	d, f := newFake(weaveNetwork("mine", "10.1.0.0/24", "fd01::/64"))
	f.add("stopped", "default", false, "weave-10.2.0.0-24")
	if _, err := attachTo(t, d, "web", "10.1.0.9/24", "10.2.0.9/24", "10.3.0.9/24"); err != nil {
		t.Fatal(err)
	}
	_, err := detach(t, d, "web", "10.3.0.9/24", "10.2.0.8/24")
	says(t, err, "10.2.0.9", "not 10.2.0.8")
	_, err = detach(t, d, "web", "10.3.0.9/24", "net:10.4.0.0/24")
	says(t, err, "web", "10.4.0.0/24")
	equal(t, "its networks after refusals", f.on("web"), "mine", "weave-10.2.0.0-24", "weave-10.3.0.0-24")

	got, err := detach(t, d, "web", "net:10.3.0.0/24", "10.1.0.9/24")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "addresses", got, "10.3.0.9/24", "10.1.0.9/24")
	equal(t, "networks", f.names(), "mine", "weave-10.2.0.0-24")
	if got, err = detach(t, d, "web"); err != nil {
		t.Fatal(err)
	}
	equal(t, "addresses", got, "10.2.0.9/24")
	equal(t, "networks, one that a stopped container is on", f.names(), "mine", "weave-10.2.0.0-24")
	_, err = detach(t, d, "web")
	says(t, err, "web", "no weave network")
	_, err = detach(t, d, "nobody")
	says(t, err, "nobody")
	if _, err := detach(t, d, "stopped"); err != nil {
		t.Error(err)
	}
	equal(t, "networks", f.names(), "mine")
}

// TestDetachKeeps: a network that the host itself uses outlives its last container.
func TestDetachKeeps(t *testing.T) {
	d, f := newFake()
	f.add("web", "default", true)
	if _, err := attachTo(t, d, "web", "10.1.0.9/24", "10.2.0.9/24"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Detach(t.Context(), "web", nil, []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}); err != nil {
		t.Fatal(err)
	}
	equal(t, "networks", f.names(), "weave-10.2.0.0-24")
}

// TestRemoveUnused: a network that weave made goes with the last that used it,
// whatever it was made for, and no other.
func TestRemoveUnused(t *testing.T) {
	own := weaveNetwork("own", "10.4.0.0/24")
	d, f := newFake(own)
	prefixes := func(words ...string) (all []netip.Prefix) {
		for _, w := range words {
			all = append(all, netip.MustParsePrefix(w))
		}
		return all
	}
	for _, subnet := range prefixes("10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "10.5.0.0/24") {
		if _, _, err := d.Network(t.Context(), subnet, "expose"); err != nil {
			t.Fatal(err)
		}
	}
	f.add("stopped", "default", false, "weave-10.2.0.0-24")
	hidden := prefixes("10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24", "10.9.0.0/24")
	if err := d.RemoveUnused(t.Context(), hidden, prefixes("10.3.0.0/24")); err != nil {
		t.Fatal(err)
	}
	equal(t, "networks", f.names(), "own", "weave-10.2.0.0-24", "weave-10.3.0.0-24", "weave-10.5.0.0-24")
	if _, err := detach(t, d, "stopped"); err != nil {
		t.Fatal(err)
	}
	equal(t, "networks after a detach", f.names(), "own", "weave-10.3.0.0-24", "weave-10.5.0.0-24")
	f.fail["remove weave-10.3.0.0-24"] = errdefs.ErrPermissionDenied // somebody came
	if err := d.RemoveUnused(t.Context(), hidden, nil); err != nil {
		t.Error(err)
	}
	f.fail["remove weave-10.3.0.0-24"] = errPlugin
	says(t, d.RemoveUnused(t.Context(), hidden, nil), "weave-10.3.0.0-24")
}

// TestDetachGoesOn: one network that cannot be left does not keep it on another.
func TestDetachGoesOn(t *testing.T) {
	d, f := newFake(weaveNetwork("one", "10.1.0.0/24"), weaveNetwork("two", "10.2.0.0/24"))
	if _, err := attachTo(t, d, "web", "10.1.0.9/24", "10.2.0.9/24"); err != nil {
		t.Fatal(err)
	}
	f.fail["disconnect one"] = errPlugin
	got, err := detach(t, d, "web")
	says(t, err, "network one")
	equal(t, "addresses", got, "10.2.0.9/24")
}

// TestNamesake: what has the name of a network that is gone is not that one.
func TestNamesake(t *testing.T) {
	d, f := newFake(weaveNetwork("mine", "10.1.0.0/24"))
	if _, err := attachTo(t, d, "web", "net:10.1.0.0/24"); err != nil {
		t.Fatal(err)
	}
	f.networks[0].ID = "another"
	_, err := detach(t, d, "web")
	says(t, err, "no weave network")
}

func TestContainers(t *testing.T) {
	d, f := newFake()
	f.add("db", "default", true)
	f.add("stopped", "default", false)
	names, err := d.Containers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "names", names, "db", "web")
}

func TestExplain(t *testing.T) {
	d, f := newFake()
	for _, c := range []struct {
		err   error
		words []string
	}{
		{&fs.PathError{Op: "dial", Path: "x", Err: syscall.ECONNREFUSED}, []string{"does not answer", "/fake.sock", "systemctl"}},
		{fs.ErrNotExist, []string{"does not answer"}},
		{fs.ErrPermission, []string{"sudo", "group docker"}},
	} {
		f.fail["list"] = c.err
		_, err := d.Detach(t.Context(), "web", nil, nil)
		says(t, err, c.words...)
	}
	f.fail["list"] = &url.Error{Op: "Get", URL: "http://docker/networks", Err: context.Canceled}
	if _, err := d.Detach(t.Context(), "web", nil, nil); err != context.Canceled {
		t.Errorf("interrupted: %v", err)
	}
}

// TestNoDocker: moby's client tells the same of an engine that is not there.
func TestNoDocker(t *testing.T) {
	t.Setenv(client.EnvOverrideHost, "unix:///no/such/docker.sock")
	d, err := New()
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Detach(t.Context(), "web", nil, nil)
	says(t, err, "does not answer", "/no/such/docker.sock")
	err = d.Check(t.Context(), nil, nobody)
	says(t, err, "does not answer", "/no/such/docker.sock")
	for _, host := range []string{"tcp://192.0.2.1:2375", "ssh://h2", "nonsense"} {
		t.Setenv(client.EnvOverrideHost, host)
		_, err = New()
		says(t, err, "DOCKER_HOST", host)
	}
}

// TestSegment: by the plugin's rule, the IPv4 subnet is the key.
func TestSegment(t *testing.T) {
	for want, n := range map[string]engine.Network{
		"10.1.0.0/24": weaveNetwork("a", "fd01::/64", "10.1.0.0/24"), "fd01::/64": weaveNetwork("a", "fd01::/64"), "": {},
	} {
		if got := segment(n); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if n, err := planned(nil, netip.MustParsePrefix("fd00:1::/48")); n.Name != "weave-fd00-1---48" || err != nil {
		t.Errorf("the network is called %s, %v", n.Name, err)
	}
}
