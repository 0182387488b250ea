package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/job"
	"xenkeep/job/restore"
	"xenkeep/repo"
	"xenkeep/repo/retention"
)

type snapshotsOptions struct {
	repository repositoryFlags
	output     outputFlags
	writer     string
	tags       list
	forgotten  bool
}

// snapshotLine is a snapshot as snapshots prints it with --json.
type snapshotLine struct {
	Type       string             `json:"type"` // "snapshot"
	ID         string             `json:"id"`
	Data       time.Time          `json:"data_time"`
	Written    time.Time          `json:"written_time"`
	Origin     string             `json:"origin"`
	PoolUUID   string             `json:"pool_uuid,omitempty"`
	PoolName   string             `json:"pool_name,omitempty"`
	VMUUID     string             `json:"vm_uuid"`
	VMName     string             `json:"vm_name"`
	Kind       string             `json:"kind,omitempty"`
	Job        string             `json:"job,omitempty"`
	Machine    string             `json:"machine,omitempty"`
	Run        string             `json:"run"`
	Writer     string             `json:"writer"`
	Tags       []string           `json:"tags,omitempty"`
	Complete   bool               `json:"complete"`
	Size       int64              `json:"size"`
	New        int64              `json:"bytes_new"`
	Stored     int64              `json:"bytes_stored"`
	Disks      []diskLine         `json:"disks"`
	Missing    []repo.MissingDisk `json:"missing,omitempty"`
	Generation string             `json:"generation_id,omitempty"`
	Source     string             `json:"source,omitempty"` // path of the file it was read from
	Group      string             `json:"writer_group"`     // "", the ID of a key, or "group NAME"

	// Of a forgotten snapshot.
	Forgotten *time.Time `json:"forgotten_time,omitempty"`
	Until     *time.Time `json:"recoverable_until,omitempty"`

	// Only of show: records.json, and the stored sizes.
	Records json.RawMessage `json:"records,omitempty"`
	Kept    []recordSize    `json:"records_stored,omitempty"`
	// Of show alone: boot drills, oldest first.
	Drills []restore.DrillRecord `json:"drills,omitempty"`
}

// diskLine is a disk of a snapshot.
type diskLine struct {
	Device     string `json:"device"`
	UserDevice string `json:"userdevice,omitempty"`
	VDI        string `json:"vdi,omitempty"`
	Name       string `json:"name,omitempty"`
	SR         string `json:"sr,omitempty"`
	Size       int64  `json:"size"`
	Root       string `json:"root"`
	Method     string `json:"method"`
	Reason     string `json:"reason"`
	repo.DiskRead
}

// badLine is a snapshot that cannot be read.
type badLine struct {
	Type   string `json:"type"` // "bad_snapshot"
	Object string `json:"object"`
	State  string `json:"state"` // "damaged" or "withdrawn"
	Error  string `json:"error"`
}

// snapshotsSummary ends the list.
type snapshotsSummary struct {
	Type      string `json:"type"` // "summary"
	Snapshots int    `json:"snapshots"`
	Bad       int    `json:"bad"`
}

