package gossip

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"weave/mesh/id"
)

// maxMembers bounds the members listed, alive and dead.
const maxMembers = 10_000

// State tells what the membership believes of a member.
type State uint8

// States of a member. One that does not answer stays alive until the members
// agree that it is dead, some seconds later.
const (
	Alive State = iota + 1
	Dead
)

func (s State) String() string {
	switch s {
	case Alive:
		return "alive"
	case Dead:
		return "dead"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// MarshalText writes the form of String.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Member is another peer of the membership. Its slices must not be changed.
type Member struct {
	ID         id.PeerID
	Nickname   string
	Candidates []netip.AddrPort // as the peer advertises them
	State      State
	Since      time.Time // of the state
}

// Events is told what happens to members, from one goroutine and in order. A
// member that changed faster than its events were taken is reported as it is
// now. Nothing must block for long in it.
type Events interface {
	Up(Member)     // a new member, or one that is alive again
	Down(Member)   // a member that was declared dead
	Update(Member) // another nickname or other candidates of a living member
}

// members is the list of all members but ourselves, dead ones included. It is
// memberlist's event and alive delegate: memberlist forgets its dead after a
// while and does not say what it thinks of whom.
type members struct {
	self id.PeerID
	wake chan struct{} // buffered: changed is not empty
	came chan struct{} // buffered: fresh is not empty

	mu      sync.Mutex
	list    map[id.PeerID]*member
	living  int
	changed []id.PeerID // have an event to tell, each once, the oldest first
	fresh   []id.PeerID // came up and were not greeted yet, each once
}

type member struct {
	Member
	told    Member // as last reported; no State if never
	waiting bool   // stands in members.changed
	fresh   bool   // stands in members.fresh
}

func newMembers(self id.PeerID) *members {
	return &members{self: self, wake: make(chan struct{}, 1), came: make(chan struct{}, 1), list: map[id.PeerID]*member{}}
}

var (
	errForeign = errors.New("not a member of ours: address or protocol version")
	errCrowd   = errors.New("too many members")
)

// NotifyAlive implements memberlist.AliveDelegate: it refuses what we would
// never have said. One member with a false version would keep all push/pulls
// from succeeding.
func (m *members) NotifyAlive(n *memberlist.Node) error {
	p, err := id.Parse(n.Name)
	if err != nil {
		return err
	}
	addr, _ := netip.AddrFromSlice(n.Addr)
	const version = memberlist.ProtocolVersion2Compatible
	versions := n.PMin <= version && n.PMax >= version && n.PCur == version && n.DMin == 0 && n.DCur == 0
	if netip.AddrPortFrom(addr, n.Port) != placeholder(p) || !versions {
		return errForeign
	}
	if _, err := parseMeta(n.Meta); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if known := m.list[p]; m.living >= maxMembers && (known == nil || known.State == Dead) {
		return errCrowd
	}
	return nil
}

// NotifyJoin implements memberlist.EventDelegate.
func (m *members) NotifyJoin(n *memberlist.Node) { m.alive(n) }

// NotifyUpdate implements memberlist.EventDelegate.
func (m *members) NotifyUpdate(n *memberlist.Node) { m.alive(n) }

func (m *members) alive(n *memberlist.Node) {
	p, err := id.Parse(n.Name)
	if err != nil || p == m.self {
		return
	}
	told, err := parseMeta(n.Meta)
	if err != nil {
		return // NotifyAlive let it not come here
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.list[p]
	if x == nil {
		m.makeRoom()
		x = &member{}
		m.list[p] = x
	}
	if x.State != Alive {
		m.living++
		x.State, x.Since = Alive, time.Now()
		if !x.fresh {
			x.fresh = true
			m.fresh = append(m.fresh, p)
			signal(m.came)
		}
	}
	x.ID, x.Nickname, x.Candidates = p, told.nickname, told.candidates
	m.report(x)
}

// NotifyLeave implements memberlist.EventDelegate.
func (m *members) NotifyLeave(n *memberlist.Node) {
	p, err := id.Parse(n.Name)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.list[p]
	if x == nil || x.State != Alive {
		return
	}
	m.living--
	x.State, x.Since = Dead, time.Now()
	m.report(x)
}

// makeRoom forgets the member that has been dead for longest if the list is
// full. The caller holds mu.
func (m *members) makeRoom() {
	if len(m.list) < maxMembers {
		return
	}
	var oldest *member
	for _, x := range m.list {
		if x.State == Dead && !x.waiting && !x.fresh && (oldest == nil || x.Since.Before(oldest.Since)) {
			oldest = x
		}
	}
	if oldest != nil {
		delete(m.list, oldest.ID)
	}
}

// report leaves an event to be told. The caller holds mu.
func (m *members) report(x *member) {
	if x.waiting {
		return
	}
	x.waiting = true
	m.changed = append(m.changed, x.ID)
	signal(m.wake)
}

// tell reports events until the context ends.
func (m *members) tell(ctx context.Context, events Events) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		}
		for ctx.Err() == nil {
			now, was, ok := m.next()
			if !ok {
				break
			}
			switch {
			case was.State != Alive && now.State == Alive:
				events.Up(now)
			case was.State == Alive && now.State == Dead:
				events.Down(now)
			case now.State == Alive && (now.Nickname != was.Nickname || !slices.Equal(now.Candidates, was.Candidates)):
				events.Update(now)
			}
		}
	}
}

// next takes the first member with something to tell: as it is, and as it was
// told before.
func (m *members) next() (now, was Member, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.changed) > 0 {
		x := m.list[m.changed[0]]
		m.changed = m.changed[1:]
		if x == nil {
			continue // forgotten since
		}
		was, x.told, x.waiting = x.told, x.Member, false
		return x.Member, was, true
	}
	return now, was, false
}

// isAlive tells whether a peer is a living member.
func (m *members) isAlive(p id.PeerID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.list[p]
	return x != nil && x.State == Alive
}

// all returns the members in the order of their IDs.
func (m *members) all() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Member, 0, len(m.list))
	for _, x := range m.list {
		out = append(out, x.Member)
	}
	slices.SortFunc(out, func(a, b Member) int { return a.ID.Compare(b.ID) })
	return out
}

// in returns the peers in a state, in no order.
func (m *members) in(s State) []id.PeerID {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]id.PeerID, 0, len(m.list))
	for p, x := range m.list {
		if x.State == s {
			out = append(out, p)
		}
	}
	return out
}

// some returns up to n peers in a state, at random.
func (m *members) some(s State, n int) []id.PeerID {
	out := m.in(s)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out[:min(n, len(out))]
}

// takeFresh returns up to n members that came up and were not greeted yet.
func (m *members) takeFresh(n int) []id.PeerID {
	m.mu.Lock()
	defer m.mu.Unlock()
	n = min(n, len(m.fresh))
	out := m.fresh[:n:n]
	m.fresh = m.fresh[n:]
	for _, p := range out {
		if x := m.list[p]; x != nil {
			x.fresh = false
		}
	}
	return out
}

// count returns the number of living members, ourselves included.
func (m *members) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return 1 + m.living
}
