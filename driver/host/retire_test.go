package host

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestRetireLink: who asks does not wait, and the name is free; a moment later the
// pair is gone.
func TestRetireLink(t *testing.T) {
	k := enterHost(t)
	const bridge, name = "wv00000001", "wvl00000001"
	must(t, k.EnsureBridge(Bridge{Name: bridge, MTU: 1400}))
	c := startContainer(t, k, bridge, "00000001", "10.1.0.1/24")
	hides := 0
	hide := func(link, peer int) error {
		hides++
		c.do(func() {
			l, err := netlink.LinkByIndex(link)
			must(t, err)
			if l.Attrs().Name != "eth0" || l.Attrs().ParentIndex != peer {
				t.Errorf("hide %s with peer %d, it has %d", l.Attrs().Name, peer, l.Attrs().ParentIndex)
			}
		})
		return nil
	}
	must(t, k.RetireLink(name, hide))
	if ok, err := k.HasLink(name); ok || err != nil {
		t.Errorf("its name is still in use: %v, %v", ok, err)
	}
	must(t, k.RetireLink(name, hide)) // there is none any more
	if hides != 1 {
		t.Errorf("hidden %d times", hides)
	}
	again := startContainer(t, k, bridge, "00000001", "10.1.0.1/24")
	for end := time.Now().Add(100 * retireAfter); len(c.links()) > 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in the container are still %v", c.links())
		}
	}
	if links := again.links(); !slices.Contains(links, "eth0") {
		t.Errorf("the next one has only %v", links)
	}
	k.Close()
}

// TestRetireAtOnce: what cannot be hidden does not stay, nor does what there would be
// too much of, nor what Close or the next process finds.
func TestRetireAtOnce(t *testing.T) {
	k := enterHost(t)
	const name = "wvl00000001"
	create := func() { must(t, k.CreateVeth(name, "wvc00000001", 1400, []byte{2, 0, 0, 0, 0, 1})) }
	gone := func(after string) {
		t.Helper()
		if links, err := k.ListLinks(Prefix); len(links) > 0 || err != nil {
			t.Errorf("after %s there are %v, %v", after, links, err)
		}
	}
	hidden := func(int, int) error { return nil }

	create()
	must(t, k.RetireLink(name, func(int, int) error { return errors.New("no such sandbox") }))
	gone("a failure to hide")

	for range maxRetired {
		k.waiting <- struct{}{}
	}
	create()
	must(t, k.RetireLink(name, hidden))
	gone("one too many")
	for range maxRetired {
		<-k.waiting
	}

	create()
	must(t, k.RetireLink(name, hidden))
	if links, err := k.ListLinks(retiredPrefix); len(links) != 1 || err != nil {
		t.Errorf("retired are %v, %v", links, err)
	}
	others := []string{"wv00000001", "wvl00000002", "wvt00000001", "wvx-beat", "wvx00000001"}
	for _, other := range others { // of the driver and the mesh, from an earlier run
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: other}}))
	}
	must(t, k.DeleteRetired())
	left, err := k.ListLinks(Prefix)
	must(t, err)
	if slices.Sort(left); !slices.Equal(left, others) {
		t.Errorf("after a restart there are %v, want %v", left, others)
	}
	for _, other := range others {
		must(t, k.DeleteLink(other))
	}

	create()
	must(t, k.RetireLink(name, hidden))
	began := time.Now()
	k.Close()
	gone("Close")
	if took := time.Since(began); took >= retireAfter {
		t.Errorf("Close took %s", took)
	}
}

// links returns the names of the links in the container.
func (c *container) links() (names []string) {
	c.do(func() {
		all, err := netlink.LinkList()
		must(c.t, err)
		for _, l := range all {
			names = append(names, l.Attrs().Name)
		}
	})
	return names
}
