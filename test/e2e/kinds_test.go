package e2e

import (
	"strings"
	"testing"

	"weave/test/dockerlab"
)

// TestIPAMOfOtherDrivers: with addresses from Weave, also networks of other
// drivers give none out twice, on whatever host, and keep aux addresses free.
func TestIPAMOfOtherDrivers(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	for _, driver := range []string{"bridge", "macvlan"} {
		t.Run(driver, func(t *testing.T) {
			name, sub := uniqueName("net"), subnet()
			aux, once := inSubnet(sub, 9), inSubnet(sub, 77)
			for i, h := range hs {
				_, err := h.Docker("network", "create", "-d", driver, "--ipam-driver", "weave", "--subnet", sub,
					"--gateway", inSubnet(sub, 1+i), "--aux-address", "router="+aux, name)
				if err != nil && strings.Contains(err.Error(), "not supported") {
					t.Skipf("this kernel has no %s: %v", driver, err)
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := removeNetwork(t, h, name); err != nil {
						t.Error(err)
					}
				})
			}
			a := run(t, hs[0], name, []string{"--ip", once})
			if a.ip() != once {
				t.Errorf("--ip %s gave %s", once, a.ip())
			}
			run(t, hs[1], name, []string{"--ip", inSubnet(sub, 78)})
			for _, h := range hs {
				for _, taken := range []string{once, inSubnet(sub, 78), aux} {
					refused(t, h, []string{taken, "in use"}, "run", "--rm", "--net", name, "--ip", taken, dockerlab.Image, "true")
				}
			}
			if got := poolUse(t, hs, sub).leased; got != 2 {
				t.Errorf("%d leases, want 2", got)
			}
		})
	}
}

// TestAuxAddressOfSecondNetwork: two networks of one subnet on a host keep the
// same addresses free, and others.
func TestAuxAddressOfSecondNetwork(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	sub := subnet()
	both, own := inSubnet(sub, 9), inSubnet(sub, 10)
	first := network(t, hs, "--subnet", sub, "--aux-address", "router="+both)
	second := network(t, hs, "--subnet", sub, "-o", "weave.segment="+uniqueName("segment"),
		"--aux-address", "router="+both, "--aux-address", "printer="+own)
	run(t, hs[0], first, []string{"--ip", inSubnet(sub, 77)})
	for _, h := range hs {
		for _, net := range []string{first, second} {
			for _, taken := range []string{both, own, inSubnet(sub, 77)} {
				refused(t, h, []string{taken, "in use"}, "run", "--rm", "--net", net, "--ip", taken, dockerlab.Image, "true")
			}
		}
	}
	if got := poolUse(t, hs, sub).leased; got != 1 {
		t.Errorf("%d leases, want 1: what is kept free is reserved", got)
	}
}
