package jobtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/slot"
	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/doctor"
	"xenkeep/job/exchange"
	"xenkeep/job/lease"
	"xenkeep/job/restore"
	"xenkeep/repo"
	"xenkeep/repo/check"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// World is a simulated pool, a client of it, and a repository.
type World struct {
	T       *testing.T
	Sim     *xapisim.Pool
	Pool    *xapi.Client
	Objects object.Store
	Repo    *repo.Repository
	Dir     string
}

// New creates a World. Without VMs in cfg, the pool has one VM, web, with two disks.
func New(t *testing.T, cfg xapisim.Config) *World {
	t.Helper()
	w := &World{T: t, Dir: t.TempDir(), Objects: mem.New()}
	if cfg.VMs == nil {
		cfg.VMs = []xapisim.VMConfig{{Name: "web", Disks: []string{
			Image(t, filepath.Join(w.Dir, "web0.img"), 24*MiB, 1, 40), Image(t, filepath.Join(w.Dir, "web1.img"), 16*MiB, 2, 10),
		}}}
	}
	if cfg.Scale == 0 {
		cfg.Scale = 0.001
	}
	cfg.CancelDelay, cfg.LoginDelay = time.Millisecond, time.Millisecond
	var err error
	if w.Sim, err = xapisim.New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Sim.Close() })
	w.Pool = w.Dial()
	if w.Repo, err = repo.Init(t.Context(), w.Objects, repo.Options{Secret: Secret}); err != nil {
		t.Fatal(err)
	}
	return w
}

// Secret is the key of the repositories.
var Secret = slot.Secret{KeyFile: bytes.Repeat([]byte{5}, 32)}

