package ipam

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"weave/ipam/ring"
)

const (
	maxRemoved = 1 << 12
	maxRounds  = 1 << 20 // of heirs for one peer
	maxName    = 128     // bytes of a peer's name
	removalKey = "remove "
)

// inheritance says who has what a removed peer owned. Round is 1, and more only
// if peers apart removed each other, so that no heir was left.
type inheritance struct {
	Heir  ring.Peer `json:"heir"`
	Round uint64    `json:"round"`
}

// removed are all peers that were ever removed. It only grows: of two entries
// for one peer the higher round stays, and of one round the smaller heir, which
// is only needed where clusters apart removed the same peer.
type removed map[ring.Peer]inheritance

func (i inheritance) beats(old inheritance) bool {
	return i.Round > old.Round || i.Round == old.Round && i.Heir < old.Heir
}

// removal is what peers agree upon: the heir of Peer in this round.
type removal struct {
	Peer  ring.Peer `json:"peer"`
	Round uint64    `json:"round"`
}

func (r removal) key() string {
	return removalKey + strconv.FormatUint(r.Round, 10) + " " + string(r.Peer)
}

func (r removal) check() error {
	if r.Peer == "" || len(r.Peer) > maxName || r.Round == 0 || r.Round > maxRounds {
		return fmt.Errorf("removal of peer %q, round %d: %w", r.Peer, r.Round, ErrInvalid)
	}
	return nil
}

// RemoveReport says what became of a removed peer's ranges.
type RemoveReport struct {
	Peer     ring.Peer     `json:"peer"`
	Host     string        `json:"host"`
	Heir     ring.Peer     `json:"heir"`
	HeirHost string        `json:"heir_host"`
	Pending  bool          `json:"pending,omitempty"` // the heir could not be asked: it will do it when it hears
	Missing  []ring.Peer   `json:"missing,omitempty"` // who must tell its rings before the heir takes anything over
	Pools    []RemovedPool `json:"pools,omitempty"`
}

// RemovedPool is what the heir has taken over of one pool since it started.
type RemovedPool struct {
	Pool      netip.Prefix `json:"pool"`
	Addresses uint64       `json:"addresses"`
	Held      []netip.Addr `json:"held,omitempty"` // by containers of the removed peer, as far as is known: not given out
}

// RemovePeer has the known peers agree that p is gone for good and who inherits
// its ranges, and the heir take them over, now or when all others have told it
// what p gave them. It may be repeated, and run on several hosts at once: there
// is one heir.
func (a *Allocator) RemovePeer(ctx context.Context, p ring.Peer) (RemoveReport, error) {
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	host := a.name(p)
	if err := a.checkRemoval(p, host); err != nil {
		return RemoveReport{}, err
	}
	if err := a.agreeHeir(ctx, p); err != nil {
		return RemoveReport{}, err
	}
	heir, chain := a.chain(p)
	if heir == a.cfg.Self {
		if err := a.takeOver(ctx); err != nil {
			return RemoveReport{}, err
		}
		return a.report(p), nil
	}
	report := RemoveReport{Peer: p, Heir: heir, Pending: true}
	ans, err := a.send(ctx, heir, request{Op: opInherit, Decree: &removal{Peer: p, Round: chain[p].Round}, Removed: chain})
	if err == nil && ans.Report != nil {
		report = *ans.Report
	}
	report.Host, report.HeirHost = host, a.name(heir)
	return report, nil
}

func (a *Allocator) checkRemoval(p ring.Peer, host string) error {
	known := slices.Contains(a.cfg.Cluster.Known(), p)
	alive := slices.Contains(a.cfg.Cluster.Alive(), p)
	a.mu.Lock()
	defer a.mu.Unlock()
	_, gone := a.removed[p]
	for _, pool := range a.pools {
		known = known || pool.ring != nil && slices.Contains(pool.ring.Owners(), p)
	}
	switch {
	case p == a.cfg.Self:
		return errorf(ErrInvalid, "peer %s is this host; run `weave rmpeer` on another one", p)
	case a.mayLease() != nil:
		return a.mayLease()
	case gone:
		return nil
	case !known || removal{p, 1}.check() != nil:
		return errorf(ErrUnknownPeer, "no peer %s is known; `weave status peers` lists them", p)
	case alive:
		return errorf(ErrAlive, "host %s (%s) is alive; stop weave there first", host, p)
	}
	return nil
}

// agreeHeir sees to it that p is removed and that somebody is left to inherit.
func (a *Allocator) agreeHeir(ctx context.Context, p ring.Peer) error {
	select {
	case a.removing <- struct{}{}:
		defer func() { <-a.removing }()
	case <-ctx.Done():
	}
	if err := ctx.Err(); err != nil { // looked at last: of two that are ready, select takes either
		return fmt.Errorf("remove peer %s: another removal is still waiting for peers: %w", p, err)
	}
	a.mu.Lock()
	heir, _ := a.heirOf(p)
	r := removal{Peer: p, Round: a.removed[p].Round + 1}
	a.mu.Unlock()
	if heir != "" {
		return nil
	}
	_, err := a.agree(ctx, a.succession(r))
	return err
}

