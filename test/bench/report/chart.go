package report

import (
	"fmt"
	"html"
	"strings"
)

// Measures of the chart, in pixels.
const (
	chartWidth  = 960
	margin      = 16
	labelWidth  = 210
	valueWidth  = 70
	barHeight   = 9
	rowHeight   = 26
	panelHead   = 30
	chartHead   = 60
	columnCount = 2
)

const (
	colorOn   = "#1f77b4"
	colorOff  = "#f2a65a"
	colorText = "#222"
)

// SVG draws a panel for each measure, with a pair of bars for each system:
// offloads on and off.
func (r *Result) SVG() string {
	systems := r.measured()
	panelHeight := panelHead + rowHeight*len(systems) + margin
	rows := (len(measures()) + columnCount - 1) / columnCount
	height := chartHead + rows*panelHeight
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11" fill="%s">`+"\n", chartWidth, height, colorText)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", chartWidth, height)
	fmt.Fprintf(&b, `<text x="%d" y="24" font-size="16" font-weight="bold">Container networks side by side, medians, rounds: %d</text>`+"\n", margin, r.Rounds)
	fmt.Fprintf(&b, `<rect x="%d" y="36" width="10" height="10" fill="%s"/><text x="%d" y="45">%s</text>`+"\n", margin, colorOn, margin+16, ModeTitle(On))
	fmt.Fprintf(&b, `<rect x="%d" y="36" width="10" height="10" fill="%s"/><text x="%d" y="45">%s</text>`+"\n", margin+220, colorOff, margin+236, ModeTitle(Off))
	for i, m := range measures() {
		x := margin + i%columnCount*(chartWidth/columnCount)
		y := chartHead + i/columnCount*panelHeight
		r.panel(&b, m, systems, x, y)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (r *Result) panel(b *strings.Builder, m measure, systems []System, x, y int) {
	better := "more is better"
	if m.less {
		better = "less is better"
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" font-weight="bold" font-size="12">%s, %s <tspan font-weight="normal">(%s)</tspan></text>`+"\n",
		x, y+14, html.EscapeString(m.title), html.EscapeString(m.unit), better)
	most := 0.0
	for _, s := range systems {
		for _, mode := range []string{On, Off} {
			v, _ := r.Median(s.Name, mode, m.name)
			most = max(most, v)
		}
	}
	width := float64(chartWidth/columnCount - 2*margin - labelWidth - valueWidth)
	for i, s := range systems {
		top := y + panelHead + i*rowHeight
		weight := "normal"
		if s.Name == weave {
			weight = "bold"
		}
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end" font-weight="%s">%s</text>`+"\n", x+labelWidth-6, top+barHeight+3, weight, html.EscapeString(s.Title))
		for j, mode := range []string{On, Off} {
			v, ok := r.Median(s.Name, mode, m.name)
			length := 0.0
			if most > 0 {
				length = v / most * width
			}
			at := top + j*(barHeight+1)
			fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, x+labelWidth, at, length, barHeight, []string{colorOn, colorOff}[j])
			fmt.Fprintf(b, `<text x="%.1f" y="%d" font-size="9">%s</text>`+"\n", float64(x+labelWidth)+length+4, at+barHeight-1, m.number(v, ok))
		}
	}
}
