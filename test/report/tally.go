package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

type key struct{ pkg, test string }

// tally counts tests. A test with subtests is not counted itself, unless it
// failed and none of them did; nor is a package, with the same exception.
type tally struct {
	out     io.Writer
	results map[key]string // test or package -> pass, fail, skip
	output  map[key]*strings.Builder
	open    map[string]bool // packages that have begun and not ended
	skips   []string        // tests and why, a line each
}

func newTally(out io.Writer) *tally {
	return &tally{out: out, results: map[key]string{}, output: map[key]*strings.Builder{}, open: map[string]bool{}}
}

// add takes one line.
func (t *tally) add(line []byte) {
	var e event
	if json.Unmarshal(line, &e) != nil {
		fmt.Fprintf(t.out, "%s\n", line)
		return
	}
	k := key{e.Package, e.Test}
	switch e.Action {
	case "start":
		t.open[e.Package] = true
	case "build-output":
		t.print(key{pkg: e.ImportPath}, e.Output)
	case "output":
		t.print(k, e.Output)
	case "pass", "fail", "skip":
		if t.results[k] != "fail" { // of a package, in a run before
			t.results[k] = e.Action
		}
		if e.Action == "skip" && e.Test != "" {
			t.skips = append(t.skips, fmt.Sprintf("skip %s %s: %s", e.Package, e.Test, t.reason(k)))
		}
		if e.Test == "" {
			t.endPackage(e)
		}
	}
}

func (t *tally) print(k key, text string) {
	if t.output[k] == nil {
		t.output[k] = &strings.Builder{}
	}
	t.output[k].WriteString(text)
}

// endPackage prints the package's line, after the output of all that failed.
func (t *tally) endPackage(e event) {
	delete(t.open, e.Package)
	if e.Action == "fail" {
		for _, pkg := range []string{e.FailedBuild, e.Package} {
			t.printFailures(pkg)
		}
	}
	fmt.Fprintf(t.out, "%s %s %.1fs\n", e.Action, e.Package, e.Elapsed)
	maps.DeleteFunc(t.output, func(k key, _ *strings.Builder) bool { return k.pkg == e.Package })
}

func (t *tally) printFailures(pkg string) {
	var failed []string
	for k := range t.output {
		// What did not end was running when the package died.
		if result := t.results[k]; k.pkg == pkg && result != "pass" && result != "skip" {
			failed = append(failed, k.test)
		}
	}
	slices.Sort(failed)
	for _, test := range failed {
		fmt.Fprint(t.out, t.output[key{pkg, test}])
	}
}

// reason is what a test said last: why it skips.
func (t *tally) reason(k key) string {
	why := "no reason given"
	if t.output[k] == nil {
		return why
	}
	for line := range strings.Lines(t.output[k].String()) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "--- ") && !strings.HasPrefix(line, "=== ") {
			why = line
		}
	}
	return why
}

// printSkips names what the sum counts as skipped.
func (t *tally) printSkips() {
	for _, line := range t.skips {
		fmt.Fprintln(t.out, line)
	}
}

// endRun counts packages as failed that go test left without a result.
func (t *tally) endRun() {
	for pkg := range t.open {
		t.endPackage(event{Action: "fail", Package: pkg})
		t.results[key{pkg: pkg}] = "fail"
	}
}

func (t *tally) totals() (passed, failed, skipped int) {
	children := map[key]bool{} // has counted tests below it
	failedIn := map[key]bool{} // has a failure below it
	for k, result := range t.results {
		for up := k; up.test != ""; {
			up = parent(up)
			children[up] = true
			failedIn[up] = failedIn[up] || result == "fail"
		}
	}
	for k, result := range t.results {
		switch {
		case result == "fail" && !failedIn[k]:
			failed++
		case k.test == "" || children[k]:
		case result == "pass":
			passed++
		case result == "skip":
			skipped++
		}
	}
	return passed, failed, skipped
}

// parent returns the test above a subtest, and the package above a test.
func parent(k key) key {
	i := strings.LastIndexByte(k.test, '/')
	return key{k.pkg, k.test[:max(i, 0)]}
}
