package transport

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// A session is one thing, and the path that its datagrams take another. The path
// to a peer is direct, an address, or through others. A direct one is trusted only
// while it proves to work both ways: a ping that went by it is answered by it. One
// that carries more than pings is watched closely, so that frames are soon on
// another way. Who has no direct way knocks at all addresses of the peer, now and
// then; by the first answer the path is direct again. Who has one that is not the
// best kind knocks where there may be a better one.

const (
	// watchInterval is the time between pings on a link that is watched closely,
	// or the usual one if that is shorter.
	watchInterval = 400 * time.Millisecond
	// missedPings is how many may stay unanswered, and a half for their way: at
	// 5 % loss each way, four are lost in a row once in ten thousand.
	missedPings = 4
	// pongLate is how long after a ping of an idle link, or two round trips if that is
	// longer, its pong is missed, so that the link is watched closely.
	pongLate = 500 * time.Millisecond
	// watchTime is how long a link is watched closely after it was busy, at most
	// twice as long.
	watchTime = 5 * time.Second
	// A link that does not work is tried again after probeFirst, later twice as
	// long each time, up to probeLast.
	probeFirst = 500 * time.Millisecond
	probeLast  = 5 * time.Second
	// probeKind is instead of probeLast while only the kind of address could be
	// better: often it never will be.
	probeKind = time.Minute
	// pongAge is how long after a ping its pong may come.
	pongAge = 10 * time.Second
	// pingLen is the length of the body of our pings: the time.
	pingLen = 8
	// strayProbe is how often a peer that knocks is knocked at in return.
	strayProbe = 200 * time.Millisecond
)

// watch is what control keeps of a link. Guarded by Transport.mu.
type watch struct {
	closely bool
	since   time.Time // of closely
	asked   time.Time // when busy was looked at last
	pinged  time.Time // when the path in use was, last
	via     id.PeerID // whom relayed datagrams went to last
	probe   probe
}

// probe is the knocking at a peer's addresses.
type probe struct {
	next time.Time
	wait time.Duration
}

// Watch has the link watched closely for a while, for somebody who carries frames
// beside it and lives by its being direct.
func (l *Link) Watch() { l.use() }

// use notes that the link carries something, whichever way, so that it is watched
// closely.
func (l *Link) use() {
	if !l.busy.Load() && !l.busy.Swap(true) {
		l.t.kick()
	}
}

// proven reports whether there is a direct way to the peer that works.
func (l *Link) proven() bool { return l.up.Load() && l.current.Load() != nil }

