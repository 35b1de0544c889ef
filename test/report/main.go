// Command report runs `go test` and says how it went: a line per package, the
// output of what failed, a line with the reason per test that was skipped, and
// at the very end one line
//
//	N passed, N failed, N skipped
//
// Its arguments are those of go test, after NAME=VALUE for its environment; "--"
// begins another run, with arguments of its own, that counts towards the same
// sum. It fails if a test or a build
// failed, or if nothing ran. It does not choose tests: see test.mk.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() {
	t := newTally(os.Stdout)
	ok := true
	for _, args := range split(os.Args[1:]) {
		if err := run(t, args); err != nil {
			fmt.Println("go test:", err)
			ok = false
		}
	}
	t.printSkips()
	passed, failed, skipped := t.totals()
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if !ok || failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

func split(args []string) [][]string {
	if i := slices.Index(args, "--"); i >= 0 {
		return append([][]string{args[:i]}, split(args[i+1:])...)
	}
	return [][]string{args}
}

func run(t *tally, args []string) error {
	env, args := environment(args)
	cmd := exec.Command("go", command(args)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := eachLine(out, t.add)
	t.endRun()
	if err := cmd.Wait(); err != nil {
		return err
	}
	return readErr
}

// environment cuts the variables off the front.
func environment(args []string) (env, rest []string) {
	n := 0
	for n < len(args) && !strings.HasPrefix(args[n], "-") && strings.Contains(args[n], "=") {
		n++
	}
	return args[:n], args[n:]
}

// command puts -json in; go wants -C before all other flags.
func command(args []string) []string {
	first := 0
	if len(args) > 0 && strings.HasPrefix(args[0], "-C=") {
		first = 1
	}
	return slices.Concat([]string{"test"}, args[:first], []string{"-json"}, args[first:])
}

// eachLine hands over the lines of r, of any length.
func eachLine(r io.Reader, f func([]byte)) error {
	var rest []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		rest = append(rest, buf[:n]...)
		for {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				break
			}
			f(rest[:i])
			rest = rest[i+1:]
		}
		if err == io.EOF {
			if len(rest) > 0 {
				f(rest)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}
