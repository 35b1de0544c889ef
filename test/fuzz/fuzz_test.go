package main

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "b", "b_test.go"), "package b\n\nfunc FuzzTwo(f *testing.F) {}\n\nfunc FuzzOne(f *testing.F) {\n}\n")
	write(t, filepath.Join(root, "a", "a_test.go"), "package a\n\nfunc FuzzTwo(f *testing.F) {}\nfunc TestTwo(t *testing.T) {}\nvar text = `\nfunc FuzzNot(f *testing.F) {}\n`\n")
	write(t, filepath.Join(root, "a", "a.go"), "package a\n\nfunc FuzzNot(f *testing.F) {}\n")
	write(t, filepath.Join(root, "a", "testdata", "x_test.go"), "package a\n\nfunc FuzzNot(f *testing.F) {}\n")
	for pattern, want := range map[string][]target{
		"":         {{"a", "FuzzTwo"}, {"b", "FuzzOne"}, {"b", "FuzzTwo"}},
		"FuzzTwo":  {{"a", "FuzzTwo"}, {"b", "FuzzTwo"}},
		"^b .*One": {{"b", "FuzzOne"}},
		"c":        nil,
	} {
		got, err := find(root, pattern)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v", pattern, got, err)
		}
	}
	if _, err := find(root, "("); err == nil {
		t.Error("no regular expression, and no error")
	}
}

func TestProgress(t *testing.T) {
	out := []byte(`fuzz: elapsed: 0s, gathering baseline coverage: 0/9 completed
fuzz: elapsed: 3s, execs: 102 (33/sec), new interesting: 1 (total: 8)
fuzz: elapsed: 10m1s, execs: 4711 (0/sec), new interesting: 12 (total: 19)
PASS
`)
	took, executions, news := progress(out)
	if took != 10*time.Minute+time.Second || executions != 4711 || news != 12 {
		t.Errorf("%v, %d, %d", took, executions, news)
	}
	if rest := string(withoutProgress(out)); rest != "PASS\n" {
		t.Errorf("left is %q", rest)
	}
}

func TestTimeIsUp(t *testing.T) {
	for out, want := range map[string]bool{
		"--- FAIL: FuzzOne (10.01s)\n    context deadline exceeded\nFAIL\n":                                     true,
		"--- FAIL: FuzzOne (1.01s)\n    a_test.go:7: context deadline exceeded\nFAIL\n":                         false,
		"    context deadline exceeded\n\n    Failing input written to testdata/fuzz/FuzzOne/1\n":               false,
		"--- FAIL: FuzzOne (1.01s)\n    fuzzing process hung or terminated unexpectedly: exit status 2\nFAIL\n": false,
	} {
		if timeIsUp([]byte(out)) != want {
			t.Errorf("%q: want %v", out, want)
		}
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 12345678: "12,345,678"} {
		if got := grouped(n); got != want {
			t.Errorf("%d is %s", n, got)
		}
	}
}

func TestChoose(t *testing.T) {
	statements := func(input []byte) (map[string]bool, error) {
		ran := map[string]bool{"always": true}
		for _, b := range input {
			if b == '!' {
				return nil, errors.New("crashes")
			}
			ran[string(b)] = true
		}
		return ran, nil
	}
	each := func(string) bool { return true }
	got, err := choose([][]byte{[]byte("abab"), []byte("b"), []byte("abc"), []byte("b"), []byte(""), make([]byte, maxInput+1)}, statements, each)
	if err != nil || len(got) != 2 || string(got[0]) != "b" || string(got[1]) != "abc" {
		t.Errorf("%q, %v", got, err)
	}
	got, err = choose([][]byte{[]byte("x"), []byte("xab"), []byte("y")}, statements, func(s string) bool { return s == "a" })
	if err != nil || len(got) != 2 || string(got[0]) != "xab" || string(got[1]) != "y" {
		t.Errorf("ours first: %q, %v", got, err)
	}
	var many [][]byte
	for i := range 2 * maxKept {
		many = append(many, []byte{byte(128 + i)})
	}
	if got, err = choose(many, statements, each); err != nil || len(got) != maxKept {
		t.Errorf("%d of %d, %v", len(got), len(many), err)
	}
	for i := range many {
		many[i] = append(many[i], make([]byte, maxInput-1)...)
	}
	if got, err = choose(many, statements, each); err != nil || len(got) != maxCorpus/maxInput {
		t.Errorf("%d of %d, %v", len(got), len(many), err)
	}
	if _, err := choose([][]byte{[]byte("!")}, statements, each); err == nil {
		t.Error("an input that crashes was passed over")
	}
}

// TestKeep has a project with one target and some inputs: one runs what the others do
// not, one is what the target names itself, one is of another form, one once failed.
func TestKeep(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "go.mod", "module example\n\ngo 1.26\n")
	write(t, "p/p.go", "package p\n\nfunc odd(b []byte) int {\n\tif string(b) == \"odd\" {\n\t\treturn 1\n\t}\n\treturn 0\n}\n")
	write(t, "p/p_test.go", `package p

import (
	"os"
	"testing"
)

func FuzzOdd(f *testing.F) {
	if b, err := os.ReadFile("testdata/there"); err != nil || string(b) != "there" {
		f.Fatal(err)
	}
	f.Add([]byte("seed"))
	f.Fuzz(func(t *testing.T, b []byte) { odd(b) })
}
`)
	write(t, "p/testdata/there", "there")
	corpus := filepath.Join("p", "testdata", "fuzz", "FuzzOdd")
	for name, input := range map[string]string{"kept-1": `[]byte("odd")`, "kept-2": `[]byte("seed")`, "kept-3": "int(1)", "failed": `[]byte("x")`} {
		write(t, filepath.Join(corpus, name), "go test fuzz v1\n"+input+"\n")
	}
	n, err := target{"p", "FuzzOdd"}.keep(t.Context())
	if err != nil || n != 1 {
		t.Fatalf("%d kept, %v", n, err)
	}
	files, err := filepath.Glob(filepath.Join(corpus, "*"))
	if err != nil || len(files) != 2 || filepath.Base(files[0]) != "failed" || !strings.HasPrefix(filepath.Base(files[1]), keptPrefix) {
		t.Fatalf("%q, %v", files, err)
	}
	if b, err := os.ReadFile(files[1]); err != nil || !strings.Contains(string(b), `"odd"`) {
		t.Errorf("kept %q, %v", b, err)
	}
}
