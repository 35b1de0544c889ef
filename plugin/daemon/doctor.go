package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weave/driver/host"
	"weave/mesh"
	"weave/mesh/vxlan"
	"weave/mesh/wire"
	"weave/plugin/config"
	"weave/plugin/control"
)

// clockLimit is how far two hosts' clocks may be apart before it is worth a word:
// logs and ages cannot be compared then.
const clockLimit = 5 * time.Second

// dockerLimit is for all questions to Docker, which may be on its way up.
const dockerLimit = 10 * time.Second

// checkup is what a person is to know of the plugin, its host and its cluster.
type checkup struct {
	findings
	allocRange netip.Prefix
	routes     []host.Route
	routesErr  error
	leaked     int
	leakedErr  error
	survey     []surveyed
	left       int // peers that were not asked

	checks []control.Check
}

// Doctor implements control.Daemon.
func (d *daemon) Doctor(ctx context.Context) ([]control.Check, error) {
	c := checkup{findings: d.look(), allocRange: d.cfg.IPAllocRange}
	p := d.parts.Load()
	if p == nil || c.status.Peer == "" {
		return c.early(), nil
	}
	c.survey, c.left = survey(ctx, p.node)
	c.routes, c.routesErr = p.kernel.Routes()
	ctx, cancel := context.WithTimeout(ctx, dockerLimit)
	defer cancel()
	c.leaked, c.leakedErr = newReconciler(p, d.log).leaked(ctx)
	return c.all(), nil
}

func (c *checkup) add(name string, v control.Verdict, do, format string, args ...any) {
	c.checks = append(c.checks, control.Check{Name: name, Verdict: v, Found: fmt.Sprintf(format, args...), Do: do})
}

// early is for a plugin that does no work.
func (c *checkup) early() []control.Check {
	for _, p := range c.problems() {
		c.add("work", verdict(p), p.Do, "%s", p.What)
	}
	if len(c.checks) == 0 {
		c.add("work", control.Undecided, "try again in a moment", "the plugin is starting")
	}
	return c.checks
}

// all is for one that works.
func (c *checkup) all() []control.Check {
	c.told()
	c.refusals()
	c.ports()
	c.mtus()
	c.clocks()
	c.versions()
	c.overlaps()
	c.leases()
	slices.SortStableFunc(c.checks, func(a, b control.Check) int { return strings.Compare(a.Name, b.Name) })
	return c.checks
}

// told is what the status tells, and that nothing is wrong with the rest.
func (c *checkup) told() {
	well, bad := map[string]string{}, map[string]bool{}
	for _, t := range topics() {
		var l problems
		t.find(c.findings, &l)
		for _, p := range l {
			c.add(t.name, verdict(p), p.Do, "%s", p.What)
		}
		well[t.name], bad[t.name] = t.well, bad[t.name] || len(l) > 0
	}
	bad["password"] = bad["password"] || slices.ContainsFunc(c.status.Refusals, aboutPassword)
	for name, text := range well {
		if !bad[name] {
			c.add(name, control.OK, "", "%s", text)
		}
	}
}

func verdict(p control.Problem) control.Verdict {
	if p.Severity == control.Error {
		return control.Failed
	}
	return control.Warned
}

func aboutPassword(r control.Refusal) bool { return strings.Contains(r.Why, "password") }

// refusals are of hosts that may be none of this cluster, so none is a failure.
func (c *checkup) refusals() {
	for _, r := range c.status.Refusals {
		name := "refusals"
		if aboutPassword(r) {
			name = "password"
		}
		c.add(name, control.Warned, r.Do, "no session with %s: %s", r.Address, r.Why)
	}
}

// ports tells whether the others reach this host by new connections.
func (c *checkup) ports() {
	const name = "reachable"
	open := 0
	for _, x := range c.survey {
		if x.err != nil {
			why, do := x.err.Error(), "try again; if it stays, see the log of that host's plugin"
			if errors.Is(x.err, mesh.ErrRefused) {
				why, do = "it runs a version of weave that cannot be asked", "run the same version of weave on both hosts"
			}
			c.add(name, control.Undecided, do, "host %s does not say how it sees this one: %s", x.host, why)
			continue
		}
		if len(x.view.Tried) == 0 {
			c.add(name, control.Undecided, "", "host %s tries no address of this one: its %s is off", x.host, config.Discover)
			continue
		}
		udp, udpWhy := reached(x.view.Tried, func(t tried) string { return t.UDP })
		tcp, tcpWhy := reached(x.view.Tried, func(t tried) string { return t.TCP })
		switch {
		case udp && tcp:
			open++
		case tcp && !c.behindNAT():
			c.add(name, control.Warned, fmt.Sprintf("let in UDP to port %d; where it is blocked on purpose this can stay: all works by TCP, but slower", c.status.Port),
				"host %s gets through to this one by TCP only, not by UDP (%s)", x.host, udpWhy)
		default:
			c.closed(name, x.host, "UDP", udp, udpWhy)
			c.closed(name, x.host, "TCP", tcp, tcpWhy)
		}
	}
	switch {
	case len(c.survey) == 0:
		c.add(name, control.Undecided, "join others with: weave connect HOST", "there is no other host that could try to reach this one")
	case open == len(c.survey):
		c.add(name, control.OK, "", "all other hosts get through to port %d of this one, by UDP and by TCP", c.status.Port)
	}
	if c.left > 0 {
		c.add(name, control.Undecided, "", "%d more hosts were not asked", c.left)
	}
}

