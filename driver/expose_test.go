package driver

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	api "github.com/docker/go-plugins-helpers/network"

	"weave/driver/host"
)

var hostAddr = netip.MustParsePrefix("10.32.0.1/16")

func forward(proto string, port uint16, to string) host.Forward {
	return host.Forward{Protocol: proto, Port: port, To: netip.MustParseAddrPort(to)}
}

// isExposed compares what driver, kernel and mesh have of hostAddr.
func (r *rig) isExposed(t *testing.T) bool {
	t.Helper()
	b := r.kernel.link(r.Networks()[0].Bridge)
	_, announced := r.fabric.endpoint("host-10.32.0.1")
	all := []bool{len(r.Exposed()) == 1 && r.Exposed()[0].Announced, b.addrs != "", len(r.kernel.exposed) == 1, announced}
	if slices.Contains(all, true) && slices.Contains(all, false) {
		t.Errorf("half exposed: driver %+v, bridge %+v, firewall %+v, announced %v", r.Exposed(), b, r.kernel.exposed, announced)
	}
	return all[0]
}

func TestExpose(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	if err := r.Expose(t.Context(), "n1", Exposure{Addr: hostAddr}); err != nil || !r.isExposed(t) {
		t.Fatalf("not exposed: %v", err)
	}
	e, _ := r.fabric.endpoint("host-10.32.0.1")
	x := r.Exposed()[0]
	if !e.OfHost || e.Segment != "10.32.0.0/16" || !slices.Equal(e.Addrs, []netip.Prefix{hostAddr}) || e.MAC.String() != x.MAC.String() {
		t.Errorf("announced: %+v", e)
	}
	if want := x.MAC.String() + " [10.32.0.1/16]"; r.kernel.link(x.Bridge).addrs != want {
		t.Errorf("the bridge has %q, want %q", r.kernel.link(x.Bridge).addrs, want)
	}
	r.kernel.forwards = true
	more := Exposure{Addr: hostAddr, Masquerade: true, Exports: []host.Forward{forward("tcp", 80, "10.32.0.5:8080")}}
	if err := r.Expose(t.Context(), "n1", more); err != nil || !r.isExposed(t) || !r.kernel.exposed[0].Masquerade {
		t.Errorf("changed to %+v: %v", r.kernel.exposed, err)
	}
	for _, lose := range []func(){func() {}, r.kernel.reboot} { // of the plugin, of the host
		lose()
		r.restart(t)
		if err := r.Restore(t.Context()); err != nil || !r.isExposed(t) || !r.kernel.exposed[0].Masquerade {
			t.Errorf("after a restart: %v", err)
		}
	}
	for range 2 {
		if _, err := r.Hide(hostAddr); err != nil || r.isExposed(t) {
			t.Errorf("not hidden: %v", err)
		}
	}
	if err := r.DeleteNetwork(t.Context(), &api.DeleteNetworkRequest{NetworkID: "n1"}); err != nil || len(r.lost) > 0 {
		t.Errorf("%v, lost %v", err, r.lost)
	}
	r.mustBeEmpty(t)
}

// The address is the same host's alone, and stays that.
func TestHostMAC(t *testing.T) {
	a := hostMAC("h1", "10.32.0.0/16").String()
	if a != hostMAC("h1", "10.32.0.0/16").String() || a == hostMAC("h2", "10.32.0.0/16").String() || a == hostMAC("h1", "10.33.0.0/16").String() {
		t.Error("MAC address ", a)
	}
}

func TestExposedGoesWithItsNetwork(t *testing.T) {
	for _, failing := range []string{"", "Withdraw", "Apply", "RemoveBridge", "LeaveSegment"} {
		r := newRig(t)
		r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
		if err := r.Expose(t.Context(), "n1", Exposure{Addr: hostAddr}); err != nil {
			t.Fatal(err)
		}
		req := &api.DeleteNetworkRequest{NetworkID: "n1"}
		r.set(failing)
		if err := r.DeleteNetwork(t.Context(), req); (err != nil) != (failing != "") {
			t.Errorf("%s: %v", failing, err)
		}
		r.set()
		if err := r.DeleteNetwork(t.Context(), req); err != nil {
			t.Errorf("%s, repeated: %v", failing, err)
		}
		r.mustBeEmpty(t)
		if !slices.Equal(r.lost, []string{"n1 10.32.0.1/16"}) {
			t.Errorf("%s: lost %v", failing, r.lost)
		}
	}
}

