package sim

import (
	"flag"
	"runtime"
	"strings"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

// A schedule that fails is run again, with all that happened, by
//
//	go test ./test/sim -run TestReplay -v -sim.replay=SEED
var (
	total    = flag.Uint64("sim.n", 10_000, "number of schedules")
	first    = flag.Uint64("sim.seed", 1, "seed of the first schedule; the others follow")
	replay   = flag.Uint64("sim.replay", 0, "seed of the one schedule that TestReplay runs and prints")
	progress = flag.Duration("sim.progress", 0, "how often to tell about progress; 0: never")
	workers  = flag.Int("sim.workers", runtime.NumCPU(), "number of processes")
)

// raceFactor is by how much the race detector slows the simulation down: under
// it, there are fewer schedules.
const raceFactor = 20

// run runs one schedule in a bubble. All that is random in it comes from seed.
func run(t *testing.T, p Plan) (o Outcome) {
	synctest.Test(t, func(t *testing.T) {
		cryptotest.SetGlobalRandom(t, p.Seed)
		o = Run(p)
	})
	return o
}

// maxBugs are reported; a run with so many ends.
const maxBugs = 20

// TestSimulation runs all schedules that the flags ask for.
func TestSimulation(t *testing.T) {
	n := *total
	if raceEnabled {
		n /= raceFactor
	}
	begin := time.Now()
	told := begin
	var done, broken uint64
	err := farm(*first, n, *workers, func(r result) (more bool) {
		done++
		if r.bug != "" {
			broken++
			t.Errorf("seed %d: %s\n\tto see what happened: go test ./test/sim -run TestReplay -v -sim.replay=%d", r.seed, r.bug, r.seed)
		}
		if *progress > 0 && time.Since(told) >= *progress {
			told = time.Now()
			rate := float64(done) / time.Since(begin).Seconds()
			t.Logf("%d of %d schedules, %.0f a second, %s to go; %d broken", done, n, rate,
				time.Duration(float64(n-done)/rate*float64(time.Second)).Round(time.Second), broken)
		}
		return broken < maxBugs
	})
	if err != nil {
		t.Error(err)
	}
	took := time.Since(begin)
	t.Logf("%d of %d schedules were run, from seed %d on: %d kept all promises, %d broke one. %s, %.0f a second on %d processors",
		done, n, *first, done-broken, broken, took.Round(time.Second), float64(done)/took.Seconds(), *workers)
	if done < n {
		t.Errorf("%d schedules were not run", n-done)
	}
}

// TestReplay runs the one schedule that -sim.replay names.
func TestReplay(t *testing.T) {
	if *replay == 0 {
		t.Skip("no -sim.replay=SEED")
	}
	p := Draw(*replay)
	o := run(t, p)
	t.Logf("%s\n%s%d events", p, o.Trace(), o.Events)
	if o.Bug != nil {
		t.Error(o.Bug)
	}
}

// TestSchedulesCanBeReplayed verifies that a seed stands for the same events at
// the same times, always.
func TestSchedulesCanBeReplayed(t *testing.T) {
	const seeds = 200
	hashes := map[uint64]uint64{}
	for range 2 {
		err := farm(*first, seeds, *workers, func(r result) bool {
			if before, ok := hashes[r.seed]; ok && before != r.hash {
				t.Errorf("seed %d: not the same events again", r.seed)
			}
			hashes[r.seed] = r.hash
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(hashes) != seeds {
		t.Errorf("%d schedules of %d", len(hashes), seeds)
	}
}

// TestFaultsAreFound plants faults in what is simulated: a simulation that finds
// no bug is worth something only if it finds those, and for the right reason.
func TestFaultsAreFound(t *testing.T) {
	for _, test := range []struct {
		fault   Fault
		want    string
		provoke func(*Plan)
	}{
		{FaultLostWrites, "after a crash, and", nil},
		{FaultLostWrites, " owns ", nil},
		{FaultLostWrites, "given out twice", nil},
		{FaultStrangers, "without a majority", nil},
		{FaultDeaf, "leaked", nil},
		{FaultHeirs, "though peers that it knows know", func(p *Plan) {
			p.Rates, p.Quiet, p.Steps = rates{cast: 1, delay: time.Millisecond}, true, 80
			p.Weights = []weight{{stepPool, 10}, {stepClaim, 40}, {stepLease, 5}, {stepRelease, 20}, {stepCrash, 5}, {stepRemove, 10}, {stepStart, 2}}
		}},
		{FaultGhosts, "which knew when it inherited it", func(p *Plan) {
			p.Rates, p.Quiet, p.Steps, p.Hosts = rates{delay: time.Millisecond}, true, 80, 2
			p.Weights = []weight{{stepPool, 10}, {stepLease, 40}, {stepCrash, 10}, {stepRemove, 20}, {stepStart, 2}}
		}},
		{FaultElectors, "without a majority", func(p *Plan) { p.Grows, p.Hosts = true, 6 }},
	} {
		t.Run(string(test.fault)+": "+test.want, func(t *testing.T) {
			for seed := range uint64(300) {
				p := Draw(seed)
				p.Fault = test.fault
				if test.provoke != nil {
					test.provoke(&p)
				}
				if o := run(t, p); o.Bug != nil && strings.Contains(o.Bug.Error(), test.want) {
					t.Logf("seed %d: %v", seed, o.Bug)
					return
				}
			}
			t.Error("not found in 300 schedules")
		})
	}
}
