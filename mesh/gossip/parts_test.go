package gossip

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/sirupsen/logrus"

	"weave/mesh/id"
)

// memberNode is what memberlist shows of a member.
func memberNode(p id.PeerID, nickname string) *memberlist.Node {
	addr := placeholder(p)
	return &memberlist.Node{
		Name: p.String(), Addr: addr.Addr().AsSlice(), Port: addr.Port(),
		Meta: meta{nickname: nickname}.encode(), PMin: 1, PMax: 5, PCur: 2,
	}
}

func TestNotifyAliveRefuses(t *testing.T) {
	p := id.PeerID{7}
	for name, change := range map[string]func(*memberlist.Node){
		"name":             func(n *memberlist.Node) { n.Name = "host7" },
		"name's spelling":  func(n *memberlist.Node) { n.Name = strings.ToUpper(n.Name) },
		"address":          func(n *memberlist.Node) { n.Addr = net.IPv4(192, 0, 2, 1) },
		"address length":   func(n *memberlist.Node) { n.Addr = []byte{1, 2, 3} },
		"port":             func(n *memberlist.Node) { n.Port = 6783 },
		"no meta":          func(n *memberlist.Node) { n.Meta = nil },
		"least version":    func(n *memberlist.Node) { n.PMin = 3 },
		"highest version":  func(n *memberlist.Node) { n.PMax = 1 },
		"version":          func(n *memberlist.Node) { n.PCur = 3 },
		"delegate version": func(n *memberlist.Node) { n.DMin = 1 },
	} {
		n := memberNode(p, "x")
		change(n)
		if newMembers(id.PeerID{1}).NotifyAlive(n) == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := newMembers(id.PeerID{1}).NotifyAlive(memberNode(p, "x")); err != nil {
		t.Errorf("a good member: %v", err)
	}
}

func TestMembersAreBounded(t *testing.T) {
	m := newMembers(id.PeerID{1})
	peer := func(i int) id.PeerID { return id.PeerID{2, byte(i >> 8), byte(i)} }
	for i := range maxMembers {
		m.NotifyJoin(memberNode(peer(i), "x"))
	}
	if m.NotifyAlive(memberNode(peer(maxMembers), "x")) == nil {
		t.Error("one living member too many: no error")
	}
	if err := m.NotifyAlive(memberNode(peer(0), "x")); err != nil {
		t.Errorf("news of a member: %v", err)
	}
	for ok := true; ok; {
		_, _, ok = m.next()
	}
	m.takeFresh(maxMembers)
	m.NotifyLeave(memberNode(peer(5), "x"))
	m.next()
	m.NotifyLeave(memberNode(peer(6), "x"))
	m.next()
	m.NotifyJoin(memberNode(peer(maxMembers), "x"))
	all := m.all()
	if len(all) != maxMembers {
		t.Errorf("%d members", len(all))
	}
	if slices.ContainsFunc(all, func(x Member) bool { return x.ID == peer(5) }) {
		t.Error("the member that has been dead for longest is kept")
	}
}

func TestEventsAreMerged(t *testing.T) {
	m := newMembers(id.PeerID{1})
	a, b := id.PeerID{2}, id.PeerID{3}
	w := &watcher{}
	told := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	m.NotifyJoin(memberNode(id.PeerID{1}, "self"))
	m.NotifyJoin(memberNode(b, "b"))
	m.NotifyJoin(memberNode(a, "a"))
	m.NotifyUpdate(memberNode(a, "a2"))
	m.NotifyLeave(memberNode(b, "b"))
	m.NotifyJoin(memberNode(b, "b"))
	go func() { defer close(told); m.tell(ctx, w) }()
	eventually(t, "two events", func() bool { return len(w.events()) == 2 })
	cancel()
	<-told
	if got, want := strings.Join(w.events(), ", "), "up b, up a2"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
	if got := m.takeFresh(10); !slices.Equal(got, []id.PeerID{b, a}) {
		t.Errorf("to greet: %v", got)
	}
}

// newPulls returns pulls whose pull takes its result from a channel.
func newPulls(t *testing.T) (p *pulls, results chan error) {
	results = make(chan error)
	life := newLifetime()
	p = &pulls{
		life: life, retry: time.Millisecond, stale: time.Minute,
		pull:   func(id.PeerID) error { return <-results },
		again:  func(id.PeerID) bool { return true },
		failed: func(id.PeerID, error) {},
		slots:  make(chan struct{}, pullsAtOnce), running: map[id.PeerID]*pulling{}, asked: map[id.PeerID]asked{},
	}
	t.Cleanup(func() { life.end(); life.wg.Wait() })
	return p, results
}

func TestPullsAreMerged(t *testing.T) {
	p, results := newPulls(t)
	request := func() *round {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.requestLocked(id.PeerID{1})
	}
	first, second := request(), request()
	if len(p.awaited()) > 0 {
		t.Error("nobody waits")
	}
	if first == second || request() != second {
		t.Fatal("want one pull that runs and one that waits, for all who ask later")
	}
	results <- nil
	<-first.done
	third := request()
	if third == second {
		t.Fatal("a pull that runs already does not count as one after now")
	}
	results <- nil
	results <- nil
	<-second.done
	<-third.done
	eventually(t, "nothing is left", func() bool { return !p.busy(id.PeerID{1}) })
}

func TestDoubts(t *testing.T) {
	start, peer := time.Now(), func(i byte) id.PeerID { return id.PeerID{i} }
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	d := newDoubts(100 * time.Millisecond)
	take := func(ms, n int) (from []byte) {
		for _, x := range d.take(at(ms), n) {
			from = append(from, x.from[0])
		}
		return from
	}
	expect := func(what string, got []byte, want ...byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Errorf("%s: pull from %v, want %v", what, got, want)
		}
	}
	d.ours(sum{1})
	d.ours(sum{2})
	d.shown(peer(1), sum{1}, at(0))
	d.shown(peer(2), sum{2}, at(0))
	expect("sums that were ours", take(1000, 8))
	d.shown(peer(1), sum{3}, at(0))
	expect("before its time", take(99, 8))
	d.shown(peer(1), sum{4}, at(50))
	expect("in time, though the sum has changed", take(100, 8), 1)
	expect("the same again", take(1000, 8))
	d.shown(peer(1), sum{5}, at(0))
	d.ours(sum{5})
	expect("what became ours", take(1000, 8))
	d.shown(peer(1), sum{6}, at(0))
	d.shown(peer(1), sum{5}, at(1))
	expect("who came to where we were", take(1000, 8))
	for i := range byte(6) {
		d.shown(peer(i+1), sum{7, i / 2}, at(int(i)))
	}
	expect("one of each sum, the latest, of those due", take(104, 8), 5, 4, 2)
	if due, ok := d.next(); !ok || !due.Equal(at(105)) {
		t.Errorf("next is due %v after the start", due.Sub(start))
	}
	expect("what was not due", take(105, 8), 6)
	for i := range byte(4) {
		d.shown(peer(i+1), sum{8, i}, at(int(i)))
	}
	expect("no more than wanted", take(1000, 2), 4, 3)
	expect("the rest is dropped", take(1000, 2))
	for i := range pastSums {
		d.ours(sum{9, byte(i), byte(i >> 8)})
	}
	d.shown(peer(1), sum{5}, at(0))
	expect("what is forgotten", take(1000, 8), 1)
}

