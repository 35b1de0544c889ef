package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"weave/test/bench/gen"
	"weave/test/bench/report"
)

const (
	warmUp    = 300 * time.Millisecond // before a window, so that TCP has found its rate
	hardWarm  = time.Second            // on hard wires it takes longer
	tail      = 50 * time.Millisecond  // of load beyond the window
	pingPause = time.Millisecond
)

// probe is one measurement of a system on its hosts, as a method of pair; from
// says which end sends.
type probe struct {
	kind string // of the flag -measures
	from []int
	run  func(ctx context.Context, p *pair, from int, window time.Duration) ([]figure, error)
}

// figure is a measure and its value.
type figure struct {
	measure string
	value   float64
}

// probes lists what is measured of each system in each mode, in this order.
func probes() []probe {
	return []probe{
		{"tcp", []int{0, 1}, func(ctx context.Context, p *pair, from int, window time.Duration) ([]figure, error) {
			return p.tcp(ctx, from, 1, window, warmUp)
		}},
		{"tcp", []int{0, 1}, func(ctx context.Context, p *pair, from int, window time.Duration) ([]figure, error) {
			return p.tcp(ctx, from, 4, window, warmUp)
		}},
		{"udp", []int{0}, func(ctx context.Context, p *pair, from int, window time.Duration) ([]figure, error) {
			return p.udp(ctx, from, 64, report.UDP64, window)
		}},
		{"udp", []int{0}, func(ctx context.Context, p *pair, from int, window time.Duration) ([]figure, error) {
			return p.udp(ctx, from, 1350, report.UDP1350, window)
		}},
		{"rtt", []int{0}, func(ctx context.Context, p *pair, from int, window time.Duration) ([]figure, error) {
			return p.ping(ctx, from, window, report.RTT50, report.RTT99)
		}},
		{"rtt", []int{0}, func(ctx context.Context, p *pair, from int, window time.Duration) ([]figure, error) {
			return p.loadedPing(ctx, from, window)
		}},
	}
}

// stamp is what was counted, and used, at a moment.
type stamp struct {
	counts gen.Counts
	cpu    time.Duration // of all daemons since their start
}

func (p *pair) stamp(ctx context.Context, receiver int) (s stamp, err error) {
	if s.counts, err = p.ends[receiver].agent.Counts(ctx); err != nil {
		return s, err
	}
	for _, d := range p.daemons {
		used, err := cpuTime(d.pid)
		if err != nil {
			return s, errors.Join(err, p.alive())
		}
		s.cpu += used
	}
	return s, nil
}

// during returns what an end receives within a window, after a warm-up, while
// load runs. load must last as long as it is told.
func (p *pair) during(ctx context.Context, receiver int, warm, window time.Duration, load func(context.Context, time.Duration) error) (first, last stamp, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return load(ctx, warm+window+tail) })
	g.Go(func() error {
		if err := pause(ctx, warm); err != nil {
			return err
		}
		if first, err = p.stamp(ctx, receiver); err != nil {
			return err
		}
		if err := pause(ctx, window); err != nil {
			return err
		}
		last, err = p.stamp(ctx, receiver)
		return err
	})
	err = g.Wait()
	return first, last, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// tcp measures throughput; with one stream also what the daemons used for it.
func (p *pair) tcp(ctx context.Context, from, streams int, window, warm time.Duration) ([]figure, error) {
	first, last, err := p.during(ctx, 1-from, warm, window, func(ctx context.Context, d time.Duration) error {
		return p.ends[from].agent.TCP(ctx, gen.TCPArgs{To: p.ends[1-from].addr, Streams: streams, For: d})
	})
	if err != nil {
		return nil, fmt.Errorf("TCP, %d streams: %w", streams, err)
	}
	bytes := float64(last.counts.TCPBytes - first.counts.TCPBytes)
	if bytes == 0 {
		return nil, fmt.Errorf("TCP, %d streams: nothing arrived within %s", streams, window)
	}
	seconds := float64(last.counts.Nanos-first.counts.Nanos) / 1e9
	out := []figure{{report.TCP1, bytes * 8 / 1e6 / seconds}}
	if streams > 1 {
		out[0].measure = report.TCP4
	} else if len(p.daemons) > 0 {
		out = append(out, figure{report.CPU, (last.cpu - first.cpu).Seconds() / (bytes / 1e9)})
	}
	return out, nil
}

func (p *pair) udp(ctx context.Context, from, size int, measure string, window time.Duration) ([]figure, error) {
	var sent float64
	first, last, err := p.during(ctx, 1-from, warmUp, window, func(ctx context.Context, d time.Duration) error {
		n, err := p.ends[from].agent.UDP(ctx, gen.UDPArgs{To: p.ends[1-from].addr, Size: size, For: d})
		sent = float64(n) / d.Seconds()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("UDP, %d bytes: %w", size, err)
	}
	packets := float64(last.counts.UDPPackets - first.counts.UDPPackets)
	return []figure{{measure, packets / (float64(last.counts.Nanos-first.counts.Nanos) / 1e9)}, {measure + report.Sent, sent}}, nil
}

func (p *pair) ping(ctx context.Context, from int, window time.Duration, median, tail string) ([]figure, error) {
	reply, err := p.ends[from].agent.Ping(ctx, gen.PingArgs{To: p.ends[1-from].addr, Pause: pingPause, For: window})
	if err != nil {
		return nil, fmt.Errorf("round trips: %w", err)
	}
	micros := make([]float64, len(reply.Nanos))
	for i, n := range reply.Nanos {
		micros[i] = float64(n) / 1e3
	}
	middle, ok := report.Quantile(micros, 0.5)
	if !ok {
		return nil, errors.New("round trips: there was time for none")
	}
	slow, _ := report.Quantile(micros, 0.99)
	return []figure{{median, middle}, {tail, slow}}, nil
}

func (p *pair) loadedPing(ctx context.Context, from int, window time.Duration) (out []figure, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return p.ends[from].agent.TCP(ctx, gen.TCPArgs{To: p.ends[1-from].addr, Streams: 1, For: warmUp + window + tail})
	})
	g.Go(func() error {
		if err := pause(ctx, warmUp); err != nil {
			return err
		}
		out, err = p.ping(ctx, from, window, report.Load50, report.Load99)
		return err
	})
	return out, g.Wait()
}

// cpuTime is the user and system time of a process since its start.
func cpuTime(pid int) (time.Duration, error) {
	const ticksPerSecond = 100 // USER_HZ, which the kernel shows to everybody
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in brackets, may hold anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * time.Second / ticksPerSecond, errors.Join(err1, err2)
}
