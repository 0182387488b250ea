package job

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/filekind"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/vhd"
	"xenkeep/xva"
)

// OriginImport is the origin of a snapshot whose VM came from a file, and of
// which no pool is known.
const OriginImport = "import"

// ImportOptions say how Import names and dates what it reads.
type ImportOptions struct {
	Common
	Name string    // of disk images; "" is the file's name
	Date time.Time // zero: what the file, or its folder, says
	// Raw takes every file as a raw disk, whatever it looks like.
	Raw bool
}

// ErrChain is returned for a differencing VHD whose parent is not the file
// before it.
var ErrChain = errors.New("not the parent")

// ErrNothing is returned for a folder that holds nothing to be imported.
var ErrNothing = errors.New("nothing to import")

// Import takes files into the repository: raw, VHD and qcow2 images, XVA
// archives, and folders that NAUbackup's VmBackup wrote. Each becomes a snapshot
// with the date and the identity it had; a differencing VHD stands on the file
// before it. What fails does not keep the others from being imported; what is
// there already is passed over.
func Import(ctx context.Context, r *repo.Repository, files []string, o ImportOptions) (*Summary, error) {
	o.defaults()
	release, err := lockJob(o.StateDir, r.ID(), o.Job)
	if err != nil {
		return nil, err
	}
	defer release()
	all, _, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	started := o.Now()
	im := &importer{r: r, o: o, all: all, sum: &Summary{Type: "summary", Status: "ok", Job: o.Job, Started: started.UTC(), Snapshots: []VMSummary{}}}
	for _, file := range files {
		if ctx.Err() != nil {
			break
		}
		im.take(ctx, file)
	}
	s := im.sum
	s.Duration = o.Now().Sub(started).Seconds()
	switch {
	case ctx.Err() != nil:
		s.Status = "failed"
		return s, context.Cause(ctx)
	case len(s.Failed) > 0 && len(s.Snapshots)+im.known > 0:
		s.Status = "partial"
		return s, ErrPartial
	case len(s.Failed) > 0:
		s.Status = "failed"
		return s, ErrFailed
	}
	return s, nil
}

// importer is one import.
type importer struct {
	r     *repo.Repository
	o     ImportOptions
	all   []*repo.Snapshot // there before, and made
	sum   *Summary
	known int // passed over
	chain *link
}

// link is the VHD that a differencing one may stand on.
type link struct {
	file string
	id   vhd.UUID
	name string // of the series
	root chunk.ID
}

// take imports one file or folder, and notes how it went.
func (im *importer) take(ctx context.Context, file string) {
	kind, st, dir, err := kindOf(file, im.o.Raw)
	if err != nil {
		im.failed(file, err)
		return
	}
	if kind != filekind.VHD {
		im.chain = nil
	}
	switch {
	case dir:
		err = im.folder(ctx, file)
	case kind == filekind.XVA, kind == filekind.Gzip, kind == filekind.Zstd:
		err = im.archive(ctx, file, archiveOptions{date: st.ModTime()})
		if k := kind; errors.Is(err, xva.ErrNotXVA) && k != filekind.XVA {
			no := foreign(file, k)
			no.why, no.also = k.Name()+" in which there is no XVA archive", xva.ErrNotXVA
			err = no
		}
	default:
		err = im.image(ctx, file, kind, st)
	}
	if err != nil {
		im.failed(file, err)
	}
}

func (im *importer) failed(file string, err error) {
	if !strings.Contains(err.Error(), file) {
		err = fmt.Errorf("%s: %w", file, err)
	}
	im.sum.Failed = append(im.sum.Failed, VMFailure{VM: file, Error: oneLine(err), Hint: HintOf(err), err: err})
}

func (im *importer) warn(format string, args ...any) {
	im.sum.Warnings = append(im.sum.Warnings, fmt.Sprintf(format, args...))
}

// date is what the user says, or what the file does.
func (im *importer) date(t time.Time) time.Time {
	if !im.o.Date.IsZero() {
		t = im.o.Date
	}
	return t.UTC().Truncate(time.Second)
}

