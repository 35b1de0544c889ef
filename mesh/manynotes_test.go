package mesh

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weave/mesh/gossip"
)

// TestNotesOfMany: what twenty hosts tell of a thousand containers, all at once, is
// known everywhere soon. How soon is logged: the machine may be busy.
func TestNotesOfMany(t *testing.T) {
	t.Parallel()
	const hosts, each = 20, 50
	var nodes []*node
	var seeds []string
	for i := range hosts {
		cfg := configure(t, fmt.Sprintf("127.0.49.%d", i+1), seeds...)
		timing := gossip.DefaultTiming() // the probes of other tests are for few hosts
		timing.Sum = cfg.tune.gossip.Sum // all at once, on one machine, some are lost
		cfg.tune.gossip = timing
		nodes = append(nodes, start(t, cfg))
		seeds = []string{nodes[0].addr}
	}
	long := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(6 * wait); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not within %s: %s", 6*wait, what)
			}
		}
	}
	for _, n := range nodes {
		long(n.cfg.Nickname+" to have all members", func() bool { return len(n.Alive()) == hosts-1 })
	}
	began := time.Now()
	for i, n := range nodes {
		for j := range each {
			key := fmt.Sprintf("endpoint-%d-%d", i, j)
			e := Endpoint{
				ID: key, Segment: "10.32.0.0/16", MAC: MAC{2, 0, 0, 0, byte(i), byte(j)},
				Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 32, byte(i), byte(j + 1)})},
			}
			value, err := e.encode()
			must(t, err)
			n.publish.Lock() // Announce wants a TAP
			must(t, n.set(kindEndpoint, key, value))
			n.publish.Unlock()
			must(t, n.Publish("names", key, []byte(`["container-`+key+`","service","`+key+`"]`)))
		}
	}
	for _, n := range nodes {
		long("all notes on "+n.cfg.Nickname, func() bool {
			return len(n.Notes("names")) == hosts*each && len(n.Endpoints()) == hosts*each
		})
	}
	t.Logf("%d containers of %d hosts are known everywhere after %s", hosts*each, hosts, time.Since(began).Round(time.Millisecond))
}

// TestChanged: who wants to know hears of notes and endpoints of any host, and of hosts
// that come and go; not of the rest.
func TestChanged(t *testing.T) {
	t.Parallel()
	rung := make(chan struct{}, 1)
	cfg := configure(t, "127.0.49.101")
	cfg.Changed = func() {
		select {
		case rung <- struct{}{}:
		default:
		}
	}
	a := start(t, cfg)
	hears := func(of string) {
		t.Helper()
		select {
		case <-rung:
		case <-time.After(wait):
			t.Fatalf("not told of %s", of)
		}
	}
	b := start(t, configure(t, "127.0.49.102", a.addr))
	hears("a host that comes")
	awaitMembers(t, a, b)
	quietly := func(what string, change func()) {
		t.Helper()
		for len(rung) > 0 {
			<-rung
		}
		change()
		if len(rung) > 0 {
			t.Errorf("told of %s", what)
		}
	}
	quietly("free space", func() { must(t, a.SetFree("10.32.0.0/16", 7)) })
	must(t, a.Publish("names", "e", []byte("x")))
	hears("a note")
	must(t, a.Publish("names", "e", nil))
	hears("a note that is taken back")
	must(t, b.Publish("names", "e", []byte("y")))
	hears("another's note")
	a.Withdraw("none")
	b.stop()
	hears("a host that goes")
}
