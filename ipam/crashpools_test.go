package ipam

import (
	"context"
	"net/netip"
	"strings"
	"testing"
)

// desk is a host with what its Docker believes to hold, by pool ID.
type desk struct {
	*host
	refs   map[string]int
	leases map[lot]bool
	shared map[lot]int
	grown  int // answers that Docker has seen
}

// lot is an address that was asked for under a pool ID.
type lot struct {
	id   string
	addr netip.Addr
}

func newDesk(h *host) *desk {
	return &desk{h, map[string]int{}, map[lot]bool{}, map[lot]int{}, 0}
}

// Each of the following is a step of a script: it may be repeated after a crash.

func (d *desk) network(pool, sub string) func() error {
	return func() error {
		var r PoolRequest
		if pool != "" {
			r.Pool = netip.MustParsePrefix(pool)
			r.V6 = r.Pool.Addr().Is6()
		}
		if sub != "" {
			r.SubPool = netip.MustParsePrefix(sub)
		}
		reply, err := d.RequestPool(context.Background(), r)
		if err == nil && !d.disk.isDead() {
			d.refs[reply.ID]++
			d.grown++
		}
		return err
	}
}

func (d *desk) container(id, addr string) func() error {
	return func() error {
		got, err := d.request(id, addr, KindLease)
		if err == nil && !d.disk.isDead() {
			d.leases[lot{id, got.Addr()}] = true
			d.grown++
		}
		return err
	}
}

func (d *desk) gateway(id, addr string) func() error {
	return func() error {
		got, err := d.request(id, addr, KindGateway)
		if err == nil && !d.disk.isDead() {
			d.shared[lot{id, got.Addr()}]++
			d.grown++
		}
		return err
	}
}

