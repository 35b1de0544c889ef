package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"weave/driver/host"
	"weave/mesh"
	"weave/plugin/config"
	"weave/plugin/control"
	"weave/plugin/sock"
	"weave/plugin/store"
)

// patience is how long after the start peers may be silent.
const patience = 10 * time.Second

// findings is what problems are found in.
type findings struct {
	settings []config.Problem
	trouble  map[string]error // by task
	blocked  []host.Blocked
	failures map[string]string // of segments, by key
	waiting  []waiting
	unlike   map[string]string       // networks that are not the same everywhere, by name
	lost     map[netip.Prefix]string // exposed addresses that went with a network, by its name
	nameless []string                // names made by hand that could not be read, as names.Names.Lost has them
	deaf     map[string]error        // sandboxes in which names are not answered, by path
	lan      string                  // why this host is not announced on the LAN, though it should be
	tcpPort  error                   // why the further TCP port is not open, though it should be
	status   *control.Status
	up       time.Duration // since the start
}

// waiting is a removed host whose addresses are nobody's until others have told
// what it gave them.
type waiting struct {
	host    string
	missing []string
}

// problems collects what is wrong and what to do about it, errors first.
type problems []control.Problem

func (l *problems) add(sev control.Severity, do, format string, args ...any) {
	what := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ") // as of errors.Join
	*l = append(*l, control.Problem{Severity: sev, What: what, Do: do})
}

// topic is one thing that may be wrong.
type topic struct {
	name string // of the doctor's check
	well string // what the check says where nothing is wrong
	find func(findings, *problems)
}

// topics is all that is looked at, for the status as for the doctor.
func topics() []topic {
	return []topic{
		{"settings", "all can be used", findings.badSettings},
		{"work", "all that the plugin has to do goes well", findings.tasks},
		{"firewall", "it lets containers' frames pass within weave's bridges", findings.firewall},
		{"segments", "all carry frames", findings.carriers},
		{"port", "all that are set are open", findings.furtherPort},
		{"addresses", "none is used twice", findings.conflicts},
		{"pools", "all have free addresses", findings.pools},
		{"removals", "none is under way", findings.removals},
		{"networks", "those that are to be the same on all hosts are", findings.differing},
		{"exposed", "this host has the addresses that it was given", findings.lostAddresses},
		{"addresses", "none is used twice", findings.clashes},
		{"names", "containers are answered whom others are called", findings.names},
		{"names", "all that were made by hand on this host are there", findings.lostNames},
		{"password", "one is set, and no host comes with another", findings.password},
		{"discovery", "hosts that are to be found are found", findings.discovery},
		{"peers", "all hosts answer", findings.peers},
	}
}

func (f findings) problems() []control.Problem {
	var l problems
	for _, t := range topics() {
		t.find(f, &l)
	}
	slices.SortStableFunc(l, func(a, b control.Problem) int { return cmp.Compare(gravity(a), gravity(b)) })
	return l
}

func (f findings) badSettings(l *problems) {
	for _, x := range f.settings {
		l.add(control.Error, x.WayOut, "%s=%s: %s", x.Setting, x.Value, x.Why)
	}
}

func (f findings) tasks(l *problems) {
	for _, task := range slices.Sorted(maps.Keys(f.trouble)) {
		l.add(control.Error, wayOut(f.trouble[task]), "cannot %s: %v", task, f.trouble[task])
	}
}

func (f findings) firewall(l *problems) {
	for _, b := range f.blocked {
		l.add(control.Error, "run `"+b.Command+"`", "%s", b)
	}
}

func (f findings) carriers(l *problems) {
	for _, key := range slices.Sorted(maps.Keys(f.failures)) {
		l.add(control.Error, "restart the plugin", "segment %s carries nothing: %s", key, f.failures[key])
	}
}

func gravity(p control.Problem) int {
	if p.Severity == control.Error {
		return 0
	}
	return 1
}

