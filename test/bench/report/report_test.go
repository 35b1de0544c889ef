package report

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func fill(r *Result, system, mode, measure string, values ...float64) {
	for i, v := range values {
		r.Add(Sample{System: system, Mode: mode, Measure: measure, Way: "h1", Round: i, Value: v})
	}
}

func TestQuantile(t *testing.T) {
	values := []float64{30, 10, 20, 40}
	for q, want := range map[float64]float64{0: 10, 0.5: 25, 1: 40, 0.25: 17.5} {
		if got, ok := Quantile(values, q); !ok || got != want {
			t.Errorf("%v: %v, want %v", q, got, want)
		}
	}
	if values[0] != 30 {
		t.Error("the values were sorted in place")
	}
	if _, ok := Quantile(nil, 0.5); ok {
		t.Error("a median of nothing")
	}
}

// The machine was twice as slow in the second round: the ratio does not change.
func TestRatioIsWithinARound(t *testing.T) {
	r := &Result{}
	fill(r, weave, On, TCP1, 300, 150, 300)
	fill(r, wg, On, TCP1, 100, 50, 100)
	r.Add(Sample{System: wg, Mode: On, Measure: TCP1, Way: "h2", Round: 0, Value: 1})
	if got, ok := r.Ratio(weave, wg, On, TCP1); !ok || got != 3 {
		t.Errorf("got %v, %v", got, ok)
	}
	if _, ok := r.Ratio(weave, nebula, On, TCP1); ok {
		t.Error("a ratio with nothing")
	}
}

func verdict(t *testing.T, r *Result, part string) Verdict {
	t.Helper()
	var found []Verdict
	for _, v := range r.Verdicts() {
		if strings.Contains(v.What, part) {
			found = append(found, v)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d verdicts with %q", len(found), part)
	}
	return found[0]
}

func TestVerdicts(t *testing.T) {
	r := &Result{}
	fill(r, weave, On, TCP1, 250)
	fill(r, wg, On, TCP1, 100)
	fill(r, nebula, On, TCP1, 150)
	fill(r, nebulaMQ, On, TCP1, 220)
	fill(r, weave, On, RTT50, 50)
	fill(r, wg, On, RTT50, 99)
	fill(r, weave, On, Load50, 999)
	fill(r, weave, "", IdleRAM, 41)
	fill(r, weave, Loss1, TCP1, 85, 95, 90)
	fill(r, wg, Loss1, TCP1, 100, 100, 100)
	fill(r, wg, "loss-5", TCP1, 1)
	for what, want := range map[string]State{
		"sealed, TCP, 1 stream, offloads on, against WireGuard":         Reached, // the bound itself
		"sealed, TCP, 1 stream, offloads on, against nebula":            NotReached,
		"sealed, TCP, 1 stream, offloads on, against kernel VXLAN":      NoFigures,
		"sealed, round trip idle, against WireGuard, offloads on":       NotReached,
		"sealed, round trip under load, offloads on":                    Reached,
		"idle daemon, 3 hosts, memory":                                  NotReached,
		"sealed, TCP with 1 % loss, against WireGuard":                  Reached,
		"fast path, TCP, 4 streams, against kernel VXLAN, offloads off": NoFigures,
	} {
		if got := verdict(t, r, what); got.State != want {
			t.Errorf("%s: %s (%v), want %s", what, got.State, got.Value, want)
		}
	}
	if v := verdict(t, r, "TCP, 1 stream, offloads on, against nebula"); v.Value < 1.13 || v.Value > 1.14 {
		t.Errorf("against nebula %v: not the better of its two", v.Value)
	}
}

func TestSplice(t *testing.T) {
	first, err := Splice("# Title\n\nText.\n", "one")
	if err != nil || !strings.HasPrefix(first, "# Title\n\nText.\n\n"+begin) {
		t.Fatalf("%q, %v", first, err)
	}
	second, err := Splice(first+"\nMore.\n", "two")
	if err != nil || strings.Contains(second, "one") || !strings.Contains(second, "two") || !strings.HasSuffix(second, end+"\n\nMore.\n") {
		t.Errorf("%q, %v", second, err)
	}
	for _, broken := range []string{begin, end, end + begin} {
		if _, err := Splice(broken, "x"); !errors.Is(err, ErrMarkers) {
			t.Errorf("%q: %v", broken, err)
		}
	}
}

func sample() *Result {
	r := &Result{Started: time.Unix(0, 0), Rounds: 3, Window: time.Second, Systems: []System{
		{Name: weave, Title: "Weave <&>", MTU: 1390}, {Name: vxlan, Title: "VXLAN", MTU: 1450}, {Name: weaveFast, Title: "Fast", LeftOut: "not built"},
	}}
	fill(r, weave, On, TCP1, 5000, 4000, 6000)
	fill(r, vxlan, On, TCP1, 12500, 10000, 15000)
	fill(r, weave, Loss1, TCP1, 100, 90, 110)
	fill(r, weave, "good", TCP1, 2000)
	fill(r, vxlan, Loss1, TCP1, 200, 180, 220)
	fill(r, weave, "reorder", TCP1, 1234)
	fill(r, weaveFast, "", IdleCPU, 0.25)
	return r
}

func TestMarkdown(t *testing.T) {
	text := sample().Markdown("chart.svg")
	for _, want := range []string{
		"| TCP, 1 stream, more is better | 0.40 |\n", "| sealed, TCP, 1 stream, offloads on, against kernel VXLAN | ≥ 0.40 x | 0.40 x | reached |",
		"| VXLAN | 12,500 |", "not measured: not built", "| Weave <&> | 2,000 | – | 100 | – | 1,234 |\n",
		"| Weave, sealed, AES-256-GCM ÷ VXLAN | – | – | 0.50 | – | – |\n", "(chart.svg)",
		"| the same without a password | 0.25 % of a core |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
	if strings.Index(text, "in ratio") > strings.Index(text, "### Figures") {
		t.Error("ratios do not come first")
	}
}

func TestChartIsXML(t *testing.T) {
	d := xml.NewDecoder(strings.NewReader(sample().SVG()))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
