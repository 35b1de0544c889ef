// Package scale measures what the control plane costs in clusters of many
// peers, under virtual time (testing/synctest). Real are mesh/gossip, with
// memberlist inside and set as the product sets it, mesh/state, and the rings
// of ipam/ring; each peer has its own. Simulated is the network between them:
// datagrams and streams with delay and loss, whose bytes are counted as they
// would be on the wire, seal, UDP, TCP and IP headers included.
//
// What it does not do: seal anything, keep sessions (their cost is reckoned
// from the constants of mesh/transport, see Sessions), carry frames, ask
// allocators for addresses, or let CPU time pass: a peer that is too slow for
// its traffic does not show. The index and the tables that mesh.Node keeps
// beside the records are measured apart, on a real Node, by the tests.
package scale

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// Plan says what to simulate.
type Plan struct {
	Peers     int
	Endpoints int                              // of each peer
	Churn     float64                          // share of all endpoints that is replaced in a minute
	Loss      float64                          // share of datagrams that is lost
	Idle      time.Duration                    // how long nothing happens
	Busy      time.Duration                    // how long endpoints are replaced
	Late      int                              // peers that come afterwards without records, and as many that have some
	Log       func(format string, args ...any) `json:"-"`
}

// DefaultPlan is what docs/scale.md shows, for a number of peers. The times are
// multiples of memberlist's time between push/pulls, which grows from 20 s to
// 120 s with up to a thousand peers.
func DefaultPlan(peers int) Plan {
	return Plan{
		Peers: peers, Endpoints: 20, Churn: 0.01, Loss: 0.001,
		Idle: 2 * time.Minute, Busy: 2 * time.Minute, Late: 2,
		Log: func(string, ...any) {},
	}
}

// Spans are times, the shortest first.
type Spans []time.Duration

// At returns the time that a share of all is not above; 0 if there are none.
func (s Spans) At(share float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	return s[min(len(s)-1, int(share*float64(len(s))))]
}

// Result is what came of a Plan. Rates are in bytes per second that a peer
// sends, on average over all peers; as many are received.
type Result struct {
	Plan Plan

	Boot      time.Duration // all peers started at once: until all knew all
	BootBytes float64       // that a peer sent meanwhile

	Idle Traffic
	Busy Traffic
	Peak float64 // while busy, of the peer that sent most
	Most Spans   // for each replaced endpoint: until 99 % of the peers knew it
	All  Spans   // and until all did

	Fresh       Spans   // for each peer that came late, without records: until it knew all
	FreshBytes  float64 // that it sent and received until all knew of it, at most
	Return      Spans   // for each that came with records: until all knew them
	ReturnBytes float64 // that it sent and received until then, at most

	Memory float64 // bytes of memory per peer: membership and copy of the records
	CPU    float64 // seconds of CPU per peer and second when idle, simulation included
	Downs  int     // times that a peer was held for dead, all of which lived

	Real Real
}

// Real is what was measured of the real Node and the real transport. All memory
// is in bytes.
type Real struct {
	Table   float64       // the copy of the records alone
	Records float64       // the copy and the index in a Node
	Session float64       // one side of a session
	Fetch   time.Duration // until a Node has fetched all records over loopback
}

// patience ends a wait of the simulation, in virtual time.
const patience = 30 * time.Minute

// Run simulates one cluster. It must be called in a bubble of synctest.
func Run(p Plan) (Result, error) {
	r := Result{Plan: p}
	before := memory()
	w, err := newWorld(p)
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer w.end(cancel)
	w.net.start(ctx)
	steps := []struct {
		name string
		do   func(context.Context, *Result) error
	}{{"boot", w.boot}, {"idle", w.idle}, {"busy", w.busy}, {"late", w.late}}
	for _, s := range steps {
		real, virtual := time.Now(), cpuTime()
		if err := s.do(ctx, &r); err != nil {
			return r, fmt.Errorf("%d peers, %s: %w", p.Peers, s.name, err)
		}
		p.Log("%d peers: %s took %s of virtual time, %s of CPU", p.Peers, s.name,
			time.Since(real).Round(time.Millisecond), (cpuTime() - virtual).Round(time.Millisecond))
		if s.name == "boot" {
			r.Memory = (memory() - before) / float64(p.Peers)
		}
	}
	r.Downs = int(w.downs.Load())
	return r, nil
}