func newSnapshotsCommand() *cobra.Command {
	var o snapshotsOptions
	cmd := &cobra.Command{
		Use:   "snapshots [VM]",
		Short: "List the snapshots in the repository",
		Long: `List the snapshots in the repository, oldest first, or those of one VM, by name or
UUID. NEW is what no earlier snapshot had, before compression.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshots(cmd, &o, strings.Join(args, ""))
		},
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	cmd.Flags().StringVar(&o.writer, "writer", "", "those that this `key` wrote: its id, the beginning of it, or its label")
	cmd.Flags().BoolVar(&o.forgotten, "forgotten", false, "those that were forgotten and can still be recovered")
	cmd.Flags().Var(&o.tags, "tag", "only snapshots with this `tag`; may be repeated: with all of them")
	cmd.AddCommand(
		newTagCommand(),
		newRecoverCommand(),
		newNoteCommand("protect", "Keep a snapshot from being forgotten",
			"Keep a snapshot from being forgotten, by policies and by name, until it is unprotected."),
		newNoteCommand("unprotect", "Let a snapshot be forgotten again",
			"Let a snapshot be forgotten again."),
	)
	return cmd
}

// newNoteCommand returns a command that writes notes about snapshots.
func newNoteCommand(kind, short, long string) *cobra.Command {
	var repository repositoryFlags
	cmd := &cobra.Command{
		Use:   kind + " SNAPSHOT...",
		Short: short,
		Long:  long,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("which snapshots?")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			r, err := repository.openBare(ctx, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer r.Close()
			all, bad, err := r.Snapshots(ctx)
			if err != nil {
				return err
			}
			tellProblems(cmd.ErrOrStderr(), bad)
			for _, spec := range args {
				s, err := choose(all, spec, cmd.ErrOrStderr())
				if err != nil {
					return err
				}
				if err := r.PutNote(ctx, &repo.Note{Snapshot: s.ID(), Kind: kind, Time: time.Now().UTC()}); err != nil {
					return err
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%sed: snapshot %s of %s, %s\n", kind, s.Short(), printable(vmName(s)), clock(s.DataTime)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	repository.add(cmd)
	return cmd
}

func runSnapshots(cmd *cobra.Command, o *snapshotsOptions, vm string) error {
	r, err := o.repository.openBare(cmd.Context(), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	ctx := cmd.Context()
	writer := ""
	if o.writer != "" {
		if writer, err = r.FindWriter(ctx, o.writer); err != nil {
			return err
		}
	}
	snapshots, bad, err := r.AllSnapshots(ctx)
	if err != nil {
		return err
	}
	snapshots = slices.DeleteFunc(snapshots, func(s *repo.Snapshot) bool { return (s.Grace() != nil) != o.forgotten })
	tellMissed(cmd.ErrOrStderr(), r)
	badNotes, err := r.ApplyTags(ctx, snapshots)
	if err != nil {
		return err
	}
	tellProblems(cmd.ErrOrStderr(), badNotes)
	damaged := 0
	for _, p := range bad {
		if !errors.Is(p.Err, repo.ErrWithdrawn) {
			damaged++
		}
	}
	var some []*repo.Snapshot
	var none error
	if vm != "" {
		snapshots, none = ofVM(snapshots, vm, cmd.ErrOrStderr())
	}
	for _, s := range snapshots {
		if (writer == "" || s.Writer().String() == writer) && s.HasTags(o.tags) {
			some = append(some, s)
		}
	}
	warnFuture(cmd.ErrOrStderr(), some, time.Now())
	if o.output.json {
		err = writeSnapshots(cmd.OutOrStdout(), some, bad)
	} else {
		tellProblems(cmd.ErrOrStderr(), bad)
		err = printSnapshots(cmd.OutOrStdout(), some)
	}
	switch {
	case err != nil:
		return err
	case damaged > 0:
		return fmt.Errorf("%s cannot be read: %w", plural(damaged, "snapshot"), errDamage)
	}
	return none
}

func printSnapshots(w io.Writer, snapshots []*repo.Snapshot) error {
	if len(snapshots) == 0 {
		return nil
	}
	head := []string{"ID", "DATA TIME", "VM", "DISKS", "SIZE", "NEW", "COMPLETE"}
	tagged := slices.ContainsFunc(snapshots, func(s *repo.Snapshot) bool { return len(s.Tags) > 0 })
	if tagged {
		head = append(head, "TAGS")
	}
	forgotten := slices.ContainsFunc(snapshots, func(s *repo.Snapshot) bool { return s.Grace() != nil })
	if forgotten {
		head = append(head, "FORGOTTEN", "RECOVERABLE UNTIL")
	}
	t := newTable(w, head...)
	names := distinctNames(snapshots)
	for _, s := range snapshots {
		var fresh int64
		devices := make([]string, len(s.Disks))
		for i, d := range s.Disks {
			fresh += d.Counts.New
			devices[i] = d.Device
		}
		complete := yes(s.Complete)
		if len(s.Missing) > 0 {
			complete += " (without " + gaps(s.Missing) + ")"
		}
		cells := []string{s.Short(), clock(s.DataTime), names(s), strings.Join(devices, " "), size(s.Size()), size(fresh), complete}
		if tagged {
			cells = append(cells, strings.Join(s.Tags, " "))
		}
		if forgotten {
			cells = append(cells, clock(s.Grace().Since), clock(s.Grace().Until))
		}
		t.row(cells...)
	}
	return t.flush()
}

func vmName(s *repo.Snapshot) string {
	if s.VM.Name != "" {
		return s.VM.Name
	}
	return s.VM.UUID
}

// warnFuture warns of snapshots that are dated in the future.
func warnFuture(w io.Writer, all []*repo.Snapshot, now time.Time) {
	for _, s := range all {
		if retention.FromFuture(s, now) {
			printError(w, "warning: "+oneLine(job.FutureText(s)), "")
		}
	}
}

// distinctNames returns names for a list of snapshots, with the UUID if several VMs
// or images of the list have the same name.
func distinctNames(all []*repo.Snapshot) func(*repo.Snapshot) string {
	uuids := make(map[string]string)
	several := make(map[string]bool)
	for _, s := range all {
		n := vmName(s)
		if u, ok := uuids[n]; ok && u != s.VM.UUID {
			several[n] = true
		}
		uuids[n] = s.VM.UUID
	}
	return func(s *repo.Snapshot) string {
		n := vmName(s)
		if several[n] && s.VM.UUID != "" && n != s.VM.UUID {
			n += " (" + s.VM.UUID + ")"
		}
		return n
	}
}

func writeSnapshots(w io.Writer, snapshots []*repo.Snapshot, bad []repo.Problem) error {
	var errs []error
	for _, s := range snapshots {
		errs = append(errs, writeLine(w, lineOf(s)))
	}
	for _, p := range bad {
		errs = append(errs, writeLine(w, lineOfBad(p)))
	}
	errs = append(errs, writeLine(w, snapshotsSummary{Type: "summary", Snapshots: len(snapshots), Bad: len(bad)}))
	return errors.Join(errs...)
}

func lineOfBad(p repo.Problem) badLine {
	l := badLine{Type: "bad_snapshot", Object: p.Object, State: "damaged", Error: oneLine(p.Err.Error())}
	if errors.Is(p.Err, repo.ErrWithdrawn) {
		l.State = "withdrawn"
	}
	return l
}

func lineOf(s *repo.Snapshot) snapshotLine {
	l := snapshotLine{
		Type: "snapshot", ID: s.ID(), Data: s.DataTime, Written: s.WrittenTime, Origin: s.Origin,
		PoolUUID: s.Pool.UUID, PoolName: s.Pool.Name, VMUUID: s.VM.UUID, VMName: s.VM.Name,
		Kind: s.Kind, Job: s.Job, Machine: s.Machine, Run: s.Run, Writer: s.Writer().String(), Tags: s.Tags,
		Group: s.Group(), Complete: s.Complete, Size: s.Size(), Missing: s.Missing, Generation: s.GenerationID, Disks: []diskLine{},
	}
	if s.Source != nil {
		l.Source = s.Source.Path
	}
	if g := s.Grace(); g != nil {
		l.Forgotten, l.Until = &g.Since, &g.Until
	}
	for _, d := range s.Disks {
		root, _ := d.Root.MarshalText() // cannot fail
		l.New += d.Counts.New
		l.Stored += d.Counts.Stored
		l.Disks = append(l.Disks, diskLine{
			Device: d.Device, UserDevice: d.UserDevice, VDI: d.VDI, Name: d.Name, SR: d.SR, Size: d.Size,
			Root: string(root), Method: d.Method, Reason: d.Reason, DiskRead: d.Counts,
		})
	}
	return l
}
