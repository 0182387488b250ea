package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

var errNotConfirmed = errors.New("not confirmed: nothing was done")

// confirmFlags confirm a command that destroys data.
type confirmFlags struct{ yes bool }

func (f *confirmFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "do not ask")
}

// ask succeeds only if the user types the word yes.
func (f *confirmFlags) ask(cmd *cobra.Command) error {
	if f.yes {
		return nil
	}
	fmt.Fprint(cmd.ErrOrStderr(), "Type 'yes' to continue: ")
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		answer <- line
	}()
	select {
	case <-cmd.Context().Done():
		return context.Cause(cmd.Context())
	case line := <-answer:
		if strings.TrimSpace(line) == "yes" {
			return nil
		}
		fmt.Fprintln(cmd.ErrOrStderr())
		return errNotConfirmed
	}
}
