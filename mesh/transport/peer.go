package transport

import (
	"bytes"
	"net/netip"
	"slices"
	"time"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// peer is what we know of one. All but Link is guarded by Transport.mu.
type peer struct {
	Link

	candidates []netip.AddrPort // the latest given first
	sessions   []*entry         // confirmed ones, the newest first
	queue      queue

	attempt  *attempt      // the handshake we began, if any
	nextTry  time.Time     // not before
	wait     time.Duration // until the try after the next
	nextPing time.Time
	watch    watch
	pipes    []*pipe       // the newest first
	dark     time.Time     // since when there is no way by UDP; zero: there is
	opening  bool          // one is being opened
	nextPipe time.Time     // when one is to be opened, if need be
	pipeWait time.Duration // until the one after the next
	lastErr  error         // of the last attempt; nil after success
	nickname string
}

// queue keeps items for a peer without a session.
type queue struct {
	items []queued
	bytes int
}

type queued struct {
	kind wire.Kind
	body []byte
}

func (q *queue) push(kind wire.Kind, body []byte) error {
	if len(q.items) >= maxQueued || q.bytes+len(body) > maxQueuedBytes {
		return ErrQueueFull
	}
	q.items = append(q.items, queued{kind, bytes.Clone(body)})
	q.bytes += len(body)
	return nil
}

// AddCandidates tells addresses at which a peer may be reached, and makes a
// session with it. The latest given go first; more than the bounds allow are
// forgotten, those given longest ago first. Once known, a peer stays known until
// the bound on peers pushes it out.
func (t *Transport) AddCandidates(p id.PeerID, addrs ...netip.AddrPort) {
	if p == t.cfg.Identity.ID || p.IsZero() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	peer, err := t.know(p)
	if err != nil {
		t.drops.add(dropBusy)
		return
	}
	if peer.addCandidates(addrs...) {
		peer.watch.probe = probe{}
		peer.want()
	}
}

// addCandidates reports whether any was new.
func (p *peer) addCandidates(addrs ...netip.AddrPort) bool {
	var list []netip.AddrPort
	fresh := false
	for _, a := range addrs {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		if !usable(a) || slices.Contains(list, a) {
			continue
		}
		fresh = fresh || !slices.Contains(p.candidates, a)
		list = append(list, a)
	}
	for _, a := range p.candidates {
		if !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	p.candidates = list[:min(len(list), maxCandidates)]
	return fresh
}

// Forget has an address be tried no more, whoever is there. What goes by it goes on
// while it works, and who comes from there is let in.
func (t *Transport) Forget(addr netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.peers {
		p.dropCandidate(addr)
	}
}

func (p *peer) dropCandidate(a netip.AddrPort) {
	p.candidates = slices.DeleteFunc(p.candidates, func(c netip.AddrPort) bool { return c == a })
}

// usable leaves out what is no address of one host, or of which the link is missing.
func usable(a netip.AddrPort) bool {
	ip := a.Addr()
	if ip.Is6() && ip.IsLinkLocalUnicast() && ip.Zone() == "" {
		return false
	}
	return a.Port() != 0 && ip.IsValid() && !ip.IsUnspecified() && !ip.IsMulticast() &&
		ip != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// know returns the peer, which it makes if need be; the caller has mu.
func (t *Transport) know(p id.PeerID) (*peer, error) {
	if known := t.peers[p]; known != nil {
		return known, nil
	}
	if len(t.peers) >= maxPeers && !t.forgetOne() {
		return nil, ErrBusy
	}
	made := &peer{Link: Link{t: t, id: p}, wait: t.cfg.tune.minBackoff}
	made.mtu.init(t.cfg.tune.raiseFirst)
	t.peers[p] = made
	t.publishLinks()
	return made, nil
}

// forgetOne makes room by dropping the peer without a session that was heard
// of longest ago.
func (t *Transport) forgetOne() bool {
	var oldest *peer
	for _, p := range t.peers {
		if len(p.sessions) > 0 || p.attempt != nil && p.attempt.entry != nil {
			continue
		}
		if oldest == nil || p.heard.Load() < oldest.heard.Load() {
			oldest = p
		}
	}
	if oldest == nil {
		return false
	}
	if oldest.attempt != nil {
		t.end(oldest.attempt, ErrBusy)
	}
	delete(t.peers, oldest.id)
	return true
}

func (t *Transport) publishLinks() {
	links := make(map[id.PeerID]*Link, len(t.peers))
	for p, peer := range t.peers {
		links[p] = &peer.Link
	}
	t.links.Store(&links)
}

// install makes e, which is in the table, the session that we send on; the
// caller has mu.
func (t *Transport) install(e *entry, from hop, now time.Time) {
	p := t.peers[e.link.id]
	first := len(p.sessions) == 0
	p.sessions = slices.Insert(p.sessions, 0, e)
	e.confirmed.Store(true)
	p.heard.Store(t.since(now))
	t.reachedBy(p, from, now)
	if first {
		p.anew(t.since(now)) // the path may be that of long ago
	}
	p.current.Store(e)
	for i := len(p.sessions) - 1; i > 0; i-- {
		old := p.sessions[i]
		if i >= maxSessions || old.hello.Incarnation < e.hello.Incarnation {
			t.retire(p, i) // of a former run, or one too many
		}
	}
	p.nickname, p.lastErr = e.hello.Nickname, nil
	if from.direct() {
		t.seenAt(&p.Link, e.hello.Seen)
	}
	if !t.cfg.NoDiscovery {
		p.addCandidates(from.addr, netip.AddrPortFrom(e.hello.Advertise, e.hello.Port))
	}
	p.wanted.Store(false)
	p.wait, p.nextTry = t.cfg.tune.minBackoff, time.Time{}
	if a := p.attempt; a != nil && a.entry == nil {
		t.end(a, nil) // the other side was faster, and has nothing of ours yet
	}
	if first {
		t.ups = append(t.ups, p.id)
		t.kick()
	}
	t.ping(p, now)
	p.flush()
}

// flush sends what waited for a session.
func (p *peer) flush() {
	items := p.queue.items
	p.queue = queue{}
	for _, q := range items {
		if p.transmit(q.kind, q.body) != nil {
			return // lost, like any datagram
		}
	}
}

// retire drops a session of p for good; the caller has mu.
func (t *Transport) retire(p *peer, i int) {
	e := p.sessions[i]
	p.sessions = slices.Delete(p.sessions, i, i+1)
	e.session.Retire()
	t.table.release(e.index)
	if len(p.sessions) == 0 {
		p.current.Store(nil)
		t.lost(p)
	} else {
		p.current.Store(p.sessions[0])
	}
}

// targets are the hops to try: the one in use while it works, else all. Relays
// get nothing of a first try that may do without them.
func (p *peer) targets(now time.Time, first bool) []hop {
	path := p.path.Load()
	if path != nil && p.current.Load() != nil && !p.silent(now) {
		return []hop{*path}
	}
	var to []hop
	if path != nil && path.udp() && !p.t.cfg.NoDiscovery && !slices.Contains(p.candidates, path.addr) {
		to = append(to, *path)
	}
	to = append(to, p.doors()...)
	if p.t.next(p.id) != nil && (!first || len(to) == 0) {
		to = append(to, relayed(p.id))
	}
	return to
}
