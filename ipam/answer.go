package ipam

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weave/ipam/ring"
	"weave/ipam/space"
)

// Bounds on what peers may make this one remember.
const (
	maxHolders  = 1 << 12
	maxBallot   = 1 << 62
	maxSerial   = 1 << 62
	maxElectors = 1 << 14
)

// Answer serves a request of another peer's Allocator. The error is for bytes
// that are no request; a refusal is an answer.
func (a *Allocator) Answer(ctx context.Context, from ring.Peer, b []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var req request
	if err := decode(b, maxMessage, &req); err != nil {
		return nil, fmt.Errorf("peer %s: %w", from, err)
	}
	if err := req.check(); err != nil {
		return nil, fmt.Errorf("peer %s: %w", from, err)
	}
	return encode(a.serve(ctx, from, req)), nil
}

func (r request) check() error {
	if err := checkElectors(r.Electors); err != nil {
		return err
	}
	switch {
	case r.Decree != nil:
		return r.Decree.check()
	case r.Op == opRings:
		return nil
	case r.Ring != nil && r.Ring.Pool != r.Pool:
		return fmt.Errorf("ring of pool %s in a request about %s: %w", r.Ring.Pool, r.Pool, ErrInvalid)
	case len(r.Addrs) > maxClaims || len(r.Former) > maxFormer:
		return fmt.Errorf("%d addresses, %d former names: %w", len(r.Addrs), len(r.Former), ErrInvalid)
	}
	return checkPrefix(r.Pool)
}

func checkElectors(electors []ring.Peer) error {
	if len(electors) > maxElectors {
		return fmt.Errorf("%d electors: %w", len(electors), ErrInvalid)
	}
	for _, p := range electors {
		if p == "" || len(p) > maxName {
			return fmt.Errorf("elector %q: %w", p, ErrInvalid)
		}
	}
	return nil
}

// serve learns what the request tells, and does what it asks.
func (a *Allocator) serve(ctx context.Context, from ring.Peer, req request) answer {
	if from != a.cfg.Self {
		g := gossip{Removed: req.Removed}
		if req.Ring != nil {
			g.Rings = []ring.Chunk{*req.Ring}
		}
		if err := a.learn(from, g); err != nil {
			return failed(err)
		}
	}
	if req.Op == opPrepare || req.Op == opAccept {
		req.met = a.met()
	}
	switch {
	case req.Op == opRings:
		return answer{Gossip: a.missing(req.Digest, maxMessage/2)}
	case req.Op == opInherit && req.Decree != nil:
		return a.serveInherit(ctx, *req.Decree)
	case req.Decree != nil:
		return a.serveRemoval(from, req)
	}
	return a.servePool(from, req)
}

// servePool serves what is about a pool, and adds its ring.
func (a *Allocator) servePool(from ring.Peer, req request) answer {
	held := a.heldBy(from, req)
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	p, err := a.poolOf(req.Pool)
	if err != nil {
		return failed(err)
	}
	ans := a.serveLocked(p, from, req, held)
	ans.Ring = p.chunk()
	return ans
}

