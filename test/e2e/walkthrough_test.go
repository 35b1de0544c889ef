package e2e

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"weave/test/dockerlab"
)

// The walkthrough is a script, of which both a test and a document are made. It is
// Markdown, whose fences hold what is typed:
//
//	host1$ sudo weave ps
//	# has web 192.168.0.2
//
// The lines after a command are not for the document: what its output has, or does
// not have (# not), however wide the columns; that it fails (# fails); that it may
// take a while (# soon), and is typed again until all that holds. Nor is a fence
// that begins with ```hidden, and the empty line after it: it is only checked.
const walkthroughScript = "testdata/walkthrough.md"

var writeWalkthrough = flag.Bool("walkthrough.write", false, "write docs/walkthrough.md")

func walkthroughDocument() string {
	return filepath.Join(dockerlab.ProjectDir(), "docs", "walkthrough.md")
}

// walkthroughHosts have numbers of their own, since their addresses stand in the
// script.
var walkthroughHosts = map[int]string{11: "host1", 12: "host2"}

const (
	fence       = "```"
	hiddenFence = fence + "hidden"
)

var prompt = regexp.MustCompile(`^(host[12])\$ (.+)$`)

// scriptLine is a line of the document, or of a hidden fence.
type scriptLine struct {
	text     string
	inFence  bool
	hidden   bool
	host     string // of a command
	command  string // empty: it is none
	has, not []string
	fails    bool
	soon     bool
}

func readScript(t *testing.T) []scriptLine {
	t.Helper()
	text, err := os.ReadFile(walkthroughScript)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := parseScript(string(text))
	if err != nil {
		t.Fatalf("%s: %v", walkthroughScript, err)
	}
	return lines
}

func parseScript(text string) (lines []scriptLine, err error) {
	var inFence, hidden bool
	for raw := range strings.Lines(text) {
		line := scriptLine{text: strings.TrimRight(raw, "\n"), inFence: inFence, hidden: hidden}
		typed := prompt.FindStringSubmatch(line.text)
		switch {
		case line.text == hiddenFence, line.text == fence:
			inFence, line.inFence = !inFence, false
			hidden = hidden && !inFence || line.text == hiddenFence
			line.hidden = hidden
		case !inFence && hidden && line.text != "":
			return nil, fmt.Errorf("%q where an empty line ends what is hidden", line.text)
		case !inFence:
			hidden = false
		case typed != nil:
			line.host, line.command = typed[1], typed[2]
		case strings.HasPrefix(line.text, "# "):
			if len(lines) == 0 || !lines[len(lines)-1].expect(line.text[2:]) {
				return nil, fmt.Errorf("%q says nothing of a command", line.text)
			}
			continue
		case line.text != "":
			return nil, fmt.Errorf("%q in a fence", line.text)
		}
		lines = append(lines, line)
	}
	if inFence {
		return nil, errors.New("a fence has no end")
	}
	return lines, nil
}

func (l *scriptLine) expect(said string) bool {
	what, text, _ := strings.Cut(said, " ")
	switch {
	case l.command == "":
		return false
	case what == "has" && text != "":
		l.has = append(l.has, text)
	case what == "not" && text != "":
		l.not = append(l.not, text)
	case said == "fails":
		l.fails = true
	case said == "soon":
		l.soon = true
	default:
		return false
	}
	return true
}

// check compares what a command did with what the script says.
func (l *scriptLine) check(out string, err error) error {
	switch {
	case err != nil && !l.fails:
		return err
	case err == nil && l.fails:
		return fmt.Errorf("it does not fail:\n%s", out)
	}
	words := strings.Join(strings.Fields(out), " ")
	for _, has := range l.has {
		if !strings.Contains(words, has) {
			return fmt.Errorf("it does not say %q:\n%s", has, out)
		}
	}
	for _, not := range l.not {
		if strings.Contains(words, not) {
			return fmt.Errorf("it says %q:\n%s", not, out)
		}
	}
	return nil
}

