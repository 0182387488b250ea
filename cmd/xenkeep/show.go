package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"xenkeep/chunkstore/seal"
	jobrecords "xenkeep/job/records"
	"xenkeep/job/restore"
	"xenkeep/repo"
)

type showOptions struct {
	repository repositoryFlags
	writerFlag
	output outputFlags
	xml    bool
}

// recordSize is a piece of metadata that is stored with a snapshot.
type recordSize struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

func newShowCommand() *cobra.Command {
	var o showOptions
	cmd := &cobra.Command{
		Use:   "show SNAPSHOT",
		Short: "Show everything stored about a snapshot",
		Long: `Show everything stored about a snapshot: its disks and how each was read, and the
VM's records. SNAPSHOT is an id or its unique beginning, "latest:VM", or "VM@TIME".`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runShow(cmd, &o, args[0]) },
	}
	o.repository.add(cmd)
	o.writerFlag.add(cmd)
	o.output.add(cmd)
	cmd.Flags().BoolVar(&o.xml, "xml", false, "show the pool's own export of the VM's metadata (ova.xml) alone")
	cmd.MarkFlagsMutuallyExclusive("json", "xml")
	return cmd
}

func runShow(cmd *cobra.Command, o *showOptions, spec string) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	r, err := o.repository.open(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	s, err := resolve(ctx, r, spec, o.writer, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	bad, err := r.ApplyTags(ctx, []*repo.Snapshot{s})
	if err != nil {
		return err
	}
	tellProblems(cmd.ErrOrStderr(), bad)
	if o.xml {
		text, err := readOVA(ctx, r, s)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	records, err := r.ReadRecord(ctx, s, jobrecords.RecordsName)
	if err != nil {
		return fmt.Errorf("snapshot %s: %s: %w", s.Short(), jobrecords.RecordsName, err)
	}
	if records != nil && !json.Valid(records) {
		return fmt.Errorf("snapshot %s: %s is no JSON: %w", s.Short(), jobrecords.RecordsName, seal.ErrCorrupt)
	}
	drills, err := restore.Drills(ctx, r, s)
	if err != nil {
		return err
	}
	if o.output.json {
		l := lineOf(s)
		l.Drills = drills
		l.Records = records
		for _, rec := range s.Records {
			l.Kept = append(l.Kept, recordSize{rec.Name, rec.Size})
		}
		return writeLine(w, l)
	}
	return printSnapshot(w, s, records, drills)
}

func printSnapshot(w io.Writer, s *repo.Snapshot, records []byte, drills []restore.DrillRecord) error {
	t := newTable(w)
	t.row("snapshot", s.ID())
	t.row("VM", s.VM.Name, s.VM.UUID)
	if s.Origin == "pool" {
		t.row("pool", s.Pool.Name, s.Pool.UUID)
	}
	t.row("origin", s.Origin, s.Kind)
	t.row("data time", clock(s.DataTime))
	t.row("written", clock(s.WrittenTime))
	t.row("complete", yes(s.Complete))
	t.row("job", s.Job, "run "+s.Run)
	t.row("machine", s.Machine, "key "+s.Writer().String())
	if len(s.Tags) > 0 {
		t.row("tags", strings.Join(s.Tags, " "))
	}
	if s.GenerationID != "" {
		t.row("generation", s.GenerationID)
	}
	t.row("size", size(s.Size()))
	for _, d := range drills {
		word := "failed"
		if d.Passed {
			word = "passed"
		}
		t.row("boot drill", fmt.Sprintf("%s %s: %s, %s after the start", clock(d.Time), word, d.Reason, seconds(d.Seconds)))
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, d := range s.Disks {
		fmt.Fprintf(w, "\ndisk %s\n", printable(d.Device))
		t := newTable(w)
		row := func(name, value string) {
			if value != "" {
				t.row("  "+name, value)
			}
		}
		row("name", d.Name)
		row("VDI", d.VDI)
		row("SR", d.SR)
		row("location", d.Location)
		row("VDI snapshot", d.VDISnapshot)
		row("size", fmt.Sprintf("%s (%d bytes)", size(d.Size), d.Size))
		row("method", d.Method+" ("+d.Reason+")")
		row("read", size(d.Counts.Read))
		row("changed", size(d.Counts.Changed))
		row("new", size(d.Counts.New))
		row("stored", size(d.Counts.Stored))
		root, _ := d.Root.MarshalText() // cannot fail
		row("root", string(root))
		if err := t.flush(); err != nil {
			return err
		}
	}
	for _, g := range s.Missing {
		fmt.Fprintf(w, "\ndisk %s is not in it: %s\n", printable(g.Device), printable(g.Reason))
	}
	for _, rec := range s.Records {
		fmt.Fprintf(w, "\nrecord %s, %s\n", printable(rec.Name), size(rec.Size))
		if rec.Name == jobrecords.RecordsName {
			var text bytes.Buffer
			if err := json.Indent(&text, records, "", "  "); err != nil {
				return err
			}
			if _, err := fmt.Fprintln(w, text.String()); err != nil {
				return err
			}
		}
	}
	return nil
}

// ovaName is the file in a metadata export that describes the VM.
const ovaName = "ova.xml"

// readOVA returns the ova.xml of a snapshot's metadata export, indented.
func readOVA(ctx context.Context, r *repo.Repository, s *repo.Snapshot) ([]byte, error) {
	p, err := r.ReadRecord(ctx, s, jobrecords.MetadataName)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %s: %w", s.Short(), jobrecords.MetadataName, err)
	}
	if p == nil {
		return nil, fmt.Errorf("snapshot %s: no metadata export is stored with it", s.Short())
	}
	t := tar.NewReader(bytes.NewReader(p))
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("snapshot %s: %s holds no %s", s.Short(), jobrecords.MetadataName, ovaName)
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %s: %w", s.Short(), jobrecords.MetadataName, err)
		}
		if h.Name != ovaName {
			continue
		}
		text, err := io.ReadAll(t)
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %s: %w", s.Short(), ovaName, err)
		}
		if nice, err := indentXML(text); err == nil {
			text = nice
		}
		return text, nil
	}
}

// indentXML writes each element of data without mixed content on its own line. It
// keeps white space that is the whole content of an element.
func indentXML(text []byte) ([]byte, error) {
	var out bytes.Buffer
	d := xml.NewDecoder(bytes.NewReader(text))
	e := xml.NewEncoder(&out)
	e.Indent("", "  ")
	var blank xml.CharData // white space that may be all of an element
	opened := false
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			if err := e.Close(); err != nil {
				return nil, err
			}
			return append(out.Bytes(), '\n'), nil
		}
		if err != nil {
			return nil, err
		}
		if c, ok := token.(xml.CharData); ok && len(bytes.TrimSpace(c)) == 0 {
			blank = c.Copy()
			continue
		}
		_, closes := token.(xml.EndElement)
		if len(blank) > 0 && opened && closes {
			if err := e.EncodeToken(blank); err != nil {
				return nil, err
			}
		}
		_, opened = token.(xml.StartElement)
		blank = nil
		if err := e.EncodeToken(token); err != nil {
			return nil, err
		}
	}
}
