package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// groups are the parts of the list of commands, in order.
func groups() []struct{ id, title, commands string } {
	return []struct{ id, title, commands string }{
		{"backup", "Back up and restore:", "backup restore snapshots show forget plan coverage"},
		{"data", "Use and compare what is saved:", "export import mount serve verify diff"},
		{"repository", "Look after the repository:", "init check prune copy repair repo key stats"},
		{"pool", "Work with the pool:", "pool doctor cleanup"},
		{"other", "Other commands:", "config notify version completion help sim"},
	}
}

// addHelp groups the commands, and adds suggestions to unknown flags and commands.
func addHelp(root *cobra.Command) {
	root.SetHelpCommand(newHelpCommand(root))
	for _, g := range groups() {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, name := range strings.Fields(g.commands) {
			for _, cmd := range root.Commands() {
				if cmd.Name() == name {
					cmd.GroupID = g.id
				}
			}
		}
	}
	root.SetHelpCommandGroupID("other")
	root.SetCompletionCommandGroupID("other")
	root.Version = versionText()
	root.SetVersionTemplate(versionSentence() + "\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		var unknown *pflag.NotExistError
		if errors.As(err, &unknown) {
			if near := nearFlag(cmd, unknown.GetSpecifiedName()); near != "" {
				return &advised{usagef("%w", err), "did you mean --" + near + "?"}
			}
		}
		return usagef("%w", err)
	})
}

func newHelpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about any command",
		ValidArgsFunction: func(_ *cobra.Command, args []string, word string) (list []string, _ cobra.ShellCompDirective) {
			at, _, err := root.Find(args)
			if err == nil {
				for _, c := range at.Commands() {
					if c.IsAvailableCommand() && strings.HasPrefix(c.Name(), word) {
						list = append(list, c.Name()+"\t"+c.Short)
					}
				}
			}
			return list, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			at, rest, err := root.Find(args)
			if err != nil {
				at, rest = root, args
			}
			if len(rest) > 0 {
				return needsCommand(at, rest)
			}
			at.InitDefaultHelpFlag()
			at.InitDefaultVersionFlag()
			return at.Help()
		},
	}
}

// nearFlag returns the flag that is most similar to a mistyped name, or "".
func nearFlag(cmd *cobra.Command, name string) string {
	best, least := "", 3
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		d := distance(name, f.Name)
		if len(name) >= 3 && strings.HasPrefix(f.Name, name) {
			d = min(d, 1)
		}
		if d < least && d < len(name) {
			best, least = f.Name, d
		}
	})
	return best
}

// distance counts the letters by which two words differ (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			above := row[j]
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			row[j] = min(above+1, row[j-1]+1, cost)
			diagonal = above
		}
	}
	return row[len(b)]
}
