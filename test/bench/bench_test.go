package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"weave/test/bench/report"
)

func TestParse(t *testing.T) {
	s, err := parse([]string{"-systems=weave,vxlan", "-offloads=off", "-rounds=2"})
	if err != nil || len(s.systems) != 2 || len(s.modes) != 1 || s.rounds != 2 || s.docs != "" {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err = parse(nil); err != nil || len(s.systems) != len(systems()) || filepath.Base(s.docs) != "docs" {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err = parse([]string{"-docs=none"}); err != nil || s.docs != "" {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range [][]string{{"-systems=weve"}, {"-rounds=0"}, {"-window=1ms"}, {"more"}, {"-measures="}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestIsOffload(t *testing.T) {
	for name, want := range map[string]bool{
		"tx-tcp-segmentation": true, "tx-udp-segmentation": true, "tx-generic-segmentation": true, "tx-checksum-ip-generic": true,
		"rx-gro": true, "tx-scatter-gather": true, "tx-scatter-gather-fraglist": true, "rx-checksum": true,
		"highdma": false, "tx-vlan-hw-insert": false, "loopback": false, "rx-all": false,
	} {
		if isOffload(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

func TestCPUTime(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); time.Since(start) < 10*time.Second; {
		now, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			return
		}
	}
	t.Error("ten busy seconds took no time")
}

func TestDispatchKeepsAgentsToTheBenchmark(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	defer func(old *os.File) { os.Stdin = old }(os.Stdin)
	os.Stdin = null
	if err := runAgent(t.Context(), nil); err == nil {
		t.Error("an agent without a benchmark")
	}
}

// A system raises its processes as children that go when it is closed.
func TestPair(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	p, err := newPair(newThread(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
		left, err := filepath.Glob("/run/netns/" + p.lab.Name() + "*")
		if err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}()
	if err := buildVXLAN(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for _, on := range []bool{true, false, true} {
		if err := p.setOffloads(on); err != nil {
			t.Error(err)
		}
	}
	for _, h := range report.HardModes() {
		if err := p.harden(h); err != nil {
			t.Errorf("%s: %v", h.Title, err)
		}
		if lost, err := p.lost(); err != nil || lost != 0 {
			t.Errorf("%s: lost %v without traffic: %v", h.Title, lost, err)
		}
		if err := p.soften(); err != nil {
			t.Errorf("%s: %v", h.Title, err)
		}
	}
	short, err := p.starter.start(program{space: p.ends[0].space, log: p.log("false", 0), args: []string{"/bin/sh", "-c", "echo why >&2; exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	p.daemons = append(p.daemons, short)
	<-short.done
	if err := p.alive(); err == nil || errors.Is(err, errLacks) {
		t.Errorf("a dead daemon: %v", err)
	}
}