// reached tells whether one of the addresses answered, or why none did.
func reached(all []tried, failure func(tried) string) (ok bool, why string) {
	var whys []string
	for _, t := range all {
		if failure(t) == "" {
			return true, ""
		}
		whys = append(whys, t.Address.String()+": "+failure(t))
	}
	return false, strings.Join(whys, "; ")
}

func (c *checkup) behindNAT() bool { return c.status.NAT == "cone" || c.status.NAT == "symmetric" }

// closed tells of a port that a host does not reach. Behind a NAT that is usual.
func (c *checkup) closed(name, from, protocol string, ok bool, why string) {
	if ok {
		return
	}
	v, do := control.Failed, fmt.Sprintf("let in %s to port %d, in the firewall of this host and in those between the two", protocol, c.status.Port)
	if c.behindNAT() {
		v, do = control.Warned, fmt.Sprintf("if hosts are to reach this one by themselves, forward port %d of the NAT before it", c.status.Port)
	}
	c.add(name, v, do, "host %s does not get through to this one by %s (%s)", from, protocol, why)
}

// mtus compares what the paths take with what segments may send.
func (c *checkup) mtus() {
	const name = "path MTU"
	overhead := wire.TunnelOverhead
	if !c.status.Password {
		overhead = vxlan.Overhead(c.status.Address)
	}
	largest := 0
	for _, s := range c.status.Segments {
		largest = max(largest, s.MTU)
	}
	measured, narrow, least := 0, 0, 0
	for _, p := range c.status.Peers {
		if p.State != control.Up || p.PathMTU == 0 {
			continue
		}
		if measured++; least == 0 || p.PathMTU < least {
			least = p.PathMTU
		}
		if largest+overhead > p.PathMTU && largest > 0 {
			narrow++
			c.add(name, control.Warned, fmt.Sprintf("set %s=%d on all hosts, and make the networks anew", config.MTU, p.PathMTU-overhead),
				"the path to host %s takes %d bytes, and containers may send %d, %d with what is put around them: what is too long goes in fragments", p.Nickname, p.PathMTU, largest, largest+overhead)
		}
	}
	switch {
	case measured == 0:
		c.add(name, control.Undecided, "", "no host is reached by UDP directly")
	case narrow == 0:
		c.add(name, control.OK, "", "each path takes %d bytes or more, as containers need", least)
	}
}

func (c *checkup) clocks() {
	const name = "clock"
	asked, worst := 0, time.Duration(0)
	for _, x := range c.survey {
		if x.err != nil {
			continue
		}
		asked++
		apart := x.ahead.Abs() - x.margin
		worst = max(worst, apart)
		if apart <= clockLimit {
			continue
		}
		direction := "ahead of"
		if x.ahead < 0 {
			direction = "behind"
		}
		c.add(name, control.Warned, "have both hosts set their clocks by NTP", "the clock of host %s is %s %s this one's", x.host, x.ahead.Abs().Round(time.Second), direction)
	}
	switch {
	case asked == 0:
		c.add(name, control.Undecided, "", "there is no other clock to compare with")
	case worst <= clockLimit:
		c.add(name, control.OK, "", "those of all hosts that tell show the same time, within %s", clockLimit)
	}
}

func (c *checkup) versions() {
	const name = "versions"
	same, asked := true, 0
	for _, x := range c.survey {
		if x.err != nil {
			continue
		}
		asked++
		if x.view.Version != c.status.Version {
			same = false
			c.add(name, control.Warned, "run the same version of weave on all hosts", "host %s runs %s, this one %s", x.host, x.view.Version, c.status.Version)
		}
	}
	if same && asked > 0 {
		c.add(name, control.OK, "", "all hosts that tell run %s, as this one does", c.status.Version)
	}
}

// overlaps names routes of the host to addresses that containers have, or may get.
func (c *checkup) overlaps() {
	const name = "routes"
	if c.routesErr != nil {
		c.add(name, control.Undecided, "", "%v", c.routesErr)
		return
	}
	clear := true
	for _, r := range c.routes {
		if r.Prefix.Bits() == 0 || strings.HasPrefix(r.Link, host.Prefix) {
			continue
		}
		by := ""
		if r.Link != "" {
			by = " by " + r.Link
		}
		for _, s := range c.status.Segments {
			if s.Subnet.IsValid() && s.Subnet.Overlaps(r.Prefix) {
				clear = false
				c.add(name, control.Warned, "use another --subnet, or take the route away if it is not needed",
					"this host's route to %s%s overlaps %s: containers there do not reach what is behind it", r.Prefix, by, s.Subnet)
			}
		}
		if c.allocRange.Overlaps(r.Prefix) {
			clear = false
			c.add(name, control.Warned, "set "+config.IPAllocRange+" to a range that no route of the hosts overlaps, the same on all",
				"this host's route to %s%s overlaps %s, where networks without --subnet get theirs: other hosts may choose what is in use here", r.Prefix, by, c.allocRange)
		}
	}
	if clear {
		c.add(name, control.OK, "", "none of this host overlaps %s or the subnet of a network", c.allocRange)
	}
}

func (c *checkup) leases() {
	const name = "leases"
	switch {
	case c.leakedErr != nil:
		c.add(name, control.Undecided, "", "Docker does not tell which addresses are in use: %v", c.leakedErr)
	case c.leaked > 0:
		c.add(name, control.Warned, "see the plugin's log: addresses that nobody has are given back within a minute, and these are not",
			"%d addresses are leased that no container has", c.leaked)
	default:
		c.add(name, control.OK, "", "each leased address is a container's")
	}
}