// Direct lists the peers that are reached directly, in the order of their IDs.
func (t *Transport) Direct() []id.PeerID {
	var out []id.PeerID
	for p, l := range *t.links.Load() {
		if l.proven() {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, id.PeerID.Compare)
	return out
}

// reachedBy takes note of a handshake, which went to and fro by a hop; the caller
// has mu. That a direct path works only our own pings tell, once there is one.
func (t *Transport) reachedBy(p *peer, by hop, now time.Time) {
	if path := p.path.Load(); path != nil && p.up.Load() && path.rank() > by.rank() {
		return // they have a reason, but that is for our own pings to tell
	}
	if !by.direct() {
		by.peer = p.id // who passed it on may have named another
		p.setPath(by, t.since(now))
		p.proved.Store(t.since(now))
		return
	}
	p.setPath(by, t.since(now))
	t.proof(&p.Link, t.since(now))
}

// proof notes that the path, which is direct, works both ways. The caller has mu:
// else control could make the path another meanwhile.
func (t *Transport) proof(l *Link, now int64) {
	l.proved.Store(now)
	if !l.up.Load() {
		l.up.Store(true)
		t.mention()
	}
}

// mention has control tell of links. The caller has not necessarily mu.
func (t *Transport) mention() {
	t.relinked.Store(true)
	t.kick()
}

// lost notes that there is no direct way to a peer any more; the caller has mu.
func (t *Transport) lost(p *peer) {
	if p.up.Swap(false) {
		p.watch.probe = probe{} // knock at once
		t.mention()
	}
}

// observe does what time brings to a peer with a session; the caller has mu.
func (t *Transport) observe(p *peer, now time.Time) {
	if !p.watch.closely && t.late(p, now) {
		p.use()
	}
	t.attend(p, now)
	if p.watch.closely {
		t.watching++
	}
	if p.up.Load() && t.unanswered(p, now) {
		t.lost(p)
		t.log.WithField("peer", p.id.Short()).Debug("no direct way to the peer any more")
	}
	path := p.path.Load()
	if !p.up.Load() && path.direct() {
		if by, ok := t.wayRound(p); ok && by != *path {
			path = &by
			p.proved.Store(0)
			p.setPath(by, t.since(now))
			p.nextPing = now
		}
	}
	if !path.direct() {
		t.notice(p, now)
	}
	t.knock(p, now)
	if !now.Before(p.nextPing) {
		t.ping(p, now)
	}
	t.probeMTU(p, now)
}

// wayRound is where datagrams go while there is no direct way that works: relays if
// there are any, or a pipe, which will prove itself soon.
func (t *Transport) wayRound(p *peer) (hop, bool) {
	switch {
	case t.next(p.id) != nil:
		return relayed(p.id), true
	case len(p.pipes) > 0:
		return hop{pipe: p.pipes[0]}, true
	}
	return hop{}, false
}

// notice takes note of whom a peer is reached by: with another relay the path is
// another one.
func (t *Transport) notice(p *peer, now time.Time) {
	if next := t.next(p.id); next != nil && next.id != p.watch.via {
		p.watch.via = next.id
		p.anew(t.since(now))
	}
}

// attend decides how closely to watch.
func (t *Transport) attend(p *peer, now time.Time) {
	w := &p.watch
	if now.Sub(w.asked) < watchTime && (w.closely || !p.busy.Load()) {
		return
	}
	w.asked = now
	closely := p.busy.Swap(false)
	if closely == w.closely {
		return
	}
	w.closely = closely
	if closely {
		w.since, p.nextPing = now, now
	}
}

// late reports whether the last ping by a direct path should have been answered.
func (t *Transport) late(p *peer, now time.Time) bool {
	pinged := p.watch.pinged
	return p.up.Load() && t.since(pinged) > p.proved.Load() && now.Sub(pinged) > max(pongLate, 2*time.Duration(p.rtt.Load()))
}

// unanswered reports whether too many pings are.
func (t *Transport) unanswered(p *peer, now time.Time) bool {
	proved := t.epoch.Add(time.Duration(p.proved.Load()))
	if !p.watch.closely {
		return now.Sub(proved) > t.cfg.PingInterval*5/2
	}
	if p.watch.since.After(proved) {
		proved = p.watch.since
	}
	return now.Sub(proved) > t.watchInterval()*(2*missedPings+1)/2
}

func (t *Transport) watchInterval() time.Duration { return min(watchInterval, t.cfg.PingInterval) }

// ping asks for a pong by the path in use: it proves the path and measures the round trip,
// keeps the session and any NAT's mapping alive, and shows the peer that we are
// there.
func (t *Transport) ping(p *peer, now time.Time) {
	every := t.cfg.PingInterval*3/4 + rand.N(t.cfg.PingInterval/2+1)
	if p.watch.closely {
		every = t.watchInterval()
	}
	p.nextPing, p.watch.pinged = now.Add(every), now
	stamp := t.since(now) | countedPing
	if p.up.Load() || !p.path.Load().direct() { // else it knocks, where the path was
		p.pings.send(stamp)
	}
	if p.transmit(wire.KindPing, pingBody(stamp)) != nil { // counted; the next one comes soon
		p.pings.unsend(stamp)
	}
}

// countedPing is the bit of a ping's time that tells one by the path in use from
// one that knocks: both may leave at once.
const countedPing = 1

func pingBody(stamp int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(stamp)) }

// knockBody is for pings by another way than the path.
func (t *Transport) knockBody(now time.Time) []byte { return pingBody(t.since(now) &^ countedPing) }

