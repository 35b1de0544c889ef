package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/transport"
)

const (
	seedTimeout  = 8 * time.Second // of one try
	seedInterval = 3 * time.Second // between tries
	seedsAtOnce  = 8
	// namesInterval is how often a name is looked up although somebody was met
	// there: others may be behind it now.
	namesInterval = 30 * time.Second
	// stragglers is how long the others behind a name have, once somebody was met
	// there.
	stragglers = time.Second
)

// Errors of Forget.
var (
	ErrConfigured = errors.New("it stands in the configuration")
	ErrNoSeed     = errors.New("no such address was given")
)

// Connect adds an address to those that are tried until a peer is met there,
// after a restart too, and makes the first try at once. An error of that try
// does not take the address back.
func (n *Node) Connect(ctx context.Context, addr string) (id.PeerID, error) {
	if err := n.seeds.add(addr); err != nil {
		return id.PeerID{}, err
	}
	return n.try(ctx, addr)
}

// Forget takes back an address that Connect was given. Peers that were met stay
// known.
func (n *Node) Forget(addr string) error {
	gone, err := n.seeds.forget(addr)
	n.unlist(gone)
	return err
}

// seedLoop tries the addresses behind which no living member is known. Names
// are resolved anew each time.
func (n *Node) seedLoop(ctx context.Context) error {
	tick := time.NewTicker(n.cfg.tune.seedInterval)
	defer tick.Stop()
	for {
		g := errgroup.Group{}
		g.SetLimit(seedsAtOnce)
		for _, addr := range n.wantedSeeds(time.Now()) {
			g.Go(func() error {
				if _, err := n.try(ctx, addr); err != nil && ctx.Err() == nil {
					n.log.WithField("addr", addr).WithError(err).Debug("peer not reached")
				}
				return nil
			})
		}
		_ = g.Wait() // never fails
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (n *Node) wantedSeeds(now time.Time) []string {
	alive := map[id.PeerID]bool{}
	for _, p := range n.Alive() {
		alive[p] = true
	}
	var out []string
	for _, s := range n.seeds.snapshot() {
		settled := s.Self || alive[s.Peer]
		if !settled || s.named() && now.Sub(s.Tried) >= n.cfg.tune.namesInterval {
			out = append(out, s.Addr)
		}
	}
	return out
}

// try meets the peers behind host:port and notes what came of it, unless it was
// the caller who broke off. It returns one of them.
func (n *Node) try(ctx context.Context, hostport string) (id.PeerID, error) {
	trying, cancel := context.WithTimeout(ctx, seedTimeout)
	defer cancel()
	p, err := n.meet(trying, hostport)
	switch {
	case ctx.Err() != nil:
		return p, err
	case errors.Is(err, handshake.ErrSelf):
		n.seeds.failed(hostport, time.Now(), err, true)
		return n.cfg.Identity.ID, nil
	case err != nil:
		n.seeds.failed(hostport, time.Now(), err, false)
		return p, err
	}
	if err := n.seeds.met(hostport, time.Now(), p); err != nil {
		n.log.WithField("addr", hostport).WithError(err).Error("a peer's address is not on disk: a restart would forget that it was met there")
	}
	return p, nil
}

// meet makes members of the peers behind host:port that are none, and returns one
// of all. It is not enough to meet one: if all hosts are given one name with the
// addresses of all, each two could meet each other and nobody else.
func (n *Node) meet(ctx context.Context, hostport string) (id.PeerID, error) {
	addrs, err := resolve(ctx, n.cfg.tune.lookup, hostport)
	if err != nil {
		return id.PeerID{}, err
	}
	n.unlist(n.seeds.resolved(hostport, addrs))
	var met id.PeerID
	if len(addrs) > 1 {
		addrs, met = n.strangers(addrs)
	}
	if len(addrs) == 0 {
		return met, nil
	}
	p, err := n.reach(ctx, addrs)
	n.unlist(n.seeds.strays(addrs)) // if it was forgotten meanwhile
	if !met.IsZero() {
		return met, nil
	}
	return p, err
}

// strangers leaves out addresses of members that are up, and returns one of these.
func (n *Node) strangers(addrs []netip.AddrPort) (left []netip.AddrPort, member id.PeerID) {
	up := map[netip.AddrPort]id.PeerID{}
	for _, p := range n.Peers() {
		if p.Alive && p.Path.State == transport.StateUp {
			for _, a := range append(p.Path.Candidates, p.Path.Addr) {
				up[a] = p.ID
			}
		}
	}
	for _, a := range addrs {
		if p, ok := up[a]; ok {
			member = p
		} else {
			left = append(left, a)
		}
	}
	return left, member
}

// reach makes a session with each peer at the addresses, then a member of it, and
// learns all that it knows. It returns who was first; soon after that it gives up
// the rest. Its error tells of all that failed, and is ErrSelf only if nobody but
// ourselves is there.
func (n *Node) reach(ctx context.Context, addrs []netip.AddrPort) (id.PeerID, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		peer id.PeerID
		err  error
	}
	answers := make(chan answer)
	for _, addr := range addrs {
		go func() {
			p, err := n.transport.Connect(ctx, addr)
			if err == nil {
				err = n.gossip.Join(ctx, p)
			}
			answers <- answer{p, err}
		}()
	}
	var met id.PeerID
	failure := error(handshake.ErrSelf)
	for range addrs {
		a := <-answers
		switch {
		case a.err == nil && met.IsZero():
			met = a.peer
			rest := time.AfterFunc(stragglers, cancel)
			defer rest.Stop()
		case a.err == nil || errors.Is(a.err, handshake.ErrSelf):
		case errors.Is(failure, handshake.ErrSelf):
			failure = a.err
		default:
			failure = fmt.Errorf("%w; %w", failure, a.err)
		}
	}
	if !met.IsZero() {
		return met, nil
	}
	return id.PeerID{}, failure
}

// Try tells whether a peer answers, by UDP and by TCP, to who has had nothing to do
// with it; see transport.Transport.Try.
func (n *Node) Try(ctx context.Context, p id.PeerID) []transport.Tried {
	return n.transport.Try(ctx, p)
}
