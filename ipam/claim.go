package ipam

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"weave/ipam/ring"
)

const maxClaims = 256 // in one message

// Clash is an address that is held here and that its owner cannot give to this
// host: somebody else holds it too. That happens where clusters were started
// apart and then met, or where a removed peer was alive. Nothing is disturbed.
// That of a container here ends when it is released, since until then nobody
// announces the container; that of a shared address when either side releases it.
type Clash struct {
	Pool  netip.Prefix `json:"pool"`
	Addr  netip.Addr   `json:"addr"`
	Kind  Kind         `json:"kind"` // of what is held here
	Peer  ring.Peer    `json:"peer"` // who has the address
	Host  string       `json:"host"` // its name
	Since time.Time    `json:"since"`
	Over  bool         `json:"over,omitempty"` // the other side has released it, and this host owns it now
}

// clash is the part of a Clash that is stored with the record.
type clash struct {
	Peer  ring.Peer `json:"peer"`
	Host  string    `json:"host"`
	Since time.Time `json:"since"`
}

// A lease in a range of another peer is unbacked: its container has it, nobody
// here gets it, and it is claimed from its owner until that one gives it. Leases
// become unbacked when the ring is replaced by that of another cluster, when an
// heir did not know of a gift, and when this host was removed and re-joined.

