package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// What is kept of a corpus lies in testdata/fuzz, as files called kept-*. Of all
// inputs that there are, the shortest first, those are kept that run a statement of
// the project which no shorter one ran, nor those that the target itself names; and
// then, as far as there is room, those that do so in what parses for the project in
// the standard library. So the tests replay in a moment what fuzzing took long to
// find, and fuzzing goes on from there on any machine. Other files there are inputs
// that once failed: they stay.
const (
	keptPrefix = "kept-"
	maxKept    = 30
	maxInput   = 4 << 10  // bytes of a file
	maxCorpus  = 24 << 10 // bytes of all that is kept of one target
)

// keep chooses anew, and returns how many inputs are kept.
func (t target) keep(ctx context.Context) (int, error) {
	r, err := newReplay(ctx, t)
	if err != nil {
		return 0, fmt.Errorf("keep inputs: %w", err)
	}
	defer func() { _ = os.RemoveAll(r.dir) }()
	inputs, err := t.inputs(ctx)
	if err != nil {
		return 0, fmt.Errorf("keep inputs: %w", err)
	}
	kept, err := choose(inputs, r.statements, func(piece string) bool { return !parsing.MatchString(piece) })
	if err == nil {
		err = t.write(kept)
	}
	return len(kept), err
}

// inputs are those that go test has found on this machine, and those kept before.
func (t target) inputs(ctx context.Context) ([][]byte, error) {
	cache, err := output(ctx, "go", "env", "GOCACHE")
	if err != nil {
		return nil, err
	}
	pkg, err := output(ctx, "go", "list", "./"+filepath.ToSlash(t.dir))
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(t.corpus(), keptPrefix+"*"))
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(cache, "fuzz", filepath.FromSlash(pkg), t.name, "*"))
	if err != nil {
		return nil, err
	}
	var all [][]byte
	for _, file := range append(files, found...) {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

func (t target) corpus() string { return filepath.Join(t.dir, "testdata", "fuzz", t.name) }

// choose asks of one input after the other which statements it runs; of none, which
// ones run without it. Those that are ours come first.
func choose(inputs [][]byte, statements func(input []byte) (map[string]bool, error), ours func(string) bool) ([][]byte, error) {
	slices.SortFunc(inputs, func(a, b []byte) int { return cmp.Or(cmp.Compare(len(a), len(b)), bytes.Compare(a, b)) })
	inputs = slices.CompactFunc(inputs, bytes.Equal)
	ran, err := statements(nil)
	if err != nil {
		return nil, err
	}
	var all []candidate
	for _, input := range inputs {
		if len(input) > maxInput {
			break
		}
		runs, err := statements(input)
		if err != nil {
			return nil, err
		}
		maps.DeleteFunc(runs, func(piece string, _ bool) bool { return ran[piece] })
		all = append(all, candidate{input, runs})
	}
	kept := pick(nil, all, ran, ours)
	return pick(kept, all, ran, func(string) bool { return true }), nil
}

// candidate is an input with the statements that do not run without it.
type candidate struct {
	input []byte
	runs  map[string]bool
}

// pick adds to kept the candidates that run a statement which counts and has not
// run, as far as there is room.
func pick(kept [][]byte, all []candidate, ran map[string]bool, counts func(string) bool) [][]byte {
	for _, c := range all {
		news := false
		for piece := range c.runs {
			news = news || !ran[piece] && counts(piece)
		}
		if news && len(kept) < maxKept && len(bytes.Join(kept, nil))+len(c.input) <= maxCorpus {
			kept = append(kept, c.input)
			maps.Copy(ran, c.runs)
		}
	}
	return kept
}

// write replaces what was kept before.
func (t target) write(kept [][]byte) error {
	old, err := filepath.Glob(filepath.Join(t.corpus(), keptPrefix+"*"))
	if err != nil {
		return err
	}
	for _, file := range old {
		err = errors.Join(err, os.Remove(file))
	}
	if len(kept) > 0 {
		err = errors.Join(err, os.MkdirAll(t.corpus(), 0o755))
	}
	for _, input := range kept {
		name := fmt.Sprintf("%s%x", keptPrefix, sha256.Sum256(input))[:len(keptPrefix)+16]
		err = errors.Join(err, os.WriteFile(filepath.Join(t.corpus(), name), input, 0o644))
	}
	return err
}

// replay runs a target on one input at a time, in a copy of its package's folder
// that has no other.
type replay struct {
	ctx    context.Context
	target target
	dir    string
}

func newReplay(ctx context.Context, t target) (*replay, error) {
	dir, err := os.MkdirTemp("", "fuzz")
	if err != nil {
		return nil, err
	}
	r := &replay{ctx, t, dir}
	err = errors.Join(r.link(t.dir, "", "testdata"), r.link(filepath.Join(t.dir, "testdata"), "testdata", "fuzz"),
		os.MkdirAll(filepath.Join(dir, r.target.corpusBelow()), 0o755), r.build())
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return r, nil
}

func (t target) corpusBelow() string { return filepath.Join("testdata", "fuzz", t.name) }

// link shows what is in a folder below the copy, but for one name.
func (r *replay) link(folder, below, but string) error {
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Join(r.dir, below), 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == but {
			continue
		}
		from, err := filepath.Abs(filepath.Join(folder, e.Name()))
		if err == nil {
			err = os.Symlink(from, filepath.Join(r.dir, below, e.Name()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parsing matches the packages of the standard library whose statements count, and
// those themselves, which begin with the package's path. strconv is not among them:
// package testing reads the inputs' files by it.
var parsing = regexp.MustCompile(`^(encoding|net)(/|$)`)

// build compiles the target such that it notes which statements run.
func (r *replay) build() error {
	pkg := "./" + filepath.ToSlash(r.target.dir)
	deps, err := output(r.ctx, "go", "list", "-deps", "-f", "{{.ImportPath}} {{if .Module}}{{.Module.Main}}{{end}}", pkg)
	if err != nil {
		return err
	}
	var count []string
	for line := range strings.Lines(deps) {
		if path, ours := strings.CutSuffix(strings.TrimSpace(line), " true"); ours || parsing.MatchString(path) {
			count = append(count, path)
		}
	}
	_, err = output(r.ctx, "go", "test", "-c", "-vet=off", "-cover", "-covermode=set",
		"-coverpkg="+strings.Join(count, ","), "-o", r.path("fuzz.test"), pkg)
	return err
}

func (r *replay) path(name string) string { return filepath.Join(r.dir, name) }

// statements are those that run with an input, and for nil those that run anyway.
func (r *replay) statements(input []byte) (map[string]bool, error) {
	file := filepath.Join(r.dir, r.target.corpusBelow(), "input")
	run := "^" + r.target.name + "$"
	if input != nil {
		if err := os.WriteFile(file, input, 0o644); err != nil {
			return nil, err
		}
		defer func() { _ = os.Remove(file) }()
		run += "/^input$"
	}
	cmd := exec.CommandContext(r.ctx, r.path("fuzz.test"), "-test.run="+run, "-test.coverprofile="+r.path("cover"))
	cmd.Dir = r.dir
	out, err := cmd.CombinedOutput()
	switch {
	case bytes.Contains(out, []byte(" in corpus entry: ")): // it is of the target as it was before a change
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%s fails with\n%s%w\n%s", r.target, input, err, out)
	}
	profile, err := os.ReadFile(r.path("cover"))
	return covered(profile), err
}

// covered reads a profile: a line for each piece of code, with a count at its end.
func covered(profile []byte) map[string]bool {
	ran := map[string]bool{}
	for line := range strings.Lines(string(profile)) {
		if piece, ok := strings.CutSuffix(strings.TrimSpace(line), " 1"); ok {
			ran[piece] = true
		}
	}
	return ran
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(string(out)), nil
}