func TestPullIsTriedAgain(t *testing.T) {
	p, results := newPulls(t)
	failure := errors.New("broken")
	done := make(chan error, 1)
	go func() { done <- p.await(context.Background(), id.PeerID{1}) }()
	results <- failure
	results <- failure
	results <- nil
	if err := <-done; err != nil {
		t.Errorf("third time: %v", err)
	}
	go func() { done <- p.await(context.Background(), id.PeerID{1}) }()
	for range pullTries {
		results <- failure
	}
	if err := <-done; !errors.Is(err, failure) {
		t.Errorf("all failed: %v", err)
	}
}

func TestOnePullPerPairOfSums(t *testing.T) {
	p, results := newPulls(t)
	peer, now := id.PeerID{1}, time.Now()
	pulled := func(theirs, ours sum, after time.Duration) bool {
		p.requestOnce(peer, theirs, ours, now.Add(after))
		running := p.busy(peer)
		if running {
			results <- nil
			eventually(t, "the pull is over", func() bool { return !p.busy(peer) })
		}
		return running
	}
	for i, tc := range []struct {
		theirs, ours sum
		after        time.Duration
		want         bool
	}{
		{sum{1}, sum{2}, 0, true},
		{sum{1}, sum{2}, time.Second, false},
		{sum{1}, sum{3}, time.Second, true},
		{sum{2}, sum{3}, time.Second, true},
		{sum{2}, sum{3}, time.Hour, true},
	} {
		if got := pulled(tc.theirs, tc.ours, tc.after); got != tc.want {
			t.Errorf("%d: pulled %v, want %v", i, got, tc.want)
		}
	}
}

