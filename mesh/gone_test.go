package mesh

import (
	"net/netip"
	"testing"

	"weave/mesh/id"
	"weave/mesh/state"
)

// announce has a node hear of another peer's endpoint.
func announce(t *testing.T, n *Node, owner id.PeerID, e Endpoint) {
	t.Helper()
	value, err := e.encode()
	must(t, err)
	n.mu.Lock()
	defer n.mu.Unlock()
	must(t, n.apply(state.Change{Owner: owner, Kind: kindEndpoint, Key: e.ID, New: value}))
}

// TestGone holds that the records of a peer marked gone count nowhere, neither
// those known before nor those heard later, over a restart too.
func TestGone(t *testing.T) {
	t.Parallel()
	const pool = "10.0.0.0/8"
	a := start(t, configure(t, "127.0.21.1"))
	b := start(t, configure(t, "127.0.21.2", a.addr))
	c := start(t, configure(t, "127.0.21.3", a.addr))
	awaitMembers(t, a, b, c)
	must(t, b.SetFree(pool, 5))
	await(t, "a and c to hear", func() bool { return a.Free(pool)[b.self] == 5 && c.Free(pool)[b.self] == 5 })

	must(t, a.MarkGone(b.self))
	await(t, "a and c to drop it", func() bool { return len(a.Free(pool))+len(c.Free(pool)) == 0 })
	if !a.IsGone(b.self) || !c.IsGone(b.self) || a.IsGone(c.self) {
		t.Errorf("gone: %v, %v, %v", a.IsGone(b.self), c.IsGone(b.self), a.IsGone(c.self))
	}
	must(t, b.SetFree(pool, 6))
	must(t, c.SetFree(pool, 7))
	await(t, "a to hear c", func() bool { return a.Free(pool)[c.self] == 7 })
	if _, counts := a.Free(pool)[b.self]; counts {
		t.Error("a peer marked gone counts again")
	}
	if b.MarkGone(b.self) == nil {
		t.Error("a host marked itself gone")
	}

	a = a.restart(t)
	awaitMembers(t, a, b, c)
	await(t, "a to hear c after its restart", func() bool { return a.Free(pool)[c.self] == 7 })
	if _, counts := a.Free(pool)[b.self]; counts {
		t.Error("a peer marked gone counts again after a restart")
	}
	await(t, "c to have heard of the new run", func() bool { return len(c.Free(pool)) == 0 })
}

// TestHolderOf: an address is of the pool that its endpoint tells, whatever the
// segment is called; of any if it tells none.
func TestHolderOf(t *testing.T) {
	t.Parallel()
	n, err := New(configure(t, "127.0.22.1"))
	must(t, err)
	t.Cleanup(func() { must(t, n.Close()) })
	far := testIdentity(t).ID
	for i, x := range []struct {
		segment string
		bits    []int
	}{{"10.1.0.0/16", []int{16, 64}}, {"10.1.0.0/24", []int{24, 64}}, {"name:blue", []int{16, 48}}, {"name:red", []int{8, 64}}, {"name:old", nil}} {
		e := web()
		e.ID, e.Segment, e.Bits = x.segment, x.segment, x.bits
		e.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), netip.AddrFrom16([16]byte{0xfd, 15: byte(i)})}
		announce(t, n, far, e)
	}
	four, six := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/64")
	for a, want := range map[string]bool{
		"10.1.0.0": true, "10.1.0.1": false, "10.1.0.2": true, "10.1.0.3": false, "10.1.0.4": true, "10.1.0.5": false,
		"fd00::": true, "fd00::1": true, "fd00::2": false, "fd00::3": true, "fd00::4": true,
	} {
		pool := four
		if addr(a).Is6() {
			pool = six
		}
		p, ok := n.HolderOf(pool, addr(a))
		if ok != want || ok && p != far {
			t.Errorf("holder of %s: %v, %v", a, p, ok)
		}
		if listed := n.HoldersIn(pool)[addr(a)]; (listed == far) != want {
			t.Errorf("holders: %s is listed: %v", a, listed)
		}
	}
	if got := len(n.HoldersIn(four)) + len(n.HoldersIn(six)); got != 3+4 {
		t.Errorf("%d holders", got)
	}
}