// Dial returns another client of the pool.
func (w *World) Dial() *xapi.Client {
	w.T.Helper()
	c, err := xapi.Dial(w.T.Context(), xapi.Config{
		URL: w.Sim.URL(), User: w.Sim.User(), Password: w.Sim.Password(),
		Trust: xapi.Trust{Fingerprints: w.Sim.Fingerprints(), Insecure: strings.HasPrefix(w.Sim.URL(), "http:")}, Pace: 0.01, StallTimeout: 5 * time.Second, VerdictTimeout: 5 * time.Second,
	})
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// Options returns the options of a backup of VMs, with the test's own job.
func (w *World) Options(vms ...string) backup.Options {
	return backup.Options{Common: job.Common{StateDir: w.Dir, Job: w.T.Name()}, VMs: vms}
}

// Backup runs a backup, which must succeed without warnings.
func (w *World) Backup(o backup.Options) *job.Summary {
	w.T.Helper()
	s, err := backup.Run(w.T.Context(), w.Repo, w.Pool, o)
	if err != nil {
		w.T.Fatal(err)
	}
	if len(s.Warnings) > 0 {
		w.T.Errorf("warnings: %q", s.Warnings)
	}
	return s
}

// Snapshot returns the snapshot with an ID.
func (w *World) Snapshot(id string) *repo.Snapshot {
	w.T.Helper()
	all, bad, err := w.Repo.Snapshots(w.T.Context())
	if err != nil || len(bad) > 0 {
		w.T.Fatal(err, bad)
	}
	s, err := repo.Resolve(all, id)
	if err != nil {
		w.T.Fatal(err)
	}
	return s
}

// CheckRepository checks the repository with all its data, and that it has no claims.
func (w *World) CheckRepository() {
	w.T.Helper()
	r, err := repo.Open(w.T.Context(), w.Objects, repo.Options{Secret: Secret})
	if err != nil {
		w.T.Fatal(err)
	}
	if err := r.LoadIndex(w.T.Context()); err != nil {
		w.T.Fatal(err)
	}
	rep, err := check.Run(w.T.Context(), r, check.Options{ReadData: true})
	if err != nil {
		w.T.Fatal(err)
	}
	for _, f := range rep.Findings {
		w.T.Errorf("check: %v", f)
	}
	if rep.Claims != 0 {
		w.T.Errorf("%d claims are left", rep.Claims)
	}
}

// VolumeSum returns the checksum of a VDI's content.
func (w *World) VolumeSum(vdi string, size int64) string {
	w.T.Helper()
	v, err := w.Sim.Volume(vdi)
	if err != nil {
		w.T.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(v, 0, size)); err != nil {
		w.T.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// RestoredTo restores one disk to a file and returns the checksum of its content.
func (w *World) RestoredTo(s *repo.Snapshot, device string) string {
	w.T.Helper()
	d, err := s.Disk(device)
	if err != nil {
		w.T.Fatal(err)
	}
	file := filepath.Join(w.T.TempDir(), "out.raw")
	if _, err := restore.File(w.T.Context(), w.Repo, s, d, file, restore.Options{}); err != nil {
		w.T.Fatal(err)
	}
	return FileSum(w.T, file)
}

// Bases counts the marked VDI snapshots on the pool, by the disk of which they are.
func (w *World) Bases() map[xapi.Ref]int {
	w.T.Helper()
	vdis, err := w.Pool.VDIs(w.T.Context())
	if err != nil {
		w.T.Fatal(err)
	}
	n := make(map[xapi.Ref]int)
	for _, v := range vdis {
		if v.OtherConfig["xenkeep:role"] == "base" {
			n[v.SnapshotOf]++
		}
		if role := v.OtherConfig["xenkeep:role"]; role != "" && role != "base" {
			w.T.Errorf("VDI %s remains as %s", v.UUID, role)
		}
	}
	return n
}

// OnStore moves the world to another storage, with a new repository.
func (w *World) OnStore(objects object.Store) {
	w.T.Helper()
	w.Objects = objects
	var err error
	if w.Repo, err = repo.Init(w.T.Context(), objects, repo.Options{Secret: Secret}); err != nil {
		w.T.Fatal(err)
	}
}

// Reopen replaces the world's repository by one that is opened again.
func (w *World) Reopen() {
	w.T.Helper()
	r, err := repo.Open(w.T.Context(), w.Objects, repo.Options{Secret: Secret})
	if err != nil {
		w.T.Fatal(err)
	}
	if err := r.LoadIndex(w.T.Context()); err != nil {
		w.T.Fatal(err)
	}
	w.Repo = r
}

// DropClaims drops all claims, as the next process does if this one has ended.
func (w *World) DropClaims() {
	w.T.Helper()
	claims, bad, err := w.Repo.Claims(w.T.Context())
	if err != nil || len(bad) > 0 {
		w.T.Fatal(err, bad)
	}
	for _, c := range claims {
		if err := w.Repo.DropClaim(w.T.Context(), c); err != nil {
			w.T.Fatal(err)
		}
	}
}

// Write writes to disk 0 as its guest, and returns the disk's new image.
func (w *World) Write(name, from string, seed uint64, n int) string {
	w.T.Helper()
	next := filepath.Join(w.Dir, name)
	CopyFile(w.T, next, from)
	f, err := os.OpenFile(next, os.O_RDWR, 0)
	if err != nil {
		w.T.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		w.T.Fatal(err)
	}
	Scribble(w.T, f, st.Size(), seed, n)
	if _, err := w.Sim.GuestWrite(w.Sim.Ready().VMs[0].Disks[0].VDI, next); err != nil {
		w.T.Fatal(err)
	}
	return next
}

// Cleanup runs a cleanup, which must succeed, and returns its findings by name.
func (w *World) Cleanup(o lease.CleanupOptions) map[string]lease.Leftover {
	w.T.Helper()
	rep, err := lease.Cleanup(w.T.Context(), w.Repo, w.Pool, o)
	if err != nil {
		w.T.Fatal(err)
	}
	if err := rep.Err(); err != nil {
		w.T.Error(err)
	}
	found := make(map[string]lease.Leftover)
	for _, l := range rep.Found {
		found[l.Name] = l
	}
	return found
}

// FindingOf returns the finding of doctor about an object, or nil.
func (w *World) FindingOf(what string) *doctor.Finding {
	w.T.Helper()
	findings, err := doctor.Pool(w.T.Context(), w.Pool)
	if err != nil {
		w.T.Fatal(err)
	}
	for i := range findings {
		if findings[i].What == what {
			return &findings[i]
		}
	}
	return nil
}

// ImportXVA sends an archive to the pool and returns the imported VM.
func (w *World) ImportXVA(file string) xapi.VM {
	w.T.Helper()
	task, err := w.Pool.CreateTask(w.T.Context(), "import", "")
	if err != nil {
		w.T.Fatal(err)
	}
	var sr string
	for _, s := range w.Sim.Ready().SRs {
		if s.Type == "nfs" {
			sr = s.UUID
		}
	}
	f, err := os.Open(file)
	if err != nil {
		w.T.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		w.T.Fatal(err)
	}
	req, err := http.NewRequestWithContext(w.T.Context(), http.MethodPut, w.Sim.URL()+"/import?"+url.Values{"task_id": {string(task)}, "sr_uuid": {sr}}.Encode(), f)
	if err != nil {
		w.T.Fatal(err)
	}
	req.ContentLength = st.Size()
	req.SetBasicAuth(w.Sim.User(), w.Sim.Password())
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		w.T.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	refs, err := w.Pool.WaitTask(w.T.Context(), task)
	if err != nil || len(refs) != 1 {
		w.T.Fatalf("import: %v %q: %s", err, refs, body)
	}
	vm, err := w.Pool.VM(w.T.Context(), xapi.Ref(refs[0]))
	if err != nil {
		w.T.Fatal(err)
	}
	return vm
}

// DiskSums returns the checksums of a VM's disks, by userdevice.
func (w *World) DiskSums(vm xapi.VM) map[string]string {
	w.T.Helper()
	out := make(map[string]string)
	for _, ref := range vm.VBDs {
		b, err := w.Pool.VBD(w.T.Context(), ref)
		if err != nil {
			w.T.Fatal(err)
		}
		if b.Type != "Disk" {
			continue
		}
		vdi, err := w.Pool.VDI(w.T.Context(), b.VDI)
		if err != nil {
			w.T.Fatal(err)
		}
		out[b.UserDevice] = w.VolumeSum(vdi.UUID, int64(vdi.VirtualSize))
	}
	return out
}

// Flip changes a bit in the middle of the largest pack of a kind.
func (w *World) Flip(kind pack.Kind) {
	w.T.Helper()
	var name string
	var data []byte
	if err := w.Objects.List(w.T.Context(), "packs/", func(i object.Info) error {
		p, err := w.Objects.Get(w.T.Context(), i.Name, 0, -1)
		if err == nil && pack.Kind(p[6]) == kind && len(p) > len(data) {
			name, data = i.Name, p
		}
		return err
	}); err != nil {
		w.T.Fatal(err)
	}
	data[len(data)/2] ^= 1
	err := w.Objects.Delete(w.T.Context(), name)
	if err == nil {
		err = w.Objects.Put(w.T.Context(), name, data)
	}
	if err != nil {
		w.T.Fatal(err)
	}
}

// Reopened returns the repository as another process opens it, without any state of
// the world's.
func (w *World) Reopened() *repo.Repository {
	w.T.Helper()
	r, err := repo.Open(w.T.Context(), w.Objects, repo.Options{Secret: Secret})
	if err == nil {
		err = r.LoadIndex(w.T.Context())
	}
	if err != nil {
		w.T.Fatal(err)
	}
	return r
}

// Damage checks one snapshot, or all, with all data, and returns the findings.
func (w *World) Damage(some ...*repo.Snapshot) []check.Finding {
	w.T.Helper()
	rep, err := check.Run(w.T.Context(), w.Reopened(), check.Options{ReadData: true, Snapshots: some})
	if err != nil {
		w.T.Fatal(err)
	}
	return rep.Findings
}

// ChainOf exports snapshots of a file as a chain of VHDs, base first, and returns the
// checksums of the raw disks. Each day changes the disk.
func (w *World) ChainOf(dir string, seed uint64, names ...string) (files, sums []string) {
	w.T.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.T.Fatal(err)
	}
	raw := Image(w.T, filepath.Join(dir, "source.raw"), 20*MiB, seed, 30)
	when := time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)
	var snaps []*repo.Snapshot
	for day, name := range names {
		if day > 0 {
			f, err := os.OpenFile(raw, os.O_RDWR, 0)
			if err != nil {
				w.T.Fatal(err)
			}
			Scribble(w.T, f, 20*MiB, seed*100+uint64(day), 3)
			_ = f.Close()
		}
		s := w.Snapshot(w.Import(exchange.ImportOptions{Name: dir, Date: when.AddDate(0, 0, day)}, raw).Snapshots[0].ID)
		o := exchange.ExportOptions{Format: exchange.FormatVHD}
		if day > 0 {
			o.Base, o.BaseFile = snaps[day-1], names[day-1]
		}
		files = append(files, filepath.Join(dir, name))
		if _, err := exchange.Export(w.T.Context(), w.Repo, s, files[day], nil, o); err != nil {
			w.T.Fatal(err)
		}
		snaps, sums = append(snaps, s), append(sums, FileSum(w.T, raw))
	}
	return files, sums
}

// ExportXVA exports a snapshot of a VM by the pool to a file.
func (w *World) ExportXVA(vm, file, compression string) {
	w.T.Helper()
	v, err := w.Pool.FindVM(w.T.Context(), vm)
	if err != nil {
		w.T.Fatal(err)
	}
	snap, err := w.Pool.SnapshotVM(w.T.Context(), v.Ref, "s")
	if err != nil {
		w.T.Fatal(err)
	}
	q := url.Values{"ref": {string(snap)}, "use_compression": {compression}}
	req, err := http.NewRequestWithContext(w.T.Context(), http.MethodGet, w.Sim.URL()+"/export?"+q.Encode(), nil)
	if err != nil {
		w.T.Fatal(err)
	}
	req.SetBasicAuth(w.Sim.User(), w.Sim.Password())
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		w.T.Fatal(err)
	}
	defer resp.Body.Close()
	f, err := os.Create(file)
	if err != nil {
		w.T.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, resp.Body); err != nil || resp.StatusCode != 200 {
		w.T.Fatal(resp.Status, err)
	}
}

