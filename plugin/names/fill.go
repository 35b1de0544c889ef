package names

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"weave/mesh"
	"weave/mesh/id"
	"weave/plugin/dns"
)

// The table is filled again no sooner than this after it was filled, or ten times as
// long as that took: many containers may start at once.
const (
	fillEvery = 50 * time.Millisecond
	fillShare = 10
	// lookEvery is how often it is filled in any case.
	lookEvery = 10 * time.Second
)

// madeBy begins the source of what was made by hand; a host's peer ID follows.
const madeBy = "made:"

// keepFull keeps the table as the notes are until ctx ends.
func (n *Names) keepFull(ctx context.Context) {
	for {
		begun := time.Now()
		n.fill()
		pause := time.NewTimer(max(fillEvery, fillShare*time.Since(begun)))
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
		look := time.NewTimer(lookEvery)
		select {
		case <-ctx.Done():
		case <-n.cfg.Changed:
		case <-look.C:
		}
		look.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// fill puts what is not yet so into the table.
func (n *Names) fill() {
	want := map[string][]dns.Record{}
	subnets := n.subnets()
	for _, x := range n.ofContainers(n.complain) {
		if source := x.Peer.String(); isIn(subnets[x.Segment], x.Addr) {
			want[source] = append(want[source], x.Record)
		}
	}
	for _, x := range n.ofHands(n.complain) {
		source := madeBy + x.Peer.String()
		want[source] = append(want[source], x.Record)
	}
	for source, records := range want {
		if !slices.Equal(records, n.full[source]) {
			n.cfg.Table.Set(source, records)
			n.full[source] = records
		}
	}
	for source := range n.full {
		if want[source] == nil {
			n.cfg.Table.Set(source, nil)
			delete(n.full, source)
		}
	}
}

// subnets are those of this host's networks, by segment.
func (n *Names) subnets() map[string][]netip.Prefix {
	all := map[string][]netip.Prefix{}
	for _, x := range n.cfg.Driver.Networks() {
		all[x.Segment] = append(all[x.Segment], x.Subnets...)
	}
	return all
}

// isIn tells whether containers of this host reach an address on a segment. One that
// has a name may have other subnets on other hosts: for a network of IPv6 alone, most
// engines choose one of IPv4, each for itself.
func isIn(subnets []netip.Prefix, a netip.Addr) bool {
	return len(subnets) == 0 || slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// ofContainers lists the names of containers, in the order of endpoints, the one that
// a container is called by first. A name counts if its host is alive, and announces
// the endpoint. The others that make no sense are told to complain.
func (n *Names) ofContainers(complain func(mesh.Note, error)) (out []Name) {
	type place struct {
		owner    id.PeerID
		endpoint string
	}
	endpoints := map[place]mesh.OwnedEndpoint{}
	for _, e := range n.cfg.Mesh.Endpoints() {
		if !e.OfHost {
			endpoints[place{e.Owner, e.ID}] = e
		}
	}
	alive := map[id.PeerID]bool{n.cfg.Self: true}
	for _, p := range n.cfg.Mesh.Alive() {
		alive[p] = true
	}
	for _, note := range n.cfg.Mesh.Notes(topicNames) {
		e, announced := endpoints[place{note.Owner, note.Key}]
		if !announced || !alive[note.Owner] {
			continue
		}
		all, err := decodeNames(note.Key, note.Value)
		if err != nil {
			complain(note, err)
			continue
		}
		x := Name{Container: e.Container, Host: n.cfg.Mesh.Nickname(e.Owner), Peer: e.Owner}
		for _, name := range all {
			for _, a := range e.Addrs {
				x.Record = dns.Record{Segment: e.Segment, Name: name, Addr: a, Local: e.Owner == n.cfg.Self}
				out = append(out, x)
			}
		}
	}
	return out
}

// ofHands lists the names that were made by hand, also those of hosts that are down:
// what they name may be elsewhere.
func (n *Names) ofHands(complain func(mesh.Note, error)) (out []Name) {
	for _, note := range n.cfg.Mesh.Notes(topicMade) {
		m, err := decodeMade(note.Key, note.Value)
		if err != nil {
			complain(note, err)
			continue
		}
		x := Name{Host: n.cfg.Mesh.Nickname(note.Owner), Peer: note.Owner, Made: true}
		for _, a := range m.Addrs {
			x.Record = dns.Record{Segment: m.Segment, Name: m.Name, Addr: a}
			out = append(out, x)
		}
	}
	return out
}

// complain tells of a peer's notes that make no sense, once for each peer: it may have
// thousands of them. It is fill's.
func (n *Names) complain(note mesh.Note, err error) {
	if !n.odd[note.Owner] {
		n.odd[note.Owner] = true
		n.cfg.Log.WithFields(logrus.Fields{"peer": note.Owner.Short(), "nickname": n.cfg.Mesh.Nickname(note.Owner)}).WithError(err).
			Warn("a host tells of a name that makes no sense: it is left out, as are others of that host")
	}
}

func compareNames(a, b Name) int {
	return cmp.Or(
		strings.Compare(a.Name, b.Name), strings.Compare(a.Segment, b.Segment), a.Addr.Compare(b.Addr),
		strings.Compare(a.Host, b.Host), a.Peer.Compare(b.Peer),
	)
}
