package cli

import (
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand is for `make man`.
func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the man pages into a folder",
		Long:   "Write a man page for each command into a folder, made out of the help texts.",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.InitDefaultCompletionCmd()
			prepare(root)
			header := &doc.GenManHeader{Section: "1", Source: "Weave " + a.Version, Manual: "Weave"}
			return doc.GenManTree(root, header, args[0])
		},
	}
}

// prepare turns the help texts into Markdown, which man pages are made of.
func prepare(cmd *cobra.Command) {
	cmd.DisableAutoGenTag = true
	cmd.Long = markdown(cmd.Long)
	for _, sub := range cmd.Commands() {
		prepare(sub)
	}
}

// markdown has what is indented stay as it is: Markdown wants four spaces more,
// and an empty line before and after.
func markdown(text string) string {
	var out strings.Builder
	was := false
	for line := range strings.Lines(text) {
		is := strings.HasPrefix(line, "  ")
		if is != was && line != "\n" {
			out.WriteByte('\n')
		}
		if is {
			line = "    " + line
		}
		was = is
		out.WriteString(line)
	}
	return out.String()
}
