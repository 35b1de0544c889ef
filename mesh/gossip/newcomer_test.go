package gossip

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weave/mesh/id"
	"weave/mesh/state"
	"weave/mesh/wire"
)

// A sum that differs because a change is under way settles by itself.
func TestChangeUnderWay(t *testing.T) {
	n := newNetwork(t)
	nodes := n.cluster(2, func(c *Config) {
		c.Timing = never()
		if c.Timing.Settle = time.Hour; c.Nickname == "host1" {
			c.Timing.Sum = quick().Sum
		}
	})
	a, b := nodes[0], nodes[1]
	eventually(t, "both are equal", func() bool { return equal(nodes) })
	before := n.opened()
	delta := a.write("x", "1")
	doubted := func() bool {
		_, waits := b.g.doubts.next()
		return waits
	}
	eventually(t, "a's sum is in doubt", doubted)
	a.g.Broadcast("records", delta)
	eventually(t, "the doubt is settled", func() bool { return !doubted() })
	if now := n.opened(); now != before {
		t.Errorf("%d sync streams for a change that was under way", now-before)
	}
	if b.records.get(a.id, "x") != "1" {
		t.Error("the change did not come")
	}
}

// Each change, ours or another's, is noted with the sum that it led to.
func TestSumsAreNoted(t *testing.T) {
	n := newNetwork(t)
	nodes := n.cluster(2, func(c *Config) { c.Timing = never() })
	nodes[0].set("x", "1")
	for i, x := range nodes {
		eventually(t, fmt.Sprintf("node %d has noted it", i), func() bool {
			x.g.doubts.mu.Lock()
			defer x.g.doubts.mu.Unlock()
			return x.records.get(nodes[0].id, "x") == "1" && x.g.doubts.past[x.g.doubts.last] == sumOf(x.g.cfg.Replicas)
		})
	}
}

// Who comes tells what is its own to members that it did not join.
func TestNewcomerIntroducesItself(t *testing.T) {
	for name, tc := range map[string]struct {
		newcomer time.Duration
		value    string
		want     bool
	}{
		"at once":   {time.Hour, "1", true},
		"later":     {0, "1", false},
		"too large": {time.Hour, strings.Repeat("x", state.MaxValue), false},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			quiet := func(c *Config) {
				c.Timing = never()
				c.Timing.Gossip, c.Timing.Greet = quick().Gossip, quick().Greet
				c.Timing.Settle, c.Timing.Newcomer = time.Hour, tc.newcomer
			}
			a, b := n.start(1, 1, quiet), n.start(2, 1, quiet)
			b.join(a)
			c := n.start(3, 1, quiet, func(c *Config) {
				c.Replicas = map[string]Replica{"records": announcing{c.Replicas["records"].(*table)}}
			})
			c.write("x", tc.value)
			told, shown := false, make(chan struct{})
			once := sync.OnceFunc(func() { close(shown) })
			n.mu.Lock()
			n.heard = func(from, to id.PeerID, kind wire.Kind, body []byte) {
				switch {
				case from != c.id || to != b.id || kind != wire.KindRecords:
				case body[1] == typeDelta:
					told = true
				default:
					once() // comes after what is introduced
				}
			}
			n.mu.Unlock()
			c.join(a)
			if <-shown; told != tc.want {
				t.Errorf("b was told what is c's own: %v", told)
			}
			if told {
				eventually(t, "b has c's record", func() bool { return b.records.get(c.id, "x") == tc.value })
			}
		})
	}
}

// slow is a table whose answers to pulls wait.
type slow struct {
	*table
	answer chan struct{}
}

func (r slow) Missing(digest []byte) []byte {
	<-r.answer
	return r.table.Missing(digest)
}

// Who is heard from is joined, but not before news of it had time to come.
func TestNewsComeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		quiet := func(c *Config) { c.Timing = never(); c.Timing.Notice = time.Second }
		meetings := func() int {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.meetings
		}
		a, b, c := n.start(1, 1, quiet), n.start(2, 1, quiet), n.start(3, 1, quiet)
		a.g.PeerReachable(b.id)
		a.g.PeerReachable(c.id)
		time.Sleep(999 * time.Millisecond)
		if a.living() != 0 || meetings() != 0 {
			t.Errorf("%d members, %d meetings at once", a.living(), meetings())
		}
		c.join(a)
		if meetings() != 1 {
			t.Errorf("%d meetings, want one", meetings())
		}
		time.Sleep(1002 * time.Millisecond)
		if a.living() != 2 || meetings() != 2 {
			t.Errorf("%d members, %d meetings: want both, and none twice", a.living(), meetings())
		}
	})
}

// What a newcomer has says nothing as long as it fetches what there is.
func TestNewcomerFetchesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		quiet := func(c *Config) { c.Timing = never(); c.Timing.Gossip, c.Timing.Greet = quick().Gossip, quick().Greet }
		answer := make(chan struct{})
		a := n.start(1, 1, quiet, func(c *Config) {
			c.Replicas = map[string]Replica{"records": slow{c.Replicas["records"].(*table), answer}}
		})
		a.write("x", "1")
		c := n.start(2, 1, quiet)
		var sums atomic.Int32
		n.mu.Lock()
		n.heard = func(from, _ id.PeerID, kind wire.Kind, _ []byte) {
			if from == c.id && kind == wire.KindRecords {
				sums.Add(1)
			}
		}
		n.mu.Unlock()
		joined := make(chan struct{})
		go func() { defer close(joined); c.join(a) }()
		time.Sleep(20 * quick().Gossip)
		if c.living() != 1 || sums.Load() != 0 {
			t.Errorf("knows %d members, and has shown %d sums of nothing", c.living(), sums.Load())
		}
		close(answer)
		<-joined
		time.Sleep(20 * quick().Gossip)
		if c.records.get(a.id, "x") != "1" || sums.Load() != 1 {
			t.Errorf("knows all %v, and has shown %d sums", c.records.get(a.id, "x") == "1", sums.Load())
		}
	})
}

// What another has is no reason to fetch all from it as well, as long as the
// join fetches it.
func TestNewcomerFetchesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		quiet := func(c *Config) { c.Timing = never(); c.Timing.Retry = time.Second }
		answer := make(chan struct{})
		a := n.start(1, 1, quiet, func(c *Config) {
			c.Replicas = map[string]Replica{"records": slow{c.Replicas["records"].(*table), answer}}
		})
		a.write("x", "1")
		b := n.start(2, 1, quiet)
		a.join(b) // by which b pulls nothing
		c := n.start(3, 1, quiet)
		syncs := func() int {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.syncs[c.id]
		}
		joined := make(chan struct{})
		go func() { defer close(joined); c.join(a) }()
		time.Sleep(quick().Settle)
		b.write("y", "2")
		b.g.send([]id.PeerID{c.id}, b.g.mySum(typeSum))
		time.Sleep(10 * quick().Settle)
		if c.living() != 2 || syncs() != 1 {
			t.Errorf("knows %d members, and fetches from %d", c.living(), syncs())
		}
		close(answer)
		<-joined
		time.Sleep(10 * quick().Settle)
		if c.records.get(a.id, "x") != "1" || c.records.get(b.id, "y") != "2" {
			t.Errorf("has %d of 2 records afterwards", c.records.count())
		}
	})
}
