package scale

import (
	"time"

	"weave/mesh/handshake"
	"weave/mesh/session"
	"weave/mesh/wire"
)

// Sizes on the wire in bytes, from IPv4's header on.
const (
	ipUDP  = 20 + 8
	ipTCP  = 20 + 20 + 12 // with timestamps
	ipSYN  = ipTCP + 8    // with the options of a SYN
	mss    = 1500 - ipTCP
	window = 10 * mss // what TCP sends in its first round trip

	// Of a stream's records, see mesh/transport/stream.go.
	recordHead = 2 + wire.TagLen
	recordSize = 16 << 10
)

// datagram is the size of a sealed datagram with one item.
func datagram(body int) uint64 {
	return uint64(ipUDP + wire.HeaderLen + wire.ItemHeaderLen + body + wire.TagLen)
}

// Traffic are rates in bytes per second, by what they are for.
type Traffic struct {
	Probes   float64 // memberlist's datagrams: probes, their answers, news of members
	Members  float64 // its push/pulls, by stream
	Deltas   float64 // changes of records, told to all at once
	Sums     float64 // sums over what a peer knows, told to one
	Pulls    float64 // streams on which differences are fetched
	Sessions float64 // pings and new keys of the sessions: reckoned
	Syncs    float64 // pulls begun per second; not bytes
}

// Total is the sum of all bytes.
func (t Traffic) Total() float64 { return t.Gossip() + t.Sessions }

// Gossip is the sum of what gossip sends: Total without the sessions.
func (t Traffic) Gossip() float64 { return t.Probes + t.Members + t.Deltas + t.Sums + t.Pulls }

// count is what one peer has sent and received so far, in bytes.
type count struct {
	probes, members, deltas, sums, pulls uint64
	syncs                                uint64
	in                                   uint64
}

func (c count) out() uint64 { return c.probes + c.members + c.deltas + c.sums + c.pulls }

// typeSum is the second byte of gossip's messages that show a sum.
const typeSum = 2

func (c *count) datagram(kind wire.Kind, body []byte, size uint64) {
	switch {
	case kind == wire.KindGossip:
		c.probes += size
	case len(body) > 1 && body[1] == typeSum:
		c.sums += size
	default:
		c.deltas += size
	}
}

func (c *count) stream(kind wire.StreamKind, size uint64) {
	if kind == wire.StreamSync {
		c.pulls += size
	} else {
		c.members += size
	}
}

// sent returns what each peer has sent so far.
func (n *network) sent() []count {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]count(nil), n.counts...)
}

// total is what one peer has sent and received.
func (n *network) total(index int) (sent, received uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.counts[index].out(), n.counts[index].in
}

// rate is the average over all peers since an earlier count.
func (w *world) rate(before []count, d time.Duration) Traffic {
	var sum count
	now := w.net.sent()
	for i, b := range before {
		sum.probes += now[i].probes - b.probes
		sum.members += now[i].members - b.members
		sum.deltas += now[i].deltas - b.deltas
		sum.sums += now[i].sums - b.sums
		sum.pulls += now[i].pulls - b.pulls
		sum.syncs += now[i].syncs - b.syncs
	}
	per := func(bytes uint64) float64 { return float64(bytes) / d.Seconds() / float64(len(before)) }
	return Traffic{
		Probes: per(sum.probes), Members: per(sum.members), Deltas: per(sum.deltas), Sums: per(sum.sums),
		Pulls: per(sum.pulls), Syncs: per(sum.syncs), Sessions: Sessions(len(before)),
	}
}

// peak is the rate of the peer that sent most.
func (w *world) peak(before []count, d time.Duration) float64 {
	var most uint64
	now := w.net.sent()
	for i, b := range before {
		most = max(most, now[i].out()-b.out())
	}
	return float64(most)/d.Seconds() + Sessions(len(before))
}

// pingInterval is that of transport's sessions if its Config names none.
const pingInterval = 5 * time.Second

// Sessions is what a peer sends per second, in bytes, to keep its sessions with
// all others: pings, pongs, and new keys. Each pair agrees on new keys by three
// messages, a keepalive and a ping.
func Sessions(peers int) float64 {
	pings := float64(Ping+Pong) / pingInterval.Seconds()
	keys := float64(3*ipUDP+handshake.Len1+handshake.Len2+handshake.Len3) + float64(datagram(0)) + 2*float64(Ping+Pong)
	rekeys := keys / 2 / session.DefaultLimits().RekeyAge.Seconds()
	return float64(peers-1) * (pings + rekeys)
}

// Sizes of a ping and a pong on the wire, in bytes.
const (
	Ping = ipUDP + wire.HeaderLen + wire.ItemHeaderLen + 8 + wire.TagLen
	Pong = Ping + wire.AddrLen
)
