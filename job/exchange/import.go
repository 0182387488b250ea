package exchange

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/filekind"
	"xenkeep/internal/disk"
	"xenkeep/job"
	"xenkeep/job/records"
	"xenkeep/job/transfer"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/vhd"
	"xenkeep/xva"
)

// OriginImport is the origin of a snapshot whose VM came from a file, and whose pool
// is not known.
const OriginImport = "import"

// ImportOptions are the options of Import.
type ImportOptions struct {
	job.Common
	Name string    // of disk images; "" is the file's name
	Date time.Time // zero: the date in the file or in the name of its folder
	// Raw reads every file as a raw disk, even if its content looks like another
	// format.
	Raw bool
	// AssumeChain accepts the previous file as the parent of a differencing VHD
	// without a proof.
	AssumeChain bool
	// AllowShrink permits an image to be smaller than in the previous snapshot.
	AllowShrink job.Shrink
}

// ErrChain is returned for a differencing VHD whose parent is not the previous file.
var ErrChain = errors.New("not the parent")

// ErrNothing is returned for a folder without anything to import.
var ErrNothing = errors.New("nothing to import")

// Import imports files into the repository: raw, VHD and qcow2 images, XVA archives,
// and folders that NAUbackup's VmBackup wrote. Each becomes a snapshot with its
// original date and identity; a differencing VHD is based on the previous file. A file
// that fails does not prevent the import of the others, and is in the summary; a file
// that was imported before is skipped.
func Import(ctx context.Context, r *repo.Repository, files []string, o ImportOptions) (*job.Summary, error) {
	lock := func() (func(), error) { return job.LockThing(o.StateDir, r.ID(), "import", "", "import") }
	if o.Job != "" {
		lock = func() (func(), error) { return job.LockJob(o.StateDir, r.ID(), o.Job) }
	}
	release, err := lock()
	o.Defaults()
	if err != nil {
		return nil, err
	}
	defer release()
	all, _, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	started := o.Now()
	im := &importer{r: r, o: o, all: all, sum: &job.Summary{Type: "summary", Status: "ok", Job: o.Job, Started: started.UTC(), Snapshots: []job.VMSummary{}}}
	for _, file := range files {
		if ctx.Err() != nil {
			break
		}
		im.importOne(ctx, file)
	}
	s := im.sum
	s.Duration, s.Requests = o.Now().Sub(started).Seconds(), job.CountRequests(r)
	switch {
	case ctx.Err() != nil:
		s.Status = "failed"
		return s, context.Cause(ctx)
	case len(s.Failed) > 0 && len(s.Snapshots)+im.skipped > 0:
		s.Status = "partial"
		return s, job.ErrPartial
	case len(s.Failed) > 0:
		s.Status = "failed"
		return s, job.ErrFailed
	}
	return s, nil
}

// importer is the state of one Import.
type importer struct {
	r       *repo.Repository
	o       ImportOptions
	all     []*repo.Snapshot // existing before, and created
	sum     *job.Summary
	skipped int // files that were skipped
	chain   *link
}

// link is a VHD that may be the parent of a differencing one.
type link struct {
	file  string
	id    vhd.UUID
	size  int64
	times [2]uint32  // of its footer and of its file, in the VHD's unit
	vm    repo.Named // the VM to which the chain belongs
	root  chunk.ID
	made  bool // by this import: its children must be read again
}

// importOne imports one file or folder, and records the result.
func (im *importer) importOne(ctx context.Context, file string) {
	kind, st, dir, err := transfer.KindOf(file, im.o.Raw)
	if err != nil {
		im.failed(file, err)
		return
	}
	if kind != filekind.VHD {
		im.chain = nil
	}
	switch {
	case dir:
		err = im.importFolder(ctx, file)
	case kind == filekind.XVA, kind == filekind.Gzip, kind == filekind.Zstd:
		err = im.importArchive(ctx, file, archiveOptions{date: st.ModTime()})
		if k := kind; errors.Is(err, xva.ErrNotXVA) && k != filekind.XVA {
			no := transfer.Foreign(file, k)
			no.Why, no.Also = k.Name()+" in which there is no XVA archive", xva.ErrNotXVA
			err = no
		}
	default:
		err = im.importImage(ctx, file, kind, st)
	}
	if err != nil {
		im.failed(file, err)
	}
}

func (im *importer) failed(file string, err error) {
	if !strings.Contains(err.Error(), file) {
		err = fmt.Errorf("%s: %w", file, err)
	}
	im.sum.Failed = append(im.sum.Failed, job.VMFailure{VM: file, Error: job.OneLine(err), Hint: job.HintOf(err), Cause: err})
}

func (im *importer) warn(format string, args ...any) {
	im.sum.Warnings = append(im.sum.Warnings, fmt.Sprintf(format, args...))
}

// date returns the date that the user specified, otherwise that of the file.
func (im *importer) date(t time.Time) time.Time {
	if !im.o.Date.IsZero() {
		t = im.o.Date
	}
	return t.UTC().Truncate(time.Second)
}

