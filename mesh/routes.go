package mesh

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"weave/mesh/id"
	"weave/mesh/route"
	"weave/mesh/transport"
)

// kindLinks is a record that tells whom its owner reaches directly. There is one,
// by the key linksKey.
const (
	kindLinks = "links"
	linksKey  = "direct"
)

const (
	// relinkDelay gathers changes of links that come together, as when a host dies.
	relinkDelay = 20 * time.Millisecond
	// relinkGap is what lies between two publications of ours at least.
	relinkGap = 250 * time.Millisecond
)

// routes are the ways to peers that this host does not reach directly. Who may
// call what: next anybody, on the hot path; the rest route.
type routes struct {
	table   atomic.Pointer[route.Table]
	changed chan struct{} // buffered: links changed, ours or others'

	candidates []netip.AddrPort // as told to others; routeLoop's
}

func newRoutes() *routes { return &routes{changed: make(chan struct{}, 1)} }

// change has the ways found anew.
func (r *routes) change() {
	select {
	case r.changed <- struct{}{}:
	default: // they will be
	}
}

// next is the transport's Config.Next.
func (r *routes) next(p id.PeerID) (id.PeerID, bool) {
	w, ok := r.table.Load().Way(p)
	return w.Next, ok
}

// routeLoop publishes our links and finds the ways, whenever links change.
func (n *Node) routeLoop(ctx context.Context) error {
	timer := time.NewTimer(relinkDelay)
	defer timer.Stop()
	armed := true
	var published time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.routes.changed:
			if !armed {
				timer.Reset(relinkDelay)
				armed = true
			}
		case <-timer.C:
			armed = false
			again := n.relink(time.Since(published) >= relinkGap)
			switch again {
			case linksPublished:
				published = time.Now()
			case linksWait:
				timer.Reset(relinkGap)
				armed = true
			}
		}
	}
}

// What relink did about the record of our links.
type linksOutcome int

const (
	linksSame linksOutcome = iota
	linksPublished
	linksWait // it is another, but was published just now
)

// relink finds the ways, and publishes our links, addresses and kind of NAT if they
// changed and may is set.
func (n *Node) relink(may bool) linksOutcome {
	self := n.cfg.Identity.ID
	direct := n.transport.Direct()
	candidates, nat := n.candidates(), n.NAT()
	moved := !slices.Equal(candidates, n.routes.candidates)
	n.mu.Lock()
	told := maps.Clone(n.index.links)
	host := n.index.hosts[self]
	n.mu.Unlock()
	old, was := told[self]
	delete(told, self)
	own := route.Describe(direct, n.others(direct, told))
	told[self] = own
	n.routes.table.Store(route.Compute(self, direct, told, n.routes.table.Load()))
	same := was && old.Equal(own)
	switch {
	case same && !moved && host.NAT == nat:
		return linksSame
	case !may: // peers say where they see us, and could say otherwise with each pong
		return linksWait
	}
	if moved {
		n.routes.candidates = candidates
		n.gossip.SetCandidates(candidates)
	}
	if !same {
		n.publishLinks(own)
	}
	if host.NAT != nat {
		host.NAT = nat
		n.publishHost(host)
	}
	return linksPublished
}

func (n *Node) publishLinks(own route.Links) {
	value, err := own.Encode()
	if err == nil {
		n.publish.Lock()
		err = n.set(kindLinks, linksKey, value)
		n.publish.Unlock()
	}
	if err != nil {
		n.log.WithError(err).Error("whom this host reaches is not published: others will not relay through it")
	}
}

// others lists the peers that a record of links is about: those that live, those
// that have a link with us, and those that told of theirs. Such a one may be dead,
// and its word stays: who did not contradict would be taken for a way to it.
func (n *Node) others(direct []id.PeerID, told map[id.PeerID]route.Links) []id.PeerID {
	all := slices.AppendSeq(slices.Concat(n.Alive(), direct), maps.Keys(told))
	slices.SortFunc(all, id.PeerID.Compare)
	return slices.Compact(all)
}

// setLinks takes in whom a peer reaches; a nil value is none.
func (x *index) setLinks(owner id.PeerID, key string, value []byte) error {
	if key != linksKey {
		return nil // of a later version
	}
	delete(x.links, owner)
	if value == nil {
		return nil
	}
	l, err := route.Decode(value)
	if err == nil {
		x.links[owner] = l
	}
	return err
}

// Route is the way to a peer.
type Route struct {
	Next id.PeerID // who passes on what is for it, or the peer itself
	Hops int       // 1: directly
}

func (n *Node) routeTo(p id.PeerID) (Route, bool) {
	w, ok := n.routes.table.Load().Way(p)
	return Route(w), ok
}

// Relayed counts what this host passed on for others.
func (n *Node) Relayed() transport.Relayed { return n.transport.Relayed() }
