package ipam

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"weave/ipam/ring"
)

// failer is what checks need of a *testing.T or a *rapid.T.
type failer interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// books are what Docker on all hosts believes to hold, whatever the hosts think.
type books struct {
	machine
	held map[*host]map[netip.Addr]bool
	dead []*host
	next int // for new names
}

func newBooks(n *net, hosts []*host) *books {
	b := &books{machine: machine{net: n, hosts: hosts, shared: map[leased]int{}}, held: map[*host]map[netip.Addr]bool{}}
	for _, h := range hosts {
		b.held[h] = map[netip.Addr]bool{}
	}
	return b
}

func (b *books) lease(t *rapid.T) { b.leaseAt(t, "") }
func (b *books) claim(t *rapid.T) { b.leaseAt(t, b.addr(t)) }

func (b *books) leaseAt(t *rapid.T, addr string) {
	b.coins(t)
	h := b.host(t)
	got, err := h.request(small, addr, KindLease)
	if err != nil {
		return
	}
	if b.held[h][got.Addr()] {
		t.Fatalf("%s leased twice by %s", got, h.self)
	}
	for other := range b.held {
		if b.net.table != nil && b.held[other][got.Addr()] {
			t.Fatalf("%s leased to %s, announced by %s", got, h.self, other.self)
		}
	}
	b.held[h][got.Addr()] = true
	h.announce(got.Addr(), true)
}

func (b *books) release(t *rapid.T) {
	b.coins(t)
	h := b.host(t)
	for _, addr := range slices.SortedFunc(maps.Keys(b.held[h]), netip.Addr.Compare) {
		b.drop(t, h, addr)
		return
	}
}

func (b *books) drop(t failer, h *host, addr netip.Addr) {
	delete(b.held[h], addr)
	h.announce(addr, false)
	if err := h.ReleaseAddress(context.Background(), small, addr); err != nil {
		t.Fatal(err)
	}
}

func (b *books) reserve(t *rapid.T) {
	b.coins(t)
	h := b.host(t)
	if got, err := h.request(small, b.addr(t), KindGateway); err == nil {
		b.shared[leased{h, got.Addr()}]++
	}
}

func (b *books) settle(t *rapid.T) {
	b.coins(t)
	b.host(t).Settle(context.Background())
}

func (b *books) gossip(t *rapid.T) {
	from, to := b.host(t), b.host(t)
	if b.net.part[from.self] != b.net.part[to.self] {
		return
	}
	if missing := from.Missing(to.Digest()); missing != nil {
		_ = to.Merge(from.self, missing) // a full disk, or a gap
	}
}

// check is what holds even while clusters merge and hosts are removed.
func (b *books) check(t failer) {
	owned := map[place]ring.Peer{}
	for _, h := range b.hosts {
		h.mu.Lock()
		err := h.invariants(owned, false)
		h.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		b.kept(t, h)
	}
}

// kept compares the books of a host with Docker's.
func (b *books) kept(t failer, h *host) {
	n := 0
	for _, l := range h.Leases() {
		if l.Kind == KindLease && !b.held[h][l.Addr] || l.Kind != KindLease && b.shared[leased{h, l.Addr}] == 0 {
			t.Fatalf("%s leaks %v", h.self, l)
		}
		if l.Kind == KindLease {
			n++
		}
	}
	if n != len(b.held[h]) {
		t.Fatalf("%s keeps %d leases of %v", h.self, n, b.held[h])
	}
}

// calm lets everybody talk to everybody until nothing changes.
func (b *books) calm(t failer) {
	b.net.partition(nil)
	b.net.lose(never, never)
	for range 4 {
		for _, h := range b.hosts {
			h.Settle(context.Background())
		}
		if err := b.net.sync(); err != nil {
			t.Fatal(err)
		}
	}
}

