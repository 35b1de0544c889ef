package sim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// The environment of a worker, and how much it is given at a time.
const (
	envSeeds = "WEAVE_SIM_SEEDS" // "first count", for TestWorker
	batch    = 500
)

// result is what came of one schedule.
type result struct {
	seed, hash uint64
	bug        string
}

// TestWorker is the process that runs schedules for farm: one processor, so that
// goroutines run one at a time, and a line of output for each schedule.
func TestWorker(t *testing.T) {
	first, n, ok := strings.Cut(os.Getenv(envSeeds), " ")
	if !ok {
		t.Skip("this is a part of the other tests")
	}
	seed, err := strconv.ParseUint(first, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	count, err := strconv.ParseUint(n, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for ; count > 0; count-- {
		bug := ""
		o := run(t, Draw(seed))
		if o.Bug != nil {
			bug = o.Bug.Error()
		}
		fmt.Printf("%s%d %d %q\n", resultMark, seed, o.Hash, bug)
		seed++
	}
}

const resultMark = "schedule "

// farm runs n schedules on some processes, and hands over the results one by one
// until take has enough. A process that dies has a bug in the schedule after its
// last result.
func farm(first, n uint64, workers int, take func(result) (more bool)) error {
	var mu sync.Mutex
	var errs []error
	var wait sync.WaitGroup
	next, end := first, first+n
	for range max(1, workers) {
		wait.Go(func() {
			for {
				mu.Lock()
				seed, share := next, min(batch, end-next)
				next += share
				mu.Unlock()
				if share == 0 {
					return
				}
				last, err := work(seed, share, func(r result) {
					mu.Lock()
					defer mu.Unlock()
					if !take(r) {
						next = end
					}
				})
				if err != nil {
					mu.Lock()
					errs = append(errs, fmt.Errorf("seed %d: %w", last, err))
					next = end
					mu.Unlock()
				}
			}
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

// work runs one process, and returns the seed that it came to.
func work(seed, n uint64, take func(result)) (uint64, error) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestWorker$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), envSeeds+fmt.Sprintf("=%d %d", seed, n), "GOMAXPROCS=1", "GOGC=400", "GODEBUG=adaptivestackstart=1")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return seed, err
	}
	if err := cmd.Start(); err != nil {
		return seed, err
	}
	var rest strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var r result
		text, ok := strings.CutPrefix(lines.Text(), resultMark)
		if _, err := fmt.Sscanf(text, "%d %d %q", &r.seed, &r.hash, &r.bug); !ok || err != nil {
			fmt.Fprintln(&rest, lines.Text())
			continue
		}
		take(r)
		seed = r.seed + 1
	}
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		return seed, fmt.Errorf("%w\n%s%s", err, rest.String(), stderr.String())
	}
	return seed, lines.Err()
}
