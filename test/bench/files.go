package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"weave/test/bench/report"
	"weave/test/dockerlab"
)

const workPrefix = "weave-bench-"

// workDir is where a run's daemons keep their files. The name tells later runs
// whether this one is over.
func workDir(pid int) string { return filepath.Join(os.TempDir(), workPrefix+strconv.Itoa(pid)) }

// sweep removes what killed runs left: their processes have ended with them.
func sweep() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), workPrefix+"*"))
	if err != nil {
		return err
	}
	errs := []error{dockerlab.Sweep()}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), workPrefix))
		if err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

// close ends all systems and removes their files.
func (b *bench) close() error {
	var errs []error
	for _, p := range b.pairs {
		errs = append(errs, p.close())
	}
	b.pairs = nil
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// machine describes where this runs.
func machine(ctx context.Context) report.Machine {
	m := report.Machine{Cores: runtime.NumCPU(), Go: runtime.Version(), CPU: "unknown CPU", Kernel: "unknown", Weave: "unknown"}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dockerlab.BuildDir(), "weave"), "--version").Output()
	if fields := strings.Fields(string(out)); err == nil && len(fields) > 0 {
		m.Weave = fields[len(fields)-1]
	}
	return m
}

// write prints what was to be reached, and writes the files.
func (b *bench) write() error {
	for _, v := range b.result.Verdicts() {
		fmt.Println(v)
	}
	text, err := json.MarshalIndent(b.result, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(b.json), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(b.json, append(text, '\n'), 0o644); err != nil {
		return err
	}
	b.say("all figures are in %s", b.json)
	if b.docs == "" {
		return nil
	}
	const chart = "benchmarks.svg"
	file := filepath.Join(b.docs, "benchmarks.md")
	document, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	spliced, err := report.Splice(string(document), b.result.Markdown(chart))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	b.say("tables in %s", file)
	return errors.Join(
		os.WriteFile(file, []byte(spliced), 0o644),
		os.WriteFile(filepath.Join(b.docs, chart), []byte(b.result.SVG()), 0o644),
	)
}
