package main

import (
	"reflect"
	"strings"
	"testing"
)

func TestTotals(t *testing.T) {
	type counts struct{ passed, failed, skipped int }
	tests := []struct {
		name   string
		events string
		want   counts
		prints string
	}{
		{"nothing", ``, counts{}, ""},
		{"pass and skip", `{"Action":"start","Package":"p"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"skip","Package":"p","Test":"B"}
{"Action":"pass","Package":"p","Elapsed":1.5}`, counts{1, 0, 1}, "pass p 1.5s\n"},
		{"leaves only", `{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"output","Package":"p","Test":"A/y/z","Output":"why\n"}
{"Action":"fail","Package":"p","Test":"A/y/z"}
{"Action":"fail","Package":"p","Test":"A/y"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}`, counts{1, 1, 0}, "why\nfail p 0.0s\n"},
		{"parent fails alone", `{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}`, counts{1, 1, 0}, "fail p 0.0s\n"},
		{"package fails alone", `{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Output":"leak\n"}
{"Action":"fail","Package":"p"}`, counts{1, 1, 0}, "leak\nfail p 0.0s\n"},
		{"a package in two runs", `{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Output":"leak\n"}
{"Action":"fail","Package":"p"}
{"Action":"pass","Package":"p","Test":"B"}
{"Action":"pass","Package":"p"}`, counts{2, 1, 0}, "leak\nfail p 0.0s\npass p 0.0s\n"},
		{"build fails", `{"ImportPath":"p [p.test]","Action":"build-output","Output":"undefined: x\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"start","Package":"p"}
{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`, counts{0, 1, 0}, "undefined: x\nfail p 0.0s\n"},
		{"no result", `{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Test":"A","Output":"busy\n"}`, counts{0, 1, 0}, "busy\nfail p 0.0s\n"},
		{"not JSON", `go: broken`, counts{}, "go: broken\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			tally := newTally(&out)
			if err := eachLine(strings.NewReader(test.events), tally.add); err != nil {
				t.Fatal(err)
			}
			tally.endRun()
			var got counts
			got.passed, got.failed, got.skipped = tally.totals()
			if got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
			if out.String() != test.prints {
				t.Errorf("printed %q, want %q", out.String(), test.prints)
			}
		})
	}
}

// TestSkipsHaveReasons: a sum with skips says which tests, and why.
func TestSkipsHaveReasons(t *testing.T) {
	const events = `{"Action":"output","Package":"p","Test":"A/b","Output":"=== RUN   A/b\n"}
{"Action":"output","Package":"p","Test":"A/b","Output":"    a_test.go:7: needs root\n"}
{"Action":"output","Package":"p","Test":"A/b","Output":"    --- SKIP: A/b (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"A/b"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"skip","Package":"p","Test":"C"}
{"Action":"skip","Package":"no/tests"}`
	var out strings.Builder
	tally := newTally(&out)
	if err := eachLine(strings.NewReader(events), tally.add); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	tally.printSkips()
	if want := "skip p A/b: a_test.go:7: needs root\nskip p C: no reason given\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}

func TestEnvironment(t *testing.T) {
	for args, want := range map[string]int{"A=1 B=2 -c=3 ./d": 2, "-c=3 A=1": 0, "./d A=1": 0, "": 0} {
		env, rest := environment(strings.Fields(args))
		if len(env) != want || strings.Join(append(env, rest...), " ") != args {
			t.Errorf("%q: %q and %q", args, env, rest)
		}
	}
}

func TestCommand(t *testing.T) {
	for args, want := range map[string]string{
		"-race ./...":        "test -json -race ./...",
		"-C=dir -race ./...": "test -C=dir -json -race ./...",
		"":                   "test -json",
	} {
		if got := strings.Join(command(strings.Fields(args)), " "); got != want {
			t.Errorf("%q gave %q, want %q", args, got, want)
		}
	}
}

func TestSplit(t *testing.T) {
	got := split([]string{"-race", "./a", "--", "./b"})
	want := [][]string{{"-race", "./a"}, {"./b"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}
