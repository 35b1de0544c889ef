package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weave/mesh/id"
	"weave/mesh/state"
	"weave/mesh/wire"
)

func TestJoinFetchesWhatIsMissing(t *testing.T) {
	n := newNetwork(t)
	a := n.start(1, 1)
	for i := range 5000 {
		a.set(fmt.Sprintf("key%d", i), strings.Repeat("v", 60))
	}
	b := n.start(2, 1)
	b.set("own", "b")
	b.join(a)
	if got := b.records.count(); got != 5001 {
		t.Errorf("after Join the new node has %d records, want 5001", got)
	}
	members := b.g.Members()
	if len(members) != 1 {
		t.Fatalf("members: %+v", members)
	}
	m := members[0]
	want := netip.MustParseAddrPort("192.0.2.1:6783")
	if m.ID != a.id || m.Nickname != "host1" || m.State != Alive || m.Since.IsZero() ||
		!slices.Equal(m.Candidates, []netip.AddrPort{want}) {
		t.Errorf("member: %+v", m)
	}
	eventually(t, "the first learns the second's record", func() bool { return a.records.get(b.id, "own") == "b" })
}

func TestEveryRecordReachesAll(t *testing.T) {
	n := newNetwork(t)
	nodes := n.cluster(8)
	for i, x := range nodes {
		for j := range 10 {
			x.set(fmt.Sprint(j), fmt.Sprint(i))
		}
	}
	eventually(t, "all have all", func() bool {
		return equal(nodes) && nodes[0].records.count() == 80
	})
}

// Each way in which a record spreads, with all others shut.
func TestEachWayAlone(t *testing.T) {
	for name, tc := range map[string]struct {
		set    func(*Timing)
		spread func(a *node)
	}{
		"datagram": {func(*Timing) {}, func(a *node) { a.set("x", "1") }},
		"gap": {func(*Timing) {}, func(a *node) {
			a.write("x", "1")
			a.set("y", "2")
		}},
		"sum":       {func(t *Timing) { t.Sum = quick().Sum }, func(a *node) { a.write("x", "1") }},
		"push/pull": {func(t *Timing) { t.PushPull = quick().PushPull }, func(a *node) { a.write("x", "1") }},
		"too large": {func(*Timing) {}, func(a *node) {
			a.write("x", "1")
			a.set("y", strings.Repeat("y", state.MaxValue))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			nodes := n.cluster(2, func(c *Config) { c.Timing = never(); tc.set(&c.Timing) })
			a, b := nodes[0], nodes[1]
			tc.spread(a)
			eventually(t, "the record is there", func() bool { return b.records.get(a.id, "x") == "1" })
		})
	}
}

// One that joins a member is greeted by all others.
// A greeting that comes before its receiver has heard of the new member is made
// up for by sums, which this test does without: so one of several is enough.
func TestNewMemberIsGreeted(t *testing.T) {
	n := newNetwork(t)
	quiet := func(c *Config) { c.Timing = never(); c.Timing.Gossip, c.Timing.Greet = quick().Gossip, quick().Greet }
	a, b := n.start(1, 1, quiet), n.start(2, 1, quiet)
	b.join(a)
	var newcomers []*node
	next := time.Now()
	eventually(t, "a member that was not joined has a newcomer's record", func() bool {
		if len(newcomers) < 8 && !time.Now().Before(next) {
			c := n.start(3+len(newcomers), 1, quiet)
			c.write("x", "1")
			c.join(a)
			newcomers, next = append(newcomers, c), time.Now().Add(time.Second)
		}
		return slices.ContainsFunc(newcomers, func(c *node) bool { return b.records.get(c.id, "x") == "1" })
	})
}

func TestLargeValueIsPulled(t *testing.T) {
	n := newNetwork(t)
	nodes := n.cluster(3)
	large := strings.Repeat("x", state.MaxValue)
	nodes[0].set("large", large)
	eventually(t, "all have the large value", func() bool {
		return nodes[1].records.get(nodes[0].id, "large") == large &&
			nodes[2].records.get(nodes[0].id, "large") == large
	})
}

func TestLossDelaysOnly(t *testing.T) {
	n := newNetwork(t)
	nodes := n.cluster(4)
	n.setLoss(0.3)
	for i := range 50 {
		nodes[i%4].set(fmt.Sprint(i), "v")
	}
	eventually(t, "all have all in spite of loss", func() bool {
		return equal(nodes) && nodes[0].records.count() == 50
	})
}