// image imports one disk image.
func (im *importer) image(ctx context.Context, file string, kind filekind.Kind, st os.FileInfo) error {
	src, err := im.open(ctx, file, kind)
	if err != nil {
		return err
	}
	defer src.close()
	name := im.o.Name
	if name == "" {
		name = filepath.Base(file)
	}
	date := st.ModTime()
	delta := src.vhd != nil && src.vhd.IsDelta()
	var parent *link
	if src.vhd != nil {
		if t := src.vhd.Footer().Time; t != 0 {
			date = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(t) * time.Second)
		}
		if delta {
			if parent, err = im.parent(file, src.vhd); err != nil {
				return err
			}
			name = parent.name
		}
	}
	s := &repo.Snapshot{
		Origin: "image", VM: repo.Named{Name: name, UUID: "image:" + name}, Tags: im.o.Tags, Data: im.date(date), Complete: true,
	}
	if old := im.there(s); old != nil && len(old.Disks) == 1 {
		im.pass(file, old)
		im.chain = src.link(file, name, chunk.ID(old.Disks[0].Root))
		return nil
	}
	var base chunk.ID
	if delta {
		base = parent.root
	} else if last := repo.Latest(im.all, func(x *repo.Snapshot) bool { return sameVM(x, s) }); last != nil && len(last.Disks) == 1 {
		base = chunk.ID(last.Disks[0].Root)
	}
	var roots []chunk.ID
	if !base.IsZero() {
		roots = append(roots, base)
	}
	im.chain = nil
	reason := "imported from " + filepath.Base(file)
	if im.o.Raw {
		reason += storedRaw
	}
	if err := im.run(ctx, s, roots, func(ctx context.Context, run *backup.Run) error {
		return im.disk(ctx, run, s, src, repo.Disk{Device: name, Size: src.Size(), Reason: reason},
			backup.DiskOptions{Size: src.Size(), Base: base, Delta: delta}, src.allocated)
	}); err != nil {
		return err
	}
	im.chain = src.link(file, name, chunk.ID(s.Disks[0].Root))
	return nil
}

// disk stores one disk and adds it to the snapshot.
func (im *importer) disk(ctx context.Context, run *backup.Run, s *repo.Snapshot, src disk.Source, d repo.Disk, o backup.DiskOptions, total int64) error {
	m := im.o.Progress.Begin(strings.TrimPrefix(s.VM.Name+" "+d.Device, d.Device+" "), total)
	defer m.Done()
	o.Progress = metered(m)
	res, err := run.Disk(ctx, src, o)
	if err != nil {
		return err
	}
	d.Root, d.Counts, d.Method = repo.HexID(res.Root), res.Counts, "full"
	s.Disks = append(s.Disks, d)
	return nil
}

// run stores and publishes one snapshot.
func (im *importer) run(ctx context.Context, s *repo.Snapshot, roots []chunk.ID, fn func(ctx context.Context, run *backup.Run) error) error {
	err := withRun(ctx, im.r, &im.o.Common, roots, func(ctx context.Context, run *backup.Run) error {
		if err := fn(ctx, run); err != nil {
			return err
		}
		run.Add(s)
		err := run.Flush(ctx)
		st := run.Stats()
		im.sum.Packs, im.sum.Stored = im.sum.Packs+st.Packs, im.sum.Stored+st.Stored
		return err
	})
	if err != nil {
		return err
	}
	im.all = append(im.all, s)
	im.sum.Snapshots = append(im.sum.Snapshots, summarise(s))
	return nil
}

// there is the snapshot of the same VM and time, if it was imported before.
func (im *importer) there(s *repo.Snapshot) *repo.Snapshot {
	for _, x := range im.all {
		if sameVM(x, s) && x.Complete && x.Data.Equal(s.Data) {
			return x
		}
	}
	return nil
}

func (im *importer) pass(file string, s *repo.Snapshot) {
	im.known++
	im.warn("%s: snapshot %s holds %s of %s already: passed over", file, s.Short(), s.VM.Name, s.Data.Local().Format("2006-01-02 15:04:05"))
}

// parent is the file before a differencing VHD, if that is its parent.
// XenServer gives what it exports ids that mean nothing (xen-api
// ocaml/vhd-tool): with those the order alone counts.
func (im *importer) parent(file string, f *vhd.File) (*link, error) {
	h := f.Header()
	switch {
	case im.chain == nil:
		return nil, fmt.Errorf("%s: a differencing VHD: name the file of its parent %q before it: %w", file, h.ParentName(), ErrChain)
	case im.chain.id == h.ParentID:
	case f.Footer().Creator == [4]byte([]byte("caml")):
		im.warn("%s: its server does not say what it builds on: taken to build on %s", file, im.chain.file)
	default:
		return nil, fmt.Errorf("%s: builds on %s %q: %s before it is %s: %w", file, h.ParentID, h.ParentName(), im.chain.file, im.chain.id, ErrChain)
	}
	return im.chain, nil
}
