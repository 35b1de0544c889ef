package cli

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgress: a step that is short leaves no word; on a terminal the words of
// the others go away.
func TestProgress(t *testing.T) {
	for terminal, want := range map[bool]string{
		false: "Making ...\nWaiting ...\n",
		true:  "Making ...\r\x1b[KWaiting ...\r\x1b[K",
	} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			g := newProgress(&out)
			g.terminal = terminal
			for _, step := range []struct {
				name string
				took time.Duration
			}{{"Looking", progressAfter - 1}, {"Making", 2 * progressAfter}, {"Stopping", 0}, {"Waiting", progressAfter}} {
				g.step(step.name)
				time.Sleep(step.took)
				synctest.Wait()
			}
			g.done()
			time.Sleep(time.Hour)
			if got := out.String(); got != want {
				t.Errorf("terminal %v: got %q, want %q", terminal, got, want)
			}
		})
	}
}
