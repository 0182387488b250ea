package main

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"xenkeep/job/poolsnap"
	"xenkeep/xapi"
)

// completeWithin bounds how long a shell waits for names of VMs, SRs and snapshots.
const completeWithin = 3 * time.Second

// repositoryValue and poolValue are the values of --repository and --pool. They
// lead from a command to its other flags, for completion.
type repositoryValue struct{ f *repositoryFlags }

func (v repositoryValue) String() string {
	if v.f == nil { // pflag asks a zero value
		return ""
	}
	return v.f.location
}
func (v repositoryValue) Type() string { return "string" }

func (v repositoryValue) Set(text string) error {
	v.f.location = text
	return nil
}

type poolValue struct{ f *poolFlags }

func (v poolValue) String() string {
	if v.f == nil {
		return ""
	}
	return v.f.url
}
func (v poolValue) Type() string { return "string" }

func (v poolValue) Set(text string) error {
	v.f.url = text
	return nil
}

// names is a source of words for completion.
type names func(ctx context.Context, cmd *cobra.Command) ([]string, error)

// addCompletion lets shells complete VMs, snapshots, SRs and the words of flags
// that take one of a few. It never asks on the terminal, and omits names that it
// does not receive in time.
func addCompletion(root *cobra.Command) {
	walk(root, func(cmd *cobra.Command) {
		s := cmd.Flags()
		ofRepository, ofPool := s.Lookup("repository") != nil, s.Lookup("pool") != nil
		s.VisitAll(func(f *pflag.Flag) {
			var fn names
			switch c, isChoice := f.Value.(*choice); {
			case isChoice:
				fn = func(context.Context, *cobra.Command) ([]string, error) { return c.of, nil }
			case f.Name == "vm" && f.Value.Type() == "string" && ofRepository:
				fn = repositoryVMs
			case f.Name == "to-sr" && ofPool:
				fn = poolSRs
			case f.Name == "attach" && ofPool:
				fn = poolVMs
			default:
				return
			}
			_ = cmd.RegisterFlagCompletionFunc(f.Name, func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
				return complete(cmd, fn, word)
			}) // fails only for a flag that is not there
		})
		if fn, all := wordsOf(cmd, ofRepository, ofPool); fn != nil {
			cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
				if !all && len(args) > 0 {
					return nil, cobra.ShellCompDirectiveDefault
				}
				return complete(cmd, fn, word)
			}
		}
	})
}

// wordsOf returns the source of a command's arguments, by its usage, and whether
// it applies to more than the first argument.
func wordsOf(cmd *cobra.Command, ofRepository, ofPool bool) (fn names, all bool) {
	_, words, _ := strings.Cut(cmd.Use, " ")
	first, _, _ := strings.Cut(strings.TrimPrefix(words, "["), " ")
	first = strings.TrimSuffix(first, "]")
	all = strings.HasSuffix(first, "...") || strings.Count(words, "SNAPSHOT") > 1
	switch strings.TrimSuffix(first, "...") {
	case "SNAPSHOT":
		if ofRepository {
			return snapshotNames, all
		}
		return poolSnapshots, all
	case "VM":
		if ofPool {
			return poolVMs, all
		}
		return repositoryVMs, all
	}
	return nil, false
}

func complete(cmd *cobra.Command, fn names, word string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
	defer cancel()
	got := make(chan []string, 1)
	go func() {
		if _, err := fromEnvironment(cmd.Flags()); err != nil {
			got <- nil
			return
		}
		list, _ := fn(ctx, cmd) // a shell has no place for an error
		got <- list
	}()
	select {
	case <-ctx.Done(): // a storage may hang and ignore the context
		return nil, cobra.ShellCompDirectiveNoFileComp
	case list := <-got:
		list = slices.DeleteFunc(list, func(name string) bool { return name == "" || !strings.HasPrefix(name, word) })
		slices.Sort(list)
		for i := range list {
			before, after, described := strings.Cut(list[i], "\t")
			if list[i] = printable(before); described {
				list[i] += "\t" + printable(after)
			}
		}
		return slices.Compact(list), cobra.ShellCompDirectiveNoFileComp
	}
}

// snapshotNames returns the snapshots of the repository, if it opens without asking
// for a password.
func snapshotNames(ctx context.Context, cmd *cobra.Command) ([]string, error) {
	return fromRepository(ctx, cmd, true)
}

func repositoryVMs(ctx context.Context, cmd *cobra.Command) ([]string, error) {
	return fromRepository(ctx, cmd, false)
}

func fromRepository(ctx context.Context, cmd *cobra.Command, snapshots bool) ([]string, error) {
	v, ok := cmd.Flags().Lookup("repository").Value.(repositoryValue)
	if !ok {
		return nil, nil
	}
	v.f.secret.noAsk = true
	r, err := v.f.openBare(ctx, io.Discard)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	all, _, err := r.Snapshots(ctx)
	var list []string
	for _, s := range all {
		if !snapshots {
			list = append(list, s.VM.Name)
			continue
		}
		list = append(list, s.Short()+"\t"+vmName(s)+" "+clock(s.DataTime))
		if s.VM.Name != "" {
			list = append(list, "latest:"+s.VM.Name)
		}
	}
	return list, err
}

// fromPool logs in, if that can be done without a question.
func fromPool(ctx context.Context, cmd *cobra.Command, fn func(*xapi.Client) error) error {
	v, ok := cmd.Flags().Lookup("pool").Value.(poolValue)
	if !ok {
		return nil
	}
	v.f.noAsk = true
	c, err := v.f.dial(ctx, io.Discard)
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	return fn(c)
}

func poolVMs(ctx context.Context, cmd *cobra.Command) (list []string, err error) {
	err = fromPool(ctx, cmd, func(c *xapi.Client) error {
		vms, err := c.VMs(ctx)
		for i := range vms {
			if vms[i].Real() {
				list = append(list, vms[i].NameLabel)
			}
		}
		return err
	})
	return list, err
}

func poolSRs(ctx context.Context, cmd *cobra.Command) (list []string, err error) {
	err = fromPool(ctx, cmd, func(c *xapi.Client) error {
		srs, err := c.SRs(ctx)
		for i := range srs {
			list = append(list, srs[i].NameLabel)
		}
		return err
	})
	return list, err
}

func poolSnapshots(ctx context.Context, cmd *cobra.Command) (list []string, err error) {
	err = fromPool(ctx, cmd, func(c *xapi.Client) error {
		rows, err := poolsnap.Snapshots(ctx, c, "")
		for i := range rows {
			list = append(list, rows[i].UUID+"\t"+rows[i].VMName+" "+rows[i].Name)
		}
		return err
	})
	return list, err
}