func (p *pulls) busy(peer id.PeerID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running[peer] != nil
}

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	if err := writeRequest(&b, "records", []byte("digest")); err != nil {
		t.Fatal(err)
	}
	if want := "\x07records\x00\x00\x00\x06digest"; b.String() != want {
		t.Errorf("request: %q, want %q", b.String(), want)
	}
	whole := b.Bytes()
	for i := range whole {
		_, _, err := readRequest(bytes.NewReader(whole[:i]))
		if want := map[bool]error{true: io.EOF, false: io.ErrUnexpectedEOF}[i == 0]; !errors.Is(err, want) {
			t.Errorf("first %d bytes: %v, want %v", i, err, want)
		}
	}
	name, digest, err := readRequest(bytes.NewReader(whole))
	if name != "records" || string(digest) != "digest" || err != nil {
		t.Errorf("read back %q, %q, %v", name, digest, err)
	}
	for _, junk := range []string{"\xff", "\x00\xff\xff\xff\xff"} {
		if _, _, err := readRequest(strings.NewReader(junk)); !errors.Is(err, errFrame) {
			t.Errorf("%q: %v, want errFrame", junk, err)
		}
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	log := logrus.New()
	log.SetOutput(&out)
	log.SetLevel(logrus.InfoLevel)
	l := newLogger(logrus.NewEntry(log))
	l.Printf("[DEBUG] memberlist: Stream connection from=x")
	l.Printf("[INFO] memberlist: Suspect x has failed, no acks received")
	l.Printf("[WARN] memberlist: Refuting a suspect message (from: x)")
	if out.Len() != 0 {
		t.Errorf("noise at info: %s", out.String())
	}
	for range 100 {
		l.Printf("[ERR] memberlist: Push/Pull with x\x1b failed\n")
	}
	if got := strings.Count(out.String(), "level=warning msg=\"memberlist: Push/Pull with x failed\""); got != 3 {
		t.Errorf("%d warnings, want 3:\n%s", got, out.String())
	}
}

// News of a member take longer among many. None are waited for in vain among few,
// nor by who is new.
func TestNotice(t *testing.T) {
	g, err := New(Config{Timing: Timing{Notice: 100, Newcomer: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	among := func(least time.Duration, members int) {
		t.Helper()
		g.members.living = members - 1
		for range 100 {
			if d := g.notice(); d < least || d > 2*least+2 {
				t.Fatalf("among %d members: %d, want %d to twice that", members, d, least)
			}
		}
	}
	among(100, 1024)
	g.began = time.Now()
	close(g.ready)
	among(100, 1024)
	g.began = g.began.Add(-time.Minute)
	among(100, 2)
	among(100, 32)
	among(200, 1024)
	among(265, 10_000)
}
