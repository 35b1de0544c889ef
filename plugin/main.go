// The runtime would look every second whether the CPUs or their limit have changed,
// for as long as the daemon lives; a limit at its start is heeded all the same.
//
//go:debug updatemaxprocs=0

// Command weave is the whole of Weave in one binary: `weave daemon` is the
// Docker plugin, the other verbs start, show and steer it. Here the two are only joined.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"weave/plugin/attach"
	"weave/plugin/cli"
	"weave/plugin/daemon"
	"weave/plugin/doctor"
	"weave/plugin/managed"
)

// version is set by the linker, see Makefile.
var version = "dev"

// interruptible returns a context that the first signal ends; the second kills. It
// is cancelled, with no more said: else what was under way would tell people of
// the signal by its name.
func interruptible() context.Context {
	signalled, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(context.Background())
	context.AfterFunc(signalled, func() {
		stop()
		cancel()
	})
	return ctx
}

func main() {
	ctx := interruptible()
	root := cli.New(cli.Options{
		Version: version,
		Now:     time.Now,
		Daemon:  func(ctx context.Context) error { return daemon.Run(ctx, version, os.LookupEnv) },
		Plugin:  func(ctx context.Context) (cli.Plugin, error) { return managed.Open(ctx) },
		Docker:  func() (cli.Docker, error) { return attach.New() },
		Host:    doctor.New(os.Getenv("DOCKER_HOST")),
	})
	if err := root.ExecuteContext(ctx); err != nil {
		if text := cli.Explain(err); text != "" {
			fmt.Fprintln(os.Stderr, text)
		}
		os.Exit(cli.ExitStatus(err))
	}
}
