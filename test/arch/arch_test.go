// Package arch holds the architecture to its rules: who may import whom, what
// pure packages may not do, and how long files and functions may be. It has no
// code but its tests, and looks at syntax only, so it runs in a second.
package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "weave"

const (
	maxFileLines = 500
	maxFuncLines = 60
)

// importRules: no file below one of the `from` packages, tests apart, imports
// one of the `to` packages or what lies below them.
var importRules = []struct {
	from, to []string
	reason   string
}{
	{[]string{"driver"}, []string{"ipam", "mesh", "plugin"}, "Docker's semantics must be testable without a mesh; only plugin joins the parts"},
	{[]string{"ipam"}, []string{"driver", "mesh", "plugin"}, "address safety must not depend on how peers talk; only plugin joins the parts"},
	{[]string{"mesh"}, []string{"driver", "ipam", "plugin"}, "the mesh carries frames and records whoever owns them; only plugin joins the parts"},
	{[]string{"plugin/cli"}, []string{"driver", "ipam", "mesh", "plugin/daemon", "plugin/engine", "plugin/store"}, "the CLI sees what any user's program sees: the control API and Docker's"},
	{[]string{"plugin/managed"}, []string{"driver", "ipam", "mesh", "plugin/cli", "plugin/control", "plugin/daemon"}, "the plugin is made, and has its settings kept, whatever it does once it runs"},
	{[]string{"plugin/attach"}, []string{"driver", "ipam", "mesh", "plugin/cli", "plugin/control", "plugin/daemon", "plugin/store"}, "it asks Docker, like any user's program, and is told the rest"},
	{[]string{"plugin/dns"}, []string{"driver", "ipam", "mesh", "plugin"}, "what answers questions from containers knows the table of names, and nothing else"},
	{[]string{"plugin/doctor"}, []string{"ipam", "mesh", "plugin/cli", "plugin/daemon", "plugin/store"}, "the doctor looks from outside, also when the plugin is down"},
	{[]string{"plugin/sandbox"}, []string{"driver", "ipam", "mesh", "plugin"}, "whose namespace it is, and what is answered there, is not its matter"},
	{[]string{"plugin/config"}, []string{"driver", "ipam", "mesh"}, "settings are words and numbers; what they mean is for the parts"},
	{[]string{"plugin/names"}, []string{"ipam", "plugin/cli", "plugin/control", "plugin/daemon", "plugin/sandbox", "plugin/store"}, "who is called what must not depend on where it is asked"},
	{[]string{"plugin/control", "plugin/dockerapi", "plugin/store"}, []string{"plugin/daemon", "plugin/cli"}, "only the daemon and package main know all parts"},
	{[]string{"plugin", "driver", "ipam", "mesh"}, []string{"test"}, "the product does not contain its tests"},
	{[]string{"test/netlab", "test/dockerlab", "test/tool", "test/report"}, []string{"plugin", "driver", "ipam", "mesh"}, "the lab must not share the faults of what it tests"},
}

// pure packages get time as an argument and return values. Those that do not
// exist yet are bound all the same.
var pure = []string{
	"mesh/id", "mesh/wire", "mesh/handshake", "mesh/gcm", "mesh/session", "mesh/state", "mesh/route", "mesh/fdb", "mesh/neigh", "mesh/run",
	"mesh/vni", "mesh/beat", "mesh/fragment",
	"ipam/ring", "ipam/space", "ipam/paxos",
}

var impureImports = map[string]string{
	"os":                              "files and processes are their callers' task",
	"os/exec":                         "files and processes are their callers' task",
	"syscall":                         "the kernel is their callers' task",
	"golang.org/x/sys/unix":           "the kernel is their callers' task",
	"github.com/sirupsen/logrus":      "results are values: the caller logs",
	"log":                             "results are values: the caller logs",
	"log/slog":                        "results are values: the caller logs",
	"math/rand":                       "randomness is an argument",
	"math/rand/v2":                    "randomness is an argument",
	"net/http":                        "sockets are their callers' task",
	"context":                         "nothing in them waits",
	"github.com/hashicorp/memberlist": "IO is their callers' task",
}

// From net, pure packages may use values only.
var pureNet = []string{"HardwareAddr", "ParseMAC"}

var clocks = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}

type file struct {
	name   string // relative to the project, with slashes
	pkg    string // its folder
	test   bool
	lines  int
	syntax *ast.File
}