// boot starts all peers at once, as after a power cut, and waits until each
// knows all members and all records.
func (w *world) boot(ctx context.Context, r *Result) error {
	begin := time.Now()
	for i := range w.plan.Peers {
		p, err := w.add(ctx, i)
		if err != nil {
			return err
		}
		p.fill(w.plan.Endpoints)
		p.rings.put(w.ring)
		w.tasks.Go(func() { p.join(ctx) })
	}
	if err := w.wait(ctx, func() bool { return w.agree(w.plan.Peers) }); err != nil {
		return err
	}
	r.Boot = time.Since(begin)
	for i := range w.peers {
		sent, _ := w.net.total(i)
		r.BootBytes += float64(sent) / float64(len(w.peers))
	}
	sleep(ctx, settle+time.Duration(w.plan.Peers)*news)
	return nil
}

// settle is how long news of the past go on circulating; memberlist's of new
// members take longer, since a peer can tell only so many per second.
const (
	settle = 30 * time.Second
	news   = 200 * time.Millisecond // for each
)

func (w *world) idle(ctx context.Context, r *Result) error {
	cpu, before := cpuTime(), w.net.sent()
	sleep(ctx, w.plan.Idle)
	r.Idle = w.rate(before, w.plan.Idle)
	r.CPU = (cpuTime() - cpu).Seconds() / w.plan.Idle.Seconds() / float64(w.plan.Peers)
	return nil
}

// busy replaces endpoints at random times.
func (w *world) busy(ctx context.Context, r *Result) error {
	before := w.net.sent()
	every := float64(time.Minute) / (float64(w.plan.Peers*w.plan.Endpoints) * w.plan.Churn)
	end := time.Now().Add(w.plan.Busy)
	for {
		wait := time.Duration(rand.ExpFloat64() * every)
		if time.Now().Add(wait).After(end) {
			break
		}
		sleep(ctx, wait)
		p := w.peers[rand.IntN(len(w.peers))]
		w.tasks.Go(func() { p.replace(ctx, rand.IntN(w.plan.Endpoints)) })
	}
	sleep(ctx, time.Until(end))
	r.Busy, r.Peak = w.rate(before, w.plan.Busy), w.peak(before, w.plan.Busy)
	if err := w.wait(ctx, func() bool { return w.changes.settled() && w.agree(w.plan.Peers) }); err != nil {
		return err
	}
	r.Most, r.All = w.changes.spans()
	sleep(ctx, settle)
	return nil
}

// late adds peers one after the other: hosts that are new, and hosts that come
// back with all their containers.
func (w *world) late(ctx context.Context, r *Result) error {
	for n := range 2 * w.plan.Late {
		count, filled := w.plan.Peers+n, n%2 == 1
		begin := time.Now()
		p, err := w.add(ctx, count)
		if err != nil {
			return err
		}
		if filled {
			p.fill(w.plan.Endpoints)
			p.rings.put(w.ring)
		}
		w.tasks.Go(func() { p.join(ctx) })
		knows := func() bool { return p.living() == count && p.has(w.peers[0]) }
		if err := w.wait(ctx, knows); err != nil {
			return err
		}
		known := time.Since(begin)
		if err := w.wait(ctx, func() bool { return w.agree(count + 1) }); err != nil {
			return err
		}
		sent, received := w.net.total(p.index)
		if filled {
			r.Return, r.ReturnBytes = append(r.Return, time.Since(begin)), max(r.ReturnBytes, float64(sent+received))
		} else {
			r.Fresh, r.FreshBytes = append(r.Fresh, known), max(r.FreshBytes, float64(sent+received))
		}
		sleep(ctx, settle)
	}
	slices.Sort(r.Fresh)
	slices.Sort(r.Return)
	return nil
}

// sleep waits, in virtual time.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// memory returns the bytes in use, by the heap and by stacks.
func memory() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

// cpuTime is what the process has used. Virtual time cannot tell.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