// importImage imports one disk image.
func (im *importer) importImage(ctx context.Context, file string, kind filekind.Kind, st os.FileInfo) error {
	src, err := im.openImage(ctx, file, kind)
	if err != nil {
		return err
	}
	defer src.close()
	s, base, err := im.imageSnapshot(file, kind, st, src)
	if err != nil {
		return err
	}
	var old *repo.Snapshot
	if !src.isDelta() || !im.chain.made {
		old = im.unchanged(s)
	}
	im.chain = nil
	if old == nil {
		last := im.previous(s, src)
		if last != nil {
			if err := im.o.AllowShrink.CheckSize(last, last.Disks[0].Size, src.Size()); err != nil {
				return err
			}
		}
		reason := "imported from " + filepath.Base(file)
		if im.o.Raw {
			reason += records.StoredRaw
		}
		var roots []chunk.ID
		if !base.IsZero() {
			roots = append(roots, base)
		}
		if old, err = im.run(ctx, s, roots, func(ctx context.Context, run *backup.Run) error {
			d := repo.Disk{Device: s.VM.Name, Size: src.Size(), Reason: reason}
			res, err := im.disk(ctx, run, s, src, d, backup.DiskOptions{Size: src.Size(), Base: base, Delta: src.isDelta()}, src.allocated)
			if err == nil && last != nil {
				err = im.o.AllowShrink.CheckContent(last, &res)
			}
			return err
		}); err != nil {
			return err
		}
	}
	passed := old != nil
	if passed {
		im.skip(file, old)
		s = old
	}
	if im.chain = src.link(file, st, s); im.chain != nil {
		im.chain.made = !passed
	}
	return nil
}

// previous returns the newest snapshot of the same image that is not newer than s, for
// the check whether s is much smaller. It returns nil if s does not contain a whole
// disk.
func (im *importer) previous(s *repo.Snapshot, src *imported) *repo.Snapshot {
	if src.isDelta() {
		return nil
	}
	last := repo.Latest(im.all, func(x *repo.Snapshot) bool { return job.SameVM(x, s) && !x.DataTime.After(s.DataTime) })
	if last == nil || len(last.Disks) != 1 {
		return nil
	}
	return last
}

// imageSnapshot returns the snapshot of an image, with its VM, its date, and the root
// of its base.
func (im *importer) imageSnapshot(file string, kind filekind.Kind, st os.FileInfo, src *imported) (*repo.Snapshot, chunk.ID, error) {
	s := &repo.Snapshot{Origin: "image", Tags: im.o.Tags, Complete: true}
	date := st.ModTime()
	if src.vhd != nil {
		switch d := transfer.FooterDate(src.vhd.Footer().Time, im.o.Now()); {
		case !d.IsZero():
			date = d
		case src.vhd.Footer().Time != 0 && im.o.Date.IsZero():
			im.warn("%s: the date in its footer is in the future: that of the file is taken", file)
		}
	}
	s.DataTime = im.date(date)
	var err error
	if s.Source, err = transfer.SourceOf(file, kind); err != nil {
		return nil, chunk.ID{}, err
	}
	if src.isDelta() {
		parent, err := im.parent(file, src.vhd)
		if err != nil {
			return nil, chunk.ID{}, err
		}
		s.VM = parent.vm
		return s, parent.root, nil
	}
	if s.VM, err = transfer.ImageIdentity(im.o.Machine, file, im.o.Name); err != nil {
		return nil, chunk.ID{}, err
	}
	if text := transfer.UnnamedBefore(im.all, s.VM); text != "" {
		im.warn("%s: %s", file, text)
	}
	if last := repo.Latest(im.all, func(x *repo.Snapshot) bool { return job.SameVM(x, s) }); last != nil && len(last.Disks) == 1 {
		return s, chunk.ID(last.Disks[0].Root), nil
	}
	return s, chunk.ID{}, nil
}

// disk stores one disk and adds it to the snapshot.
func (im *importer) disk(ctx context.Context, run *backup.Run, s *repo.Snapshot, src disk.Source, d repo.Disk, o backup.DiskOptions, total int64) (backup.DiskResult, error) {
	m := im.o.Progress.Begin(strings.TrimPrefix(s.VM.Name+" "+d.Device, d.Device+" "), total)
	defer m.Done()
	o.Progress = job.CountingCallback(m)
	res, err := run.BackupDisk(ctx, src, o)
	if err != nil {
		return res, err
	}
	d.Root, d.Counts, d.Method = repo.HexID(res.Root), res.Counts, "full"
	s.Disks = append(s.Disks, d)
	return res, nil
}

