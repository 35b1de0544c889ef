package cli

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// withoutJSON are the commands that have no --json, each with the reason.
var withoutJSON = map[string]string{
	"weave daemon":     "it is the plugin itself, whose log has a form of its own",
	"weave report":     "it prints nothing but JSON",
	"weave man":        "it writes man pages, for make",
	"weave completion": "it prints scripts for shells",
	"weave help":       "it prints texts for people",
}

// TestEveryVerbHasJSON: so that programs need to read no text.
func TestEveryVerbHasJSON(t *testing.T) {
	root := New(Options{Now: now})
	root.InitDefaultHelpCmd()
	met := map[string]bool{}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			path := sub.CommandPath()
			if withoutJSON[path] != "" {
				met[path] = true
				continue // with all below it
			}
			flag := sub.Flags().Lookup("json")
			switch {
			case flag == nil:
				t.Errorf("%s has no --json", path)
			case flag.Value.Type() != "bool" || !strings.HasPrefix(flag.Usage, "print JSON for programs"):
				t.Errorf("%s: --json is a %s, for %q", path, flag.Value.Type(), flag.Usage)
			}
			walk(sub)
		}
	}
	walk(root)
	for path := range withoutJSON {
		if !met[path] {
			t.Errorf("there is no %s any more", path)
		}
	}
}
