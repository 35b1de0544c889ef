package attach

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/moby/moby/api/types/network"

	"weave/plugin/engine"
)

// TestNetworkListedLate: the plugin knows of a network before Docker lists it.
func TestNetworkListedLate(t *testing.T) {
	d, f := newFake()
	other := weaveNetwork("other", "10.1.0.0/24")
	other.ID = "id-of-other"
	f.onCreate = func() { f.late = []engine.Network{other} }
	f.fail["create weave-10.1.0.0-24"] = errors.New("create network 1: " + onSegment + " 10.1.0.0/24 already")
	name, created, err := d.Network(t.Context(), netip.MustParsePrefix("10.1.0.0/24"), "expose")
	if name != "other" || created || err != nil {
		t.Errorf("got %s, %t, %v", name, created, err)
	}
}

// TestAttachTwice: two commands at once want the same of one container.
func TestAttachTwice(t *testing.T) {
	d, f := newFake(weaveNetwork("app", "10.1.0.0/24"))
	f.fail["connect app"] = errors.New("endpoint with name web already exists in network app")
	f.onConnect = func() {
		f.containers["web"].NetworkSettings.Networks["app"] = &network.EndpointSettings{NetworkID: "id-of-app", IPAddress: netip.MustParseAddr("10.1.0.9")}
		f.refuse = true
	}
	got, err := attachTo(t, d, "web", "10.1.0.9/24")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "addresses", got, "10.1.0.9/24 old")
	delete(f.containers["web"].NetworkSettings.Networks, "app")
	_, err = attachTo(t, d, "web", "10.1.0.8/24")
	says(t, err, "already exists in network app")
}

// TestAttachAfterRefusal: a connection that failed, and that Docker keeps in mind,
// is none.
func TestAttachAfterRefusal(t *testing.T) {
	d, f := newFake()
	f.containers["web"].NetworkSettings.Networks["weave-10.1.0.0-24"] = &network.EndpointSettings{
		IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.1.0.9")}}
	if _, err := d.Detach(t.Context(), "web", nil, nil); err == nil {
		t.Error("detached from what it is not on")
	}
	got, err := attachTo(t, d, "web", "10.1.0.9/24")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "addresses", got, "10.1.0.9/24")
}
