package transport

import (
	"net/netip"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/wire"
)

// pending is a handshake that somebody else began: message 2 is sent.
type pending struct {
	index   uint32
	msg1    [handshake.MACLen]byte // its MAC, to know it again
	msg2    []byte
	machine *handshake.Machine
	from    hop
	began   time.Time
}

// pendings is bounded in total and by source address. When it is full the
// oldest one goes, not the newest: a handshake takes one round trip, so the
// true ones are done before a flood of replays pushes them out. Guarded by
// Transport.mu.
type pendings struct {
	byIndex map[uint32]*pending
	byMsg1  map[[handshake.MACLen]byte]*pending
	bySite  map[netip.Addr]int
}

func newPendings() pendings {
	return pendings{
		byIndex: map[uint32]*pending{},
		byMsg1:  map[[handshake.MACLen]byte]*pending{},
		bySite:  map[netip.Addr]int{},
	}
}

func (ps *pendings) add(p *pending) {
	ps.byIndex[p.index] = p
	ps.byMsg1[p.msg1] = p
	ps.bySite[site(p.from.host())]++
}

func (ps *pendings) remove(p *pending) {
	delete(ps.byIndex, p.index)
	delete(ps.byMsg1, p.msg1)
	s := site(p.from.host())
	if ps.bySite[s]--; ps.bySite[s] == 0 {
		delete(ps.bySite, s)
	}
}

// surplus returns the one to remove before another from that address comes,
// or nil.
func (ps *pendings) surplus(from netip.Addr) *pending {
	from = site(from)
	crowd := ps.bySite[from] >= maxPendingsOfOne
	if !crowd && len(ps.byIndex) < maxPendings {
		return nil
	}
	var oldest *pending
	for _, p := range ps.byIndex {
		if crowd && site(p.from.host()) != from {
			continue
		}
		if oldest == nil || p.began.Before(oldest.began) {
			oldest = p
		}
	}
	return oldest
}

// handle1 takes message 1. A copy of one that is pending costs a resent
// message 2; another one three scalar multiplications.
func (t *Transport) handle1(j job, now time.Time) {
	mac := macOf(j.msg)
	if p := t.pendings.byMsg1[mac]; p != nil {
		_ = t.write(p.msg2, j.from)
		return
	}
	if p := t.pendings.surplus(j.from.host()); p != nil {
		t.drops.add(dropBusy)
		t.drop(p)
	}
	index, ok := t.table.reserve()
	if !ok {
		t.drops.add(dropBusy)
		return
	}
	cfg := handshake.Config{Identity: t.cfg.Identity, Keys: t.keys, Medium: handshake.Datagrams, Index: index}
	machine, msg2, err := handshake.Respond(cfg, j.msg, t.cfg.hello(j.from.addr, t.port))
	if err != nil {
		t.table.release(index)
		t.drops.add(dropHandshake)
		return
	}
	t.pendings.add(&pending{
		index: index, msg1: mac, msg2: msg2, machine: machine, from: j.from, began: now,
	})
	_ = t.write(msg2, j.from) // counted; the initiator tries again
}

// drop forgets a pending handshake.
func (t *Transport) drop(p *pending) {
	t.pendings.remove(p)
	t.table.release(p.index)
}

// handle3 takes message 3, which completes a handshake.
func (t *Transport) handle3(j job, now time.Time) {
	p := t.pendings.byIndex[j.header.Index]
	if p == nil {
		t.repeated3(j)
		return
	}
	res, err := p.machine.Conclude(j.msg)
	if err != nil {
		t.drops.add(dropHandshake)
		if !unharmed(err) {
			t.drop(p)
		}
		return
	}
	t.pendings.remove(p)
	if err := t.conclude(p.index, &res, j, now); err != nil {
		t.table.release(p.index)
		t.drops.add(dropBusy)
	}
}

func (t *Transport) conclude(index uint32, res *handshake.Result, j job, now time.Time) error {
	if !j.from.of(res.Peer) {
		return handshake.ErrPeer
	}
	p, err := t.know(res.Peer)
	if err != nil {
		return err
	}
	e, err := t.newEntry(p, index, res, false, now)
	if err != nil {
		return err
	}
	e.msg3 = macOf(j.msg)
	t.table.put(e)
	t.install(e, j.from, now) // its ping confirms the session to the initiator
	return nil
}

// repeated3 answers a message 3 that was handled before: what confirmed the
// session got lost.
func (t *Transport) repeated3(j job) {
	e := t.table.get(j.header.Index)
	if e == nil || e.msg3 != macOf(j.msg) {
		t.drops.add(dropHandshake)
		return
	}
	var d [wire.HeaderLen + wire.ItemHeaderLen + wire.TagLen]byte
	wire.AppendItem(d[:wire.HeaderLen], wire.KindKeepalive, nil)
	if e.session.Seal(d[:], len(d)) == nil {
		_ = t.write(d[:], j.from)
	}
}

func macOf(msg []byte) (mac [handshake.MACLen]byte) {
	copy(mac[:], msg[len(msg)-handshake.MACLen:])
	return mac
}