// stop removes all containers of a network; Docker forgets them whatever comes
// of it.
func (d *desk) stop(id string) func() error {
	return func() error {
		for l := range d.leases {
			if l.id == id {
				delete(d.leases, l)
				if err := d.ReleaseAddress(context.Background(), id, l.addr); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// removeNetwork does not release gateways first: their networks are gone anyway.
func (d *desk) removeNetwork(id string) func() error {
	return func() error {
		if d.refs[id] == 0 {
			return nil // it was done before the crash
		}
		pool, err := PoolOf(id)
		if err != nil {
			return err
		}
		if d.refs[id]--; d.references(pool) == 0 {
			for l := range d.shared {
				if of, _ := PoolOf(l.id); of == pool {
					delete(d.shared, l)
				}
			}
		}
		return d.ReleasePool(context.Background(), id)
	}
}

func (d *desk) references(pool netip.Prefix) (n int) {
	for id, refs := range d.refs {
		if of, _ := PoolOf(id); of == pool {
			n += refs
		}
	}
	return n
}

// fresh is the pool that nobody chose.
func (d *desk) fresh() string {
	for id := range d.refs {
		if !strings.HasPrefix(id, small) && !strings.HasPrefix(id, pool6) {
			return id
		}
	}
	return ""
}

// handles are what the host believes Docker to hold.
func (d *desk) handles() map[string]int {
	all := map[string]int{}
	for _, s := range d.Status() {
		for _, h := range s.Handles {
			all[h.ID] = h.Refs
		}
	}
	return all
}

// reconcile releases what Docker does not know of, unless the host crashes.
func (d *desk) reconcile() {
	ctx := context.Background()
	for id, refs := range d.handles() {
		for ; refs > d.refs[id]; refs-- {
			if d.ReleasePool(ctx, id) != nil {
				return
			}
		}
	}
	for _, l := range d.Leases() {
		surplus := 0
		if l.Kind == KindLease && !d.leases[lot{l.PoolID, l.Addr}] {
			surplus = 1
		} else if l.Kind != KindLease {
			surplus = d.Allocator.pools[l.Pool].records[l.Addr].Count - d.sharing(l.Pool, l.Addr)
		}
		for range surplus {
			if d.ReleaseAddress(ctx, l.PoolID, l.Addr) != nil {
				return
			}
		}
	}
}

func (d *desk) sharing(pool netip.Prefix, addr netip.Addr) (n int) {
	for l, count := range d.shared {
		if of, _ := PoolOf(l.id); of == pool && l.addr == addr {
			n += count
		}
	}
	return n
}

// check verifies that the host knows what its Docker does, and no more.
func (d *desk) check(t *testing.T, where string) {
	t.Helper()
	for id, refs := range d.handles() {
		if d.refs[id] != refs {
			t.Fatalf("%s: %s has %d networks on %s, Docker %d", where, d.self, refs, id, d.refs[id])
		}
	}
	for id, refs := range d.refs {
		if d.handles()[id] != refs {
			t.Fatalf("%s: %s has lost networks on %s, of which Docker has %d", where, d.self, id, refs)
		}
	}
	leases := 0
	for _, l := range d.Leases() {
		switch {
		case l.Kind != KindLease && d.sharing(l.Pool, l.Addr) == 0, l.Kind == KindLease && !d.leases[lot{l.PoolID, l.Addr}]:
			t.Fatalf("%s: %s has %+v, Docker has not", where, d.self, l)
		case l.Kind == KindLease:
			leases++
		}
	}
	if leases != len(d.leases) {
		t.Fatalf("%s: %s has %v, Docker %v", where, d.self, d.Leases(), d.leases)
	}
}

const (
	pool6 = "fd00:40::/64"
	sub6  = "fd00:40::10/124"
	sub4  = "10.40.0.8/29"
)

// networks is a script of two hosts that make and remove networks of every kind:
// with an IP range and without, IPv6, of a subnet that nobody chose.
func networks(a, b *desk) []func() error {
	of := func(step func(id string) func() error) func() error { // on the subnet that nobody chose
		return func() error { return step(a.fresh())() }
	}
	return []func() error{
		a.network(small, ""), a.network(small, sub4), b.network(small, sub4), a.network(pool6, sub6), b.network(pool6, ""),
		a.network("", ""), of(func(id string) func() error { return a.gateway(id, "") }),
		a.container(small, ""), a.container(small+","+sub4, ""), b.container(small+","+sub4, ""),
		a.container(pool6+","+sub6, ""), b.container(pool6, ""), b.container(pool6, "fd00:40::5"), of(func(id string) func() error { return a.container(id, "") }),
		a.gateway(small, "10.40.0.14"), b.gateway(small+","+sub4, "10.40.0.14"), b.gateway(pool6, "fd00:40::7"),
		a.gateway(small+","+sub4, "10.40.0.14"),
		b.stop(small + "," + sub4), b.removeNetwork(small + "," + sub4),
		a.stop(small), a.removeNetwork(small), of(a.stop), of(a.removeNetwork),
		a.network(small, ""), b.stop(pool6), b.removeNetwork(pool6),
		a.stop(small + "," + sub4), a.removeNetwork(small + "," + sub4), a.removeNetwork(small),
		a.stop(pool6 + "," + sub6), a.removeNetwork(pool6 + "," + sub6),
	}
}

// TestCrashAtEachWriteOfNetworks lets hosts crash, as TestCrashAtEachWrite, while
// they request and release pools: nothing is lost, and nothing left in the end.
func TestCrashAtEachWriteOfNetworks(t *testing.T) { eachBlow(t, 2, 150, runNetworks) }

func runNetworks(t *testing.T, bl blow) (crashed bool) {
	n, hosts := newNet(t, "a", "b")
	desks := []*desk{newDesk(hosts[0]), newDesk(hosts[1])}
	victim := desks[bl.victim]
	bl.strike(hosts)
	for i, step := range networks(desks[0], desks[1]) {
		grown := desks[0].grown + desks[1].grown
		err := step()
		for victim.disk.isDead() {
			crashed = true
			bl.revive(t, victim.host)
			victim.reconcile()
			if !victim.disk.isDead() && (err != nil || grown == desks[0].grown+desks[1].grown) {
				err = step()
			}
		}
		if err != nil {
			t.Fatalf("%s: step %d: %v", bl, i, err)
		}
		for _, d := range desks {
			d.check(t, bl.String())
		}
		if err := n.invariants(); err != nil {
			t.Fatalf("%s: step %d: %v", bl, i, err)
		}
	}
	victim.disk.left, victim.disk.crash = -1, noCrash
	n.nothingLeft(t, bl.String())
	return crashed
}

// nothingLeft settles debts and verifies that no host holds or reserves anything.
func (n *net) nothingLeft(t *testing.T, where string) {
	t.Helper()
	for range 2 {
		for _, h := range n.hosts {
			h.Settle(t.Context())
		}
		if err := n.sync(); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range n.hosts {
		if len(h.handles) > 0 {
			t.Errorf("%s: %s still has pools %v", where, h.self, h.handles)
		}
		for prefix, p := range h.pools {
			if len(p.records)+len(p.reserved)+len(p.wishes) > 0 {
				t.Errorf("%s: %s still has of %s: %v, reserved %v, wishes %v", where, h.self, prefix, p.records, p.reserved, p.wishes)
			}
		}
	}
}
