// Package fdb knows where the MAC addresses of one segment live, and which of
// them holds an IP address. Two kinds of entries:
//
//   - static: the endpoints that this host has and that other peers announced.
//     They are known before their first frame and always win.
//   - learned: MAC addresses that no endpoint announced (nested bridges, VRRP),
//     taken from the source of frames. They age, and are bounded in total and
//     per place, so that nobody can fill the table for the others.
//
// The package is pure: time is an argument, and the caller guards a Table (its
// readers may run side by side). It moves no frames and announces nothing; it
// says what changed, and the tunnel acts on it.
package fdb

import (
	"iter"
	"net/netip"
	"slices"
	"time"
)

// Endpoint is one attachment of a container, as its host announced it.
type Endpoint struct {
	At  Place
	ID  string // unique at its place: no peer can replace another's endpoint
	MAC MAC
	IPs []netip.Addr
}

type endpointKey struct {
	at Place
	id string
}

func (e *Endpoint) key() endpointKey { return endpointKey{at: e.At, id: e.ID} }

func (e *Endpoint) equal(o *Endpoint) bool {
	return e.key() == o.key() && e.MAC == o.MAC && slices.Equal(e.IPs, o.IPs)
}

// Binding tells which MAC address holds an IP address.
type Binding struct {
	Addr netip.Addr
	MAC  MAC
}

// maxFormer bounds how many addresses without an endpoint are remembered.
const maxFormer = 4096

// Table is the FDB of one segment. Lookup, LookupIP and Check only read, and
// may run side by side; the others need the Table for themselves. Static
// entries are as many as the caller sets.
type Table struct {
	endpoints map[endpointKey]*Endpoint
	// byMAC and byIP list the holders of an address, in the order they were
	// set: two peers may announce the same one, for a moment or by mistake.
	byMAC map[MAC][]*Endpoint
	byIP  map[netip.Addr][]*Endpoint
	// former has the last MAC of addresses that no endpoint holds now.
	former map[netip.Addr]MAC

	learned learnedTable
}

// New returns an empty table.
func New() *Table {
	return &Table{
		endpoints: make(map[endpointKey]*Endpoint),
		byMAC:     make(map[MAC][]*Endpoint),
		byIP:      make(map[netip.Addr][]*Endpoint),
		former:    make(map[netip.Addr]MAC),
		learned:   newLearnedTable(),
	}
}

// Set adds an endpoint or replaces the one of the same place and ID. It returns the
// addresses that now live at a MAC address of another host and were bound to a
// different one before: neighbour caches on this host are stale about them.
func (t *Table) Set(e Endpoint) []Binding {
	e.IPs = distinct(e.IPs)
	old := t.endpoints[e.key()]
	if old != nil && old.equal(&e) {
		return nil
	}
	return t.replace(old, &e)
}

// Remove takes an endpoint out. Like Set it returns the addresses that another
// holder, hidden until now, got by this.
func (t *Table) Remove(at Place, endpointID string) []Binding {
	old := t.endpoints[endpointKey{at: at, id: endpointID}]
	if old == nil {
		return nil
	}
	return t.replace(old, nil)
}

// replace takes old out and puts next in; either may be nil.
func (t *Table) replace(old, next *Endpoint) []Binding {
	before := make(map[netip.Addr]MAC)
	t.noteBindings(before, old)
	t.noteBindings(before, next)
	if old != nil {
		t.unlink(old)
	}
	if next != nil {
		t.link(next)
	}
	var changed []Binding
	for ip, mac := range before {
		if now := holder(t.byIP[ip]); now != nil && !now.At.Local && now.MAC != mac {
			changed = append(changed, Binding{Addr: ip, MAC: now.MAC})
		}
	}
	return changed
}

func (t *Table) noteBindings(into map[netip.Addr]MAC, e *Endpoint) {
	if e == nil {
		return
	}
	for _, ip := range e.IPs {
		if mac, known := t.binding(ip); known {
			into[ip] = mac
		}
	}
}

// binding returns the MAC that ip is bound to, or was last.
func (t *Table) binding(ip netip.Addr) (MAC, bool) {
	if e := holder(t.byIP[ip]); e != nil {
		return e.MAC, true
	}
	mac, known := t.former[ip]
	return mac, known
}

func (t *Table) link(e *Endpoint) {
	t.endpoints[e.key()] = e
	t.byMAC[e.MAC] = append(t.byMAC[e.MAC], e)
	t.learned.forget(e.MAC)
	for _, ip := range e.IPs {
		t.byIP[ip] = append(t.byIP[ip], e)
		delete(t.former, ip)
	}
}

