package scale

import (
	"cmp"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	sizes = flag.String("scale.peers", "", "sizes of the clusters that TestScale simulates, with commas between them")
	keep  = flag.String("scale.keep", "", "JSON file of the results of TestScale; those of other sizes in it are kept")
	doc   = flag.String("scale.doc", "", "document to write the results of -scale.keep into; the chart gets the same name, with .svg")
)

// memoryLimit is for a thousand peers in one process.
const memoryLimit = 12 << 30

// simulate runs a cluster in a bubble.
func simulate(t *testing.T, p Plan) (r Result) {
	t.Helper()
	p.Log = t.Logf
	synctest.Test(t, func(t *testing.T) {
		var err error
		if r, err = Run(p); err != nil {
			t.Fatal(err)
		}
	})
	return r
}

// TestTenPeers holds what a small cluster costs, and how soon all know.
func TestTenPeers(t *testing.T) {
	p := DefaultPlan(10)
	p.Churn, p.Busy = 0.1, time.Minute // or there would be too few changes
	r := simulate(t, p)
	if got := r.Idle.Gossip(); got > 750 {
		t.Errorf("idle gossip of %.0f bytes per second and peer: %+v", got, r.Idle)
	}
	if got := r.Idle.Total(); got > 1100 {
		t.Errorf("%.0f bytes per second and peer with the sessions", got)
	}
	if r.Idle.Pulls != 0 || r.Idle.Deltas != 0 {
		t.Errorf("idle peers pull or announce: %+v", r.Idle)
	}
	if got := r.Busy.Total(); got > 2500 {
		t.Errorf("%.0f bytes per second and peer while %d %% of the endpoints change per minute: %+v", got, int(100*p.Churn), r.Busy)
	}
	if len(r.Most) == 0 || r.Most.At(.5) > 50*time.Millisecond || r.All.At(1) > 3*time.Second {
		t.Errorf("of %d changes, 99 %% knew after %v, all at last after %v", len(r.Most), r.Most.At(.5), r.All.At(1))
	}
	if got := r.Fresh.At(1); got > 3*time.Second {
		t.Errorf("a new peer knows all after %v", got)
	}
	if got := r.Return.At(1); got > 3*time.Second {
		t.Errorf("all know a peer that comes back after %v", got)
	}
	if r.Downs != 0 {
		t.Errorf("living peers were held for dead %d times", r.Downs)
	}
}

// TestManyKnowOfOne holds that pulls are rare: a new peer fetches all once, and
// nobody pulls for what is under way.
func TestManyKnowOfOne(t *testing.T) {
	p := DefaultPlan(40)
	p.Idle, p.Busy, p.Churn, p.Late = time.Second, time.Minute, 0.05, 1
	r := simulate(t, p)
	all := 40 * 20 * 350.0 // the records of all
	if r.FreshBytes > 2.5*all {
		t.Errorf("a new peer moved %.0f bytes, of records worth %.0f", r.FreshBytes, all)
	}
	if share := r.Busy.Pulls / r.Busy.Deltas; share > 0.3 {
		t.Errorf("pulls cost %.2f of what the changes cost: %+v", share, r.Busy)
	}
}

// TestScale is make scale.
func TestScale(t *testing.T) {
	if *sizes == "" {
		t.Skip("make scale runs it")
	}
	debug.SetMemoryLimit(memoryLimit)
	results := load(t, *keep)
	for _, text := range strings.Split(*sizes, ",") {
		peers, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		real, err := Measure(DefaultPlan(peers))
		if err != nil {
			t.Fatal(err)
		}
		r := simulate(t, DefaultPlan(peers))
		r.Real = real
		results = slices.DeleteFunc(results, func(o Result) bool { return o.Plan.Peers == peers })
		results = append(results, r)
		slices.SortFunc(results, func(a, b Result) int { return cmp.Compare(a.Plan.Peers, b.Plan.Peers) })
		save(t, *keep, results)
	}
	if *doc != "" {
		write(t, *doc, results)
	}
	for i, r := range results {
		if r.Plan.Peers == 50 && r.Idle.Total() >= 5000 {
			t.Errorf("50 peers: %.0f bytes per second when idle, want less than 5000", r.Idle.Total())
		}
		for _, f := range Figures() {
			if i > 0 && Growth(results[i-1], r, f.Of) > 1.1 {
				t.Errorf("%s grow with power %.2f from %d to %d peers", f.Name, Growth(results[i-1], r, f.Of), results[i-1].Plan.Peers, r.Plan.Peers)
			}
		}
	}
}

func load(t *testing.T, name string) (results []Result) {
	t.Helper()
	b, err := os.ReadFile(name)
	if os.IsNotExist(err) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, &results)
	}
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func save(t *testing.T, name string, results []Result) {
	t.Helper()
	b, err := json.MarshalIndent(results, "", "\t")
	if err == nil {
		err = os.WriteFile(name, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, doc string, results []Result) {
	t.Helper()
	chart := strings.TrimSuffix(doc, ".md") + ".svg"
	b, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	text, err := Splice(string(b), Markdown(results, filepath.Base(chart)))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{doc: text, chart: SVG(results)} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
