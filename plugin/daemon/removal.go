package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"weave/ipam"
	"weave/ipam/ring"
	"weave/mesh"
	"weave/mesh/id"
	"weave/plugin/control"
	"weave/plugin/store"
)

// errRemoved ends a run: the cluster removed this host while it was away, so it
// has to become a new peer.
var errRemoved = errors.New("this host was removed from the cluster")

// removalsEvery is how often removed peers are looked after.
const removalsEvery = 10 * time.Second

// bucketFormer keeps, under keyFormer, the ID that this host had before it was
// removed.
const (
	bucketFormer = "former"
	keyFormer    = "id"
)

// retire gives up an identity, and remembers that it was ours: what it announced
// is announced by another peer from now on.
func retire(s *store.Store, old id.Identity) error {
	if err := s.Apply(bucketFormer, map[string][]byte{keyFormer: []byte(old.ID.String())}); err != nil {
		return fmt.Errorf("give up identity %s: %w", old.ID.Short(), err)
	}
	if err := s.Apply(bucketIdentity, map[string][]byte{keyPrivate: nil}); err != nil {
		return fmt.Errorf("give up identity %s: %w", old.ID.Short(), err)
	}
	return nil
}

// disown tells all peers not to count what this host announced under its former
// identity, if it had one.
func (p *parts) disown() error {
	values, err := p.store.Load(bucketFormer)
	if err != nil {
		return fmt.Errorf("load former identity: %w", err)
	}
	raw, ok := values[keyFormer]
	if !ok {
		return nil
	}
	former, err := id.Parse(string(raw))
	if err != nil {
		return fmt.Errorf("state bucket %q: %w", bucketFormer, err)
	}
	if former == p.identity.ID {
		return nil // retire was cut short
	}
	return p.node.MarkGone(former)
}

// waiting lists the removed hosts whose addresses nobody has taken over yet.
func (p *parts) waiting() (all []waiting) {
	for _, w := range p.allocator.Waiting() {
		all = append(all, waiting{p.nickname(w.Peer), p.nicknames(w.For)})
	}
	return all
}

// nickname is what people call a peer of the allocator.
func (p *parts) nickname(x ring.Peer) string {
	peer, err := id.Parse(string(x))
	if err != nil {
		return string(x)
	}
	return p.node.Nickname(peer)
}

func (p *parts) nicknames(of []ring.Peer) []string {
	names := make([]string, len(of))
	for i, x := range of {
		names[i] = p.nickname(x)
	}
	slices.Sort(names)
	return names
}

// onRemoved is called by the allocator, once.
func (p *parts) onRemoved() {
	select {
	case p.removed <- struct{}{}:
	default:
	}
}

// watchRemovals forgets peers that were removed, and ends the run if this host
// was.
func (p *parts) watchRemovals(ctx context.Context, log *logrus.Entry) error {
	tick := time.NewTicker(removalsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.removed:
			return errRemoved
		case <-tick.C:
			if err := p.forgetRemoved(); err != nil {
				log.WithError(err).Warn("a removed peer is still remembered")
			}
		}
	}
}

// forgetRemoved drops those from the mesh's memory that the cluster removed.
func (p *parts) forgetRemoved() error {
	removed, alive := p.allocator.Removed(), p.node.Alive()
	var errs []error
	for _, x := range p.node.Known() {
		if _, gone := removed[ring.Peer(x.String())]; gone && !slices.Contains(alive, x) {
			errs = append(errs, p.node.ForgetPeer(x))
		}
	}
	return errors.Join(errs...)
}

// onClash is called by the allocator when it finds that an address of a
// container here belongs to one of another host.
func (p *parts) onClash(pool netip.Prefix, addr netip.Addr) {
	for _, e := range p.node.Endpoints() {
		if e.Owner == p.identity.ID && e.Has(pool, addr) {
			p.node.Withdraw(e.ID)
		}
	}
}

