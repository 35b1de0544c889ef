package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"weave/plugin/control"
)

// completeLimit is how long somebody who pressed the tab key may be kept
// waiting.
const completeLimit = 2 * time.Second

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
