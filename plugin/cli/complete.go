package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"weave/plugin/control"
)

// completeLimit is how long somebody who pressed the tab key may be kept
// waiting.
const completeLimit = 2 * time.Second

// explainCompletion has the command that cobra adds say what to do with what it
// prints.
func explainCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "completion" {
			continue
		}
		cmd.Args, cmd.RunE = noArguments, func(*cobra.Command, []string) error {
			return errors.New("name the shell, as in: weave completion bash; or zsh, or fish")
		}
		for _, shell := range cmd.Commands() {
			shell.Args, shell.Short = noArguments, "Print the script for "+shell.Name()
			shell.Long = shell.Short + ". Where to put it: weave completion --help"
			if shell.Name() == "powershell" {
				cmd.RemoveCommand(shell)
			}
		}
		cmd.Short = "Print a script by which a shell completes weave's commands"
		cmd.Long = `Print a script by which a shell completes weave's commands, flags, and, for who
may talk to the plugin, peers and addresses. Put it where the shell looks, and
open a new shell. bash needs the package bash-completion.`
		cmd.Example = `  weave completion bash | sudo tee /etc/bash_completion.d/weave >/dev/null
  weave completion zsh | sudo tee /usr/local/share/zsh/site-functions/_weave >/dev/null
  weave completion fish | sudo tee /etc/fish/completions/weave.fish >/dev/null`
	}
}

// complete offers words that the status holds; none to who may not ask for it.
func (a *app) complete(words func(control.Status) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeLimit)
		defer cancel()
		status, err := a.client().Status(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return words(status), cobra.ShellCompDirectiveNoFileComp
	}
}

// removable lists the peers that weave rmpeer could remove: by ID, since a name
// could be anything, which is only shown beside it.
func removable(s control.Status) []string {
	var words []string
	for _, peer := range s.Peers {
		if peer.State != control.Up {
			words = append(words, cobra.CompletionWithDesc(clean(shortID(peer.ID)), clean(peer.Nickname)))
		}
	}
	return words
}

// forgettable lists the addresses that weave forget could take back.
func forgettable(s control.Status) []string {
	words := make([]string, len(s.Seeds))
	for i, seed := range s.Seeds {
		words[i] = clean(seed.Address)
	}
	return words
}