// knock pings, now and then, the addresses of a peer that is not reached directly,
// or those that would be better than the path.
func (t *Transport) knock(p *peer, now time.Time) {
	k, path, last := &p.watch.probe, *p.path.Load(), probeLast
	if now.Before(k.next) {
		return
	}
	if p.up.Load() && path.udp() {
		last = probeKind
	}
	k.wait = min(max(2*k.wait, probeFirst), last)
	k.next = now.Add(k.wait*3/4 + rand.N(k.wait/2+1))
	for _, to := range p.doors() {
		if p.up.Load() && to.rank() <= path.rank() || to == path { // that one is pinged anyway
			continue
		}
		_ = p.transmitTo(wire.KindPing, t.knockBody(now), to)
	}
}

// doors are the direct ways to a peer that there may be.
func (p *peer) doors() (hops []hop) {
	for _, a := range p.candidates {
		hops = append(hops, direct(a))
	}
	for _, x := range p.pipes {
		hops = append(hops, hop{pipe: x})
	}
	return hops
}

// strayed takes note of an authentic datagram that came by another way than the
// path; path may be nil.
func (r *receiver) strayed(l *Link, path *hop) {
	from := r.from
	switch {
	case path == nil || path.rank() == from.rank(): // it moved
		l.setPath(from, r.t.since(r.now))
	case path.rank() > from.rank(): // they have a reason
		l.use()
		r.t.doubt(l, r.now)
	default: // it knocks
		if r.t.since(r.now)-r.knocked >= int64(strayProbe) {
			r.knocked = r.t.since(r.now)
			_ = l.transmitTo(wire.KindPing, r.t.knockBody(r.now), from)
		}
	}
}

// doubt is for a link that the other side does not use any more: neither do we,
// then, unless it proved to work just now. If they are wrong, the first knock will
// tell.
func (t *Transport) doubt(l *Link, now time.Time) {
	if !l.up.Load() || t.since(now)-l.proved.Load() < int64(t.watchInterval()*3/2) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[l.id]; p != nil && &p.Link == l {
		t.lost(p)
	}
}

// ponged takes the answer to a ping. It came back the way that the ping went.
func (r *receiver) ponged(l *Link, body []byte) {
	t := r.t
	now := t.since(time.Now())
	if len(body) == probeLen+wire.AddrLen {
		r.probed(l, body)
		return
	}
	if len(body) != pingLen+wire.AddrLen {
		return
	}
	stamp := int64(binary.BigEndian.Uint64(body))
	took := now - stamp
	path := l.path.Load()
	if took < 0 || took > int64(pongAge) || path == nil {
		return
	}
	l.pings.answer(stamp)
	switch {
	case r.from.rank() > path.rank(), r.from.direct() && !l.up.Load():
		t.improve(l, r.from, now)
	case r.from == *path:
		l.proved.Store(now)
	default:
		return
	}
	l.rtt.Store(max(took, 1))
	if r.from.direct() {
		if seen, ok := wire.ParseAddr(body[pingLen:]); ok {
			t.seenAt(l, seen)
		}
	}
}

// seenAt takes note of where a peer sees us.
func (t *Transport) seenAt(l *Link, a netip.AddrPort) {
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	if old := l.seen.Load(); !usable(a) || old != nil && *old == a {
		return
	}
	l.seen.Store(&a)
	t.mention()
}

// Seen lists the addresses at which the peers that are reached directly see us,
// each once, in order.
func (t *Transport) Seen() []netip.AddrPort {
	var out []netip.AddrPort
	for _, l := range *t.links.Load() {
		if seen := l.seen.Load(); seen != nil && l.proven() {
			out = append(out, *seen)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// improve takes a better path, which has just proved to work.
func (t *Transport) improve(l *Link, by hop, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l.setPath(by, now)
	t.proof(l, now)
	if p := t.peers[l.id]; p != nil && &p.Link == l && !t.cfg.NoDiscovery {
		p.addCandidates(by.addr)
	}
}
