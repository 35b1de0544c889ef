package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// printer writes text for a person and keeps the first error.
type printer struct {
	w     io.Writer
	now   time.Time
	color bool
	err   error
}

func newPrinter(w io.Writer, now time.Time) *printer {
	return &printer{w: w, now: now, color: wantsColor(w)}
}

// wantsColor follows https://no-color.org and leaves files and pipes plain.
func wantsColor(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && isTerminal(w)
}

// isTerminal tells whether a line can be taken back and have colours.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

// line writes one line. Arguments that others have chosen go through clean.
func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// The looks of a terminal's text (SGR).
const (
	bold   = "1"
	red    = "1;31"
	yellow = "1;33"
	green  = "32"
)

// style wraps text that is already padded.
func (p *printer) style(sgr, text string) string {
	if !p.color {
		return text
	}
	return "\x1b[" + sgr + "m" + text + "\x1b[0m"
}

// heading begins a section.
func (p *printer) heading(format string, args ...any) {
	p.line("")
	p.line("%s", p.style(bold, fmt.Sprintf(format, args...)))
}

// column is one of a table; numbers stand on the right.
type column struct {
	name  string
	right bool
}

func left(name string) column  { return column{name: name} }
func right(name string) column { return column{name: name, right: true} }

// table writes rows below a header, indented by two, columns aligned and two
// spaces apart. Each row has a cell for each column.
func (p *printer) table(columns []column, rows [][]string) {
	header := make([]string, len(columns))
	width := make([]int, len(columns))
	for i, c := range columns {
		header[i], width[i] = c.name, len(c.name)
		for _, row := range rows {
			row[i] = clean(row[i])
			width[i] = max(width[i], utf8.RuneCountInString(row[i]))
		}
	}
	for _, row := range append([][]string{header}, rows...) {
		var b strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if columns[i].right {
				b.WriteString("  " + pad + cell)
			} else {
				b.WriteString("  " + cell + pad)
			}
		}
		p.line("%s", strings.TrimRight(b.String(), " "))
	}
}

// clean replaces what could disturb the terminal: names come from containers
// and from other hosts.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// cleanLines is clean for text of several lines, which may be indented.
func cleanLines(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' || r == '\t' {
			return r
		}
		return '?'
	}, s)
}

// orDash stands in for what is not known.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// ago tells how long ago t was, as in "3 minutes".
func (p *printer) ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return duration(p.now.Sub(t))
}

// duration rounds d down to its largest unit.
func duration(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return count(uint64(d/time.Second), "second", "seconds")
	case d < time.Hour:
		return count(uint64(d/time.Minute), "minute", "minutes")
	case d < day:
		return count(uint64(d/time.Hour), "hour", "hours")
	}
	return count(uint64(d/day), "day", "days")
}

// age tells how long ago t was to its two largest units, as in "3m12s".
func (p *printer) age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	const day = 24 * time.Hour
	d := max(p.now.Sub(t), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}

func count(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// roundTrip writes a round-trip time with two or three digits.
func roundTrip(d time.Duration) string {
	switch {
	case d <= 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%d us", d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// size writes a size in powers of 1000.
func size(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	x, units := float64(n)/1000, "kMGTPE"
	for x >= 999.95 {
		x, units = x/1000, units[1:]
	}
	return fmt.Sprintf("%.1f %cB", x, units[0])
}

// shortID cuts the long IDs of peers and of Docker's objects.
func shortID(id string) string { return id[:min(len(id), 12)] }

// peerName names a peer so that it can be told from another of the same name.
func peerName(nickname, id string) string {
	return fmt.Sprintf("%s (%s)", clean(orDash(nickname)), clean(shortID(id)))
}
