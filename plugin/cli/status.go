package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"weave/plugin/control"
)

// view is one way to look at the status: a text, and the part of the status
// that --json prints.
type view struct {
	text func(*printer, control.Status)
	json func(control.Status) any
	part bool // of a plugin that works: there is none of one that does not
}

// errNoParts ends a command that was to show a part of what does no work: an
// empty list would say that there is nothing.
var errNoParts = errors.New("the plugin does no work yet: there is nothing to list")

func (a *app) statusCommand() *cobra.Command {
	cmd := a.viewCommand("status", "Show how the plugin is, and what to do where something is wrong",
		view{overview, func(s control.Status) any { return s }, false})
	cmd.Long = `Show the plugin of this host on one screen: first what is wrong and what to do
about it, then the peers, segments and address pools. The names below it show
one part in full.

The exit status is 0 if the plugin answers, whatever it says, else 1; that of a
part is also 1 while the plugin does no work. Programs find what is wrong in the
JSON, under "problems" and "refusals".`
	cmd.Example = `  sudo weave status
  sudo weave status endpoints
  sudo weave status peers --json
  sudo weave status --json | jq -e '.problems == []'`
	peers := a.viewCommand("peers", "List the other hosts, and how each is reached",
		view{peersView, func(s control.Status) any { return s.Peers }, true})
	peers.Long = `List the other hosts, those first that are not well.

LOSS is how many of the last hundred pings by the path in use got no answer,
whichever way it got lost; where that is 5 % or more, and not for a moment only,
"weave status" names it as a problem. PATH FOR is how long the path has been
this one, and KEYS FOR how long the session's keys have been in use, which are
agreed on anew now and then. NAT is what that host says that stands before it:
none, cone (one outside port for all others: hosts behind such NATs meet
directly), or symmetric (another outside port for each: two such hosts meet
through others).`
	cmd.AddCommand(
		peers,
		a.viewCommand("routes", "List the way to each other host",
			view{routesView, func(s control.Status) any { return routes(s) }, true}),
		a.viewCommand("segments", "List the segments that this host takes part in",
			view{segmentsView, func(s control.Status) any { return s.Segments }, true}),
		a.viewCommand("endpoints", "List the containers on all hosts, and their addresses",
			view{endpointsView, func(s control.Status) any { return s.Endpoints }, true}),
		a.viewCommand("exposed", "List this host's own addresses on its networks, and what they are for",
			view{exposedView, func(s control.Status) any { return s.Exposed }, true}),
		a.viewCommand("dns", "List the names by which containers find others, and whose they are",
			view{namesView, func(s control.Status) any { return s.DNS }, true}),
		a.viewCommand("ipam", "List the address pools, and who owns how much of each",
			view{ipamView, func(s control.Status) any { return s.IPAM }, true}),
	)
	return cmd
}

func (a *app) viewCommand(name, short string, v view) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               name,
		Short:             short,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := a.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if status.Peer == "" && v.part {
				problems(newPrinter(cmd.ErrOrStderr(), a.Now()), status)
				return errNoParts
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), v.json(status))
			}
			p := newPrinter(cmd.OutOrStdout(), a.Now())
			v.text(p, status)
			return p.err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// overview is the one screen of `weave status`.
func overview(p *printer, s control.Status) {
	problems(p, s)
	p.line("version    %s, protocol %d, up %s", clean(s.Version), s.Protocol, p.ago(s.Started))
	if s.Peer == "" {
		p.line("peer       %s, which does no work yet", clean(s.Nickname))
		return
	}
	p.line("peer       %s, %s", clean(s.Nickname), clean(s.Peer))
	if s.Password {
		p.line("password   set: what goes between the hosts is encrypted with it")
	} else {
		p.line("password   none: whoever reaches the port can join, and traffic may be read on the way")
	}
	address := "address not known yet"
	if s.Address.IsValid() {
		address = s.Address.String()
	}
	ports := fmt.Sprintf("%d UDP and TCP", s.Port)
	if s.VXLANPort != 0 {
		ports += fmt.Sprintf(", %d UDP for VXLAN", s.VXLANPort)
	}
	p.line("port       %s, %s", ports, address)
	switch s.NAT {
	case "cone":
		p.line("NAT        one outside port for all others: those behind such NATs meet this host directly")
	case "symmetric":
		p.line("NAT        another outside port for each other host: those behind NATs, too, meet this one through others")
	}
	discovery(p, s)

	peersSummary(p, s)
	segmentsSummary(p, s)
	exposedSummary(p, s)
	poolsSummary(p, s)
}

