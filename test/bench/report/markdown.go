package report

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// The markers between which Splice writes.
const (
	begin = "<!-- make bench: from here to the end marker, all is written by it -->"
	end   = "<!-- make bench: end -->"
)

// ErrMarkers: a document has one of the markers, or has them in the wrong order.
var ErrMarkers = errors.New("the document's markers of make bench are broken")

// Splice replaces what is between the markers in a document, or appends both.
func Splice(document, text string) (string, error) {
	text = begin + "\n\n" + strings.TrimSpace(text) + "\n\n" + end
	from, to := strings.Index(document, begin), strings.Index(document, end)
	switch {
	case from < 0 && to < 0:
		return strings.TrimRight(document, "\n") + "\n\n" + text + "\n", nil
	case from < 0 || to < from:
		return "", ErrMarkers
	}
	return document[:from] + text + document[to+len(end):], nil
}

// Markdown writes the run down, ratios first. chart is the name of the picture
// beside the document.
func (r *Result) Markdown(chart string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "## All systems side by side\n\nWritten by `make bench` on %s, rounds: %d, in each all systems one after another, %v for each figure. Figures are medians of all rounds and both ways, and ratios are medians of the ratios within a round.\n",
		r.Started.Format("2 January 2006"), r.Rounds, r.Window.Round(10*time.Millisecond))
	fmt.Fprintf(&b, "\n![Chart of the figures below](%s)\n", chart)
	r.writeRatios(&b)
	r.writeVerdicts(&b)
	r.writeFigures(&b)
	r.writeHard(&b)
	r.writeRest(&b)
	r.writeSystems(&b)
	return b.String()
}

// writeRatios compares the sealed path with each other system.
func (r *Result) writeRatios(b *strings.Builder) {
	for _, mode := range []string{On, Off} {
		var others []System
		for _, s := range r.measured() {
			if _, ok := r.Median(s.Name, mode, TCP1); ok && s.Name != weave {
				others = append(others, s)
			}
		}
		if len(others) == 0 {
			continue
		}
		fmt.Fprintf(b, "\n### The sealed path in ratio to the others, %s\n\n| Weave, sealed, AES-256-GCM |", ModeTitle(mode))
		for _, s := range others {
			fmt.Fprintf(b, " ÷ %s |", s.Title)
		}
		b.WriteString("\n|---|" + strings.Repeat("---|", len(others)) + "\n")
		for _, m := range measures() {
			fmt.Fprintf(b, "| %s, %s is better |", m.title, map[bool]string{true: "less", false: "more"}[m.less])
			for _, s := range others {
				if ratio, ok := r.Ratio(weave, s.Name, mode, m.name); ok {
					fmt.Fprintf(b, " %.2f |", ratio)
				} else {
					b.WriteString(" – |")
				}
			}
			b.WriteString("\n")
		}
	}
}

func (r *Result) writeVerdicts(b *strings.Builder) {
	b.WriteString("\n### What was to be reached\n\n| what | wanted | is | |\n|---|---|---|---|\n")
	for _, v := range r.Verdicts() {
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", v.What, v.want(), v.is(), v.State)
	}
}

func (v Verdict) want() string {
	if v.AtLeast {
		return "≥ " + v.number(v.Bound)
	}
	return "≤ " + v.number(v.Bound)
}

func (v Verdict) is() string {
	if v.State == NoFigures {
		return "–"
	}
	return v.number(v.Value)
}

func (v Verdict) number(x float64) string {
	switch {
	case v.Unit == "x":
		return fmt.Sprintf("%.2f x", x)
	case x >= 10:
		return fmt.Sprintf("%.0f %s", x, v.Unit)
	}
	return fmt.Sprintf("%.2f %s", x, v.Unit)
}

// String is the verdict as a line for terminals.
func (v Verdict) String() string {
	return fmt.Sprintf("%-12s %10s, wanted %-10s %s", v.State, v.is(), v.want(), v.What)
}

func (r *Result) writeFigures(b *strings.Builder) {
	for _, mode := range []string{On, Off} {
		var rows []System
		for _, s := range r.measured() {
			if _, ok := r.Median(s.Name, mode, TCP1); ok {
				rows = append(rows, s)
			}
		}
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintf(b, "\n### Figures, %s\n\n| |", ModeTitle(mode))
		for _, m := range measures() {
			fmt.Fprintf(b, " %s, %s |", m.title, m.unit)
		}
		b.WriteString("\n|---|" + strings.Repeat("---|", len(measures())) + "\n")
		for _, s := range rows {
			fmt.Fprintf(b, "| %s |", s.Title)
			for _, m := range measures() {
				x, ok := r.Median(s.Name, mode, m.name)
				fmt.Fprintf(b, " %s |", m.number(x, ok))
			}
			b.WriteString("\n")
		}
	}
}

