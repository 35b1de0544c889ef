package cli

import (
	"fmt"
	"math"
	"strings"

	"weave/plugin/control"
)

// peersView shows how peers are reached, and below that more of the paths and what
// went to them: in one table it would be too wide for a terminal.
func peersView(p *printer, s control.Status) {
	var paths, traffic [][]string
	for _, peer := range worstFirst(s.Peers) {
		paths = append(paths, []string{
			orDash(peer.Nickname), shortID(peer.ID), p.age(peer.PathSince), p.age(peer.KeysSince), pathMTU(peer), orDash(peer.NAT),
		})
		traffic = append(traffic, []string{
			orDash(peer.Nickname), shortID(peer.ID), past(p.ago(peer.Heard)), size(peer.Sent), size(peer.Received), framesBy(peer),
		})
	}
	rows := p.peerRows(s, func(id string) string { return id })
	if len(rows) == 0 {
		p.line("No peers yet. Join others with: weave connect HOST")
		return
	}
	p.table(peerHeader(), rows)
	if len(s.Peers) > 0 {
		p.heading("Paths")
		p.table([]column{left("NAME"), left("PEER"), right("PATH FOR"), right("KEYS FOR"), right("PATH MTU"), left("NAT")}, paths)
		p.heading("Traffic")
		p.table([]column{left("NAME"), left("PEER"), left("HEARD"), right("SENT"), right("RECEIVED"), left("CONTAINERS' FRAMES GO BY")}, traffic)
	}
}

// pathMTU is that of a path by UDP: others have none.
func pathMTU(peer control.Peer) string {
	if peer.PathMTU == 0 {
		return "-"
	}
	return fmt.Sprint(peer.PathMTU)
}

// way is a line of `weave status routes`.
type way struct {
	Peer     string `json:"peer"`
	Nickname string `json:"nickname"`
	Via      string `json:"via,omitempty"` // nickname of the next host; empty: directly
	Hops     int    `json:"hops"`          // 0: there is no way
}

// routes lists the ways to the hosts, those that are down too.
func routes(s control.Status) []way {
	out := []way{}
	for _, peer := range s.Peers {
		w := way{Peer: peer.ID, Nickname: peer.Nickname}
		if peer.State == control.Up {
			w.Via, w.Hops = peer.Via, peer.Hops
		}
		out = append(out, w)
	}
	return out
}

func routesView(p *printer, s control.Status) {
	if len(s.Peers) == 0 {
		p.line("No peers yet. Join others with: weave connect HOST")
		return
	}
	var rows [][]string
	for _, w := range routes(s) {
		via, hops := "directly", "1"
		switch {
		case w.Hops == 0:
			via, hops = "no way", "-"
		case w.Via != "":
			via, hops = w.Via, fmt.Sprint(w.Hops)
		}
		rows = append(rows, []string{orDash(w.Nickname), w.Peer, via, hops})
	}
	p.table([]column{left("NAME"), left("PEER"), left("VIA"), right("HOPS")}, rows)
	if s.Relayed > 0 {
		p.line("")
		p.line("This host passed on %s for others.", size(s.Relayed))
	}
}

// framesBy names the carrier of containers' frames to a peer, and why it is not
// VXLAN, or not for all of them.
func framesBy(peer control.Peer) string {
	by := orDash(string(peer.Frames))
	if peer.FramesWhy != "" {
		by += " (" + peer.FramesWhy + ")"
	}
	return by
}

func segmentsView(p *printer, s control.Status) {
	if len(s.Segments) == 0 {
		p.line("No segments on this host. Make one with: " + makeNetwork)
		return
	}
	var rows [][]string
	for _, seg := range s.Segments {
		subnet := "-"
		if seg.Subnet.IsValid() {
			subnet = seg.Subnet.String()
		}
		rows = append(rows, []string{
			seg.Key, subnet, seg.ID, fmt.Sprint(seg.MTU), networkNames(seg.Networks),
			fmt.Sprint(seg.Endpoints), strings.Join(seg.Members, " "),
		})
	}
	p.table([]column{left("SEGMENT"), left("SUBNET"), left("ID"), right("MTU"), left("LOCAL NETWORK"), right("CONTAINERS HERE"), left("SHARED BY")}, rows)
}

// networkNames lists the local networks by name, or by ID until Docker has told
// their names.
func networkNames(networks []control.Network) string {
	names := make([]string, 0, len(networks))
	for _, n := range networks {
		if n.Name == "" {
			n.Name = shortID(n.ID)
		}
		names = append(names, n.Name)
	}
	return orDash(strings.Join(names, " "))
}

func endpointsView(p *printer, s control.Status) {
	if len(s.Endpoints) == 0 {
		p.line("No containers on the segments of this host.")
		return
	}
	var rows [][]string
	for _, e := range s.Endpoints {
		addrs := make([]string, len(e.Addresses))
		for i, a := range e.Addresses {
			addrs[i] = a.String()
		}
		host := orDash(e.Host)
		if e.Local {
			host += " (here)"
		}
		id := shortID(e.ID)
		if e.Kind == control.KindHost {
			id = "-"
		}
		rows = append(rows, []string{whose(e), orDash(strings.Join(addrs, " ")), e.MAC, e.Segment, host, id})
	}
	p.table([]column{left("CONTAINER"), left("ADDRESS"), left("MAC"), left("SEGMENT"), left("HOST"), left("ENDPOINT")}, rows)
}

// whose names who has an endpoint.
func whose(e control.Endpoint) string {
	if e.Kind == control.KindHost {
		return "(the host)"
	}
	return orDash(e.Container)
}

func poolHeader() []column {
	return []column{left("POOL"), right("IN USE HERE"), right("FREE HERE"), left("THIS HOST OWNS")}
}

func poolRows(pools []control.Pool) [][]string {
	var rows [][]string
	for _, pool := range pools {
		rows = append(rows, []string{
			pool.Subnet.String(), amount(pool.Leased), amount(pool.Free), share(pool.Owned, pool.Size),
		})
	}
	return rows
}

// share writes n of all with its part in percent, which nobody knows where both
// are too many to count.
func share(n, all uint64) string {
	switch {
	case all == 0:
		return amount(n)
	case n == math.MaxUint64:
		return "2^64 or more"
	}
	return fmt.Sprintf("%s of %s (%.0f%%)", amount(n), amount(all), 100*float64(n)/float64(all))
}

// amount writes a number of addresses; those of IPv6 pools are rounded.
func amount(n uint64) string {
	if n < 1e12 {
		return fmt.Sprint(n)
	}
	return strings.Replace(fmt.Sprintf("%.1e", float64(n)), "e+", "e", 1)
}

func ipamView(p *printer, s control.Status) {
	if len(s.IPAM) == 0 {
		p.line("No address pools on this host.")
		return
	}
	p.table(poolHeader(), poolRows(s.IPAM))
	for _, pool := range s.IPAM {
		p.heading("Owners of %s", pool.Subnet)
		var rows [][]string
		for _, o := range pool.Owners {
			rows = append(rows, []string{orDash(o.Nickname), o.Peer, share(o.Owned, pool.Size)})
		}
		p.table([]column{left("NAME"), left("PEER"), left("ADDRESSES")}, rows)
		for _, c := range pool.Conflicts {
			p.line("  %s: %s", p.style(red, "conflict"), clean(c))
		}
		for _, trouble := range pool.Trouble {
			p.line("  %s: %s", p.style(red, "trouble"), clean(trouble))
		}
	}
}
