package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/repo"
)

type keyRevokeOptions struct {
	repository repositoryFlags
	reason     string
	since      string
}

func newKeyRevokeCommand() *cobra.Command {
	var o keyRevokeOptions
	cmd := &cobra.Command{
		Use:   "revoke KEY",
		Short: "Shut out a machine whose write-only key was stolen",
		Long: `Shut out a writer, by its id, the beginning of it, or its label: its slot is removed,
and what it writes from now on counts for nothing. What it wrote before stays, unless
--since names the time from which it is not trusted: xenkeep key objects lists it. A
full key cannot be shut out: copy to a new repository.`,
		Example: "  xenkeep key revoke backup1 --since '2026-11-24 18:00' --reason 'stolen laptop'",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return runKeyRevoke(cmd, &o, args[0]) },
	}
	o.repository.add(cmd)
	cmd.Flags().StringVar(&o.reason, "reason", "", "`text` that is kept with it")
	cmd.Flags().StringVar(&o.since, "since", "", "reject also what the storage received after this `time`")
	return cmd
}

func runKeyRevoke(cmd *cobra.Command, o *keyRevokeOptions, key string) error {
	ctx := cmd.Context()
	since, err := sinceTime(o.since, time.Now())
	if err != nil {
		return err
	}
	r, err := o.repository.open(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	id, err := r.FindWriter(ctx, key)
	if err != nil {
		return err
	}
	v, rejected, err := r.Revoke(ctx, id, o.reason, since, time.Now())
	if err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	if _, err := fmt.Fprintf(w, "revoked: key %s; %s of its own stay accepted\n", id, plural(len(v.Objects), "object")); err != nil {
		return err
	}
	if since == nil {
		return nil
	}
	_, err = fmt.Fprintf(w, "rejected, because the storage received it after %s: %s\nnext: xenkeep check, before anything is pruned\n", clock(*since), rejectedText(rejected))
	return err
}

// sinceTime parses the time of --since; nil if there is none.
func sinceTime(text string, now time.Time) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	when, err := repo.ParseWhen(text, now)
	if err != nil {
		return nil, usagef("--since: %w", err)
	}
	if when.Begin.After(now) {
		return nil, usagef("--since: %s is in the future", clock(when.Begin))
	}
	return &when.Begin, nil
}

func rejectedText(rejected *repo.Rejected) string {
	var parts []string
	for _, folder := range slices.Sorted(maps.Keys(rejected.Objects)) {
		parts = append(parts, fmt.Sprintf("%d in %s/", rejected.Objects[folder], folder))
	}
	parts = append(parts, plural(rejected.Packs, "pack"))
	return strings.Join(parts, ", ")
}

type keyRevocationsOptions struct {
	repository repositoryFlags
	output     outputFlags
	putBack    bool
	giveUp     string
}

// revocationLine is a revocation.
type revocationLine struct {
	Type    string     `json:"type"` // "revocation"
	Object  string     `json:"object"`
	State   string     `json:"state"` // "ok", "missing" or "unreadable"
	Writer  string     `json:"writer,omitempty"`
	Time    *time.Time `json:"time,omitempty"`
	Since   *time.Time `json:"since,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	Objects int        `json:"accepted_objects"`
	Error   string     `json:"error,omitempty"`
}

func newKeyRevocationsCommand() *cobra.Command {
	var o keyRevocationsOptions
	cmd := &cobra.Command{
		Use:   "revocations",
		Short: "List revocations, and put back a missing one",
		Long: `List the revocations, and those that are unreadable or gone from the storage although
this machine has seen them: backup, forget and prune are refused then, because objects
of the revoked key could count again. --put-back writes them from this machine's copy.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runKeyRevocations(cmd, &o) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	cmd.Flags().BoolVar(&o.putBack, "put-back", false, "write those that are missing or unreadable again, from the copies on this machine")
	cmd.Flags().StringVar(&o.giveUp, "give-up", "", "accept that the revocation with this `object` name is lost, and delete what is left of it")
	cmd.MarkFlagsMutuallyExclusive("put-back", "give-up")
	return cmd
}

