// Command fuzz runs the project's fuzz targets, each for some time, and says at the
// end how each went; it fails if one did. Its argument is a regular expression that
// chooses among them, as they are called in the table.
//
// What the targets find interesting go test keeps on this machine. Of that it keeps
// a small part in the project, where every run of the tests replays it: see keep.go.
// With -time 0 it does only that.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	length := flag.Duration("time", 10*time.Minute, "how long each target is fuzzed; 0: only choose anew which inputs to keep")
	atOnce := flag.Int("at-once", 2, "how many targets are fuzzed at a time, on one processor each")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	targets, err := find(".", flag.Arg(0))
	if err == nil && len(targets) == 0 {
		err = fmt.Errorf("no fuzz target matches %q", flag.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
	results := runAll(ctx, targets, *length, *atOnce)
	table(os.Stdout, results)
	for _, r := range results {
		if r.err != nil {
			os.Exit(1)
		}
	}
}

// runAll returns the results in the order of the targets; of those that did not
// begin before ctx ended, the error is that of ctx.
func runAll(ctx context.Context, targets []target, length time.Duration, atOnce int) []result {
	results := make([]result, len(targets))
	var all sync.WaitGroup
	slots := make(chan struct{}, max(1, atOnce))
	for i, t := range targets {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			results[i] = run(ctx, t, length)
			fmt.Println(results[i])
		})
	}
	all.Wait()
	return results
}

// run fuzzes one target and then keeps what it has found.
func run(ctx context.Context, t target, length time.Duration) result {
	r := result{target: t, err: ctx.Err()}
	if r.err == nil && length > 0 {
		r = t.fuzz(ctx, length)
	}
	if r.err == nil {
		r.kept, r.err = t.keep(ctx)
	}
	return r
}

// result is how a target went.
type result struct {
	target
	took       time.Duration
	executions uint64
	news       int // inputs that reach what none before did
	kept       int
	err        error
}

func (r result) String() string {
	if r.err != nil {
		return fmt.Sprintf("%s: %v", r.target, r.err)
	}
	return fmt.Sprintf("%s: %s executions, %d new inputs, %d kept", r.target, grouped(r.executions), r.news, r.kept)
}

func table(w io.Writer, results []result) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\ntarget\ttime\texecutions\tnew\tkept\tresult")
	for _, r := range results {
		how := "ok"
		if r.err != nil {
			how = "FAILED"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\t%s\n", r.target, r.took, grouped(r.executions), r.news, r.kept, how)
	}
	_ = tw.Flush()
}

var thousands = regexp.MustCompile(`(\d)(\d{3})(,|$)`)

// grouped writes 1234567 as 1,234,567.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for thousands.MatchString(s) {
		s = thousands.ReplaceAllString(s, "$1,$2$3")
	}
	return s
}
