package cli

import (
	"os"

	"golang.org/x/term"

	"weave/plugin/attach"
)

// userTerminal is the one that standard input is.
type userTerminal struct{ fd int }

// terminal is nil if standard input is none.
func terminal() attach.Terminal {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return nil
	}
	return userTerminal{fd}
}

// Raw implements attach.Terminal.
func (t userTerminal) Raw() (restore func(), err error) {
	old, err := term.MakeRaw(t.fd)
	return func() { _ = term.Restore(t.fd, old) }, err
}

// Size implements attach.Terminal.
func (t userTerminal) Size() (width, height int, err error) { return term.GetSize(t.fd) }
