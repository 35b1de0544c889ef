// Package report keeps what a run of the benchmark measured, judges it by what
// must be reached, and writes it down: tables in Markdown, a chart in SVG. It is
// pure: it measures nothing, and its callers read and write the files.
package report

import (
	"slices"
	"time"
)

// Modes in which a sample was taken.
const (
	On  = "on"  // the underlay's offloads are on
	Off = "off" // they are off: every packet by itself, every checksum by the CPU
)

// Hard is a mode whose wires are hard on TCP; offloads are off, since with them on
// a frame may be a run of dozens of datagrams.
type Hard struct {
	Mode, Title string
	// LoseOneOf is how many frames there are for each that is lost, at random; 0: none is.
	LoseOneOf uint32
	// LateOneOf is the same for those that come later by Late than they would.
	LateOneOf uint32
	Late      time.Duration
	// Samples are taken of each system in each round, either way in turns, each the mean
	// of as many streams at once. With more loss a stream more often stands still until a
	// timeout, so that windows of the same length differ by more.
	Samples, Streams int
}

// Loss1 is the mode for which there is something to be reached.
const Loss1 = "loss-1"

// HardModes lists them in the order of the tables, first one to compare with.
func HardModes() []Hard {
	return []Hard{
		{Mode: "good", Title: "nothing lost", Samples: 1, Streams: 1},
		{Mode: "loss-0.1", Title: "0.1 % lost", LoseOneOf: 1000, Samples: 1, Streams: 1},
		{Mode: Loss1, Title: "1 % lost", LoseOneOf: 100, Samples: 3, Streams: 1},
		{Mode: "loss-5", Title: "5 % lost", LoseOneOf: 20, Samples: 3, Streams: 8},
		{Mode: "reorder", Title: "1 % late by 5 ms", LateOneOf: 100, Late: 5 * time.Millisecond, Samples: 1, Streams: 1},
	}
}

// Names of measures.
const (
	TCP1      = "tcp1"
	TCP4      = "tcp4"
	UDP64     = "udp64"
	UDP1350   = "udp1350"
	RTT50     = "rtt50"
	RTT99     = "rtt99"
	Load50    = "load50"
	Load99    = "load99"
	CPU       = "cpu"
	DockerRun = "docker-run"
	IdleCPU   = "idle-cpu"
	IdleRAM   = "idle-ram"
)

// Sent is put behind the name of a measure of UDP for what was sent.
const Sent = "-sent"

// Sample is one figure.
type Sample struct {
	System  string  `json:"system"`
	Mode    string  `json:"mode,omitempty"`
	Measure string  `json:"measure"`
	Way     string  `json:"way,omitempty"` // which host sends
	Round   int     `json:"round"`         // from 0; of a hard mode each sample has its own
	Value   float64 `json:"value"`
}

// System is one of those that were measured.
type System struct {
	Name    string `json:"name"`
	Title   string `json:"title"`
	MTU     int    `json:"mtu,omitempty"`     // of the IP packets that it carries, in bytes
	Note    string `json:"note,omitempty"`    // version and settings
	LeftOut string `json:"leftOut,omitempty"` // why it was not measured
}

// Machine is where it was measured.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Engine string `json:"engine,omitempty"` // Docker's version
	Weave  string `json:"weave"`            // version of the binary
}

// Result is a whole run.
type Result struct {
	Started time.Time     `json:"started"`
	Took    time.Duration `json:"tookNanoseconds"`
	Rounds  int           `json:"rounds"`
	Window  time.Duration `json:"windowNanoseconds"` // of each sample
	Machine Machine       `json:"machine"`
	Systems []System      `json:"systems"`
	Samples []Sample      `json:"samples"`
	Notes   []string      `json:"notes,omitempty"` // what went otherwise than planned
}

// Add appends a sample.
func (r *Result) Add(s Sample) { r.Samples = append(r.Samples, s) }

// Median returns the median of a measure over all rounds and both ways, and
// false where nothing was measured.
func (r *Result) Median(system, mode, measure string) (float64, bool) {
	var values []float64
	for _, s := range r.Samples {
		if s.System == system && s.Mode == mode && s.Measure == measure {
			values = append(values, s.Value)
		}
	}
	return Quantile(values, 0.5)
}

// Ratio returns the median of the ratios of two systems' figures of the same
// round and way, so that what changes from round to round on the machine does
// not matter, and false where there are none.
func (r *Result) Ratio(system, other, mode, measure string) (float64, bool) {
	type moment struct {
		round int
		way   string
	}
	others := map[moment]float64{}
	for _, s := range r.Samples {
		if s.System == other && s.Mode == mode && s.Measure == measure {
			others[moment{s.Round, s.Way}] = s.Value
		}
	}
	var ratios []float64
	for _, s := range r.Samples {
		if s.System == system && s.Mode == mode && s.Measure == measure && others[moment{s.Round, s.Way}] > 0 {
			ratios = append(ratios, s.Value/others[moment{s.Round, s.Way}])
		}
	}
	return Quantile(ratios, 0.5)
}

// Quantile returns the q-quantile, between neighbours in proportion, and false
// for no values. It does not change them.
func Quantile(values []float64, q float64) (float64, bool) {
	if len(values) == 0 {
		return 0, false
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	part := at - float64(low)
	return sorted[low]*(1-part) + sorted[high]*part, true
}

// measured lists the systems that have samples.
func (r *Result) measured() []System {
	var out []System
	for _, s := range r.Systems {
		if slices.ContainsFunc(r.Samples, func(x Sample) bool { return x.System == s.Name && x.Mode != "" }) {
			out = append(out, s)
		}
	}
	return out
}

// measure describes a column.
type measure struct {
	name, title, unit string
	less              bool // is better
	digits            int  // after the point
}

// measures are those that every system has, in the order of the tables.
func measures() []measure {
	return []measure{
		{TCP1, "TCP, 1 stream", "Mbit/s", false, 0},
		{TCP4, "TCP, 4 streams", "Mbit/s", false, 0},
		{UDP64, "UDP, 64 bytes", "packets/s", false, 0},
		{UDP1350, "UDP, 1350 bytes", "packets/s", false, 0},
		{RTT50, "round trip, idle, median", "µs", true, 0},
		{RTT99, "round trip, idle, 99 %", "µs", true, 0},
		{Load50, "round trip, loaded, median", "µs", true, 0},
		{Load99, "round trip, loaded, 99 %", "µs", true, 0},
		{CPU, "CPU of the daemons", "s/GByte", true, 2},
	}
}

// ModeTitle says what a mode is.
func ModeTitle(mode string) string {
	switch mode {
	case On:
		return "offloads of the underlay on"
	case Off:
		return "offloads of the underlay off"
	}
	return mode
}
