// Command bench measures Weave and what else carries frames or packets between
// hosts, side by side in one run: see its -help and docs/benchmarks.md. It makes
// hosts of network namespaces and starts each system's daemons as children.
//
// It does not judge what a figure is good for; package report does.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"weave/test/bench/gen"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	if err := dispatch(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// dispatch tells the verbs by which this program starts itself as a child from
// a run of the benchmark.
func dispatch(ctx context.Context, args []string) error {
	verbs := map[string]func(context.Context, []string) error{
		"prepare":   runPrepare, // before a run, without root
		"agent":     runAgent,
		"wireguard": runWireGuard,
		"weave":     runWeave,
	}
	if len(args) > 0 {
		if verb, ok := verbs[args[0]]; ok {
			return verb(ctx, args[1:])
		}
	}
	return runBench(ctx, args)
}

// runAgent generates load, as the pipe at its standard input and output says.
func runAgent(context.Context, []string) error {
	if info, err := os.Stdin.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return errors.New("agent is for the benchmark itself")
	}
	return gen.Serve(duplex{os.Stdin, os.Stdout})
}
