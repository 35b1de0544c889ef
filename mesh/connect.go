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
)

const (
	seedTimeout  = 8 * time.Second // of one try
	seedInterval = 3 * time.Second // between tries
	seedsAtOnce  = 8
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
func (n *Node) Forget(addr string) error { return n.seeds.forget(addr) }

// seedLoop tries the addresses behind which no living member is known. Names
// are resolved anew each time.
func (n *Node) seedLoop(ctx context.Context) error {
	tick := time.NewTicker(n.cfg.tune.seedInterval)
	defer tick.Stop()
	for {
		g := errgroup.Group{}
		g.SetLimit(seedsAtOnce)
		for _, addr := range n.wantedSeeds() {
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

func (n *Node) wantedSeeds() []string {
	alive := map[id.PeerID]bool{}
	for _, p := range n.Alive() {
		alive[p] = true
	}
	var out []string
	for _, s := range n.seeds.snapshot() {
		if !s.Self && !alive[s.Peer] {
			out = append(out, s.Addr)
		}
	}
	return out
}

// try meets the peer behind host:port and notes what came of it, unless it was
// the caller who broke off.
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

// meet makes a session with a peer behind host:port, then a member of it, and
// learns all that it knows.
func (n *Node) meet(ctx context.Context, hostport string) (id.PeerID, error) {
	addrs, err := resolve(ctx, hostport)
	if err != nil {
		return id.PeerID{}, err
	}
	p, err := n.reach(ctx, addrs)
	if err != nil {
		return id.PeerID{}, err
	}
	return p, n.gossip.Join(ctx, p)
}

// reach makes a session with whoever answers first at one of the addresses.
// Its error tells of all that failed, and is ErrSelf only if nobody but
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
			cancel() // the others have come too late
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
