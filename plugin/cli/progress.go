package cli

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progressAfter is how long a step may take before it is worth a word.
const progressAfter = time.Second

// progress tells what is being done, if that takes long: on a terminal in one
// line that goes away again, else in a line for each step.
type progress struct {
	w        io.Writer
	terminal bool

	mu    sync.Mutex
	steps int  // so that a step that has ended says no word
	shown bool // a line that is to go away
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, terminal: isTerminal(w)}
}

// step begins one, and ends the one before.
func (g *progress) step(what string) {
	g.done()
	g.mu.Lock()
	defer g.mu.Unlock()
	this := g.steps
	time.AfterFunc(progressAfter, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.steps != this {
			return
		}
		end := "\n"
		if g.terminal {
			g.shown, end = true, ""
		}
		_, _ = fmt.Fprintf(g.w, "%s ...%s", clean(what), end) // nothing is lost with it
	})
}

// done ends the last step; afterwards nothing is written.
func (g *progress) done() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.steps++
	if g.shown {
		_, _ = io.WriteString(g.w, "\r\x1b[K")
		g.shown = false
	}
}
