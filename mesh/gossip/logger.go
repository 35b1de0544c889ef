package gossip

import (
	"bytes"
	"log"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"
)

// newLogger turns memberlist's lines into entries: its errors are warnings, as
// long as there are few of them, and all else is for debugging. What happens to
// members is told by Events, not by these lines.
func newLogger(entry *logrus.Entry) *log.Logger {
	return log.New(&logWriter{
		entry:    entry,
		warnings: newWarnings(),
	}, "", 0)
}

// newWarnings bounds the warnings that others can cause.
func newWarnings() *rate.Limiter { return rate.NewLimiter(rate.Every(10*time.Second), 3) }

// warnLevel is the level of a warning: beyond the bound it is for debugging.
func warnLevel(warnings *rate.Limiter) logrus.Level {
	if warnings.Allow() {
		return logrus.WarnLevel
	}
	return logrus.DebugLevel
}

type logWriter struct {
	entry    *logrus.Entry
	warnings *rate.Limiter
}

// Write takes one line, like "[WARN] memberlist: text".
func (w *logWriter) Write(line []byte) (int, error) {
	n := len(line)
	line = bytes.TrimSpace(line)
	level := logrus.DebugLevel
	for _, mark := range []string{"[DEBUG] ", "[INFO] ", "[WARN] ", "[ERR] ", "[ERROR] "} {
		if rest, ok := bytes.CutPrefix(line, []byte(mark)); ok {
			line = rest
			// Packets may be lost; that a peer is away is told by Events.
			if mark[1] == 'E' && !bytes.Contains(rest, []byte("Failed to send")) {
				level = warnLevel(w.warnings)
			}
			break
		}
	}
	line = bytes.TrimPrefix(line, []byte("memberlist: "))
	w.entry.Log(level, "memberlist: "+cleanName(string(line)))
	return n, nil
}