// TestWalkthrough types what docs/walkthrough.md tells its readers to type, on two
// hosts that were just installed.
func TestWalkthrough(t *testing.T) {
	t.Parallel()
	script := readScript(t)
	requireRoot(t)
	if _, err := common.atLeast(0); err != nil {
		t.Fatalf("no lab: %v", err)
	}
	numbers := slices.Sorted(maps.Keys(walkthroughHosts))
	all := bootNumbers(t, numbers, func(i, _ int, h *dockerlab.Host) error {
		return errors.Join(h.RemovePlugin(), h.SetHostname(walkthroughHosts[numbers[i]]))
	})
	hosts := map[string]*dockerlab.Host{}
	for i, n := range numbers {
		hosts[walkthroughHosts[n]] = all[i]
	}
	var document strings.Builder
	for _, line := range script {
		var out string
		if line.command != "" {
			out = typeLine(t, hosts[line.host], line)
		}
		if line.hidden {
			continue
		}
		fmt.Fprintln(&document, line.text)
		for shown := range strings.SplitSeq(out, "\n") {
			if out != "" {
				fmt.Fprintln(&document, strings.TrimRight(shown, " \r"))
			}
		}
	}
	if *writeWalkthrough {
		text := strings.ReplaceAll(document.String(), buildVersion(t), documentVersion)
		if err := os.WriteFile(walkthroughDocument(), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// documentVersion stands in the document for the version that was walked through,
// which would be another one after each change.
const documentVersion = "1.0.0"

// versionSaid finds a version in what weave prints.
var versionSaid = regexp.MustCompile(`(?: of weave |^Started weave |^version +)([^ ,]+)`)

func buildVersion(t *testing.T) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(dockerlab.BuildDir(), "weave"), "--version").Output()
	version := strings.TrimSpace(strings.TrimPrefix(string(out), "weave "))
	if err != nil || version == "" {
		t.Fatalf("weave --version: %q, %v", out, err)
	}
	return version
}

// typeLine has a person at a host type a command, and returns what is shown.
func typeLine(t *testing.T, h *dockerlab.Host, line scriptLine) (out string) {
	t.Helper()
	begin := time.Now()
	defer func() { t.Logf("%5.1fs %s", time.Since(begin).Seconds(), line.text) }()
	try := func() (err error) {
		out, err = h.Type(line.command)
		return line.check(out, err)
	}
	if line.soon {
		eventually(t, afterBoot, try)
	} else if err := try(); err != nil {
		t.Fatalf("%s: %v", line.text, err)
	}
	return out
}

// TestWalkthroughDocument: the prose and the commands of the document are those of
// the script.
func TestWalkthroughDocument(t *testing.T) {
	if *writeWalkthrough {
		t.Skip("it is being written")
	}
	var want []string
	for _, line := range readScript(t) {
		if !line.hidden && (!line.inFence || line.command != "") {
			want = append(want, line.text)
		}
	}
	text, err := os.ReadFile(walkthroughDocument())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	inFence := false
	for raw := range strings.Lines(string(text)) {
		line := strings.TrimRight(raw, "\n")
		if said := versionSaid.FindStringSubmatch(line); inFence && said != nil && said[1] != documentVersion {
			t.Errorf("the document has the version %s, want %s: %s", said[1], documentVersion, line)
		}
		if line == fence {
			inFence = !inFence
		} else if inFence && !prompt.MatchString(line) {
			continue
		}
		got = append(got, line)
	}
	for i := range max(len(want), len(got)) {
		if i >= len(want) || i >= len(got) || want[i] != got[i] {
			t.Fatalf("`make walkthrough` is to be run: the script goes on\n%q\nand the document\n%q",
				strings.Join(want[min(i, len(want)):min(i+1, len(want))], ""), strings.Join(got[min(i, len(got)):min(i+1, len(got))], ""))
		}
	}
}

func TestWalkthroughScript(t *testing.T) {
	for _, bad := range []string{
		"```\nno prompt\n```\n", "```\nhost3$ true\n```\n", "```\n# soon\n```\n", "```\nhost1$ true\n# perhaps\n```\n",
		"```\nhost1$ true\n# has\n```\n", "```\nhost1$ true\n", "```hidden\nhost1$ true\n```\nprose\n",
	} {
		if _, err := parseScript(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	lines, err := parseScript("```hidden\nhost1$ a\n# fails\n```\n\nprose\n\n```\nhost2$ b | c\n# has x y\n# not z\n# soon\n\n```\n")
	if err != nil {
		t.Fatal(err)
	}
	var shown []string
	for _, line := range lines {
		if !line.hidden {
			shown = append(shown, line.text)
		}
	}
	if want := []string{"prose", "", "```", "host2$ b | c", "", "```"}; !slices.Equal(shown, want) {
		t.Errorf("shown is %q, want %q", shown, want)
	}
	a, b, failed := lines[1], lines[7], errors.New("exit status 1")
	if a.host != "host1" || a.command != "a" || a.check("", failed) != nil || a.check("", nil) == nil {
		t.Errorf("the first command: %+v", a)
	}
	if b.host != "host2" || !b.soon || b.check("x   y", nil) != nil || b.check("x y", failed) == nil || b.check("x", nil) == nil || b.check("x y z", nil) == nil {
		t.Errorf("the second command: %+v", b)
	}
}