// A delta that one member hears as a rumour, and nobody got directly.
func TestRumoursArePassedOn(t *testing.T) {
	n := newNetwork(t)
	nodes := n.cluster(4, func(c *Config) { c.Timing.Sum, c.Timing.PushPull = time.Hour, time.Hour })
	eventually(t, "all are quiet", func() bool { return equal(nodes) })
	author := state.New(id.PeerID{99}, 1)
	delta, err := author.Set("k", "x", []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	rumour := message{kind: typeDelta, origin: id.PeerID{99}, replica: "records", delta: delta}.encode()
	first := (*delegate)(nodes[0].g)
	first.NotifyMsg(rumour)
	eventually(t, "all have heard it", func() bool {
		for _, x := range nodes {
			if x.records.get(id.PeerID{99}, "x") != "1" {
				return false
			}
		}
		return true
	})
	eventually(t, "it is passed on no longer", func() bool { return nodes[0].g.rumours.NumQueued() == 0 })
	if first.NotifyMsg(rumour); nodes[0].g.rumours.NumQueued() != 0 {
		t.Error("an old rumour is passed on again")
	}
}

// opened is how many sync streams there were.
func (n *network) opened() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	sum := 0
	for _, syncs := range n.syncs {
		sum += syncs
	}
	return sum
}

func TestQuietWhenEqual(t *testing.T) {
	n := newNetwork(t)
	nodes := n.cluster(3)
	nodes[0].set("x", "1")
	eventually(t, "all are equal", func() bool { return equal(nodes) })
	before, since := n.opened(), time.Now()
	eventually(t, "no sync stream for a while", func() bool {
		if now := n.opened(); now != before {
			before, since = now, time.Now()
		}
		return time.Since(since) > 400*time.Millisecond
	})
}

func TestPartitionHeals(t *testing.T) {
	for name, group := range map[string]int{"two and two": 2, "one alone": 1} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			n.loud = group == 1
			nodes := n.cluster(4)
			left := func(p id.PeerID) bool { return int(p[0]) <= group }
			n.partition(func(a, b id.PeerID) bool { return left(a) != left(b) })
			eventually(t, "each side has declared the other dead", func() bool {
				return allAlive(nodes[:group], group-1) && allAlive(nodes[group:], 3-group)
			})
			for _, m := range nodes[0].g.Members() {
				if want := map[bool]State{true: Alive, false: Dead}[left(m.ID)]; m.State != want {
					t.Errorf("%s is %s, want %s", m.Nickname, m.State, want)
				}
			}
			for i, x := range nodes {
				x.set("during", fmt.Sprint(i))
			}
			// Until memberlist has forgotten the dead, which it shows nowhere.
			time.Sleep(2 * quick().GossipToDead)
			n.heal()
			healed := time.Now()
			eventually(t, "one membership again", func() bool { return allAlive(nodes, 3) })
			eventually(t, "one set of records again", func() bool {
				return equal(nodes) && nodes[0].records.count() == 4
			})
			t.Logf("healed within %v", time.Since(healed).Round(time.Millisecond))
		})
	}
}

// Healing at the worst moment: memberlist has the dead in its list still, so a
// push/pull with their old incarnation changes nothing.
func TestPartitionHealsAtOnce(t *testing.T) {
	n := newNetwork(t)
	long := func(c *Config) { c.Timing.GossipToDead = time.Hour }
	a, b := n.start(1, 1, long), n.start(2, 1, long)
	b.join(a)
	n.partition(func(a, b id.PeerID) bool { return true })
	eventually(t, "both alone", func() bool { return allAlive([]*node{a, b}, 0) })
	n.heal()
	a.join(b)
	if a.living() != 1 {
		t.Error("after Join the peer is no living member")
	}
	eventually(t, "both know", func() bool { return allAlive([]*node{a, b}, 1) })
}

func TestEventsInOrder(t *testing.T) {
	n := newNetwork(t)
	nodes := n.cluster(2)
	nodes[1].stop()
	eventually(t, "down", func() bool { return nodes[0].living() == 0 })
	again := n.start(2, 2, func(c *Config) { c.Nickname = "renamed" })
	again.join(nodes[0])
	want := []string{"up host2", "down host2", "up renamed"}
	eventually(t, "up again", func() bool { return slices.Equal(nodes[0].watch.events(), want) })
}

