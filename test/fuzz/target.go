package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// target is a fuzz test.
type target struct {
	dir  string // of its package, from the root of the project
	name string
}

func (t target) String() string { return filepath.ToSlash(t.dir) + " " + t.name }

// find lists the targets below root that a regular expression matches, in order.
func find(root, pattern string) ([]target, error) {
	wanted, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	var all []target
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (d.Name()[0] == '.' || d.Name() == "testdata" || d.Name() == "build") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		names, err := fuzzTests(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		for _, name := range names {
			if t := (target{dir, name}); wanted.MatchString(t.String()) {
				all = append(all, t)
			}
		}
		return err
	})
	slices.SortFunc(all, func(a, b target) int { return cmp.Or(cmp.Compare(a.dir, b.dir), cmp.Compare(a.name, b.name)) })
	return all, err
}

func fuzzTests(path string) (names []string, err error) {
	syntax, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, decl := range syntax.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Fuzz") {
			names = append(names, fn.Name.Name)
		}
	}
	return names, nil
}

// fuzz runs the target. What fails, go test writes beside the package's other test
// data; that file belongs to the commit which mends it. By itself go test would spend
// most of the time on making inputs shorter, a minute each.
func (t target) fuzz(ctx context.Context, length time.Duration) result {
	r := result{target: t}
	cmd := exec.CommandContext(ctx, "go", "test", "-vet=off", "-timeout=0", "-run=^$", "-fuzz=^"+t.name+"$",
		"-fuzztime="+length.String(), "-fuzzminimizetime=1s", "-parallel=1", "./"+filepath.ToSlash(t.dir))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	out, err := cmd.CombinedOutput()
	r.took, r.executions, r.news = progress(out)
	switch {
	case err != nil && !timeIsUp(out):
		r.err = fmt.Errorf("%w\n%s", err, withoutProgress(out))
	case ctx.Err() != nil:
		r.err = ctx.Err()
	case r.executions == 0:
		r.err = fmt.Errorf("nothing was executed\n%s", withoutProgress(out))
	}
	return r
}

var progressLine = regexp.MustCompile(`^fuzz: elapsed: (\S+), execs: (\d+) .*new interesting: (\d+)`)

// timeIsUp tells that nothing failed but go test itself: in Go 1.26 it may take the end
// of the time for a failure (go.dev/issue/75804).
func timeIsUp(out []byte) bool {
	return bytes.Contains(out, []byte("\n    context deadline exceeded\n")) && !bytes.Contains(out, []byte("Failing input"))
}

// withoutProgress is what is left to say of a failure.
func withoutProgress(out []byte) (rest []byte) {
	for line := range bytes.Lines(out) {
		if !bytes.HasPrefix(line, []byte("fuzz: elapsed: ")) {
			rest = append(rest, line...)
		}
	}
	return rest
}

// progress reads how far fuzzing came from the last line that tells it.
func progress(out []byte) (took time.Duration, executions uint64, news int) {
	for line := range bytes.Lines(out) {
		if m := progressLine.FindSubmatch(line); m != nil {
			took, _ = time.ParseDuration(string(m[1]))
			executions, _ = strconv.ParseUint(string(m[2]), 10, 64)
			news, _ = strconv.Atoi(string(m[3]))
		}
	}
	return took, executions, news
}
