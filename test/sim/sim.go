// Package sim runs whole clusters of the IPAM under virtual time and looks for
// a schedule of events that breaks a promise of it.
//
// What runs is the real thing, unchanged: ipam.Allocator with its packages
// ring, space and paxos. What is simulated is all around it: the Docker of each
// host, the disk, the mesh with its gossip, and what goes wrong with them. A
// schedule is one cluster's life from its first pool to the last release, drawn
// at random from one seed: Plan says of what kind, world runs it, step by step,
// and checks the invariants after each step; in the end everything is healed,
// and then nothing may be lost, leaked or unreachable.
//
// A schedule runs in a bubble of testing/synctest: its timers run on virtual
// time, so that a minute of a cluster takes a millisecond or so. Draws for
// messages come from one stream of random numbers for each pair of hosts, and
// things happen at instants of their own, so that the order in which goroutines
// are scheduled makes no difference and a seed can be replayed.
//
// The package does not simulate packets, keys or the data plane.
package sim

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"weave/ipam/ring"
)

// key is one address of one pool.
type key struct {
	pool netip.Prefix
	addr netip.Addr
}

func (k key) String() string { return k.addr.String() + " of " + k.pool.String() }

// world is one schedule. One mutex guards all that is simulated. It is never
// held while an Allocator is called: those call back with locks of their own.
type world struct {
	plan  Plan
	rng   *rand.Rand // of the steps; used by the driving goroutine only
	start time.Time

	mu      sync.Mutex
	trace   trace
	hosts   []*host
	peers   map[ring.Peer]*peer
	cuts    map[link]bool       // directions that nothing gets through
	calm    bool                // faults are over
	held    map[key][]*endpoint // by containers that run: more than one is a clash
	shared  map[key]map[*docker]int
	ghosts  map[key]bool // shared by hosts that lost their state: reserved until people remove those
	wiped   bool         // some host lost its state
	clashed bool         // some lease was a clash
	truth   truth
	post    post
	busy    int // calls of Docker under way
	calls   int // and so far
	bug     error
}

// Outcome is what came of one schedule.
type Outcome struct {
	Hash   uint64 // of all events: equal for equal schedules
	Events int
	Bug    error // the promise that was broken
	trace  trace
}

// Trace lists the events, one to a line.
func (o Outcome) Trace() string { return o.trace.String() }

// Run runs the schedule of a plan. The caller is in a bubble of its own.
func Run(p Plan) Outcome {
	return play(p, func(w *world) {
		for range p.Steps {
			w.sleep(w.pause())
			w.rejoin()
			w.step()
			if !w.check() {
				break
			}
		}
	})
}

// play runs a schedule of which events are what happens before all is healed.
func play(p Plan, events func(*world)) Outcome {
	w := &world{
		plan: p, rng: rand.New(rand.NewPCG(p.Seed, 1)), start: time.Now(),
		peers: map[ring.Peer]*peer{}, cuts: map[link]bool{},
		held: map[key][]*endpoint{}, shared: map[key]map[*docker]int{}, ghosts: map[key]bool{}, truth: newTruth(),
	}
	w.trace.start = w.start
	w.post.timer = time.NewTimer(time.Hour)
	end := make(chan struct{})
	go w.deliver(end)
	w.populate()
	events(w)
	if w.ok() {
		w.settle()
	}
	w.stop()
	close(end)
	w.mu.Lock()
	defer w.mu.Unlock()
	return Outcome{Hash: w.trace.hash, Events: len(w.trace.events), Bug: w.bug, trace: w.trace}
}

// stop ends all processes, so that the bubble can end.
func (w *world) stop() {
	w.mu.Lock()
	var all []*process
	for _, h := range w.hosts {
		all = append(all, h.proc)
	}
	w.mu.Unlock()
	for _, p := range all {
		if p != nil {
			p.cancel()
		}
	}
	w.sleep(time.Minute) // calls that have not begun yet
}

// sleep lets virtual time pass, and all that is due in it happen.
func (w *world) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// pause is the time to the next step: mostly a moment, at times long enough for
// timeouts and gossip.
func (w *world) pause() time.Duration {
	d := w.plan.Pace
	switch n := w.rng.IntN(20); {
	case n == 0:
		d = 10 * time.Second
	case n < 4:
		d = time.Second
	}
	return time.Duration(w.rng.Int64N(int64(d))) + 1
}

// fail notes the first promise that was broken. w.mu is held.
func (w *world) fail(format string, args ...any) {
	if w.bug == nil {
		w.bug = fmt.Errorf(format, args...)
		w.trace.add("BROKEN", w.bug.Error())
	}
}

func (w *world) failed(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail(format, args...)
}

func (w *world) ok() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bug == nil
}

// log notes an event. w.mu is held.
func (w *world) log(what string, args ...any) { w.trace.add(what, args...) }

// call runs one call of Docker to the plugin in a goroutine of its own. It ends
// in time or is a bug: a call that hangs hangs dockerd. w.mu is held.
func (w *world) call(p *process, delay, timeout time.Duration, f func(ctx context.Context)) {
	w.busy++
	w.calls++
	number := w.calls
	go func() {
		deepen(false)
		time.Sleep(delay)
		ctx, cancel := context.WithTimeout(withCaller(context.Background(), uint64(number)), timeout)
		defer cancel()
		w.mu.Lock()
		p.calls[number] = cancel
		w.mu.Unlock()
		begin := time.Now()
		f(ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(p.calls, number)
		w.busy--
		if took := time.Since(begin); took > maxCall {
			w.fail("a call on %s took %s", p.host, took)
		}
	}()
}

// deepen grows the stack at once, while little is on it: to have it grow step by
// step under the Allocator takes a tenth of all time. The room is not cleared.
//
//go:noinline
func deepen(never bool) byte {
	if never {
		var room [8 << 10]byte
		return room[time.Now().Nanosecond()&(len(room)-1)]
	}
	return 0
}

// cut ends the calls to a process that has died: one after the other, so that it
// makes no difference which of them the scheduler wakes first. w.mu is held.
func (p *process) cut() {
	after := time.Duration(0)
	for _, number := range slices.Sorted(maps.Keys(p.calls)) {
		after += 20*time.Microsecond + time.Duration(mix(p.w.plan.Seed, 5, uint64(number))%uint64(20*time.Microsecond))
		time.AfterFunc(after, p.calls[number])
	}
}