func TestRestartBeforeItIsNoticed(t *testing.T) {
	n := newNetwork(t)
	nodes := n.cluster(3)
	nodes[2].set("old", "1")
	nodes[2].set("both", "1")
	eventually(t, "records are known", func() bool { return equal(nodes) })
	nodes[2].stop()
	again := n.start(3, 2, func(c *Config) { c.Nickname = "renamed" })
	again.set("both", "1")
	again.set("new", "1")
	again.join(nodes[0])
	nodes[2] = again
	eventually(t, "the new incarnation is known", func() bool {
		return equal(nodes) && nodes[1].records.get(again.id, "new") == "1"
	})
	eventually(t, "the new name is known", func() bool {
		m := nodes[1].g.Members()
		return len(m) == 2 && m[1].Nickname == "renamed" && m[1].State == Alive
	})
	eventually(t, "its event is told", func() bool {
		e := nodes[1].watch.events()
		return slices.Contains(e, "update renamed") || slices.Contains(e, "up renamed")
	})
}

func TestJoinFails(t *testing.T) {
	n := newNetwork(t)
	a := n.start(1, 1)
	ctx := context.Background()
	if err := a.g.Join(ctx, a.id); !errors.Is(err, ErrSelf) {
		t.Errorf("joining ourselves: %v", err)
	}
	if err := a.g.Join(ctx, id.PeerID{9}); err == nil {
		t.Error("joining nobody: no error")
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if err := a.g.Join(canceled, id.PeerID{9}); err == nil {
		t.Error("joining with a context that is done: no error")
	}
	a.stop()
	if err := a.g.Join(ctx, id.PeerID{9}); !errors.Is(err, ErrClosed) {
		t.Errorf("joining after the end: %v", err)
	}
	idle, err := New(Config{Self: a.id})
	if err != nil {
		t.Fatal(err)
	}
	if err := idle.Join(canceled, id.PeerID{9}); !errors.Is(err, context.Canceled) {
		t.Errorf("joining before the start: %v", err)
	}
}

func TestReplicaNames(t *testing.T) {
	for _, name := range []string{"", strings.Repeat("x", maxReplicaName+1)} {
		if _, err := New(Config{Replicas: map[string]Replica{name: nil}}); err == nil {
			t.Errorf("replica name %q: no error", name)
		}
	}
}

// A peer that holds streams open and says nothing can neither stop others from
// being served for long nor keep Run from ending.
func TestSilentStreams(t *testing.T) {
	n := newNetwork(t)
	a := n.start(1, 1)
	stranger := &node{g: a.g}
	n.mu.Lock()
	n.nodes[id.PeerID{66}] = stranger
	n.mu.Unlock()
	var conns []net.Conn
	for range 3 * maxStreams {
		for _, kind := range []wire.StreamKind{wire.StreamGossip, wire.StreamSync} {
			c, err := port{n, id.PeerID{66}}.Dial(context.Background(), a.id, kind)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
	}
	eventually(t, "the rest is refused", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.conns) == 2*maxStreams
	})
	a.stop()
	for _, c := range conns {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a stream is open after the end")
		}
		_ = c.Close()
	}
}

// What a member with the password but bad manners could send.
func TestJunkDoesNoHarm(t *testing.T) {
	n := newNetwork(t)
	nodes := n.cluster(2)
	junk := id.PeerID{66}
	for _, stream := range []string{
		"",
		"junk",
		"\x06\x83\xa5Nodes\xce\x00\x10\x00\x00\xacUserStateLen\xce\x01\x40\x00\x00\xa4Join\xc3",
		"\x06\x83\xa5Nodes\xd3\xff\xff\xff\xff\xff\xff\xff\xff",
		"\x06\x81\xa1x" + strings.Repeat("\x91", 1<<20),
		"\x08\x81\xaaUserMsgLen\xce\x01\x00\x00\x00",
		"\x09\x82\xa4Algo\x00\xa3Buf\xc4\x04abcd",
	} {
		for _, handle := range []func(id.PeerID, net.Conn){nodes[0].g.HandleStream, nodes[0].g.HandleSync} {
			ours, theirs := net.Pipe()
			n.wg.Go(func() { handle(junk, theirs) })
			_ = ours.SetDeadline(time.Now().Add(time.Second))
			_, _ = ours.Write([]byte(stream)) // it may be refused before its end
			_ = ours.Close()
		}
	}
	for _, packet := range []string{
		"", "junk", "\x00", "\x01", "\x02", "\x03\xff", "\x04\x80", "\x05\x81\xa4Node\xc0", "\x08", "\x0b\x90",
	} {
		nodes[0].g.HandlePacket(nodes[1].id, []byte(packet))
		nodes[0].g.HandleRecords(nodes[1].id, []byte(packet))
	}
	nodes[0].set("x", "1")
	eventually(t, "all goes on", func() bool { return nodes[1].records.get(nodes[0].id, "x") == "1" })
	if m := nodes[0].g.Members(); len(m) != 1 || m[0].State != Alive {
		t.Errorf("members: %+v", m)
	}
}
