package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"weave/ipam/ring"
	"weave/mesh/id"
	"weave/plugin/control"
)

// A host that is about to be wiped asks others to remove it. They wait until it
// is gone, since nobody removes a host that answers, and do as `weave rmpeer
// --gone` does. Who asked and does not go stays: it must not be removed when it
// is switched off another day.
const (
	maxHelpers      = 3  // more than one, as it may be switched off meanwhile
	maxAsked        = 10 // older versions refuse
	maxDepartures   = 256
	departureLimit  = 2 * time.Minute
	departuresEvery = time.Second
)

// leaveRequest asks a peer to remove the asker; nothing that the allocators ask
// looks like it.
var leaveRequest = []byte(`"leave"`)

// departures are the peers that have asked to be removed.
type departures struct {
	alive  func() []id.PeerID
	remove func(ctx context.Context, p id.PeerID) error
	log    *logrus.Entry
	wake   chan struct{} // buffered

	mu  sync.Mutex
	due map[id.PeerID]time.Time // until when it must be gone and removed
}

func newDepartures(alive func() []id.PeerID, remove func(context.Context, id.PeerID) error, log *logrus.Entry) *departures {
	return &departures{alive: alive, remove: remove, log: log, wake: make(chan struct{}, 1), due: map[id.PeerID]time.Time{}}
}

// add takes a peer's own request.
func (d *departures) add(p id.PeerID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, again := d.due[p]; !again && len(d.due) == maxDepartures {
		return fmt.Errorf("%d hosts are leaving already", maxDepartures)
	}
	d.due[p] = time.Now().Add(departureLimit)
	d.log.WithField("peer", p.String()).Info("peer leaves: it is removed when it is gone")
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return nil
}

// run sees off who has asked, until ctx ends.
func (d *departures) run(ctx context.Context) error {
	tick := time.NewTicker(departuresEvery)
	defer tick.Stop()
	for {
		var next <-chan time.Time // none while nobody leaves
		if d.seeOff(ctx) {
			next = tick.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		case <-next:
		}
	}
}

// seeOff removes those that are gone, and reports whether others are waited for.
func (d *departures) seeOff(ctx context.Context) (waiting bool) {
	d.mu.Lock()
	pending := make([]id.PeerID, 0, len(d.due))
	for p := range d.due {
		pending = append(pending, p)
	}
	d.mu.Unlock()
	for _, p := range pending {
		err := errStillThere
		if !slices.Contains(d.alive(), p) {
			err = d.remove(ctx, p)
		}
		d.mu.Lock()
		late := time.Now().After(d.due[p])
		if err == nil || late {
			delete(d.due, p)
		}
		waiting = len(d.due) > 0
		d.mu.Unlock()
		if err != nil && late {
			d.log.WithField("peer", p.String()).WithError(err).Warn("peer asked to be removed and was not: `weave rmpeer` does it")
		}
	}
	return waiting
}

var errStillThere = errors.New("it is still there")

// removeGone is `weave rmpeer --gone`.
func (p *parts) removeGone(ctx context.Context, peer id.PeerID) error {
	if _, err := p.allocator.RemovePeer(ctx, ring.Peer(peer.String())); err != nil {
		return err
	}
	return errors.Join(p.node.MarkGone(peer), p.forgetRemoved())
}

// Leave implements control.Daemon.
func (d *daemon) Leave(ctx context.Context) (control.Departure, error) {
	p := d.parts.Load()
	if p == nil {
		return control.Departure{}, d.notReady()
	}
	out := control.Departure{Peer: p.identity.ID.String()}
	removed := p.allocator.Removed()
	for _, x := range p.node.Known() {
		if _, gone := removed[ring.Peer(x.String())]; !gone {
			out.Others++
		}
	}
	for i, x := range p.node.Alive() {
		if len(out.Helpers) == maxHelpers || i == maxAsked {
			break
		}
		if _, err := p.node.Ask(ctx, x, leaveRequest); err != nil {
			d.log.WithField("peer", x.String()).WithError(err).Warn("peer does not help this host to leave")
			continue
		}
		out.Helpers = append(out.Helpers, p.node.Nickname(x))
	}
	return out, nil
}
