package daemon

import (
	"context"
	"errors"
	"sync"
	"testing"

	"weave/plugin/dockerapi"
)

var (
	errFirst  = errors.New("first")
	errSecond = errors.New("second")
)

// opened is a pair of drivers that can be told from none.
func opened() dockerapi.Drivers { return dockerapi.Drivers{IPAM: &pools{}} }

func TestGate(t *testing.T) {
	impatient, cancel := context.WithCancel(context.Background())
	cancel()
	for name, c := range map[string]struct {
		do   func(*gate)
		want error // nil: the drivers
	}{
		"closed":                {func(*gate) {}, context.Canceled},
		"open":                  {func(g *gate) { g.open(opened()) }, nil},
		"refused":               {func(g *gate) { g.refuse(errFirst) }, errFirst},
		"trouble":               {func(g *gate) { g.trouble(errFirst) }, errFirst},
		"other trouble":         {func(g *gate) { g.trouble(errFirst); g.trouble(errSecond) }, errSecond},
		"trouble over":          {func(g *gate) { g.trouble(errFirst); g.trouble(nil) }, context.Canceled},
		"open after trouble":    {func(g *gate) { g.trouble(errFirst); g.open(opened()) }, nil},
		"trouble after open":    {func(g *gate) { g.open(opened()); g.trouble(errFirst) }, nil},
		"open after refusal":    {func(g *gate) { g.refuse(errFirst); g.open(opened()) }, errFirst},
		"refusal after open":    {func(g *gate) { g.open(opened()); g.refuse(errFirst) }, nil},
		"shut":                  {func(g *gate) { g.open(opened()); g.shut() }, context.Canceled},
		"open after shut":       {func(g *gate) { g.open(opened()); g.shut(); g.open(opened()) }, nil},
		"shut after refusal":    {func(g *gate) { g.refuse(errFirst); g.shut() }, errFirst},
		"refused after trouble": {func(g *gate) { g.trouble(errFirst); g.refuse(errSecond) }, errSecond},
	} {
		g := newGate()
		c.do(g)
		got, err := g.Ready(impatient)
		if !errors.Is(err, c.want) || (err == nil) != (got.IPAM != nil) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
	}
}

// TestGateWaits holds that callers wait for the decision, all of them.
func TestGateWaits(t *testing.T) {
	g := newGate()
	g.trouble(errFirst)
	const callers = 10
	entered, answers := make(chan struct{}), make(chan error)
	for range callers {
		go func() {
			entered <- struct{}{}
			_, err := g.Ready(context.Background())
			answers <- err
		}()
	}
	for range callers {
		<-entered
	}
	select {
	case err := <-answers:
		t.Fatalf("an answer before the decision: %v", err)
	default:
	}
	g.open(opened())
	for range callers {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
}

// TestGateShutMeanwhile: whoever comes through has drivers, however often the
// gate is shut and opened again.
func TestGateShutMeanwhile(t *testing.T) {
	g := newGate()
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		for ctx.Err() == nil {
			g.open(opened())
			g.shut()
		}
		g.open(opened())
	})
	for range 100_000 {
		if got, err := g.Ready(t.Context()); err != nil || got.IPAM == nil {
			t.Errorf("came through with %v, %v", got, err)
			break
		}
	}
	stop()
	all.Wait()
}
