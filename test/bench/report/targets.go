package report

import "fmt"

// State is what came of a target.
type State string

// The states of a target.
const (
	Reached    State = "reached"
	NotReached State = "not reached"
	NoFigures  State = "not measured"
)

// Verdict is one line of what must be reached.
type Verdict struct {
	What    string  // as `sealed, TCP, 1 stream, against nebula`
	AtLeast bool    // else at most
	Bound   float64 // of Value
	Value   float64 // a ratio, unless Unit says otherwise
	Unit    string  // "x" for ratios
	State   State
}

// Names of the systems that targets compare; the rest of a Result may have any.
const (
	weave     = "weave"
	weaveFast = "weave-fast"
	wg        = "wireguard"
	nebula    = "nebula"
	nebulaMQ  = "nebula-mq" // with two routines; the better of the two counts
	vxlan     = "vxlan"
	bridge    = "bridge"
)

// target is a rule: of's measure against that of the best of against, or, with
// none, as it is.
type target struct {
	what          string
	of            string
	mode, measure string
	against       []string
	atLeast       bool
	bound         float64
	unit          string
}

// Verdicts judges the run by all that must be reached.
func (r *Result) Verdicts() []Verdict {
	var out []Verdict
	for _, t := range targets() {
		out = append(out, r.judge(t))
	}
	return out
}

func (r *Result) judge(t target) Verdict {
	v := Verdict{What: t.what, AtLeast: t.atLeast, Bound: t.bound, Unit: t.unit, State: NoFigures}
	value, ok := r.Median(t.of, t.mode, t.measure)
	if ok && len(t.against) > 0 {
		value, ok = r.Ratio(t.of, r.best(t), t.mode, t.measure)
	}
	if !ok {
		return v
	}
	v.Value, v.State = value, NotReached
	if t.atLeast && value >= t.bound || !t.atLeast && value <= t.bound {
		v.State = Reached
	}
	return v
}

// best returns the system to compare with, by the medians.
func (r *Result) best(t target) string {
	name, best := "", 0.0
	for _, other := range t.against {
		x, ok := r.Median(other, t.mode, t.measure)
		if ok && (name == "" || t.atLeast && x > best || !t.atLeast && x < best) {
			name, best = other, x
		}
	}
	return name
}

func targets() []target {
	var all []target
	add := func(what, of, mode, measure string, atLeast bool, bound float64, against ...string) {
		all = append(all, target{what, of, mode, measure, against, atLeast, bound, "x"})
	}
	throughput(add)
	for _, mode := range []string{On, Off} {
		where := ", offloads " + mode
		add("sealed, round trip idle, against WireGuard"+where, weave, mode, RTT50, false, 0.5, wg)
		add("sealed, round trip idle, against kernel VXLAN"+where, weave, mode, RTT50, false, 2.5, vxlan)
		add("sealed, round trip under load, against WireGuard"+where, weave, mode, Load50, false, 0.1, wg)
		all = append(all, target{"sealed, round trip under load" + where, weave, mode, Load50, nil, false, 1000, "µs"})
		for _, m := range []string{UDP64, UDP1350} {
			add("sealed, "+titleOf(m)+", against the best of VXLAN, nebula, WireGuard"+where, weave, mode, m, true, 1, vxlan, nebula, nebulaMQ, wg)
		}
		add("sealed, CPU per GByte, against nebula"+where, weave, mode, CPU, false, 0.7, nebula, nebulaMQ)
	}
	const kept = 0.97
	for _, mode := range []string{On, Off} {
		for _, m := range measures() {
			switch m.name {
			case CPU: // the kernel's is in nobody's account
				continue
			case RTT99, Load99: // of one and the same system they differ by more from run to run
				continue
			}
			what := "fast path, " + m.title + ", against kernel VXLAN, offloads " + mode
			if m.less {
				add(what, weaveFast, mode, m.name, false, 1/kept, vxlan)
			} else {
				add(what, weaveFast, mode, m.name, true, kept, vxlan)
			}
		}
	}
	add("docker run, against a bridge network", weave, "", DockerRun, false, 1.15, bridge)
	add("sealed, TCP with 1 % loss, against WireGuard", weave, Loss1, TCP1, true, 0.9, wg)
	return append(all,
		target{"idle daemon, 3 hosts, CPU", weave, "", IdleCPU, nil, false, 0.5, "% of a core"},
		target{"idle daemon, 3 hosts, memory", weave, "", IdleRAM, nil, false, 40, "MiB"},
		target{"idle daemon without a password, 3 hosts, CPU", weaveFast, "", IdleCPU, nil, false, 0.5, "% of a core"},
		target{"idle daemon without a password, 3 hosts, memory", weaveFast, "", IdleRAM, nil, false, 40, "MiB"})
}

// throughput adds the targets of TCP.
func throughput(add func(what, of, mode, measure string, atLeast bool, bound float64, against ...string)) {
	ofVXLAN := map[string]map[string]float64{On: {TCP1: 0.4, TCP4: 0.25}, Off: {TCP1: 0.65, TCP4: 0.65}}
	for _, mode := range []string{On, Off} {
		for _, m := range []string{TCP1, TCP4} {
			what := fmt.Sprintf("sealed, %s, offloads %s, against ", titleOf(m), mode)
			add(what+"WireGuard", weave, mode, m, true, 2.5, wg)
			add(what+"nebula", weave, mode, m, true, 1.25, nebula, nebulaMQ)
			add(what+"kernel VXLAN", weave, mode, m, true, ofVXLAN[mode][m], vxlan)
		}
	}
}

func titleOf(name string) string {
	for _, m := range measures() {
		if m.name == name {
			return m.title
		}
	}
	return name
}
