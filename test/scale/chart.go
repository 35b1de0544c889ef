package scale

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// Measures of the chart, in pixels.
const (
	chartWidth  = 960
	chartHeight = 400
	panelWidth  = chartWidth / 2
	plotLeft    = 62
	plotTop     = 50
	plotWidth   = panelWidth - plotLeft - 20
	plotHeight  = 220
)

// line is one curve of a panel.
type line struct {
	name, color string
	of          func(Result) float64
}

// panel is one picture: lines over the number of peers, both axes logarithmic.
type panel struct {
	title string
	label func(float64) string
	lines []line
}

func panels() []panel {
	return []panel{
		{"Bytes per second that a peer sends", func(v float64) string { return number(v) }, []line{
			{"1 % of the endpoints change per minute, all", "#d62728", func(r Result) float64 { return r.Busy.Total() }},
			{"idle, all", "#1f77b4", func(r Result) float64 { return r.Idle.Total() }},
			{"idle, gossip without the sessions", "#2ca02c", func(r Result) float64 { return r.Idle.Gossip() }},
		}},
		{"Memory of a peer", size, []line{
			{"all", "#d62728", Result.Whole},
			{"records and index", "#1f77b4", func(r Result) float64 { return r.Real.Records }},
			{"sessions", "#9467bd", Result.Sessions},
			{"membership", "#2ca02c", Result.Membership},
		}},
	}
}

// SVG draws traffic and memory. A dashed line in each panel grows linearly from
// the first value of its first line.
func SVG(results []Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11" fill="#222">`+"\n", chartWidth, chartHeight)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", chartWidth, chartHeight)
	for i, p := range panels() {
		p.draw(&b, results, i*panelWidth)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// axis maps values to pixels, by their logarithms.
type axis struct{ low, high, from, length float64 }

func (a axis) at(v float64) float64 {
	return a.from + a.length*(math.Log10(v)-a.low)/(a.high-a.low)
}

// decades are the powers of ten on an axis.
func (a axis) decades() (out []float64) {
	for e := math.Ceil(a.low); e <= a.high; e++ {
		out = append(out, math.Pow(10, e))
	}
	return out
}

func newAxis(values []float64, from, length float64) axis {
	low, high := math.Floor(math.Log10(slices.Min(values))), math.Ceil(math.Log10(slices.Max(values)))
	return axis{low, max(high, low+1), from, length}
}

func (p panel) draw(b *strings.Builder, results []Result, left int) {
	var peers, values []float64
	for _, r := range results {
		peers = append(peers, float64(r.Plan.Peers))
		for _, l := range p.lines {
			values = append(values, max(1, l.of(r)))
		}
	}
	x := newAxis(peers, float64(left+plotLeft), plotWidth)
	y := newAxis(values, plotTop+plotHeight, -plotHeight)
	fmt.Fprintf(b, `<text x="%d" y="30" font-size="14" font-weight="bold">%s</text>`+"\n", left+plotLeft, html.EscapeString(p.title))
	for _, v := range y.decades() {
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/>`, left+plotLeft, left+plotLeft+plotWidth, y.at(v), y.at(v))
		fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", left+plotLeft-6, y.at(v)+4, p.label(v))
	}
	for _, v := range peers {
		fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#ddd"/>`, x.at(v), x.at(v), plotTop, plotTop+plotHeight)
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x.at(v), plotTop+plotHeight+16, number(v))
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">peers</text>`+"\n", left+plotLeft+plotWidth/2, plotTop+plotHeight+32)
	linear(b, x, y, peers, p.lines[0].of(results[0]))
	for i, l := range p.lines {
		l.draw(b, x, y, results)
		at := plotTop + plotHeight + 52 + 16*i
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="10" height="10" fill="%s"/>`, left+plotLeft, at-9, l.color)
		fmt.Fprintf(b, `<text x="%d" y="%d">%s</text>`+"\n", left+plotLeft+16, at, html.EscapeString(l.name))
	}
	at := plotTop + plotHeight + 52 + 16*len(p.lines)
	fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%d" y2="%d" stroke="#888" stroke-dasharray="3 2"/>`, left+plotLeft, left+plotLeft+10, at-4, at-4)
	fmt.Fprintf(b, `<text x="%d" y="%d">linear growth</text>`+"\n", left+plotLeft+16, at)
}

// linear draws what grows with the number of peers from a first value, as far as
// there is room.
func linear(b *strings.Builder, x, y axis, peers []float64, first float64) {
	last := min(peers[len(peers)-1], peers[0]*math.Pow(10, y.high)/first)
	fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#888" stroke-dasharray="3 2"/>`+"\n",
		x.at(peers[0]), y.at(first), x.at(last), y.at(first*last/peers[0]))
}

func (l line) draw(b *strings.Builder, x, y axis, results []Result) {
	var points []string
	for _, r := range results {
		px, py := x.at(float64(r.Plan.Peers)), y.at(max(1, l.of(r)))
		points = append(points, fmt.Sprintf("%.1f,%.1f", px, py))
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, px, py, l.color)
	}
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", strings.Join(points, " "), l.color)
}
