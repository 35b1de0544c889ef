package scale

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weave/mesh/wire"
)

// pair makes two peers of a network, and nothing that runs.
func pair() (n *network, a, b *peer) {
	n = newNetwork(0)
	a, b = &peer{index: 0, id: peerID(0)}, &peer{index: 1, id: peerID(1)}
	n.add(a)
	n.add(b)
	return n, a, b
}

func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair()
		const delay = 10 * time.Millisecond
		ours, theirs := newStream(n, wire.StreamSync, a, b, delay)
		opened, _ := n.total(0)
		data := bytes.Repeat([]byte("0123456789"), 100_000)
		begin := time.Now()
		if _, err := ours.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := ours.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(theirs)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
		// A million bytes take six round trips of slow start: 1, 3, 7, … windows.
		if took := time.Since(begin); took < 6*2*delay || took > 8*2*delay {
			t.Errorf("it took %v", took)
		}
		sent, _ := n.total(0)
		if more := float64(sent-opened) / float64(len(data)); more < 1.02 || more > 1.06 {
			t.Errorf("%.3f bytes on the wire for each byte", more)
		}
		if _, err := ours.Write(data); err == nil {
			t.Error("writing to a closed stream is no error")
		}
	})
}

func TestStreamDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair()
		ours, _ := newStream(n, wire.StreamGossip, a, b, time.Millisecond)
		begin := time.Now()
		if err := ours.SetDeadline(begin.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != time.Second {
			t.Errorf("read ends with %v after %v", err, time.Since(begin))
		}
		if _, err := ours.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write ends with %v", err)
		}
	})
}

// What happens at one time happens in the order of its causes.
func TestEventsKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _, _ := pair()
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		var order []int
		for i, at := range []time.Duration{5, 1, 5, 3, 1} {
			n.later(at*time.Second, func() {
				if time.Since(begin) != at*time.Second {
					t.Errorf("event %d happens after %v", i, time.Since(begin))
				}
				order = append(order, i)
			})
		}
		n.start(ctx)
		time.Sleep(time.Minute)
		cancel()
		n.tasks.Wait()
		if want := []int{1, 4, 3, 0, 2}; len(order) != 5 || [5]int(order) != [5]int(want) {
			t.Errorf("order %v, want %v", order, want)
		}
	})
}

func TestReport(t *testing.T) {
	results := []Result{{Plan: DefaultPlan(10)}, {Plan: DefaultPlan(100)}}
	for i := range results {
		f := []float64{1, 10}[i]
		results[i].Idle = Traffic{Probes: 200 * f, Sessions: 100 * f}
		results[i].Busy = Traffic{Probes: 200 * f, Deltas: 10 * f * f}
		results[i].Memory, results[i].FreshBytes = 1e6*f, 1e5*f
		results[i].Real = Real{Table: 1e5 * f, Records: 2e5 * f, Session: 1000}
		results[i].Most = Spans{time.Millisecond, 2 * time.Second}
		if got := Growth(results[0], results[i], func(r Result) float64 { return r.Idle.Total() }); i > 0 && (got < 0.99 || got > 1.01) {
			t.Errorf("linear growth has power %.2f", got)
		}
	}
	text := Markdown(results, "x.svg")
	for _, want := range []string{"| 100 | 2,000 |", "| 2.0 s, 2.0 s |", "(x.svg)", "| 1.00 |"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	d := xml.NewDecoder(strings.NewReader(SVG(results)))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("chart: %v", err)
		}
	}
}

func TestSplice(t *testing.T) {
	const document = "a\n" + begin + "\nold\n" + end + "\nz\n"
	got, err := Splice(document, " new ")
	if want := "a\n" + begin + "\n\nnew\n\n" + end + "\nz\n"; err != nil || got != want {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{"", begin, end, end + begin} {
		if _, err := Splice(bad, "x"); !errors.Is(err, ErrMarkers) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