// wayOut says what ends the everyday kinds of trouble. All tasks are tried
// again until they succeed.
func wayOut(err error) string {
	switch {
	case errors.Is(err, sock.ErrInUse), errors.Is(err, store.ErrLocked):
		return "stop the other weave on this host"
	case errors.As(err, new(doorError)) && errors.Is(err, syscall.EADDRINUSE):
		return "stop the program that uses the port, or set " + config.DNSListen + " to another one, as 192.0.2.7:5353"
	case errors.As(err, new(doorError)) && errors.Is(err, syscall.EADDRNOTAVAIL):
		return "set " + config.DNSListen + " to an address of this host, or leave it out to answer containers only"
	case errors.Is(err, syscall.EADDRINUSE):
		return "stop the program that uses the port, or set " + config.Port + " to a free one"
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, host.ErrNoSuchAddr):
		return "set " + config.Address + " to an address of this host, or leave it out for that of the default route"
	case errors.Is(err, store.ErrCorrupt):
		return "put a backup of the file in its place; or move it away: then this host is a new peer, without its networks and addresses"
	case errors.Is(err, store.ErrFormat):
		return "run the version of weave that wrote the file"
	case errors.Is(err, host.ErrNoDefaultRoute):
		return "set " + config.Address + " to this host's address on the network between the hosts"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "make room on the disk"
	}
	return "see the plugin's log; it is tried again until it succeeds"
}

// samePassword is the way out where passwords differ, or are missing.
func samePassword(service bool) string {
	const all = "give all hosts the same password: "
	if service {
		return all + "write it into " + config.HostState + "/password, set " + config.PasswordFile + "=password"
	}
	return all + "weave launch --password-file FILE"
}

// wayIn says what ends the everyday reasons why two hosts do not meet.
func wayIn(reason, otherwise string, service bool) string {
	switch {
	case strings.Contains(reason, "password"):
		return samePassword(service)
	case strings.Contains(reason, "version"):
		return "run the same version of weave on both hosts"
	case strings.Contains(reason, "resolve"):
		return "use its IP address, or a name that this host can resolve"
	}
	return otherwise
}

// openWay is the way out where another host does not answer.
const openWay = "check that weave runs there, and that the way is open for UDP and TCP on its port"

// password tells who may come in.
func (f findings) password(l *problems) {
	if s := f.status; !s.Password && s.Peer != "" {
		l.add(control.Warning, samePassword(s.Service),
			"no password is set: any host that reaches port %d can join, and what goes by VXLAN is not encrypted", s.Port)
	}
}

// discovery tells what keeps hosts from being found.
func (f findings) discovery(l *problems) {
	if f.lan != "" && f.up > patience {
		l.add(control.Warning, fmt.Sprintf("let out UDP port %d to multicast addresses, or name the other hosts by %s or `weave connect`", mesh.LANPort, config.Peers),
			"hosts on the same LAN do not hear of this one: %s", f.lan)
	}
	for _, x := range f.status.Seeds {
		if x.Met || x.Self || x.Tried.IsZero() {
			continue
		}
		l.add(control.Warning, wayIn(x.Error, openWay, f.status.Service), "no peer was met at %s: %s", x.Address, strings.TrimPrefix(x.Error, "connect to "+x.Address+": "))
	}
}

// peers tells who is missed.
func (f findings) peers(l *problems) {
	for _, x := range f.status.Peers {
		if x.Lossy {
			l.add(control.Warning, "look whether the network between the two hosts, or one of them, is overloaded or broken: containers' TCP is slow until then",
				"host %s: %.0f%% of the pings to it, by %s, are lost", x.Nickname, 100*x.Loss, way(x))
		}
		if x.State == control.Up || f.up <= patience {
			continue
		}
		why := "does not answer"
		if do := wayIn(x.Error, "", f.status.Service); do != "" {
			why = "is not connected: " + x.Error
		}
		l.add(control.Warning, wayIn(x.Error, openWay, f.status.Service), "host %s %s", x.Nickname, why)
	}
}

// furtherPort tells that nobody listens on the further TCP port.
func (f findings) furtherPort(l *problems) {
	if f.tcpPort == nil {
		return
	}
	do := wayOut(f.tcpPort)
	if errors.Is(f.tcpPort, syscall.EADDRINUSE) {
		do = "stop the program that uses the port, or set " + config.TCPPort + " to another one, the same on all hosts"
	}
	l.add(control.Error, do, "hosts that get out by the port of %s only do not reach this one: %v", config.TCPPort, f.tcpPort)
}