func (t *Table) unlink(e *Endpoint) {
	delete(t.endpoints, e.key())
	drop(t.byMAC, e.MAC, e)
	for _, ip := range e.IPs {
		drop(t.byIP, ip, e)
		if len(t.byIP[ip]) == 0 {
			t.remember(ip, e.MAC)
		}
	}
}

// remember keeps the last holder of an address, at the cost of any other one.
func (t *Table) remember(ip netip.Addr, mac MAC) {
	for other := range t.former {
		if len(t.former) < maxFormer {
			break
		}
		delete(t.former, other)
	}
	t.former[ip] = mac
}

// Lookup returns where frames for mac go.
func (t *Table) Lookup(mac MAC, now time.Time) (Place, bool) {
	if e := holder(t.byMAC[mac]); e != nil {
		return e.At, true
	}
	return t.learned.lookup(mac, now)
}

// LookupIP returns the MAC address that holds addr by announcement, and where
// it lives. Learned entries have no IP addresses. An IPv4 address is found in
// its own form only, not as one of IPv6.
func (t *Table) LookupIP(addr netip.Addr) (MAC, Place, bool) {
	e := holder(t.byIP[addr])
	if e == nil {
		return MAC{}, Place{}, false
	}
	return e.MAC, e.At, true
}

// Verdict is what a table thinks of a frame's source address.
type Verdict uint8

// Verdicts.
const (
	Accept Verdict = iota // known to live there
	Unseen                // Learn must be asked
	Refuse                // lives elsewhere: forged
)

// Check judges a frame with source address mac that came from a place. It only
// reads, so that the common case needs no exclusive lock; after Unseen the
// caller asks Learn, whose word counts.
func (t *Table) Check(mac MAC, from Place, now time.Time) Verdict {
	holders := t.byMAC[mac]
	if len(holders) == 0 {
		return t.learned.check(mac, from, now)
	}
	verdict := Refuse
	for _, e := range holders {
		if e.At.Local && !from.Local {
			return Refuse // nobody afar has a local container's address
		}
		if e.At == from {
			verdict = Accept
		}
	}
	return verdict
}

// Learn is Check that also remembers where an unannounced address was seen. A
// frame may pass although there was no room to remember its source.
func (t *Table) Learn(mac MAC, from Place, now time.Time) Verdict {
	verdict := t.Check(mac, from, now)
	if verdict == Unseen {
		t.learned.learn(mac, from, now)
		verdict = Accept
	}
	return verdict
}

// Endpoint returns what Set put in under a place and an ID.
func (t *Table) Endpoint(at Place, endpointID string) (Endpoint, bool) {
	e := t.endpoints[endpointKey{at: at, id: endpointID}]
	if e == nil {
		return Endpoint{}, false
	}
	return *e, true
}

// At returns the endpoints of one place, in no order.
func (t *Table) At(p Place) iter.Seq[Endpoint] {
	return func(yield func(Endpoint) bool) {
		for key, e := range t.endpoints {
			if key.at == p && !yield(*e) {
				return
			}
		}
	}
}

// All returns all endpoints, in no order.
func (t *Table) All() iter.Seq[Endpoint] {
	return func(yield func(Endpoint) bool) {
		for _, e := range t.endpoints {
			if !yield(*e) {
				return
			}
		}
	}
}

// Learned counts the entries that were learned and have not been swept yet.
func (t *Table) Learned() int { return len(t.learned.entries) }

// Static counts the endpoints.
func (t *Table) Static() int { return len(t.endpoints) }

// holder picks who counts among several that claim one address: an endpoint
// of this host, else the one set last (a container that moved).
func holder(claims []*Endpoint) *Endpoint {
	if len(claims) == 0 {
		return nil
	}
	for _, e := range claims {
		if e.At.Local {
			return e
		}
	}
	return claims[len(claims)-1]
}

// drop takes e out of the claims under key.
func drop[K comparable](index map[K][]*Endpoint, key K, e *Endpoint) {
	rest := slices.DeleteFunc(index[key], func(o *Endpoint) bool { return o == e })
	if len(rest) == 0 {
		delete(index, key)
		return
	}
	index[key] = rest
}

// distinct returns a copy of ips in plain form, each address once.
func distinct(ips []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(ips))
	for _, ip := range ips {
		if ip = plain(ip); !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out
}

// plain gives an address its one spelling.
func plain(ip netip.Addr) netip.Addr { return ip.Unmap().WithZone("") }
