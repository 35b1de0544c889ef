package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"
)

// Plan says what kind of schedule a seed stands for.
type Plan struct {
	Seed    uint64
	Hosts   int
	Pools   []netip.Prefix
	Subs    []netip.Prefix // the ip range of each pool, for some of its networks
	Groups  int            // of hosts that do not know of each other in the beginning
	Grows   bool           // each host knows of the first one, and no more
	Sweeps  bool           // in the end, people remove the peers that lost their state
	Stumble bool           // processes may die while they start
	Quiet   bool           // peers seldom compare notes: what was not broadcast stays unknown
	Steps   int
	Burst   int           // calls that may begin in one step
	Pace    time.Duration // between most steps
	Rates   rates
	Weights []weight

	Fault Fault // planted in what is simulated, to see whether it is found
}

// Fault is a promise to the Allocator that the simulation does not keep.
type Fault string

// The faults that can be planted.
const (
	FaultNone       Fault = ""
	FaultLostWrites Fault = "lost writes" // a crash undoes the last writes, though Apply has returned
	FaultStrangers  Fault = "strangers"   // no peer counts the others when a majority is asked for
	FaultDeaf       Fault = "deaf"        // releases do not arrive
	FaultHeirs      Fault = "heirs"       // who inherits is not told what others were given
	FaultGhosts     Fault = "ghosts"      // who inherits is not told what containers hold there
	FaultElectors   Fault = "electors"    // who asks for votes seems to know everybody
)

// rates are probabilities for each message, and the time it takes.
type rates struct {
	loss  float64 // of a request, or of its answer
	twice float64 // a request is delivered again
	late  float64 // a message takes seconds
	cast  float64 // loss of a broadcast
	delay time.Duration
}

// weight is how often a step of that kind is drawn.
type weight struct {
	kind   step
	weight int
}

// step is a kind of event.
type step string

const (
	stepLease       step = "lease"
	stepClaim       step = "claim"
	stepRelease     step = "release"
	stepGateway     step = "gateway"
	stepReserve     step = "reserve"
	stepUnreserve   step = "unreserve"
	stepPool        step = "pool"
	stepAnyPool     step = "any pool"
	stepReleasePool step = "release pool"
	stepCrash       step = "crash"
	stepCrashWrite  step = "crash at a write"
	stepStart       step = "start"
	stepWipe        step = "wipe"
	stepSplit       step = "split"
	stepCut         step = "cut"
	stepHeal        step = "heal"
	stepFull        step = "disk full"
	stepConnect     step = "connect"
	stepRemove      step = "remove"
)

// always are the steps of every schedule, with their usual weights.
var always = []weight{
	{stepLease, 40}, {stepClaim, 12}, {stepRelease, 25}, {stepGateway, 3}, {stepReserve, 3}, {stepUnreserve, 3},
	{stepPool, 12}, {stepAnyPool, 1}, {stepReleasePool, 4}, {stepStart, 8}, {stepHeal, 4},
}

// sometimes are those that half of the schedules have, each for itself.
var sometimes = []weight{
	{stepCrash, 4}, {stepCrashWrite, 4}, {stepWipe, 1}, {stepSplit, 4}, {stepCut, 4}, {stepFull, 2},
	{stepConnect, 4}, {stepRemove, 4},
}

var sizes = []int{29, 29, 28, 28, 27, 26, 24}