// run stores and publishes one snapshot. If there is an equal one already, it is
// returned and nothing is published.
func (im *importer) run(ctx context.Context, s *repo.Snapshot, roots []chunk.ID, fn func(ctx context.Context, run *backup.Run) error) (old *repo.Snapshot, err error) {
	err = job.WithRun(ctx, im.r, &im.o.Common, roots, func(ctx context.Context, run *backup.Run) error {
		if err := fn(ctx, run); err != nil {
			return err
		}
		if old = im.existing(s, equalContent); old == nil {
			run.Add(s)
		}
		err := run.Flush(ctx)
		im.sum.AddWritten(run.Stats())
		return err
	})
	if err != nil || old != nil {
		return old, err
	}
	im.all = append(im.all, s)
	im.sum.Snapshots = append(im.sum.Snapshots, job.Summarize(s))
	return nil, nil
}

// existing returns a snapshot of the same VM and time for which same returns true, or
// nil.
func (im *importer) existing(s *repo.Snapshot, same func(x, s *repo.Snapshot) bool) *repo.Snapshot {
	for _, x := range im.all {
		if job.SameVM(x, s) && x.Complete && x.DataTime.Equal(s.DataTime) && same(x, s) {
			return x
		}
	}
	return nil
}

// unchanged returns the snapshot that was made of the same file, if the file has not
// changed since, so that it need not be read again; otherwise nil.
func (im *importer) unchanged(s *repo.Snapshot) *repo.Snapshot {
	return im.existing(s, func(x, s *repo.Snapshot) bool {
		return x.Machine == im.o.Machine && x.Source.Same(s.Source) && len(x.Disks) > 0
	})
}

// equalContent reports whether two snapshots contain the same disks and records.
func equalContent(a, b *repo.Snapshot) bool {
	return slices.EqualFunc(a.Disks, b.Disks, func(x, y repo.Disk) bool {
		return x.Device == y.Device && x.VDI == y.VDI && x.Size == y.Size && x.Root == y.Root
	}) && slices.Equal(a.Records, b.Records)
}

func (im *importer) skip(file string, s *repo.Snapshot) {
	im.skipped++
	im.warn("%s: snapshot %s holds %s of %s already, with the same content: passed over", file, s.Short(), s.VM.Name, s.DataTime.Local().Format("2006-01-02 15:04:05"))
}

// parent returns the previous file if it is proved to be the parent of a differencing
// VHD, or if the user declared it; otherwise an error.
func (im *importer) parent(file string, f *vhd.File) (*link, error) {
	h := f.Header()
	if im.chain == nil {
		return nil, fmt.Errorf("%s: a differencing VHD: name the file of its parent %q before it: %w", file, h.ParentName(), ErrChain)
	}
	doubt := im.chain.whyNotParent(f)
	if doubt == "" {
		return im.chain, nil
	}
	if !im.o.AssumeChain {
		return nil, &chainError{file: file, before: im.chain.file, doubt: doubt}
	}
	im.warn("%s: %s: assumed to build on %s, because of --assume-chain", file, doubt, im.chain.file)
	return im.chain, nil
}

// chainError is the error for a differencing VHD that is not proved to be based on the
// previous file.
type chainError struct{ file, before, doubt string }

func (e *chainError) Error() string {
	return fmt.Sprintf("%s: %s, so %s before it is not proved to be its parent: %v", e.file, e.doubt, e.before, ErrChain)
}

func (e *chainError) Is(target error) bool { return target == ErrChain }

// Hint returns the next step.
func (e *chainError) Hint() string {
	return "name the files of a chain in order, the one that holds the whole disk first; --assume-chain takes the order as it is, and makes a wrong disk where the order is wrong"
}

// whyNotParent returns why the file of the link is not proved to be the parent of a
// differencing VHD; "" if it is: the parent's ID is that of the file, both disks have
// the same size, and the recorded modification time of the parent, if any, matches.
// XenServer exports differencing VHDs without a parent's ID (xen-api ocaml/vhd-tool).
func (l *link) whyNotParent(f *vhd.File) string {
	h := f.Header()
	id := h.ParentID
	switch {
	case id == vhd.UUID{} || id == f.Footer().ID:
		return "it does not name its parent"
	case !sameVHD(id, l.id):
		return fmt.Sprintf("it builds on the VHD %s %q, not on %s", id, h.ParentName(), l.id)
	case f.Size() != l.size:
		return fmt.Sprintf("it is a disk of %d bytes, not of %d", f.Size(), l.size)
	case h.ParentTime != 0 && !slices.ContainsFunc(l.times[:], func(t uint32) bool { return max(t, h.ParentTime)-min(t, h.ParentTime) <= 2 }):
		return fmt.Sprintf("its parent was changed last at %s", time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(h.ParentTime)*time.Second).Format(time.RFC3339))
	}
	return ""
}

// sameVHD reports whether two IDs identify the same VHD. Older versions of xenkeep
// wrote the same IDs as version 8, this one writes them as version 5.
func sameVHD(a, b vhd.UUID) bool {
	for _, id := range []*vhd.UUID{&a, &b} {
		if id[6]>>4 == 8 {
			id[6] = id[6]&0x0f | 0x50
		}
	}
	return a == b
}
