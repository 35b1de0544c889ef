package daemon

import (
	"context"
	"sync"

	"weave/plugin/dockerapi"
)

// gate lets Docker's calls through once there is somebody to answer them.
// dockerd must find the plugin listening long before that, or it disables it
// for good.
type gate struct {
	mu      sync.Mutex
	done    chan struct{} // closed by open or refuse
	drivers dockerapi.Drivers
	err     error
	decided bool
}

func newGate() *gate { return &gate{done: make(chan struct{})} }

// open lets calls through to the drivers.
func (g *gate) open(d dockerapi.Drivers) { g.decide(d, nil) }

// refuse answers all calls with an error, which says the way out.
func (g *gate) refuse(err error) { g.decide(dockerapi.Drivers{}, err) }

func (g *gate) decide(d dockerapi.Drivers, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.decided {
		return
	}
	g.drivers, g.err, g.decided = d, err, true
	close(g.done)
}

// shut makes callers wait again, until the next open.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.decided && g.err == nil {
		g.drivers, g.decided, g.done = dockerapi.Drivers{}, false, make(chan struct{})
	}
}

// trouble says why the gate is still closed: callers that lose their patience
// are told.
func (g *gate) trouble(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.decided {
		g.err = err
	}
}

func (g *gate) state() (drivers dockerapi.Drivers, decided bool, done <-chan struct{}, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.drivers, g.decided, g.done, g.err
}

// Ready implements dockerapi.Gate. A gate that opened may be shut again before
// the caller comes through: then it waits on.
func (g *gate) Ready(ctx context.Context) (dockerapi.Drivers, error) {
	for {
		drivers, decided, done, err := g.state()
		switch {
		case decided, err != nil && ctx.Err() != nil:
			return drivers, err
		case ctx.Err() != nil:
			return drivers, ctx.Err()
		}
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
}