// way names the path to a peer.
func way(x control.Peer) string {
	if x.Via != "" {
		return x.Path + " via " + x.Via
	}
	return x.Path
}

// conflicts tells of addresses that two clusters had given out before they met.
func (f findings) conflicts(l *problems) {
	for _, x := range f.status.IPAM {
		for _, c := range x.Conflicts {
			l.add(control.Error, "restart the container: it gets another address; or give it another --ip; an address of this host: weave hide, and expose another", "pool %s: %s", x.Subnet, c)
		}
	}
}

func (f findings) pools(l *problems) {
	var told []string
	for _, x := range f.status.IPAM {
		here := func(s control.Segment) bool { return s.Subnet == x.Subnet }
		if x.Free == 0 && x.FreeElsewhere == 0 && (x.Leased > 0 || slices.ContainsFunc(f.status.Segments, here)) {
			l.add(control.Warning, "remove containers that are not needed, or use a network with a larger --subnet",
				"pool %s is full: no host has a free address", x.Subnet)
		}
		for _, trouble := range x.Trouble {
			if !slices.Contains(told, trouble) {
				l.add(control.Error, "", "%s", trouble)
			}
			told = append(told, trouble)
		}
	}
}

// removals tells what keeps the addresses of removed hosts from being used.
func (f findings) removals(l *problems) {
	for _, w := range f.waiting {
		l.add(control.Warning, "start weave there; one that is gone for good as well: `weave rmpeer`",
			"what removed host %s owned is not given out until it is known what it gave to %s", w.host, strings.Join(w.missing, ", "))
	}
}

// differing tells of networks that are not the same on all hosts.
func (f findings) differing(l *problems) {
	for _, name := range slices.Sorted(maps.Keys(f.unlike)) {
		l.add(control.Warning, "remove or rename one of the two, or see what keeps it from being made; it is tried again", "%s", f.unlike[name])
	}
}

// lostAddresses tells what is no longer exposed, though nobody said so.
func (f findings) lostAddresses(l *problems) {
	for _, addr := range slices.SortedFunc(maps.Keys(f.lost), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) }) {
		l.add(control.Warning, fmt.Sprintf("expose it anew: weave expose %s; or leave it at that: weave hide %s", addr, addr),
			"this host has no longer address %s: network %s was removed", addr, f.lost[addr])
	}
}

// names tells in which containers names are not answered.
func (f findings) names(l *problems) {
	for _, path := range slices.Sorted(maps.Keys(f.deaf)) {
		l.add(control.Warning, "see the plugin's log; it is tried again", "%d of this host's containers do not find those of others by name: %v", len(f.deaf), f.deaf[path])
		return // the others have the same reason, most often
	}
}

// lostNames tells which names that were made by hand are no more.
func (f findings) lostNames(l *problems) {
	for _, key := range f.nameless {
		name, segment, _ := strings.Cut(key, " ")
		on := ""
		if segment != "" {
			on = " on segment " + segment
		}
		l.add(control.Warning, "add it anew: weave dns-add; this is told until then, or until the plugin starts again",
			"name %.200q%.100s, which was made by hand on this host, could not be read from the disk and is gone", name, on)
	}
}

// clashes tells of addresses that two hosts announce on one segment.
func (f findings) clashes(l *problems) {
	type place struct {
		segment string
		addr    netip.Addr
	}
	first := map[place]control.Endpoint{}
	for _, e := range f.status.Endpoints {
		for _, a := range e.Addresses {
			key := place{e.Segment, a}
			other, taken := first[key]
			if !taken {
				first[key] = e
			} else if other.Peer != e.Peer {
				l.add(control.Error, "restart one of the two; use --ipam-driver weave for networks that share a subnet",
					"address %s on segment %s is used by %s on %s and by %s on %s",
					a, e.Segment, container(other), other.Host, container(e), e.Host)
			}
		}
	}
}

// container names an endpoint to a person.
func container(e control.Endpoint) string {
	if e.Kind == control.KindHost {
		return "the host itself"
	}
	if e.Container == "" {
		return "endpoint " + e.ID[:min(len(e.ID), 12)]
	}
	return e.Container
}