func load(t *testing.T) (*token.FileSet, []file) {
	t.Helper()
	root := filepath.Join("..", "..")
	set := token.NewFileSet()
	var files []file
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "build" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		syntax, err := parser.ParseFile(set, rel, source, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files = append(files, file{rel, path.Dir(rel), strings.HasSuffix(rel, "_test.go"), strings.Count(string(source), "\n"), syntax})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("no Go files found")
	}
	return set, files
}

// imports returns local name -> path; for unnamed ones the last element serves.
func (f file) imports() map[string]string {
	all := map[string]string{}
	for _, spec := range f.syntax.Imports {
		p, _ := strconv.Unquote(spec.Path.Value)
		name := path.Base(p)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		all[name] = p
	}
	return all
}

func below(pkg string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool { return pkg == root || strings.HasPrefix(pkg, root+"/") })
}

func TestImportRules(t *testing.T) {
	_, files := load(t)
	for _, f := range files {
		for _, imported := range f.imports() {
			local, ours := strings.CutPrefix(imported, module+"/")
			if !ours || f.test {
				continue
			}
			for _, rule := range importRules {
				if below(f.pkg, rule.from) && below(local, rule.to) {
					t.Errorf("%s imports %s: %s", f.name, imported, rule.reason)
				}
			}
		}
	}
}

func TestPurePackages(t *testing.T) {
	set, files := load(t)
	for _, f := range files {
		if f.test || !slices.Contains(pure, f.pkg) {
			continue
		}
		imports := f.imports()
		for _, imported := range imports {
			if reason, bad := impureImports[imported]; bad {
				t.Errorf("%s imports %s: pure package; %s", f.name, imported, reason)
			}
			if local, ours := strings.CutPrefix(imported, module+"/"); ours && !slices.Contains(pure, local) {
				t.Errorf("%s imports %s: a pure package is as pure as what it stands on", f.name, imported)
			}
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: pure package; goroutines are its callers' task", set.Position(n.Pos()))
			case *ast.SelectorExpr:
				checkUse(t, set, n, imports)
			}
			return true
		})
	}
}

// TestPureByName: what calls itself pure is held to it.
func TestPureByName(t *testing.T) {
	_, files := load(t)
	for _, f := range files {
		if f.syntax.Doc != nil && strings.Contains(f.syntax.Doc.Text(), "is pure") && !slices.Contains(pure, f.pkg) {
			t.Errorf("%s calls its package pure: add it to the list of those that are", f.name)
		}
	}
}

func checkUse(t *testing.T, set *token.FileSet, use *ast.SelectorExpr, imports map[string]string) {
	name, ok := use.X.(*ast.Ident)
	if !ok {
		return
	}
	switch imported := imports[name.Name]; {
	case imported == "time" && slices.Contains(clocks, use.Sel.Name):
		t.Errorf("%s: time.%s in a pure package; time is an argument", set.Position(use.Pos()), use.Sel.Name)
	case imported == "net" && !slices.Contains(pureNet, use.Sel.Name):
		t.Errorf("%s: net.%s in a pure package; sockets are its callers' task", set.Position(use.Pos()), use.Sel.Name)
	}
}

func TestLengths(t *testing.T) {
	set, files := load(t)
	for _, f := range files {
		if ast.IsGenerated(f.syntax) {
			continue
		}
		if f.lines >= maxFileLines {
			t.Errorf("%s has %d lines, limit %d: split it by subject", f.name, f.lines, maxFileLines)
		}
		for _, decl := range f.syntax.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			if n := set.Position(fn.End()).Line - set.Position(fn.Pos()).Line + 1; n >= maxFuncLines && !f.test {
				t.Errorf("%s: %s has %d lines, limit %d", set.Position(fn.Pos()), fn.Name.Name, n, maxFuncLines)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	_, files := load(t)
	commented := map[string]bool{}
	for _, f := range files {
		commented[f.pkg] = commented[f.pkg] || f.syntax.Doc != nil
	}
	for _, pkg := range slices.Sorted(maps.Keys(commented)) {
		if !commented[pkg] {
			t.Errorf("package %s has no package comment: say what it does and what it does not", pkg)
		}
	}
}

func TestNoInit(t *testing.T) {
	set, files := load(t)
	for _, f := range files {
		for _, decl := range f.syntax.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: init runs whether wanted or not; main joins the parts", set.Position(fn.Pos()))
			}
		}
	}
}
