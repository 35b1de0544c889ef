package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weave/mesh/id"
	"weave/mesh/transport"
)

// Hosts ask each other how they are seen: whether new connections get through,
// what the time is, which version runs. The asker names no address, so nobody can
// have others knock at what is not his.
const (
	maxTrying     = 8           // peers that are tried at once, for those that ask
	trustTries    = time.Second // what was found is told again to who asks again
	maxSurveyed   = 256
	surveyAtOnce  = 32
	surveyLimit   = 30 * time.Second
	maxViewLen    = 64 << 10 // bytes
	maxViewTried  = 16
	maxVersionLen = 100
	maxFailureLen = 200
)

// examineRequest asks a peer for a view; nothing that the allocators ask looks
// like it.
var examineRequest = []byte(`"examine"`)

// view is how a peer sees the asker. Fields may be added.
type view struct {
	Version string    `json:"version"`
	Came    time.Time `json:"came"` // when the question did, by the peer's clock
	Left    time.Time `json:"left"` // when the answer did
	Tried   []tried   `json:"tried"`
}

// tried is what came of the peer's trying an address of the asker.
type tried struct {
	Address netip.AddrPort `json:"address"`
	UDP     string         `json:"udp,omitempty"` // what went wrong
	TCP     string         `json:"tcp,omitempty"`
}

// examiner answers peers that want to know how they are seen.
type examiner struct {
	version string
	try     func(ctx context.Context, p id.PeerID) []transport.Tried
	slots   chan struct{}

	mu   sync.Mutex
	last map[id.PeerID]lastTries
}

type lastTries struct {
	at    time.Time
	tried []tried
}

func newExaminer(version string, try func(context.Context, id.PeerID) []transport.Tried) *examiner {
	return &examiner{version: version, try: try, slots: make(chan struct{}, maxTrying), last: map[id.PeerID]lastTries{}}
}

func (e *examiner) answer(ctx context.Context, from id.PeerID) ([]byte, error) {
	v := view{Version: e.version, Came: time.Now()}
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	case <-ctx.Done():
		return nil, errors.New("too many hosts ask at once")
	}
	v.Tried = e.tries(ctx, from)
	v.Left = time.Now()
	return json.Marshal(v)
}

// tries tries a peer, unless that has just been done.
func (e *examiner) tries(ctx context.Context, p id.PeerID) []tried {
	e.mu.Lock()
	last, ok := e.last[p]
	e.mu.Unlock()
	if ok && time.Since(last.at) < trustTries {
		return last.tried
	}
	var found []tried
	for _, x := range e.try(ctx, p) {
		found = append(found, tried{x.Addr, failure(x.UDP), failure(x.TCP)})
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for other, l := range e.last {
		if time.Since(l.at) >= trustTries {
			delete(e.last, other)
		}
	}
	e.last[p] = lastTries{time.Now(), found}
	return found
}

func failure(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	return text[:min(len(text), maxFailureLen)]
}

// parseView reads a peer's answer. What it says is shown to people, who are
// spared what is too long.
func parseView(b []byte) (v view, err error) {
	if len(b) > maxViewLen {
		return view{}, fmt.Errorf("its answer has %d bytes", len(b))
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return view{}, fmt.Errorf("malformed answer: %w", err)
	}
	if len(v.Tried) > maxViewTried || len(v.Version) > maxVersionLen || v.Came.IsZero() || v.Left.Before(v.Came) {
		return view{}, errors.New("malformed answer")
	}
	for _, x := range v.Tried {
		if len(x.UDP) > maxFailureLen || len(x.TCP) > maxFailureLen {
			return view{}, errors.New("malformed answer")
		}
	}
	return v, nil
}

// surveyed is what a peer answered, or why it did not.
type surveyed struct {
	host string // nickname
	view view
	err  error
	// ahead is how much the peer's clock is, give or take margin.
	ahead, margin time.Duration
}

// asker is what survey needs of the mesh.
type asker interface {
	Alive() []id.PeerID
	Ask(ctx context.Context, to id.PeerID, request []byte) ([]byte, error)
	Nickname(p id.PeerID) string
}

// survey asks all living peers, within some time, and in the order of their
// names. It reports how many of a very large cluster it left out.
func survey(ctx context.Context, mesh asker) (all []surveyed, left int) {
	ctx, cancel := context.WithTimeout(ctx, surveyLimit)
	defer cancel()
	alive := mesh.Alive()
	if len(alive) > maxSurveyed {
		left, alive = len(alive)-maxSurveyed, alive[:maxSurveyed]
	}
	all = make([]surveyed, len(alive))
	var g errgroup.Group
	g.SetLimit(surveyAtOnce)
	for i, p := range alive {
		g.Go(func() error {
			all[i] = surveyOne(ctx, mesh, p)
			return nil
		})
	}
	_ = g.Wait() // never fails
	slices.SortFunc(all, func(a, b surveyed) int { return strings.Compare(a.host, b.host) })
	return all, left
}

func surveyOne(ctx context.Context, mesh asker, p id.PeerID) surveyed {
	s := surveyed{host: mesh.Nickname(p)}
	asked := time.Now()
	b, err := mesh.Ask(ctx, p, examineRequest)
	answered := time.Now()
	if err == nil {
		s.view, err = parseView(b)
	}
	if s.err = err; err == nil {
		s.ahead, s.margin = skew(asked, s.view.Came, s.view.Left, answered)
	}
	return s
}

// skew tells how much the clock that wrote the two times in the middle is ahead
// of the other one, as in NTP (RFC 5905, 8).
func skew(asked, came, left, answered time.Time) (ahead, margin time.Duration) {
	asked, answered = asked.Round(0), answered.Round(0) // the clocks on the wall
	ahead = (came.Sub(asked) + left.Sub(answered)) / 2
	return ahead, max(0, (answered.Sub(asked)-left.Sub(came))/2)
}