// heldBy looks up, before a.mu is taken, which of the addresses in question are
// with containers of other hosts than the asker's: none of them may be given.
func (a *Allocator) heldBy(from ring.Peer, req request) map[netip.Addr]ring.Peer {
	var held map[netip.Addr]ring.Peer
	switch req.Op {
	case opSpace:
		held = a.holders(req.Pool)
	case opClaim, opReserve:
		held = map[netip.Addr]ring.Peer{}
		for _, addr := range append(slices.Clip(req.Addrs), req.Addr) {
			if holder, ok := a.heldElsewhere(req.Pool, addr); ok && addr.IsValid() {
				held[addr] = holder
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(held, func(_ netip.Addr, holder ring.Peer) bool {
		return holder == from || slices.Contains(req.Former, holder) && a.isRemoved(holder)
	})
	return held
}

// serveLocked is servePool with a.mu held.
func (a *Allocator) serveLocked(p *pool, from ring.Peer, req request, held map[netip.Addr]ring.Peer) answer {
	switch {
	case a.isRemoved(from):
		return answer{Refusal: refusedRemoved, Removed: removed{from: a.removed[from]}}
	case a.mayLease() != nil:
		return failed(fmt.Errorf("host %s: %w", a.cfg.Self, a.mayLease()))
	case (req.Op == opPrepare || req.Op == opAccept) && p.ring != nil:
		return answer{} // the ring is the answer
	case req.Op == opPrepare || req.Op == opAccept:
		return a.vote(p.prefix.String(), from, req, func(value []byte) error {
			_, err := decodeFounding(p.prefix, value)
			return err
		})
	case p.ring == nil:
		return failed(fmt.Errorf("pool %s: %w", p.prefix, ErrUnknownPool))
	case req.Ring == nil:
		return failed(fmt.Errorf("request without a ring: %w", ErrInvalid))
	case req.Ring.Seed != p.ring.Seed():
		return answer{Refusal: refusedSeeds}
	case req.Op == opSpace:
		return a.giveSpace(p, from, req, held)
	case req.Op == opClaim:
		return a.giveAddresses(p, from, req, held)
	case !p.usable.Contains(req.Addr):
		return failed(fmt.Errorf("address %s is not of pool %s: %w", req.Addr, p.prefix, ErrInvalid))
	case req.Op == opReserve || req.Op == opUnreserve:
		return a.serveShared(p, from, req, held[req.Addr])
	}
	return failed(fmt.Errorf("request %q: %w", req.Op, ErrInvalid))
}

// giveSpace gives half of the largest free run. If the asker does not know yet
// all that it owns, that is what it needs to hear, and nothing more is given.
func (a *Allocator) giveSpace(p *pool, from ring.Peer, req request, held map[netip.Addr]ring.Peer) answer {
	theirs, err := ring.FromChunk(*req.Ring)
	if err != nil {
		return failed(err)
	}
	if !slices.Equal(theirs.Ranges(from), p.ring.Ranges(from)) {
		return answer{}
	}
	within := p.usable
	if req.Within.IsValid() {
		h, err := newHandle(p.prefix, req.Within)
		if err != nil {
			return failed(err)
		}
		within = h.within
	}
	free := p.free.Clone()
	for addr := range held {
		if p.prefix.Contains(addr) {
			free.Remove(space.Single(addr))
		}
	}
	run, ok := free.Largest(within)
	if !ok {
		return answer{Refusal: refusedFull}
	}
	if err := a.give(p, from, run.UpperHalf()); err != nil {
		return failed(err)
	}
	return answer{}
}

// giveAddresses gives those that are free. What the asker was given before, and
// the answer was lost, has moved.
func (a *Allocator) giveAddresses(p *pool, from ring.Peer, req request, held map[netip.Addr]ring.Peer) answer {
	verdicts := make([]verdict, len(req.Addrs))
	var given space.Set
	for i, addr := range req.Addrs {
		if !p.usable.Contains(addr) {
			return failed(fmt.Errorf("address %s is not of pool %s: %w", addr, p.prefix, ErrInvalid))
		}
		switch {
		case p.owner(addr) != a.cfg.Self:
			verdicts[i].Refusal = refusedMoved
		case p.reserved[addr] != nil || p.records[addr].Kind != "" && p.records[addr].Kind != KindLease:
			verdicts[i].Refusal = refusedReserved
		case !p.free.Contains(addr):
			verdicts[i].Refusal = refusedLeased
		case held[addr] != "":
			verdicts[i] = verdict{Refusal: refusedLeased, Holder: held[addr]}
		default:
			given.Add(space.Single(addr))
		}
		if r := verdicts[i].Refusal; req.Held && r != "" && r != refusedMoved {
			p.noteRefused(addr, from)
		}
	}
	if err := a.give(p, from, given.Runs()...); err != nil {
		return failed(err)
	}
	return answer{Verdicts: verdicts}
}

// give hands over addresses that are free.
func (a *Allocator) give(p *pool, to ring.Peer, runs ...space.Range) error {
	next := p.ring
	var changes []gossip
	for _, run := range runs {
		after, change, err := next.Give(a.cfg.Self, run, to)
		if err != nil {
			return err
		}
		next, changes = after, append(changes, gossip{Rings: []ring.Chunk{change}})
	}
	if next == p.ring {
		return nil
	}
	if err := a.saveRings(map[*pool]*ring.Ring{p: next}); err != nil {
		return err
	}
	a.deltas = append(a.deltas, changes...)
	return nil
}

// serveShared reserves an address for the asker, or ends that. Either may be
// repeated. What is late is refused: a reservation that comes after the request
// that ended it would stay for ever. So would one that was refused and comes a
// second time; thus refusals are stored, too.
func (a *Allocator) serveShared(p *pool, from ring.Peer, req request, holder ring.Peer) answer {
	addr, heard := req.Addr, p.heard[from]
	before := p.reserved[addr]
	next, ans := before, answer{}
	switch {
	case req.Serial == 0 || req.Serial > maxSerial || heard == 0 && len(p.heard) >= maxHolders:
		return failed(fmt.Errorf("reservation of %s: %w", addr, ErrInvalid))
	case p.owner(addr) != a.cfg.Self:
		ans.Refusal = refusedMoved
	case req.Op == opUnreserve:
		next = before.without(func(holder ring.Peer) bool { return holder == from })
	case p.records[addr].Kind == KindLease || holder != "":
		ans = answer{Refusal: refusedLeased, Holder: holder}
	case len(before) >= maxHolders:
		return failed(fmt.Errorf("reservation of %s by more than %d hosts: %w", addr, maxHolders, ErrFull))
	default:
		next = before.with(from)
	}
	switch {
	case req.Serial == heard && len(next) == len(before):
		return ans // again
	case req.Serial <= heard:
		return answer{Refusal: refusedLate}
	}
	if err := a.saveReserved(p, addr, next, map[ring.Peer]uint64{from: req.Serial}); err != nil {
		return failed(err)
	}
	return ans
}

// serveRemoval is the acceptor of removals. Who sees the peer alive does not
// vote; whether it is matters no more once it is removed.
func (a *Allocator) serveRemoval(from ring.Peer, req request) answer {
	r := *req.Decree
	alive := slices.Contains(a.cfg.Cluster.Alive(), r.Peer)
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	i, gone := a.removed[r.Peer]
	switch {
	case a.isRemoved(from):
		return answer{Refusal: refusedRemoved, Removed: removed{from: a.removed[from]}}
	case a.mayLease() != nil:
		return failed(fmt.Errorf("host %s: %w", a.cfg.Self, a.mayLease()))
	case req.Op != opPrepare && req.Op != opAccept:
		return failed(fmt.Errorf("request %q: %w", req.Op, ErrInvalid))
	case i.Round >= r.Round:
		return answer{Removed: removed{r.Peer: i}}
	case alive && !gone || r.Peer == a.cfg.Self:
		return answer{Refusal: refusedAlive}
	}
	return a.vote(r.key(), from, req, func(value []byte) error {
		_, err := decodeHeir(r, value)
		return err
	})
}

// serveInherit takes over now what this peer inherits.
func (a *Allocator) serveInherit(ctx context.Context, r removal) answer {
	if heir, _ := a.chain(r.Peer); heir != a.cfg.Self {
		return failed(fmt.Errorf("heir of %s is %q: %w", r.Peer, heir, ErrInvalid))
	}
	if err := a.takeOver(ctx); err != nil {
		return failed(err)
	}
	report := a.report(r.Peer)
	return answer{Report: &report}
}