func TestExposeFails(t *testing.T) {
	for _, step := range []string{"Apply", "EnsureFirewall", "EnsureBridge", "Announce", "Routes", "Forwards"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.kernel.forwards = true
			r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
			r.set(step)
			if err := r.Expose(t.Context(), "n1", Exposure{Addr: hostAddr, Masquerade: true}); !errors.Is(err, errInjected) {
				t.Errorf("error: %v", err)
			}
			r.set()
			if _, err := r.Hide(hostAddr); err != nil || r.isExposed(t) { // what the failing step kept from being undone
				t.Errorf("left: %v", err)
			}
			if err := r.Expose(t.Context(), "n1", Exposure{Addr: hostAddr}); err != nil {
				t.Fatal(err)
			}
			r.set(step)
			_ = r.Expose(t.Context(), "n1", Exposure{Addr: hostAddr, Masquerade: true})
			r.set()
			if got := r.Exposed(); len(got) != 1 || got[0].Masquerade != (step == "Announce" || step == "Routes") {
				t.Errorf("after a change that failed: %+v", got)
			}
		})
	}
}

func TestHideFails(t *testing.T) {
	for _, step := range []string{"Withdraw", "EnsureFirewall", "EnsureBridge", "Apply"} {
		r := newRig(t)
		r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
		if err := r.Expose(t.Context(), "n1", Exposure{Addr: hostAddr}); err != nil {
			t.Fatal(err)
		}
		r.set(step)
		if _, err := r.Hide(hostAddr); !errors.Is(err, errInjected) {
			t.Errorf("%s: %v", step, err)
		}
		r.set()
		if _, err := r.Hide(hostAddr); err != nil || r.isExposed(t) || len(r.disk.dump()[exposureBucket]) > 0 {
			t.Errorf("%s, repeated: %v", step, err)
		}
	}
}

