package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"xenkeep/job/poolsnap"
	"xenkeep/xapi"
)

// newPoolCommand contains the commands for administration of a pool other than
// backups.
func newPoolCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pool",
		Short: "List what a pool has, and use its own VM snapshots",
		Long: `List what a pool has, and use its own VM snapshots: take, list, revert, delete, copy,
export and schedule them. They are on the pool's storage, next to the VMs: they are quick
to take and to go back to, and no backup.`,
		Args:                       cobra.ArbitraryArgs,
		RunE:                       needsCommand,
		SuggestionsMinimumDistance: 2,
	}
	cmd.AddCommand(
		newPoolListCommand("vms", "List the VMs", "power-state=halted", poolsnap.VMs, printVMs),
		newPoolListCommand("srs", "List the storage repositories", "type=nfs", poolsnap.SRs, printSRs),
		newPoolListCommand("hosts", "List the hosts", "enabled=true", poolsnap.Hosts, printHosts),
		newPoolListCommand("templates", "List the templates", "name-label=NAME", poolsnap.Templates, printTemplates),
		newPoolSnapshotCommand(), newPoolTemplateCommand(), newPoolVMCommand(), newPoolImportCommand(), newPoolScheduleCommand(),
	)
	return cmd
}

// onPool are the flags of all commands below pool.
type onPool struct {
	pool   poolFlags
	output outputFlags
}

func (o *onPool) add(cmd *cobra.Command) {
	o.pool.add(cmd)
	o.output.add(cmd)
}

// on logs in and calls work.
func (o *onPool) on(cmd *cobra.Command, work func(ctx context.Context, c *xapi.Client) error) error {
	ctx := cmd.Context()
	c, err := o.pool.dial(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer c.Close(context.WithoutCancel(ctx))
	return c.Explain(ctx, work(ctx, c))
}

// newPoolListCommand returns the command of one list. Lists differ in the records
// that they read and in their table.
func newPoolListCommand[T any](word, short, example string,
	read func(context.Context, *xapi.Client, poolsnap.ListOptions) ([]T, error), print func(io.Writer, []T) error) *cobra.Command {
	var o onPool
	var params string
	cmd := &cobra.Command{
		Use:   word + " [FIELD=VALUE...]",
		Short: short,
		Long: short + ` of a pool, or those of which all the fields named have the value given. A field is
named as in the pool's API, with dashes or underscores; FIELD:KEY=VALUE is one key of a
map, and of a set any value fits. --params all shows every field.`,
		Example: "  xenkeep pool " + word + " " + example,
		RunE: func(cmd *cobra.Command, args []string) error {
			filters, err := poolsnap.ParseFilters(args)
			if err != nil {
				return usagef("%w", err)
			}
			if params != "" && params != "all" {
				return usagef("--params %s: only all is known", params)
			}
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				rows, err := read(ctx, c, poolsnap.ListOptions{Filters: filters, Params: params != ""})
				if err != nil {
					return err
				}
				w := cmd.OutOrStdout()
				if o.output.json {
					return writeLines(w, rows)
				}
				if params != "" {
					return printParams(w, rows)
				}
				return print(w, rows)
			})
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&params, "params", "", "show `all` fields of each")
	return cmd
}

func writeLines[T any](w io.Writer, rows []T) error {
	for _, r := range rows {
		if err := writeLine(w, r); err != nil {
			return err
		}
	}
	return nil
}

// printParams writes each record as a block of lines.
func printParams[T any](w io.Writer, rows []T) error {
	for i, r := range rows {
		var p poolsnap.Params
		switch r := any(r).(type) {
		case poolsnap.VMRow:
			p = r.Params
		case poolsnap.SRRow:
			p = r.Params
		case poolsnap.HostRow:
			p = r.Params
		case poolsnap.TemplateRow:
			p = r.Params
		}
		if i > 0 {
			fmt.Fprintln(w)
		}
		// The UUID first, as people look for it.
		keys := slices.SortedFunc(maps.Keys(p), func(a, b string) int {
			if (a == "uuid") != (b == "uuid") {
				if a == "uuid" {
					return -1
				}
				return 1
			}
			return strings.Compare(a, b)
		})
		for _, k := range keys {
			if _, err := fmt.Fprintf(w, "%-28s %s\n", strings.ReplaceAll(k, "_", "-"), printable(poolsnap.Text(p[k]))); err != nil {
				return err
			}
		}
	}
	return nil
}

func printVMs(w io.Writer, rows []poolsnap.VMRow) error {
	t := newTable(w, "UUID", "NAME", "STATE", "HOST", "MEMORY", "DISKS", "SIZE", "SNAPSHOTS", "TAGS")
	for _, r := range rows {
		t.row(r.UUID, r.Name, r.PowerState, r.Host, size(r.Memory), fmt.Sprint(r.Disks), size(r.Size), fmt.Sprint(r.Snapshots), strings.Join(r.Tags, " "))
	}
	return t.flush()
}

func printSRs(w io.Writer, rows []poolsnap.SRRow) error {
	told := func(n int64) string {
		if n < 0 {
			return "?"
		}
		return size(n)
	}
	t := newTable(w, "UUID", "NAME", "DRIVER", "SHARED", "DEFAULT", "SIZE", "USED", "FREE", "VDIS")
	for _, r := range rows {
		t.row(r.UUID, r.Name, r.Driver, yes(r.Shared), yes(r.Default), told(r.Size), told(r.Used), told(r.Free), fmt.Sprint(r.VDIs))
	}
	return t.flush()
}

func printHosts(w io.Writer, rows []poolsnap.HostRow) error {
	t := newTable(w, "UUID", "NAME", "ADDRESS", "MASTER", "ENABLED", "VERSION", "VMS")
	for _, r := range rows {
		t.row(r.UUID, r.Name, r.Address, yes(r.Master), yes(r.Enabled), r.Version, fmt.Sprint(r.VMs))
	}
	return t.flush()
}

func printTemplates(w io.Writer, rows []poolsnap.TemplateRow) error {
	t := newTable(w, "UUID", "NAME", "DEFAULT", "DISKS", "SIZE", "DESCRIPTION")
	for _, r := range rows {
		t.row(r.UUID, r.Name, yes(r.Default), fmt.Sprint(r.Disks), size(r.Size), r.Description)
	}
	return t.flush()
}
