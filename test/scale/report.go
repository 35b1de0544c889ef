package scale

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// The markers between which Splice writes.
const (
	begin = "<!-- make scale: from here to the end marker, all is written by it -->"
	end   = "<!-- make scale: end -->"
)

// ErrMarkers: a document does not have the markers, or in the wrong order.
var ErrMarkers = errors.New("the document's markers of make scale are broken")

// Splice replaces what is between the markers in a document.
func Splice(document, text string) (string, error) {
	from, to := strings.Index(document, begin), strings.Index(document, end)
	if from < 0 || to < from {
		return "", ErrMarkers
	}
	return document[:from] + begin + "\n\n" + strings.TrimSpace(text) + "\n\n" + document[to:], nil
}

// Membership is the memory of gossip itself, in bytes.
func (r Result) Membership() float64 { return max(0, r.Memory-r.Real.Table) }

// Sessions is the memory of a peer's sessions with all others, in bytes.
func (r Result) Sessions() float64 { return float64(r.Plan.Peers-1) * r.Real.Session }

// Whole is all the memory that grows with the cluster, in bytes.
func (r Result) Whole() float64 { return r.Membership() + r.Real.Records + r.Sessions() }

// Growth is the power of the number of peers that a figure grows with, from one
// cluster to another: 1 is linear.
func Growth(a, b Result, figure func(Result) float64) float64 {
	return math.Log(figure(b)/figure(a)) / math.Log(float64(b.Plan.Peers)/float64(a.Plan.Peers))
}

// Figure is something that may grow with the number of peers.
type Figure struct {
	Name string
	Of   func(Result) float64
}

// Figures are those whose growth is told, each per peer.
func Figures() []Figure {
	return []Figure{
		{"bytes per second when idle, sessions included", func(r Result) float64 { return r.Idle.Total() }},
		{"the same of gossip alone", func(r Result) float64 { return r.Idle.Gossip() }},
		{"bytes per second while 1 % of the endpoints change per minute", func(r Result) float64 { return r.Busy.Total() }},
		{"memory", Result.Whole},
		{"bytes that a new peer sends and receives until it knows all", func(r Result) float64 { return r.FreshBytes }},
	}
}

// Markdown writes the results down, the smallest cluster first. chart is the name
// of the picture beside the document.
func Markdown(results []Result, chart string) string {
	var b strings.Builder
	p := results[0].Plan
	fmt.Fprintf(&b, "Written by `make scale`: %d endpoints on each peer, %.1f %% of all datagrams lost, one-way delays of %d to %d ms.\n",
		p.Endpoints, 100*p.Loss, minDelay.Milliseconds(), maxDelay.Milliseconds())
	fmt.Fprintf(&b, "\n![Chart of the figures below](%s)\n", chart)
	writeIdle(&b, results)
	writeBusy(&b, results)
	writeTimes(&b, results)
	writeMemory(&b, results)
	writeGrowth(&b, results)
	return b.String()
}

func writeIdle(b *strings.Builder, results []Result) {
	b.WriteString("\n### Idle: bytes per second that a peer sends\n\n" +
		"| peers | probes, news of members | sums | push/pull of the membership | gossip | sessions (reckoned) | **all** | CPU per peer |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		t := r.Idle
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | **%s** | %.3f %% |\n", number(float64(r.Plan.Peers)), number(t.Probes), number(t.Sums),
			number(t.Members), number(t.Gossip()), number(t.Sessions), number(t.Total()), 100*r.CPU)
	}
}

func writeBusy(b *strings.Builder, results []Result) {
	b.WriteString("\n### 1 % of the endpoints change per minute: bytes per second that a peer sends\n\n" +
		"| peers | endpoints replaced per minute | deltas | pulls | pulls begun per minute | all else | **all** | the peer that sent most |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		t := r.Busy
		changes := float64(r.Plan.Peers*r.Plan.Endpoints) * r.Plan.Churn
		fmt.Fprintf(b, "| %s | %s | %s | %s | %.2f | %s | **%s** | %s |\n", number(float64(r.Plan.Peers)), number(changes), number(t.Deltas),
			number(t.Pulls), 60*t.Syncs, number(t.Total()-t.Deltas-t.Pulls), number(t.Total()), number(r.Peak))
	}
}

func writeTimes(b *strings.Builder, results []Result) {
	b.WriteString("\n### Time until it is known\n\n" +
		"| peers | a change, to 99 %: median, slowest | to all: median, slowest | a new peer knows all | and has moved | all know a peer that comes back | and it has moved | all start at once |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		fmt.Fprintf(b, "| %s | %s, %s | %s, %s | %s | %s | %s | %s | %s |\n", number(float64(r.Plan.Peers)),
			span(r.Most.At(.5)), span(r.Most.At(1)), span(r.All.At(.5)), span(r.All.At(1)),
			span(r.Fresh.At(1)), size(r.FreshBytes), span(r.Return.At(1)), size(r.ReturnBytes), span(r.Boot))
	}
}

func writeMemory(b *strings.Builder, results []Result) {
	b.WriteString("\n### Memory of a peer\n\n" +
		"| peers | endpoints in all | membership | records and index (real Node) | sessions | **all** | a real Node fetched all records in |\n|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | **%s** | %s |\n", number(float64(r.Plan.Peers)), number(float64(r.Plan.Peers*r.Plan.Endpoints)),
			size(r.Membership()), size(r.Real.Records), size(r.Sessions()), size(r.Whole()), span(r.Real.Fetch))
	}
}

func writeGrowth(b *strings.Builder, results []Result) {
	if len(results) < 2 {
		return
	}
	b.WriteString("\n### Growth: the power of the number of peers (1 is linear)\n\n| per peer |")
	for i, r := range results[1:] {
		fmt.Fprintf(b, " %s to %s |", number(float64(results[i].Plan.Peers)), number(float64(r.Plan.Peers)))
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(results)-1) + "\n")
	for _, f := range Figures() {
		fmt.Fprintf(b, "| %s |", f.Name)
		for i, r := range results[1:] {
			fmt.Fprintf(b, " %.2f |", Growth(results[i], r, f.Of))
		}
		b.WriteString("\n")
	}
}

// number writes a whole number, thousands apart.
func number(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// size writes bytes for people.
func size(v float64) string {
	switch {
	case v >= 10e6:
		return fmt.Sprintf("%.0f MB", v/1e6)
	case v >= 1e6:
		return fmt.Sprintf("%.1f MB", v/1e6)
	}
	return fmt.Sprintf("%.0f kB", v/1e3)
}

// span writes a time for people.
func span(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
