package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weave/test/bench/report"
	"weave/test/dockerlab"
)

// settings are the flags.
type settings struct {
	rounds   int
	window   time.Duration
	limit    time.Duration
	systems  []string
	measures []string
	modes    []string
	runs     int // of docker run
	json     string
	docs     string
}

// kinds are the words for -measures.
func kinds() []string { return []string{"tcp", "udp", "rtt", "loss", "docker", "idle"} }

func parse(args []string) (settings, error) {
	var names []string
	for _, s := range systems() {
		names = append(names, s.name)
	}
	build := dockerlab.BuildDir()
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&s.rounds, "rounds", 3, "rounds, in each all systems one after another")
	flags.DurationVar(&s.window, "window", 1200*time.Millisecond, "length of each measurement")
	flags.DurationVar(&s.limit, "limit", 25*time.Minute, "end the run after this time at the latest")
	flags.IntVar(&s.runs, "docker-runs", 15, "how often docker run is timed on each network")
	flags.StringVar(&s.json, "json", filepath.Join(build, "bench.json"), "file for all figures")
	flags.StringVar(&s.docs, "docs", "", "folder of benchmarks.md and benchmarks.svg; `none` writes neither (default docs/ after a run of everything, else none)")
	list := func(into *[]string, name, all, what string) {
		flags.Func(name, what+", with commas between (default "+all+")", func(v string) error {
			*into = strings.Split(v, ",")
			for _, word := range *into {
				if !slices.Contains(strings.Split(all, ","), word) {
					return fmt.Errorf("no %q, there are %s", word, all)
				}
			}
			return nil
		})
		*into = strings.Split(all, ",")
	}
	list(&s.systems, "systems", strings.Join(names, ","), "systems")
	list(&s.measures, "measures", strings.Join(kinds(), ","), "what to measure")
	list(&s.modes, "offloads", report.On+","+report.Off, "with the underlay's offloads")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if flags.NArg() > 0 || s.rounds < 1 || s.window < 100*time.Millisecond || s.runs < 1 {
		return s, fmt.Errorf("-rounds and -docker-runs are at least 1, -window at least 100ms, and there are no arguments")
	}
	whole := os.Getenv(alsoEnv) == "" && len(s.systems) == len(names) && len(s.measures) == len(kinds()) && len(s.modes) == 2
	switch {
	case s.docs == "none", s.docs == "" && !whole:
		s.docs = ""
	case s.docs == "":
		s.docs = filepath.Join(dockerlab.ProjectDir(), "docs")
	}
	return s, nil
}

// bench is a run under way.
type bench struct {
	settings
	starter thread
	dir     string
	pairs   []running
	result  report.Result
}

type running struct {
	system
	*pair
}

func runBench(ctx context.Context, args []string) error {
	s, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes network namespaces")
	}
	if err := sweep(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: what an earlier run left stays:", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	b := &bench{settings: s, starter: newThread(), dir: workDir(os.Getpid())}
	b.result = report.Result{Started: time.Now(), Rounds: s.rounds, Window: s.window, Machine: machine(ctx)}
	err = b.measure(ctx)
	err = errors.Join(err, b.close())
	if err == nil && s.has("docker", "idle") {
		err = b.docker(ctx)
	}
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	b.result.Took = time.Since(b.result.Started).Round(time.Second)
	return b.write()
}

func (s settings) has(kinds ...string) bool {
	return slices.ContainsFunc(kinds, func(k string) bool { return slices.Contains(s.measures, k) })
}

// say tells how far the run is.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6s  %s\n", time.Since(b.result.Started).Round(time.Second), fmt.Sprintf(format, args...))
}

func (b *bench) measure(ctx context.Context) error {
	if !b.has("tcp", "udp", "rtt", "loss") {
		return nil
	}
	for _, s := range systems() {
		if !slices.Contains(b.systems, s.name) {
			continue
		}
		if err := b.raise(ctx, s); err != nil {
			return err
		}
	}
	for _, mode := range b.modes {
		if err := b.measureMode(ctx, mode); err != nil {
			return err
		}
	}
	if b.has("loss") {
		return b.measureHard(ctx)
	}
	return nil
}

// raise starts a system. One that this build or machine lacks is left out.
func (b *bench) raise(ctx context.Context, s system) error {
	b.say("start %s", s.title)
	about := report.System{Name: s.name, Title: s.title}
	p, err := newPair(b.starter, filepath.Join(b.dir, s.name))
	if err != nil {
		return err
	}
	err = s.build(ctx, p)
	if err == nil {
		err = p.startAgents(ctx)
	}
	if errors.Is(err, errLacks) {
		about.LeftOut = strings.TrimPrefix(err.Error(), errLacks.Error()+": ")
		b.say("%s is left out: %s", s.title, about.LeftOut)
		b.result.Systems = append(b.result.Systems, about)
		return p.close()
	}
	b.pairs = append(b.pairs, running{s, p}) // so that it is ended
	if err != nil {
		return fmt.Errorf("%s: %w", s.title, err)
	}
	about.MTU, about.Note = p.mtu, p.note
	b.result.Systems = append(b.result.Systems, about)
	return nil
}

func (b *bench) measureMode(ctx context.Context, mode string) error {
	if !b.has("tcp", "udp", "rtt") {
		return nil
	}
	for _, p := range b.pairs {
		if err := p.setOffloads(mode == report.On); err != nil {
			return fmt.Errorf("%s: %w", p.title, err)
		}
	}
	for round := range b.rounds {
		// In turns the other way round, so that nobody is always after the same.
		order := slices.Clone(b.pairs)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, p := range order {
			if err := b.measureOne(ctx, p, mode, round); err != nil {
				return fmt.Errorf("%s, offloads %s: %w", p.title, mode, err)
			}
		}
	}
	return nil
}

// measureOne takes all figures of one system in one round.
func (b *bench) measureOne(ctx context.Context, p running, mode string, round int) error {
	var line []string
	for _, m := range probes() {
		if !b.has(m.kind) {
			continue
		}
		for _, from := range m.from {
			figures, err := b.persist(ctx, p, func() ([]figure, error) { return m.run(ctx, p.pair, from, b.window) })
			if err != nil {
				return err
			}
			for _, f := range figures {
				way := fmt.Sprintf("h%d", from+1)
				b.result.Add(report.Sample{System: p.name, Mode: mode, Measure: f.measure, Way: way, Round: round, Value: f.value})
				line = append(line, fmt.Sprintf("%s %.4g", f.measure, f.value))
			}
		}
	}
	b.say("offloads %s, round %d, %s: %s", mode, round+1, p.name, strings.Join(line, ", "))
	return p.alive()
}

// tries is how often something is measured before it counts as broken: a busy
// machine may give a stream no time at all.
const tries = 3

// persist measures again what fails while the system still runs, and notes it.
func (b *bench) persist(ctx context.Context, p running, measure func() ([]figure, error)) (out []figure, err error) {
	for range tries {
		if out, err = measure(); err == nil {
			return out, nil
		}
		if dead := errors.Join(ctx.Err(), p.alive()); dead != nil {
			return nil, errors.Join(err, dead)
		}
		note := fmt.Sprintf("measured again, of %s: %v", p.title, err)
		b.say("%s", note)
		b.result.Notes = append(b.result.Notes, note)
	}
	return nil, err
}