// unbacked lists such leases, in ascending order. a.mu is held.
func (p *pool) unbacked(self ring.Peer) (addrs []netip.Addr) {
	for addr, r := range p.records {
		if r.Kind == KindLease && p.owner(addr) != self {
			addrs = append(addrs, addr)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// claimAll claims all unbacked leases from their living owners.
func (a *Allocator) claimAll(ctx context.Context) {
	alive := a.cfg.Cluster.Alive()
	for _, p := range a.allPools() {
		done := map[netip.Addr]bool{}
		for range maxHops {
			claims := a.claims(p, done)
			for _, owner := range slices.Sorted(maps.Keys(claims)) {
				for addrs := range slices.Chunk(claims[owner], maxClaims) {
					if !slices.Contains(alive, owner) || !a.claim(ctx, p, owner, addrs, done) {
						markAll(done, addrs)
					}
				}
			}
			if len(claims) == 0 {
				break
			}
		}
	}
}

func markAll(done map[netip.Addr]bool, addrs []netip.Addr) {
	for _, addr := range addrs {
		done[addr] = true
	}
}

// claims are unbacked leases by owner, without those that are done.
func (a *Allocator) claims(p *pool, done map[netip.Addr]bool) map[ring.Peer][]netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	claims := map[ring.Peer][]netip.Addr{}
	if a.mayLease() != nil {
		return claims
	}
	for _, addr := range p.unbacked(a.cfg.Self) {
		if !done[addr] {
			owner := a.ownerOf(p, addr)
			claims[owner] = append(claims[owner], addr)
		}
	}
	return claims
}

// claim asks the owner for addresses and marks those on which it had the last
// word. It returns false if another try makes no sense now.
func (a *Allocator) claim(ctx context.Context, p *pool, owner ring.Peer, addrs []netip.Addr, done map[netip.Addr]bool) bool {
	log := a.cfg.Log.WithField("pool", p.prefix).WithField("peer", owner)
	req := a.claimRequest(addrs...)
	req.Held = true
	ans, err := a.ask(ctx, p, owner, req)
	switch {
	case err != nil:
		log.WithError(err).Debug("leases not claimed yet")
		return false
	case ans.Refusal == refusedSeeds: // and its ring is learnt
		return true
	case ans.Refusal != "" || len(ans.Verdicts) != len(addrs):
		log.WithError(a.refused(owner, ans.Refusal, "", ans.Detail)).Warn("leases not claimed")
		return false
	}
	for i, v := range ans.Verdicts {
		switch v.Refusal {
		case refusedMoved:
			if !a.untaken(p, addrs[i]) {
				continue
			}
		case refusedLeased, refusedReserved:
			a.clash(p, addrs[i], holderOf(owner, v.Holder))
		}
		done[addrs[i]] = true
	}
	return true
}

func holderOf(owner, holder ring.Peer) ring.Peer {
	if holder != "" {
		return holder
	}
	return owner
}

// A claim that is refused is made again and again, as long as the container here
// has the address. So the owner remembers it for a while, and gives the address
// to nobody else when it becomes free.
const claimLasts = 3 * settleEvery

// refusedClaim is that of a peer whose container has the address all the same.
type refusedClaim struct {
	by ring.Peer
	at time.Time
}

func (c refusedClaim) lasts() bool { return time.Since(c.at) < claimLasts }

// noteRefused remembers a claim. Of several the first one stays, as long as it
// is repeated. a.mu is held.
func (p *pool) noteRefused(addr netip.Addr, by ring.Peer) {
	if c := p.refused[addr]; c.by != by && c.lasts() {
		return
	}
	if len(p.refused) >= maxHeld {
		maps.DeleteFunc(p.refused, func(_ netip.Addr, c refusedClaim) bool { return !c.lasts() })
	}
	if len(p.refused) < maxHeld {
		p.refused[addr] = refusedClaim{by, time.Now()}
	}
}

// claimRequest tells also who this host was before it was removed: the
// endpoint table may still have its containers under that name.
func (a *Allocator) claimRequest(addrs ...netip.Addr) request {
	a.mu.Lock()
	defer a.mu.Unlock()
	req := request{Op: opClaim, Addrs: addrs, Former: a.former}
	for _, p := range a.former {
		if i, gone := a.removed[p]; gone {
			if req.Removed == nil {
				req.Removed = removed{}
			}
			req.Removed[p] = i
		}
	}
	return req
}

// clash notes that by has an address that is held here, once.
func (a *Allocator) clash(p *pool, addr netip.Addr, by ring.Peer) {
	host := a.name(by)
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := p.records[addr]
	if !ok || r.isDebt() || r.Clash != nil || r.Kind == KindLease && p.owner(addr) == a.cfg.Self {
		return
	}
	log := a.cfg.Log.WithField("pool", p.prefix).WithField("addr", addr).WithField("peer", host)
	r.Clash = &clash{Peer: by, Host: host, Since: time.Now()}
	if err := a.saveRecord(p, addr, &r); err != nil {
		log.WithError(err).Warn("clash of addresses not stored")
		return
	}
	if r.Kind != KindLease {
		log.Error("a gateway or reserved address of this host is in use on another one")
		return
	}
	log.Error("an address of a container here is in use on another host: restart the container to get another one")
	a.clashes = append(a.clashes, place{p.prefix, addr})
}

// Clashes lists all addresses held here that somebody else holds too, in
// ascending order.
func (a *Allocator) Clashes() []Clash {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []Clash
	for _, p := range a.sorted() {
		all = append(all, p.clashes(a.cfg.Self)...)
	}
	return all
}

func (p *pool) clashes(self ring.Peer) (all []Clash) {
	for _, addr := range slices.SortedFunc(maps.Keys(p.records), netip.Addr.Compare) {
		if r := p.records[addr]; p.clashed(addr) {
			all = append(all, Clash{
				Pool: p.prefix, Addr: addr, Kind: r.Kind, Peer: r.Clash.Peer, Host: r.Clash.Host, Since: r.Clash.Since,
				Over: r.Kind == KindLease && p.owner(addr) == self,
			})
		}
	}
	return all
}

func (p *pool) clashed(addr netip.Addr) bool {
	r := p.records[addr]
	return r.Clash != nil && !r.isDebt()
}

// Clashed says whether the lease of addr on this host is a Clash, or was one:
// its endpoint must not be announced.
func (a *Allocator) Clashed(pool netip.Prefix, addr netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pools[pool]
	return p != nil && p.records[addr].Kind == KindLease && p.clashed(addr)
}