func (m measure) number(x float64, ok bool) string { return number(x, m.digits, ok) }

// number writes a figure, with commas between thousands.
func number(x float64, digits int, ok bool) string {
	if !ok {
		return "–"
	}
	text := fmt.Sprintf("%.*f", digits, x)
	if digits > 0 {
		return text
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// writeHard shows TCP on hard wires, and the sealed path in ratio to the others.
func (r *Result) writeHard(b *strings.Builder) {
	var rows []System
	for _, s := range r.measured() {
		for _, h := range HardModes() {
			if _, ok := r.Median(s.Name, h.Mode, TCP1); ok {
				rows = append(rows, s)
				break
			}
		}
	}
	if len(rows) == 0 {
		return
	}
	b.WriteString("\n### Loss and reordering: TCP, 1 stream, Mbit/s, offloads of the underlay off\n\n| |")
	for _, h := range HardModes() {
		fmt.Fprintf(b, " %s |", h.Title)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(HardModes())) + "\n")
	row := func(title string, cell func(mode string) string) {
		fmt.Fprintf(b, "| %s |", title)
		for _, h := range HardModes() {
			fmt.Fprintf(b, " %s |", cell(h.Mode))
		}
		b.WriteString("\n")
	}
	for _, s := range rows {
		row(s.Title, func(mode string) string {
			rate, ok := r.Median(s.Name, mode, TCP1)
			return number(rate, 0, ok)
		})
	}
	for _, s := range rows {
		if s.Name == weave {
			continue
		}
		row("Weave, sealed, AES-256-GCM ÷ "+s.Title, func(mode string) string {
			ratio, ok := r.Ratio(weave, s.Name, mode, TCP1)
			return number(ratio, 2, ok)
		})
	}
	b.WriteString("\nOf the datagrams, each way, at random; samples have twice the length of others. Of 1 % and 5 % there are more, and with 5 %, where a stream needs little, each is the mean of 8 streams at once.\n")
}

// writeRest shows Docker's latency and the idle daemon: what is not measured of
// every system.
func (r *Result) writeRest(b *strings.Builder) {
	rows := [][3]string{}
	for _, x := range []struct{ system, title string }{{bridge, "`docker run` on a bridge network"}, {weave, "`docker run` on a Weave network"}} {
		if s, ok := r.Median(x.system, "", DockerRun); ok {
			rows = append(rows, [3]string{x.title, fmt.Sprintf("%.0f ms", s*1000), ""})
		}
	}
	for _, x := range []struct{ system, title string }{{weave, "idle daemon among 3 hosts"}, {weaveFast, "the same without a password"}} {
		cpu, ok := r.Median(x.system, "", IdleCPU)
		if !ok {
			continue
		}
		ram, _ := r.Median(x.system, "", IdleRAM)
		rows = append(rows, [3]string{x.title, fmt.Sprintf("%.2f %% of a core", cpu), fmt.Sprintf("%.0f MiB resident", ram)})
	}
	if len(rows) == 0 {
		return
	}
	b.WriteString("\n### Docker, idle\n\n| | | |\n|---|---|---|\n")
	for _, row := range rows {
		fmt.Fprintf(b, "| %s | %s | %s |\n", row[0], row[1], row[2])
	}
}

func (r *Result) writeSystems(b *strings.Builder) {
	b.WriteString("\n### Systems and machine\n\n| system | MTU | version and settings |\n|---|---|---|\n")
	for _, s := range r.Systems {
		mtu, note := fmt.Sprint(s.MTU), s.Note
		if s.LeftOut != "" {
			mtu, note = "–", "not measured: "+s.LeftOut
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", s.Title, mtu, note)
	}
	m := r.Machine
	fmt.Fprintf(b, "\n%d cores of %s, Linux %s, %s, Weave %s", m.Cores, m.CPU, m.Kernel, m.Go, m.Weave)
	if m.Engine != "" {
		fmt.Fprintf(b, ", Docker Engine %s", m.Engine)
	}
	b.WriteString(". Hosts are network namespaces joined by veth pairs through a bridge, underlay MTU 1500; both hosts, both daemons, the load generator and the kernel share the cores. " +
		"On layer-3 systems (nebula, WireGuard) and the bare path the load is on the hosts themselves, on the others in containers behind veth and bridge. All TCP with cubic. " +
		"UDP is a flood, and what arrives is counted. Round trips are of 64 bytes of UDP, with a pause of 1 ms between; loaded means during one TCP stream in the same direction. " +
		"CPU is user and system time of both daemons during one TCP stream.\n")
	for _, note := range r.Notes {
		fmt.Fprintf(b, "\n- %s", note)
	}
	if len(r.Notes) > 0 {
		b.WriteString("\n")
	}
}
