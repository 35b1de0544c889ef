// Package lan finds the hosts of a cluster on the LANs that this host is on: it
// announces this one by multicast, hears the others, and has them met. Who is met
// must prove that it belongs to the cluster by a handshake as any other peer; an
// announcement is only a reason to try.
//
// A host announces itself on each link that leads to other hosts: some times in its
// first seconds, then about every 45 seconds, and at once when it hears of a host
// that is new to it. What it sends is sealed, see message.go. It goes no further
// than the link: its hop limit is 1, and what comes with more, to another address
// than the group's, or from an address that is not of the link's subnet, is dropped.
//
// Somebody on the LAN can repeat an announcement, from another address too, and
// where there is no password make one up. It costs an attempt to connect to an
// address of that LAN, and of these there are few at a time: see finds.
package lan

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"weave/mesh/id"
)

// Port is the UDP port of announcements. It is the same for all clusters and
// whatever port these use themselves: hosts are to find each other without knowing.
const Port = 6785

const (
	// triesAtOnce bounds the attempts to connect, each of which has tryTimeout.
	triesAtOnce = 4
	tryTimeout  = 6 * time.Second
	// lookInterval is how often links are looked at: some come after we start.
	lookInterval = 5 * time.Second
	// retryInterval is the pause after a socket failed.
	retryInterval = 15 * time.Second
)

// Config is what an Announcer is made of.
type Config struct {
	Self   id.PeerID
	Key    [KeySize]byte // the cluster's, for this purpose only
	Port   uint16        // where this host takes connections, UDP and TCP
	Listen netip.Addr    // the one address where it does; unspecified: all
	// Wanted tells whether a peer is to be met.
	Wanted func(id.PeerID) bool
	// Meet connects to a host that announced itself. It is called from some
	// goroutines.
	Meet func(context.Context, netip.AddrPort) (id.PeerID, error)
	Log  *logrus.Entry

	// do makes system calls that depend on the network namespace; nil: just so.
	do   func(func() error) error
	wait time.Duration // firstWait, but in tests
}

// Announcer announces one host, and hears the others.
type Announcer struct {
	cfg      Config
	sealer   *sealer
	finds    *finds
	families []*family
	foreign  atomic.Uint64
}

// New makes an Announcer; it starts nothing.
func New(cfg Config) *Announcer {
	if cfg.do == nil {
		cfg.do = func(f func() error) error { return f() }
	}
	if cfg.wait == 0 {
		cfg.wait = firstWait
	}
	a := &Announcer{cfg: cfg, sealer: newSealer(cfg.Key), finds: newFinds()}
	listen := cfg.Listen.Unmap()
	everywhere := !listen.IsValid() || listen.IsUnspecified()
	if everywhere || listen.Is4() {
		a.families = append(a.families, newFamily(a, "IPv4", group4, open4))
	}
	if everywhere || listen.Is6() {
		a.families = append(a.families, newFamily(a, "IPv6", group6, open6))
	}
	return a
}

// Run works until ctx ends. What fails is tried again: a host that cannot announce
// itself has other ways to its cluster. It can be called once.
func (a *Announcer) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, f := range a.families {
		all.Go(func() { f.serve(ctx) })
	}
	for range triesAtOnce {
		all.Go(func() { a.tryAll(ctx) })
	}
	all.Wait()
}

// tryAll meets one host after the other.
func (a *Announcer) tryAll(ctx context.Context) {
	for {
		x, ok := a.finds.take(ctx)
		if !ok {
			return
		}
		if a.cfg.Wanted(x.peer) {
			a.try(ctx, x)
		}
	}
}

func (a *Announcer) try(ctx context.Context, x find) {
	trying, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	log := a.cfg.Log.WithField("addr", x.at)
	p, err := a.cfg.Meet(trying, x.at)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		log.WithField("peer", x.peer.Short()).WithError(err).Debug("a host announced itself on the LAN, and was not met")
	default:
		log.WithField("peer", p.Short()).Info("met a host that announced itself on the LAN")
	}
}

// Status is how it goes.
type Status struct {
	Links   []string // on which this host is announced
	Trouble string   // why there is none
	Foreign uint64   // announcements heard of hosts with another password
}

var errNoLink = errors.New("no link with an address that leads to other hosts")

// Status tells how it goes.
func (a *Announcer) Status() Status {
	s := Status{Foreign: a.foreign.Load()}
	var errs []string
	for _, f := range a.families {
		state := f.state.Load()
		s.Links = append(s.Links, state.links...)
		if state.err != nil {
			errs = append(errs, fmt.Sprintf("%s: %v", f.name, state.err))
		}
	}
	slices.Sort(s.Links)
	s.Links = slices.Compact(s.Links)
	switch {
	case len(s.Links) > 0:
	case len(errs) == 0:
		s.Trouble = errNoLink.Error()
	default:
		s.Trouble = strings.Join(errs, "; ")
	}
	return s
}