// discovery says what is not as usual.
func discovery(p *printer, s control.Status) {
	switch {
	case s.LAN != nil && len(s.LAN.Links) > 0:
		p.line("discovery  announced on the LAN by %s, %d UDP", clean(strings.Join(s.LAN.Links, ", ")), s.LAN.Port)
		if n := s.LAN.Foreign; n > 0 && len(s.Peers) == 0 {
			p.line("           what others announce there is under another password: heard %s", count(n, "time", "times"))
		}
	case s.LAN != nil:
		p.line("discovery  not announced on the LAN")
	case s.Discover == "off":
		p.line("discovery  off: this host connects to no others but those that it is told of")
	}
}

// problems comes first, so that nobody has to look for it.
func problems(p *printer, s control.Status) {
	for _, problem := range s.Problems {
		label := p.style(yellow, "warning")
		if problem.Severity == control.Error {
			label = p.style(red, "error")
		}
		p.line("%s: %s", label, clean(problem.What))
		if problem.Do != "" { // else What says it
			p.line("  -> %s", clean(problem.Do))
		}
	}
	for _, r := range s.Refusals {
		p.line("%s: no session with %s: %s (%s, last %s)", p.style(yellow, "warning"),
			r.Address, clean(r.Why), count(r.Count, "time", "times"), past(p.ago(r.Last)))
		p.line("  -> %s", clean(r.Do))
	}
	switch {
	case s.Peer == "" && len(s.Problems) == 0:
		p.line("The plugin is starting.")
	case len(s.Problems)+len(s.Refusals) == 0:
		p.line("Nothing is wrong.")
	case aboutSettings(s):
		p.line("Settings:  %s", howToSet(s))
	}
	p.line("")
}

// howToSet says how settings are changed.
func howToSet(s control.Status) string {
	if s.Service {
		return "the environment of the service, as by /etc/default/weave; then systemctl restart weave"
	}
	return "weave launch --set NAME=VALUE"
}

// aboutSettings tells whether a way out, or what is wrong, is a setting.
func aboutSettings(s control.Status) bool {
	const prefix = "WEAVE_"
	return slices.ContainsFunc(s.Problems, func(x control.Problem) bool { return strings.Contains(x.What+x.Do, prefix) }) ||
		slices.ContainsFunc(s.Refusals, func(x control.Refusal) bool { return strings.Contains(x.Do, prefix) })
}

// past turns the result of ago into a moment.
func past(ago string) string {
	if ago == "now" || ago == "-" {
		return ago
	}
	return ago + " ago"
}

func peersSummary(p *printer, s control.Status) {
	up := 0
	for _, peer := range s.Peers {
		if peer.State == control.Up {
			up++
		}
	}
	strangers := unmet(s.Seeds)
	rows := p.peerRows(s, shortID)
	switch {
	case len(rows) == 0:
		p.heading("Peers: none yet")
		p.line("  Join others with: weave connect HOST")
		return
	case len(strangers) == 0:
		p.heading("Peers: %d of %d up", up, len(s.Peers))
	default:
		p.heading("Peers: %d of %d up, %s not met", up, len(s.Peers), count(uint64(len(strangers)), "address", "addresses"))
	}
	p.table(peerHeader(), rows)
}

func peerHeader() []column {
	return []column{left("NAME"), left("PEER"), left("STATE"), left("FOR"), left("REACHED BY"), right("RTT"), right("LOSS")}
}

// peerRows are the lines below peerHeader: what is not well comes first.
func (p *printer) peerRows(s control.Status, id func(string) string) (rows [][]string) {
	strangers := unmet(s.Seeds)
	for _, peer := range worstFirst(s.Peers) {
		if well(peer) > away {
			rows, strangers = append(rows, strangers...), nil
		}
		rows = append(rows, p.peerRow(peer, id(peer.ID)))
	}
	return append(rows, strangers...)
}

