package sim

import (
	"fmt"
	"strings"
	"time"
)

// trace is what happened and when. The hash does not depend on the order within
// one instant, which is the Go scheduler's to choose.
type trace struct {
	start  time.Time
	events []event
	hash   uint64
}

type event struct {
	at   time.Duration
	what string
	args []any
}

func (t *trace) add(what string, args ...any) {
	e := event{time.Since(t.start), what, args}
	t.events = append(t.events, e)
	h := newHash().number(uint64(e.at)).text(e.what)
	for _, arg := range args {
		h = h.text(text(arg))
	}
	t.hash += uint64(h)
}

func text(arg any) string {
	switch arg := arg.(type) {
	case string:
		return arg
	case fmt.Stringer:
		return arg.String()
	}
	return fmt.Sprint(arg)
}

func (e event) String() string {
	return fmt.Sprintf("%12.6f %-10s %s", e.at.Seconds(), e.what, fmt.Sprintln(e.args...))
}

func (t *trace) String() string {
	var b strings.Builder
	for _, e := range t.events {
		b.WriteString(e.String())
	}
	return b.String()
}

// hash is FNV-1a of 64 bits. It is not hash/fnv, which allocates: the dice of
// each message are cast by it.
type hash uint64

const (
	hashStart = 14695981039346656037
	hashPrime = 1099511628211
)

func newHash() hash { return hashStart }

func (h hash) byte(b byte) hash { return (h ^ hash(b)) * hashPrime }

func (h hash) number(n uint64) hash {
	for range 8 {
		h = h.byte(byte(n))
		n >>= 8
	}
	return h
}

func (h hash) text(s string) hash {
	for i := range len(s) {
		h = h.byte(s[i])
	}
	return h.byte(0)
}

func (h hash) bytes(b []byte) hash {
	for _, c := range b {
		h = h.byte(c)
	}
	return h
}

// mix makes one number of several.
func mix(numbers ...uint64) uint64 {
	h := newHash()
	for _, n := range numbers {
		h = h.number(n)
	}
	return uint64(h ^ h>>32)
}
