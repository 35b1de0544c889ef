package scale

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"weave/mesh"
	"weave/mesh/gossip"
	"weave/mesh/id"
	"weave/mesh/state"
	"weave/mesh/transport"
	"weave/mesh/wire"
)

// What follows runs in real time, over loopback.

// errWait is returned for what did not happen in time.
var errWait = errors.New("scale: not within a minute")

// until polls a condition that no channel tells of.
func until(condition func() bool) error {
	for end := time.Now().Add(time.Minute); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return errWait
		}
	}
	return nil
}

func quiet() *logrus.Entry {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return logrus.NewEntry(log)
}

// task is something that runs until it is stopped.
type task struct {
	stop context.CancelFunc
	done sync.WaitGroup
}

func (t *task) run(things ...func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	t.stop = stop
	for _, thing := range things {
		t.done.Go(func() { _ = thing(ctx) })
	}
}

func (t *task) end() {
	if t.stop != nil {
		t.stop()
		t.done.Wait()
	}
}

// endOf is one end of real sessions.
type endOf struct {
	task
	transport *transport.Transport
	id        id.PeerID
}

var (
	loopback = netip.MustParseAddr("127.0.0.1")
	password = "for measuring"
)

func newEnd(ping time.Duration, set func(*transport.Config)) (*endOf, error) {
	identity, err := id.Generate(rand.Reader)
	if err != nil {
		return nil, err
	}
	cfg := transport.Config{
		Identity: identity, Password: []byte(password), Nickname: "end", Incarnation: 1,
		Listen: netip.AddrPortFrom(loopback, 0), Advertise: loopback, Log: quiet(), PingInterval: ping,
	}
	if set != nil {
		set(&cfg)
	}
	t, err := transport.New(cfg)
	if err != nil {
		return nil, err
	}
	return &endOf{transport: t, id: identity.ID}, nil
}

func (e *endOf) addr() netip.AddrPort { return netip.AddrPortFrom(loopback, e.transport.Port()) }

// SessionMemory measures what a session takes on one side, in bytes.
func SessionMemory() (float64, error) {
	const count = 8
	var ends []*endOf
	defer func() {
		for _, e := range ends {
			e.end()
		}
	}()
	for range count + 1 {
		e, err := newEnd(0, nil)
		if err != nil {
			return 0, err
		}
		ends = append(ends, e)
		e.run(e.transport.Run)
	}
	before := memory()
	for _, e := range ends[1:] {
		ends[0].transport.AddCandidates(e.id, e.addr())
	}
	err := until(func() bool {
		up := 0
		for _, p := range ends[0].transport.Peers() {
			if p.State == transport.StateUp {
				up++
			}
		}
		return up == count
	})
	return (memory() - before) / (2 * count), err
}

// provider is a member that knows the records of many peers.
type provider struct {
	endOf
	gossip  *gossip.Gossip
	records *records
}

// table makes the table of a peer that knows all others.
func table(self id.PeerID, peers, endpoints int) (*state.Table, error) {
	t := state.New(self, 1)
	for i := range peers {
		p := &peer{index: i, id: peerID(i), rings: &rings{}, records: &records{table: state.New(peerID(i), 1)}}
		p.fill(endpoints)
		if _, err := t.Merge(p.records.table.Announce(), time.Now()); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func newProvider(peers, endpoints int) (*provider, error) {
	p := &provider{records: &records{learnt: func(string) {}}}
	e, err := newEnd(0, func(c *transport.Config) {
		c.Packet = func(from id.PeerID, kind wire.Kind, body []byte) {
			if kind == wire.KindGossip {
				p.gossip.HandlePacket(from, body)
			} else {
				p.gossip.HandleRecords(from, body)
			}
		}
		c.Stream = func(from id.PeerID, kind wire.StreamKind, s net.Conn) {
			if kind == wire.StreamSync {
				p.gossip.HandleSync(from, s)
			} else {
				p.gossip.HandleStream(from, s)
			}
		}
		c.PeerUp = func(from id.PeerID) { p.gossip.PeerReachable(from) }
	})
	if err != nil {
		return nil, err
	}
	p.endOf.transport, p.id = e.transport, e.id
	if p.records.table, err = table(p.id, peers, endpoints); err != nil {
		return nil, err
	}
	p.gossip, err = gossip.New(gossip.Config{
		Self: p.id, Nickname: "provider", Carrier: p.transport, Candidates: []netip.AddrPort{p.addr()},
		Replicas: map[string]gossip.Replica{"records": p.records}, Log: quiet(),
	})
	if err != nil {
		return nil, errors.Join(err, p.transport.Close())
	}
	p.run(p.transport.Run, p.gossip.Run)
	return p, nil
}

// nowhere is a mesh.Store that forgets.
type nowhere struct{}

func (nowhere) Load(string) (map[string][]byte, error) { return nil, nil }

func (nowhere) Apply(string, map[string][]byte) error { return nil }

// FetchedByNode has a real mesh.Node learn the records of so many peers from
// one other, and returns the endpoints it then knows, how long that took, and
// the memory in bytes that the records take there: the copy, and the index.
func FetchedByNode(peers, endpoints int) (got []mesh.OwnedEndpoint, took time.Duration, bytes float64, err error) {
	p, err := newProvider(peers, endpoints)
	if err != nil {
		return nil, 0, 0, err
	}
	defer p.end()
	identity, err := id.Generate(rand.Reader)
	if err != nil {
		return nil, 0, 0, err
	}
	node, err := mesh.New(mesh.Config{
		Identity: identity, Password: []byte(password), Nickname: "node",
		Listen: netip.AddrPortFrom(loopback, 0), Advertise: []netip.Addr{loopback}, Store: nowhere{}, Log: quiet(),
	})
	if err != nil {
		return nil, 0, 0, err
	}
	var running task
	running.run(node.Run)
	defer running.end()
	before, begin := memory(), time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := node.Connect(ctx, p.addr().String()); err != nil {
		return nil, 0, 0, fmt.Errorf("connect: %w", err)
	}
	took = time.Since(begin)
	bytes = memory() - before
	return node.Endpoints(), took, bytes, nil
}

// TableMemory measures what a copy of the records of so many peers takes, in
// bytes.
func TableMemory(peers, endpoints int) (float64, error) {
	before := memory()
	t, err := table(id.PeerID{1}, peers, endpoints)
	after := memory()
	if err == nil && t.Incarnation() == 0 { // keeps it until here
		err = errors.New("scale: no incarnation")
	}
	return after - before, err
}

// Measure measures what Run cannot: call it outside of its bubble.
func Measure(p Plan) (r Real, err error) {
	if r.Table, err = TableMemory(p.Peers, p.Endpoints); err != nil {
		return r, err
	}
	if r.Session, err = SessionMemory(); err != nil {
		return r, err
	}
	_, r.Fetch, r.Records, err = FetchedByNode(p.Peers, p.Endpoints)
	return r, err
}