// peerRow is a line below peerHeader. The round trip of a peer that is gone is
// an old one.
func (p *printer) peerRow(peer control.Peer, id string) []string {
	rtt, lost := "-", "-"
	if peer.State == control.Up {
		rtt, lost = roundTrip(peer.RTT), loss(peer)
	}
	return []string{orDash(peer.Nickname), id, string(peer.State), p.ago(peer.Since), reached(peer), rtt, lost}
}

// What a peer's looks tell, the worst first.
const (
	away = iota
	lossy
	healthy
)

// noticeable is the loss at which a TCP connection gets slow, not one ping of many.
const noticeable = 0.03

func well(peer control.Peer) int {
	switch {
	case peer.State != control.Up:
		return away
	case peer.Loss >= noticeable:
		return lossy
	}
	return healthy
}

func worstFirst(peers []control.Peer) []control.Peer {
	peers = slices.Clone(peers)
	slices.SortStableFunc(peers, func(a, b control.Peer) int { return cmp.Compare(well(a), well(b)) })
	return peers
}

// loss is "-" while nobody knows.
func loss(peer control.Peer) string {
	if peer.Pings == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*peer.Loss)
}

// unmet makes rows of the addresses where nobody was met. Why is told among the
// problems: errors are too long for a table.
func unmet(seeds []control.Seed) [][]string {
	var rows [][]string
	for _, seed := range seeds {
		if seed.Met || seed.Self {
			continue
		}
		state := "not met"
		if seed.Error == "" {
			state = "not tried"
		}
		rows = append(rows, []string{"-", "-", state, "-", seed.Address, "-", "-"})
	}
	return rows
}

func reached(peer control.Peer) string {
	switch {
	case peer.State == control.Up && peer.Address.IsValid():
		return peer.Path + " " + peer.Address.String()
	case peer.State == control.Up && peer.Via != "":
		return fmt.Sprintf("%s via %s, %s", peer.Path, peer.Via, count(uint64(peer.Hops), "hop", "hops"))
	case peer.Error != "":
		return peer.Error
	}
	return orDash(peer.Path)
}

// makeNetwork names a subnet: without one, each host makes a segment of its own.
const makeNetwork = "docker network create -d weave --ipam-driver weave --subnet 10.32.0.0/16 NAME"

func segmentsSummary(p *printer, s control.Status) {
	if len(s.Segments) == 0 {
		p.heading("Segments: none on this host")
		p.line("  Make one with: " + makeNetwork)
		return
	}
	p.heading("Segments: %d", len(s.Segments))
	var rows [][]string
	for _, seg := range s.Segments {
		name := seg.Key
		if subnet := seg.Subnet.String(); seg.Subnet.IsValid() && subnet != name {
			name += " (" + subnet + ")" // it has a name of its own
		}
		rows = append(rows, []string{name, networkNames(seg.Networks), fmt.Sprint(seg.MTU), count(uint64(len(seg.Members)), "host", "hosts"), fmt.Sprint(seg.Endpoints)})
	}
	p.table([]column{left("SEGMENT"), left("LOCAL NETWORK"), right("MTU"), left("SHARED BY"), right("CONTAINERS HERE")}, rows)
}

// poolsSummary shows the pools that this host uses: it knows those of all hosts,
// and of networks that are gone.
func poolsSummary(p *printer, s control.Status) {
	if len(s.IPAM) == 0 {
		return
	}
	used := slices.DeleteFunc(slices.Clone(s.IPAM), func(pool control.Pool) bool {
		here := func(seg control.Segment) bool { return seg.Subnet == pool.Subnet }
		return pool.Leased == 0 && len(pool.Conflicts) == 0 && !slices.ContainsFunc(s.Segments, here)
	})
	others := ""
	if n := len(s.IPAM) - len(used); n > 0 {
		others = fmt.Sprintf(" (%d not in use here: weave status ipam)", n)
	}
	p.heading("Addresses: %s%s", count(uint64(len(used)), "pool", "pools"), others)
	if len(used) > 0 {
		p.table(poolHeader(), poolRows(used))
	}
}