// Import imports files into the repository, which must succeed.
func (w *World) Import(o exchange.ImportOptions, files ...string) *job.Summary {
	w.T.Helper()
	o.StateDir = w.Dir
	s, err := exchange.Import(w.T.Context(), w.Repo, files, o)
	if err != nil {
		w.T.Fatal(err, s)
	}
	return s
}

// NightPool creates a World with a pool of small VMs.
func NightPool(t *testing.T, cfg xapisim.Config, names ...string) *World {
	t.Helper()
	dir := t.TempDir()
	for i, n := range names {
		cfg.VMs = append(cfg.VMs, xapisim.VMConfig{Name: n, Drivers: true, Disks: []string{Image(t, filepath.Join(dir, fmt.Sprint(i)), 4*MiB, uint64(i), 4)}})
	}
	return New(t, cfg)
}

// Requests returns requests to back up VMs.
func (w *World) Requests(names ...string) []backup.VMRequest {
	w.T.Helper()
	var list []backup.VMRequest
	for _, n := range names {
		vm, err := w.Pool.FindVM(w.T.Context(), n)
		if err != nil {
			w.T.Fatal(err)
		}
		list = append(list, backup.VMRequest{UUID: vm.UUID, Name: n})
	}
	return list
}

// DisksOf returns pointers to all disks of a snapshot.
func DisksOf(s *repo.Snapshot) []*repo.Disk {
	var all []*repo.Disk
	for i := range s.Disks {
		all = append(all, &s.Disks[i])
	}
	return all
}

// BackupOf backs a VM up and keeps nothing on the pool.
func BackupOf(w *World, vm string) *repo.Snapshot {
	w.T.Helper()
	o := w.Options(vm)
	o.Keep = backup.KeepNone
	s := w.Snapshot(w.Backup(o).Snapshots[0].ID)
	w.Sim.GC()
	return s
}

// Preview returns the preview of the backup of one VM.
func (w *World) Preview(o backup.Options) (*backup.VMPreview, error) {
	w.T.Helper()
	f, err := backup.NewPreview(w.T.Context(), w.Repo, w.Pool, o)
	if err != nil {
		w.T.Fatal(err)
	}
	return f.VM(w.T.Context(), o.Selected[0])
}