// converged is what must hold when all is calm: rings alike; each address that
// is held has one host on which its lease is backed, and is a clash on others;
// and once all is released, all is free.
func (b *books) converged(t failer) {
	b.calm(t)
	b.check(t)
	for _, h := range b.hosts {
		if string(h.Digest()) != string(b.hosts[0].Digest()) {
			t.Fatalf("%s and %s differ: %s and %s", h.self, b.hosts[0].self, h.Digest(), b.hosts[0].Digest())
		}
	}
	b.strict(t)
	clashes := 0
	for _, h := range b.hosts {
		for addr := range b.held[h] {
			clashes += b.backedOrClash(t, h, addr)
		}
		for _, l := range h.Leases() {
			if l.Kind != KindLease && !l.Backed && !slices.ContainsFunc(h.Clashes(), func(c Clash) bool { return c.Addr == l.Addr }) {
				t.Fatalf("%s: reservation %v is neither at its owner nor a clash", h.self, l)
			}
		}
	}
	b.reserved(t)
	b.releaseAll(t)
	var free uint64
	for _, h := range b.hosts {
		free += h.Status()[0].Free
		if c := h.Clashes(); len(c) > 0 {
			t.Fatalf("%s: clashes left: %v", h.self, c)
		}
	}
	if free != 14 {
		t.Fatalf("%d of 14 addresses free in the end", free)
	}
}

// reserved checks that the owners know of all shared addresses but clashes.
func (b *books) reserved(t failer) {
	for _, h := range b.hosts {
		for _, l := range h.Leases() {
			if l.Kind == KindLease || !l.Backed {
				continue
			}
			owner := b.net.hosts[h.pools[l.Pool].owner(l.Addr)]
			if !slices.Contains(owner.pools[l.Pool].reserved[l.Addr], h.self) {
				t.Fatalf("%s does not know that %s holds %s", owner.self, h.self, l.Addr)
			}
		}
	}
}

func (b *books) strict(t failer) {
	owned := map[place]ring.Peer{}
	for _, h := range b.hosts {
		for prefix, p := range h.pools {
			for addr := prefix.Addr(); p.ring != nil && prefix.Contains(addr); addr = addr.Next() {
				if p.owner(addr) == h.self {
					owned[place{prefix, addr}] = h.self
				}
			}
		}
	}
	if len(owned) != 16 {
		t.Fatalf("%d of 16 addresses are owned by a host that is there", len(owned))
	}
}

// clashing says whether the lease of addr is a clash that is not over.
func (h *host) clashing(addr netip.Addr) bool {
	return slices.ContainsFunc(h.Clashes(), func(c Clash) bool { return c.Addr == addr && c.Kind == KindLease && !c.Over })
}

// backedOrClash returns 1 for a clash.
func (b *books) backedOrClash(t failer, h *host, addr netip.Addr) int {
	backed, others := 0, 0
	for _, other := range b.hosts {
		if b.held[other][addr] && !other.clashing(addr) {
			backed++
		}
		if other != h && (b.held[other][addr] || b.shared[leased{other, addr}] > 0) {
			others++
		}
	}
	clashed := h.clashing(addr)
	if backed > 1 {
		t.Fatalf("%s is held on %d hosts that know of no clash", addr, backed)
	}
	if clashed && others == 0 {
		t.Fatalf("%s: %s is a clash with nobody: %+v", h.self, addr, h.Clashes())
	}
	if clashed {
		if !slices.Contains(h.clashes, addr) {
			t.Fatalf("%s: clash of %s was not told", h.self, addr)
		}
		return 1
	}
	for _, l := range h.Leases() {
		if l.Addr == addr && !l.Backed {
			t.Fatalf("%s: %v is neither backed nor a clash", h.self, l)
		}
	}
	return 0
}

func (b *books) releaseAll(t failer) {
	for _, h := range b.hosts {
		for addr := range b.held[h] {
			b.drop(t, h, addr)
		}
		for s := range b.shared {
			for ; s.host == h && b.shared[s] > 0; b.shared[s]-- {
				if err := h.ReleaseAddress(context.Background(), small, s.addr); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	b.calm(t)
	for _, h := range b.hosts {
		h.mu.Lock()
		for addr, r := range h.pools[netip.MustParsePrefix(small)].records {
			t.Fatalf("%s still has %s: %+v", h.self, addr, r)
		}
		h.mu.Unlock()
	}
}

// full has the disk of a host refuse some write of what it does by itself.
func (b *books) full(t *rapid.T) {
	h := b.host(t)
	h.disk.failAfter(rapid.IntRange(0, 3).Draw(t, "writes"))
	rapid.SampledFrom([]func(*rapid.T){b.gossip, b.settle, b.lease, b.claim}).Draw(t, "what")(t)
	h.disk.failAfter(-1)
}