// Draw makes the plan of a seed.
func Draw(seed uint64) Plan {
	rng := rand.New(rand.NewPCG(seed, 0))
	p := Plan{
		Seed: seed, Hosts: []int{2, 2, 2, 3, 3, 3, 3, 4, 4, 5}[rng.IntN(10)], Steps: 15 + rng.IntN(75), Burst: 1 + rng.IntN(6),
		Pace: []time.Duration{5 * time.Millisecond, 50 * time.Millisecond, 400 * time.Millisecond}[rng.IntN(3)],
		Rates: rates{
			loss: maybe(rng, 0.3), twice: maybe(rng, 0.3), late: maybe(rng, 0.1), cast: maybe(rng, 0.8),
			delay: []time.Duration{2 * time.Millisecond, 20 * time.Millisecond, 200 * time.Millisecond}[rng.IntN(3)],
		},
	}
	switch n := rng.IntN(200); {
	case n == 0:
		p.Hosts, p.Steps = 14+rng.IntN(37), 15+rng.IntN(30)
	case n < 6:
		p.Hosts = 6 + rng.IntN(8)
	}
	p.Sweeps = rng.IntN(2) == 0
	switch p.Groups = 1; rng.IntN(8) {
	case 0, 1:
		p.Groups = 2 + rng.IntN(2)
	case 2:
		p.Grows = true
	}
	p.drawPools(rng)
	p.drawWeights(rng)
	p.Stumble, p.Quiet = rng.IntN(3) == 0, rng.IntN(4) == 0
	if rng.IntN(200) == 0 {
		p.Hosts, p.Steps = 14+rng.IntN(37), 15+rng.IntN(30)
	}
	if rng.IntN(12) == 0 { // people remove one host after the other, and few hear of anything
		p.Rates.cast, p.Quiet = 1, true
		p.Weights = append(p.Weights, weight{stepRemove, 40}, weight{stepClaim, 30}, weight{stepCrash, 10})
	}
	return p
}

func maybe(rng *rand.Rand, most float64) float64 {
	if rng.IntN(2) == 0 {
		return 0
	}
	return rng.Float64() * most
}

// drawPools draws one to three pools that do not overlap. The first /24 of IPv4
// is what hosts get that ask for any pool.
func (p *Plan) drawPools(rng *rand.Rand) {
	for i := range []int{1, 1, 1, 2, 2, 3}[rng.IntN(6)] {
		bits := sizes[rng.IntN(len(sizes))]
		pool, sub := fmt.Sprintf("10.32.%d.0/%d", i, bits), fmt.Sprintf("10.32.%d.0/%d", i, bits+1)
		if rng.IntN(8) == 0 {
			bits := []int{64, 64, 120, 124, 125}[rng.IntN(5)]
			pool, sub = fmt.Sprintf("fd00:%x::/%d", i+1, bits), fmt.Sprintf("fd00:%x::/%d", i+1, min(max(bits+2, 122+rng.IntN(4)), 126))
		}
		p.Pools = append(p.Pools, netip.MustParsePrefix(pool))
		p.Subs = append(p.Subs, netip.MustParsePrefix(sub))
	}
}

func (p *Plan) drawWeights(rng *rand.Rand) {
	for _, w := range always {
		w.weight = max(1, w.weight*(1+rng.IntN(4))/2)
		p.Weights = append(p.Weights, w)
	}
	for _, w := range sometimes {
		if rng.IntN(2) == 0 {
			w.weight = max(1, w.weight*(1+rng.IntN(4))/2)
			p.Weights = append(p.Weights, w)
		}
	}
}

func (p Plan) next(rng *rand.Rand) step {
	sum := 0
	for _, w := range p.Weights {
		sum += w.weight
	}
	n := rng.IntN(sum)
	for _, w := range p.Weights {
		if n -= w.weight; n < 0 {
			return w.kind
		}
	}
	return stepLease
}

// String tells what a person wants to know of a plan.
func (p Plan) String() string {
	var kinds []string
	for _, w := range p.Weights {
		kinds = append(kinds, fmt.Sprintf("%s %d", w.kind, w.weight))
	}
	return fmt.Sprintf("seed %d: %d hosts in %d groups (growing: %v), pools %v, %d steps, rates %+v, steps: %s", p.Seed, p.Hosts, p.Groups, p.Grows, p.Pools, p.Steps, p.Rates, strings.Join(kinds, ", "))
}