func runKeyRevocations(cmd *cobra.Command, o *keyRevocationsOptions) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	r, err := o.repository.openBare(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	if o.giveUp != "" {
		if err := r.GiveUpRevocation(ctx, o.giveUp); err != nil {
			return err
		}
	}
	all, bad, err := r.StoredRevocations(ctx)
	if err != nil {
		return err
	}
	if o.putBack {
		if bad, err = putBack(ctx, r, bad); err != nil {
			return err
		}
	}
	lines := revocationLines(all, bad)
	if o.output.json {
		var errs []error
		for _, l := range lines {
			errs = append(errs, writeLine(w, l))
		}
		err = errors.Join(errs...)
	} else {
		t := newTable(w, "WRITER", "REVOKED", "SINCE", "STATE", "OBJECT", "REASON")
		for _, l := range lines {
			t.row(l.Writer, optionalClock(l.Time), optionalClock(l.Since), l.State, l.Object, l.Reason)
		}
		err = t.flush()
	}
	if err != nil {
		return err
	}
	if len(bad) > 0 {
		return fmt.Errorf("%w: %w", bad[0].Err, repo.ErrRevocation)
	}
	return nil
}

func optionalClock(t *time.Time) string {
	if t == nil {
		return ""
	}
	return clock(*t)
}

// putBack writes revocations again, and returns the ones of which this machine has no
// copy.
func putBack(ctx context.Context, r *repo.Repository, bad []repo.Problem) (left []repo.Problem, err error) {
	for _, p := range bad {
		copied, err := r.PutRevocationBack(ctx, p.Object)
		if err != nil {
			return nil, err
		}
		if !copied {
			left = append(left, p)
		}
	}
	return left, nil
}

func revocationLines(all []*repo.Revoked, bad []repo.Problem) []revocationLine {
	var lines []revocationLine
	for _, v := range all {
		lines = append(lines, revocationLine{
			Type: "revocation", Object: v.Name(), State: "ok", Writer: v.Writer, Time: &v.Time, Since: v.Since, Reason: v.Reason, Objects: len(v.Objects),
		})
	}
	for _, p := range bad {
		i := slices.IndexFunc(lines, func(l revocationLine) bool { return l.Object == p.Object })
		if i < 0 {
			i = len(lines)
			lines = append(lines, revocationLine{Type: "revocation", Object: p.Object})
		}
		lines[i].State, lines[i].Error = "unreadable", oneLine(p.Err.Error())
		if errors.Is(p.Err, repo.ErrRevocationGone) {
			lines[i].State = "missing"
		}
	}
	return lines
}

// keyObjectLine is an object that a writer wrote.
type keyObjectLine struct {
	Type     string    `json:"type"` // "object"
	Object   string    `json:"object"`
	Size     int64     `json:"size"`
	Received time.Time `json:"received_time"`
	State    string    `json:"state"` // "ok", "rejected" or "junk"
}

func newKeyObjectsCommand() *cobra.Command {
	var repository repositoryFlags
	var output outputFlags
	cmd := &cobra.Command{
		Use:   "objects KEY",
		Short: "List everything that a key wrote",
		Long: `List everything that a writer wrote: snapshots, index objects, notes, claims, lists and
packs, with the time at which the storage received each. It reads the beginning of
every object of the repository.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, w := cmd.Context(), cmd.OutOrStdout()
			r, err := repository.openBare(ctx, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer r.Close()
			id, err := r.FindWriter(ctx, args[0])
			if err != nil {
				return err
			}
			var t *table
			if !output.json {
				t = newTable(w, "RECEIVED", "SIZE", "STATE", "OBJECT")
			}
			if err := r.ObjectsOf(ctx, id, func(o repo.Written) error {
				if output.json {
					return writeLine(w, keyObjectLine{"object", o.Name, o.Size, o.Received, o.State})
				}
				t.row(clock(o.Received), size(o.Size), o.State, o.Name)
				return nil
			}); err != nil || output.json {
				return err
			}
			return t.flush()
		},
	}
	repository.add(cmd)
	output.add(cmd)
	return cmd
}