// succession is the agreement on the heir of a removed peer.
func (a *Allocator) succession(r removal) decree {
	host := a.name(r.Peer)
	return decree{
		key:        r.key(),
		electorate: func() electorate { return a.electorate(r.Peer, nil) },
		propose:    func(electorate) []byte { return encode(inheritance{Heir: a.cfg.Self, Round: r.Round}) },
		settled: func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.removed[r.Peer].Round >= r.Round
		},
		decide: func(value []byte) (bool, error) { return a.remove(r, value) },
		disagree: func(e electorate, silent []string) error {
			return errorf(ErrNoAgreement, "a majority (%d of %d hosts) must agree that host %s is gone%s", e.quorum, e.size(), host, waitedFor(e, silent))
		},
		ask: func(ctx context.Context, to ring.Peer, req request) (answer, error) {
			ctx, cancel := context.WithTimeout(ctx, a.askTimeout)
			defer cancel()
			req.Decree = &r
			return a.send(ctx, to, req)
		},
	}
}

func decodeHeir(r removal, value []byte) (inheritance, error) {
	var i inheritance
	if err := decode(value, maxMessage, &i); err != nil {
		return i, err
	}
	return i, i.check(r.Peer, r.Round)
}

func (i inheritance) check(of ring.Peer, round uint64) error {
	if i.Heir == "" || len(i.Heir) > maxName || i.Heir == of || i.Round != round {
		return fmt.Errorf("heir %q of peer %s, round %d: %w", i.Heir, of, i.Round, ErrInvalid)
	}
	return (removal{of, i.Round}).check()
}

// remove uses a decided value and tells everybody.
func (a *Allocator) remove(r removal, value []byte) (stands bool, err error) {
	i, err := decodeHeir(r, value)
	if err != nil {
		return false, err
	}
	defer a.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.learnRemoved(removed{r.Peer: i}); err != nil {
		return false, err
	}
	a.deltas = append(a.deltas, gossip{Removed: removed{r.Peer: a.removed[r.Peer]}})
	return a.removed[r.Peer] == i, nil
}

// learnRemoved stores which peers were removed and acts on it. a.mu is held.
func (a *Allocator) learnRemoved(more removed) error {
	news := removed{}
	for p, i := range more {
		if err := i.check(p, i.Round); err != nil {
			return err
		}
		if i.beats(a.removed[p]) {
			news[p] = i
		}
	}
	if len(news) == 0 {
		return nil
	}
	if len(a.removed)+len(news) > maxRemoved {
		return fmt.Errorf("more than %d removed peers: %w", maxRemoved, ErrInvalid)
	}
	if err := a.saveRemoved(news); err != nil {
		return err
	}
	a.told = map[ring.Peer]bool{} // they may have been given something since by whom we now know to be removed
	a.wake()
	for p, i := range news {
		a.cfg.Log.WithField("peer", p).WithField("heir", i.Heir).Warn("peer was removed")
	}
	return a.dropHolders()
}

// dropHolders drops the reservations of removed peers. a.mu is held.
func (a *Allocator) dropHolders() error {
	for _, p := range a.pools {
		maps.DeleteFunc(p.heard, func(peer ring.Peer, _ uint64) bool { return a.isRemoved(peer) })
		for addr, r := range p.reserved {
			next := r.without(a.isRemoved)
			if len(next) == len(r) {
				continue
			}
			if err := a.saveReserved(p, addr, next, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *Allocator) isRemoved(p ring.Peer) bool {
	_, gone := a.removed[p]
	return gone
}

// heirOf follows the heirs of a removed peer to one that was not removed, and
// counts the steps. It is nobody if p was not removed, or if peers apart have
// removed each other. a.mu is held.
func (a *Allocator) heirOf(p ring.Peer) (heir ring.Peer, steps uint64) {
	for range a.removed {
		i, gone := a.removed[p]
		if !gone {
			break
		}
		heir, p = i.Heir, i.Heir
		steps++
	}
	if a.isRemoved(heir) {
		return "", 0
	}
	return heir, steps
}

// chain is the heir of p with the entries that lead there.
func (a *Allocator) chain(p ring.Peer) (heir ring.Peer, entries removed) {
	a.mu.Lock()
	defer a.mu.Unlock()
	heir, _ = a.heirOf(p)
	entries = removed{}
	for i, gone := a.removed[p]; gone && entries[p] == (inheritance{}); i, gone = a.removed[p] {
		entries[p] = i
		p = i.Heir
	}
	return heir, entries
}

// Removed lists the peers that were removed, each with the heir of its ranges,
// who is nobody until peers that removed each other have agreed anew.
func (a *Allocator) Removed() map[ring.Peer]ring.Peer {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := map[ring.Peer]ring.Peer{}
	for p := range a.removed {
		all[p], _ = a.heirOf(p)
	}
	return all
}
