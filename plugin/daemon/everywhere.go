package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"weave/mesh"
	"weave/plugin/everywhere"
)

// newKeeper returns what has the networks of each host be on all, or nil.
func (d *daemon) newKeeper(p *parts) *everywhere.Keeper {
	if !d.cfg.Everywhere {
		return nil
	}
	keeper, err := everywhere.New(everywhere.Config{
		Self: p.identity.ID, Mesh: p.node, Driver: p.driver, Engine: p.engine, Store: p.store,
		Trouble: func(t map[string]string) { p.unlike.Store(&t) }, Log: d.log,
	})
	d.note("keep networks the same everywhere", err)
	return keeper
}

// Hosts tell each other of their routes, so that a network without --subnet gets one
// that is free on all.
const (
	topicRoutes = "routes"
	routesEvery = 30 * time.Second
	maxRoutes   = 128 // of one host; that many fit a note
)

// tellRoutes publishes the routes of this host that networks could collide with.
func (p *parts) tellRoutes(ctx context.Context, within netip.Prefix, log *logrus.Entry) error {
	tick := time.NewTicker(routesEvery)
	defer tick.Stop()
	var told []byte
	for {
		busy, err := p.busy()
		if note := encodeRoutes(busy, within); err == nil && !slices.Equal(note, told) {
			if err = p.node.Publish(topicRoutes, "all", note); err == nil {
				told = note
			}
		}
		if err != nil {
			log.WithError(err).Warn("other hosts do not know this one's routes")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// encodeRoutes names the prefixes that overlap one, the largest first; nil if there is
// none.
func encodeRoutes(all []netip.Prefix, within netip.Prefix) []byte {
	var routes []netip.Prefix
	for _, r := range all {
		if r.Overlaps(within) {
			routes = append(routes, r.Masked())
		}
	}
	slices.SortFunc(routes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Bits()-b.Bits(), a.Addr().Compare(b.Addr()))
	})
	if routes = slices.Compact(routes); len(routes) == 0 {
		return nil
	}
	note, err := json.Marshal(routes[:min(len(routes), maxRoutes)])
	if err != nil {
		panic("daemon: routes do not marshal: " + err.Error())
	}
	return note
}

// routesOverlap tells whether a host told of a route that overlaps a prefix. What
// makes no sense is nobody's route.
func routesOverlap(notes []mesh.Note, prefix netip.Prefix) bool {
	for _, n := range notes {
		var routes []netip.Prefix
		if json.Unmarshal(n.Value, &routes) != nil {
			continue
		}
		if slices.ContainsFunc(routes, func(r netip.Prefix) bool { return r.IsValid() && r.Bits() > 0 && r.Overlaps(prefix) }) {
			return true
		}
	}
	return false
}