// clashes tells whether an endpoint has an address that belongs to a container
// of another host.
func clashes(list []ipam.Clash, e mesh.Endpoint) bool {
	return slices.ContainsFunc(list, func(c ipam.Clash) bool { return c.Kind == ipam.KindLease && e.Has(c.Pool, c.Addr) })
}

// held is the table of endpoints as the allocator sees it: whose container has
// an address, removed peers included.
func (c *cluster) held(pool netip.Prefix, addr netip.Addr) (ring.Peer, bool) {
	p, ok := c.node.HolderOf(pool, addr)
	return ring.Peer(p.String()), ok
}

func (c *cluster) holders(pool netip.Prefix) map[netip.Addr]ring.Peer {
	out := map[netip.Addr]ring.Peer{}
	for addr, p := range c.node.HoldersIn(pool) {
		out[addr] = ring.Peer(p.String())
	}
	return out
}

// gone tells whether the containers of a removed peer are gone, or announced
// under another ID.
func (c *cluster) gone(p ring.Peer) bool {
	peer, err := id.Parse(string(p))
	return err == nil && c.node.IsGone(peer)
}

// RemovePeer implements control.Daemon.
func (d *daemon) RemovePeer(ctx context.Context, name string, gone bool) (control.Removal, error) {
	p := d.parts.Load()
	if p == nil {
		return control.Removal{}, d.notReady()
	}
	peer, err := p.find(name)
	if err != nil {
		return control.Removal{}, err
	}
	nickname := p.node.Nickname(peer)
	report, err := p.allocator.RemovePeer(ctx, ring.Peer(peer.String()))
	if err != nil {
		return control.Removal{}, err
	}
	if gone {
		if err := p.node.MarkGone(peer); err != nil {
			return control.Removal{}, err
		}
	}
	out := control.Removal{
		Peer: peer.String(), Nickname: nickname, Heir: report.HeirHost, Pending: report.Pending, Missing: p.nicknames(report.Missing),
	}
	for _, x := range report.Pools {
		pool := control.RemovedPool{Subnet: x.Pool, Addresses: x.Addresses}
		if !gone {
			pool.Held = x.Held
		}
		out.Pools = append(out.Pools, pool)
	}
	return out, p.forgetRemoved()
}

// minPrefix is the shortest beginning of an ID that names a peer.
const minPrefix = 4

// find returns the peer that a person means: by ID, by the beginning of one, or
// by nickname.
func (p *parts) find(name string) (id.PeerID, error) {
	candidates := map[id.PeerID]string{}
	for _, x := range p.node.Known() {
		candidates[x] = p.node.Nickname(x)
	}
	for x := range p.allocator.Removed() {
		if peer, err := id.Parse(string(x)); err == nil && candidates[peer] == "" {
			candidates[peer] = ""
		}
	}
	for _, s := range p.allocator.Status() {
		for _, o := range s.Owners {
			if peer, err := id.Parse(string(o.Peer)); err == nil && candidates[peer] == "" {
				candidates[peer] = o.Host
			}
		}
	}
	matching := func(fits func(peer id.PeerID, nickname string) bool) (found []id.PeerID) {
		for peer, nickname := range candidates {
			if fits(peer, nickname) {
				found = append(found, peer)
			}
		}
		return found
	}
	found := matching(func(_ id.PeerID, nickname string) bool { return nickname == name })
	if len(found) == 0 && len(name) >= minPrefix {
		found = matching(func(peer id.PeerID, _ string) bool { return strings.HasPrefix(peer.String(), name) })
	}
	switch len(found) {
	case 0:
		return id.PeerID{}, fmt.Errorf("no peer %q is known: `weave status peers` lists them; one that was removed before goes by its peer ID", name)
	case 1:
		return found[0], nil
	}
	return id.PeerID{}, fmt.Errorf("%q means more than one peer: give the whole ID, as `weave status peers` shows it", name)
}