func TestExposeRefuses(t *testing.T) {
	r := newRig(t)
	r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
	if err := r.CreateNetwork(t.Context(), createNetwork("n2", "10.32.0.0/16", map[string]any{segmentKey: "two"})); err != nil {
		t.Fatal(err)
	}
	r.mustCreateEndpoint(t, "n1", "e1", "10.32.0.5/16")
	r.fabric.holders["10.32.0.0/16 10.32.0.6"] = Holder{Host: "h2", Container: "db", Endpoint: "0123456789abcdef"}
	r.fabric.holders["10.32.0.0/16 10.32.0.7"] = Holder{Host: "h3", OfHost: true}
	other := Exposure{Addr: netip.MustParsePrefix("10.32.0.9/16"), Exports: []host.Forward{forward("tcp", 99, "10.32.0.5:80")}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r.kernel.forwards = true
	must(r.Expose(t.Context(), "n1", other))
	with := func(change func(*Exposure)) Exposure {
		e := Exposure{Addr: hostAddr}
		change(&e)
		return e
	}
	at := func(addr string) Exposure { return Exposure{Addr: netip.MustParsePrefix(addr)} }
	exports := func(all ...host.Forward) Exposure { return with(func(e *Exposure) { e.Exports = all }) }
	imports := func(all ...host.Forward) Exposure { return with(func(e *Exposure) { e.Imports = all }) }
	for want, try := range map[string]struct {
		network string
		e       Exposure
	}{
		"is not known to the weave driver":         {"n3", at("10.32.0.1/16")},
		"is not of the network's subnets":          {"n1", at("10.32.0.1/24")},
		"in use on this host by endpoint e1":       {"n1", at("10.32.0.5/16")},
		`on host "h2" by container "db" (01234567`: {"n1", at("10.32.0.6/16")},
		`on host "h3" by the host itself`:          {"n1", at("10.32.0.7/16")},
		`this host has 10.32.0.9/16 on network "f`: {"n2", at("10.32.0.1/16")},
		"port 99/tcp of this host is exported by":  {"n1", exports(forward("tcp", 99, "10.32.0.5:81"))},
		"it goes to 10.32.0.5:9":                   {"n1", exports(forward("tcp", 1, "10.32.0.5:8"), forward("tcp", 1, "10.32.0.5:8"), forward("tcp", 1, "10.32.0.5:9"))},
		"export to 10.33.0.5:8: want":              {"n1", exports(forward("tcp", 1, "10.33.0.5:8"))},
		"export to 10.32.0.1:8: want":              {"n1", exports(forward("tcp", 1, "10.32.0.1:8"))},
		"export of port 1/sctp":                    {"n1", exports(forward("sctp", 1, "10.32.0.5:8"))},
		"import of port 0/tcp":                     {"n1", imports(forward("tcp", 0, "192.0.2.1:8"))},
		"import of port 1/udp to 192.0.2.1:0":      {"n1", imports(forward("udp", 1, "192.0.2.1:0"))},
		"import from 127.0.0.1:8":                  {"n1", imports(forward("tcp", 1, "127.0.0.1:8"))},
		"import from 10.32.0.5:8":                  {"n1", imports(forward("tcp", 1, "10.32.0.5:8"))},
		"import from [fd00::1]:8":                  {"n1", imports(forward("tcp", 1, "[fd00::1]:8"))},
		"more than 256":                            {"n1", imports(make([]host.Forward, 257)...)},
	} {
		if err := r.Expose(t.Context(), try.network, try.e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	r.kernel.forwards = false
	if err := r.Expose(t.Context(), "n1", with(func(e *Exposure) { e.Masquerade = true })); err == nil || !strings.Contains(err.Error(), "net.ipv4.ip_forward") {
		t.Errorf("without forwarding: %v", err)
	}
	r.kernel.routes = []host.Route{{Prefix: netip.MustParsePrefix("10.32.4.0/24"), Link: "eth1"}}
	if err := r.Expose(t.Context(), "n1", at("10.32.0.1/16")); err == nil || !strings.Contains(err.Error(), "overlaps the host's route") {
		t.Errorf("over a route: %v", err)
	}
	if len(r.Exposed()) != 1 {
		t.Errorf("exposed: %+v", r.Exposed())
	}
}

// TestExportByBothFamilies: a port of the host is one by IPv4, and another by IPv6.
func TestExportByBothFamilies(t *testing.T) {
	r := newRig(t)
	r.kernel.forwards = true
	req := createNetwork("n1", "10.32.0.0/16", nil)
	req.IPv6Data = []*api.IPAMData{{Pool: "fd00::/64"}}
	if err := r.CreateNetwork(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	for addr, to := range map[string]string{"10.32.0.1/16": "10.32.0.5:80", "fd00::1/64": "[fd00::5]:80"} {
		e := Exposure{Addr: netip.MustParsePrefix(addr), Exports: []host.Forward{forward("tcp", 99, to)}}
		if err := r.Expose(t.Context(), "n1", e); err != nil {
			t.Error(err)
		}
	}
}

func TestExposedStateIsChecked(t *testing.T) {
	for _, record := range []string{
		`{"network":"n9","addr":"10.32.0.1/16"}`, `{"network":"n1","addr":"10.32.0.2/16"}`, `{"network":"n1","addr":"10.33.0.1/16"}`, `{`,
	} {
		r := newRig(t)
		r.mustCreateNetwork(t, "n1", "10.32.0.0/16")
		key := "10.32.0.1/16"
		if strings.Contains(record, "10.33") {
			key = "10.33.0.1/16"
		}
		r.disk.buckets[exposureBucket] = map[string][]byte{key: []byte(record)}
		if _, err := New(Config{Kernel: r.kernel, Fabric: r.fabric, Store: r.disk}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", record, err)
		}
	}
}
