package ipam

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Errors of this package. Texts around them name the thing and the way out.
var (
	ErrFull        = errors.New("no free address")
	ErrInUse       = errors.New("address in use")
	ErrInvalid     = errors.New("invalid request")
	ErrOverlap     = errors.New("overlaps")
	ErrUnknownPool = errors.New("unknown pool")
	ErrNoAnswer    = errors.New("no answer")
	ErrNoAgreement = errors.New("no agreement")
	ErrCorrupt     = errors.New("stored state is corrupt")
	ErrUnknownPeer = errors.New("unknown peer")
	ErrAlive       = errors.New("peer is alive")
	ErrStale       = errors.New("disk is older than what others know")
	ErrRemoved     = errors.New("this host was removed with `weave rmpeer` and is re-joining as a new one; try again in a moment")
)

// plain is an error whose text says it all, so that its kind need not.
type plain struct {
	text string
	kind error
}

func (p plain) Error() string { return p.text }
func (p plain) Unwrap() error { return p.kind }

// errorf is an error of a kind which is not in its text.
func errorf(kind error, format string, args ...any) error {
	return plain{fmt.Sprintf(format, args...), kind}
}

// maxDetail bounds what another peer says of itself in an error, in bytes.
const maxDetail = 1 << 10

// printable makes another peer's text fit for an error, which ends up in logs and
// on terminals: at most limit bytes, and none that cannot be seen.
func printable(s string, limit int) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return '?'
	}, s[:min(len(s), limit)])
}
