package job_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/jobtest"
	"xenkeep/repo/retention"
	"xenkeep/xapi/xapisim"
)

// If any storage call fails, the pool is unchanged except for the bases, the
// repository is sound, and the next run succeeds.
func TestStorageFails(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{NoTLS: true, VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{
		jobtest.Image(t, filepath.Join(t.TempDir(), "a.img"), 6*jobtest.MiB, 1, 10)}}}})
	faulty := objecttest.NewFaulty(mem.New())
	w.OnStore(faulty)
	before := w.Sim.Dump()
	step := 5
	if testing.Short() {
		step = 13
	}
	for n := 0; ; n += step {
		faulty.Heal()
		fault := faulty.Inject(objecttest.Fault{N: n, Stay: true, Err: object.ErrUnavailable})
		o := w.Options("web")
		o.Keep = backup.KeepNone
		sum, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
		fired := fault.Fired()
		faulty.Heal()
		w.Sim.GC()
		jobtest.SamePool(t, before, w.Sim.Dump())
		if !fired {
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d storage calls", n)
			break
		}
		if t.Failed() {
			t.Fatalf("after call %d failed: %v, %+v", n, err, sum)
		}
		w.Reopen()
		w.DropClaims()
	}
	w.Backup(w.Options("web"))
	w.CheckRepository()
}

// If the disk of the repository is full, the run fails with a clear error; nothing is
// lost, and when there is space again the next run uses the data that were uploaded.
func TestRepositoryFull(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	faulty := objecttest.NewFaulty(mem.New())
	w.OnStore(faulty)
	before := w.Sim.Dump()
	faulty.LimitSpace(3 * jobtest.MiB)
	_, err := backup.Run(t.Context(), w.Repo, w.Pool, w.Options("web"))
	if !errors.Is(err, object.ErrNoSpace) {
		t.Fatalf("on a full disk: %v", err)
	}
	w.Sim.GC()
	jobtest.SamePool(t, before, w.Sim.Dump())
	faulty.Heal()
	w.Reopen()
	w.CheckRepository()
	w.Backup(w.Options("web"))
	w.CheckRepository()
}

// If the mount of a repository is missing, there is no repository, and nothing is
// created in its place.
func TestMountGone(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	dir := filepath.Join(t.TempDir(), "repo")
	objects, err := local.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	w.OnStore(objects)
	w.Backup(w.Options("web"))
	before := w.Sim.Dump()
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil { // the empty mount point
		t.Fatal(err)
	}
	if _, err := backup.Run(t.Context(), w.Repo, w.Pool, w.Options("web")); !errors.Is(err, object.ErrNoRepository) {
		t.Errorf("on a missing mount: %v", err)
	}
	w.Sim.GC()
	jobtest.SamePool(t, before, w.Sim.Dump())
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("in the empty mount point: %v %v", left, err)
	}
}

// A stream that ends or breaks at any byte is never stored as a disk.
func TestStreamBreaksAnywhere(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{
		jobtest.Image(t, filepath.Join(t.TempDir(), "a.img"), 6*jobtest.MiB, 1, 10)}}}})
	before := w.Sim.Dump()
	var at []int64
	for _, edge := range []int64{0, 511, 512, 1535, 1536, 2048, 2559, 2560, 3071, 3072, 3072 + 2*jobtest.MiB, 3072 + 2*jobtest.MiB + 511} {
		at = append(at, edge, edge+1)
	}
	for i, n := range at {
		for _, embedded := range []bool{false, true} {
			if !embedded && i%5 != 0 {
				continue // the pool's task stays pending, and waiting for it takes long
			}
			w.Sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Cut: true, CutAt: n, Embedded: embedded, Times: -1, Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}})
			s, err := backup.Run(t.Context(), w.Repo, w.Pool, w.Options("web"))
			w.Sim.ClearFaults()
			if err == nil {
				t.Fatalf("a stream cut at %d (embedded %v) is a backup: %+v", n, embedded, s.Snapshots)
			}
			if line := s.Failed[0].Error; strings.Contains(line, "\n") || !strings.Contains(line, "xvda") {
				t.Errorf("cut at %d: the line is %q", n, line)
			}
		}
	}
	w.Sim.GC()
	jobtest.SamePool(t, before, w.Sim.Dump())
	w.CheckRepository()
}

// On thick SRs the space for a snapshot is checked first, and the error contains the
// sizes; a base is kept there only on request.
func TestThick(t *testing.T) {
	dir := t.TempDir()
	disk := jobtest.Image(t, filepath.Join(dir, "a.img"), 24*jobtest.MiB, 1, 10)
	w := jobtest.New(t, xapisim.Config{
		SRs: []xapisim.SRConfig{{Name: "thick", Type: "lvm", Size: 40 * jobtest.MiB, Host: 0}},
		VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{disk}}},
	})
	before := w.Sim.Dump()
	_, err := backup.Run(t.Context(), w.Repo, w.Pool, w.Options("web"))
	if !errors.Is(err, job.ErrSpace) || !strings.Contains(err.Error(), "needs 40 MiB") {
		t.Fatalf("without room: %v", err)
	}
	jobtest.SamePool(t, before, w.Sim.Dump())

	w = jobtest.New(t, xapisim.Config{
		SRs: []xapisim.SRConfig{{Name: "thick", Type: "lvm", Size: 1 << 30}},
		VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{disk}}},
	})
	w.Backup(w.Options("web"))
	if n := len(w.Bases()); n != 0 {
		t.Errorf("%d bases on a thick SR", n)
	}
	o := w.Options("web")
	o.Keep = backup.KeepSnapshot
	w.Backup(o)
	if n := len(w.Bases()); n != 1 {
		t.Errorf("%d bases on a thick SR that was asked to keep one", n)
	}
	if s := w.Backup(o); s.Snapshots[0].Disks[0].Method != "vhd-delta" {
		t.Errorf("%+v", s.Snapshots[0].Disks[0])
	}
}

// A raw LVM volume fails its VM before the pool is changed, and a restore to one
// writes its zeros.
func TestRawVolumes(t *testing.T) {
	dir := t.TempDir()
	disk := jobtest.Image(t, filepath.Join(dir, "a.img"), 24*jobtest.MiB, 1, 10)
	w := jobtest.New(t, xapisim.Config{
		SRs: []xapisim.SRConfig{{Name: "thick", Type: "lvm", Size: 1 << 30}},
		VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{disk}, RawDisks: true}},
	})
	before := w.Sim.Dump()
	_, err := backup.Run(t.Context(), w.Repo, w.Pool, w.Options("web"))
	if !errors.Is(err, job.ErrUnsupported) || !strings.Contains(err.Error(), "xvda") || !strings.Contains(err.Error(), "raw") {
		t.Fatalf("a raw volume: %v", err)
	}
	jobtest.SamePool(t, before, w.Sim.Dump())
}

// If calls before or after a backup fail, nothing remains on the pool.
func TestCallsFail(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	before := w.Sim.Dump()
	for _, c := range []struct {
		call, code string
		params     []string
	}{
		{"VM.snapshot", "SR_BACKEND_FAILURE_44", []string{"", "There is insufficient space", ""}},
		{"VM.snapshot", "SR_BACKEND_FAILURE_109", []string{"", "The snapshot chain is too long", ""}},
		{"VM.snapshot", "OPERATION_BLOCKED", []string{"x", "y"}},
		{"VM.add_to_other_config", "INTERNAL_ERROR", []string{"x"}},
		{"VDI.add_to_other_config", "INTERNAL_ERROR", []string{"x"}},
		{"VDI.get_record", "INTERNAL_ERROR", []string{"x"}},
		{"/export_raw_vdi", "NO_HOSTS_AVAILABLE", nil},
		{"/export_raw_vdi", "VDI_IN_USE", []string{"x", "attach"}},
	} {
		for _, after := range []bool{false, true} {
			w.Sim.Fault(xapisim.Fault{On: c.call, Code: c.code, Params: c.params, After: after && !strings.HasPrefix(c.call, "/")})
			s, err := backup.Run(t.Context(), w.Repo, w.Pool, w.Options("web"))
			w.Sim.ClearFaults()
			name := fmt.Sprintf("%s fails with %s (after its effect: %v)", c.call, c.code, after)
			if err == nil {
				t.Errorf("%s, and the backup succeeds: %+v", name, s)
				continue
			}
			t.Log(err)
			w.Sim.GC()
			jobtest.SamePool(t, before, w.Sim.Dump())
			if t.Failed() {
				t.Fatal(name)
			}
		}
	}
	w.Backup(w.Options("web"))
	w.CheckRepository()
}

// A run that ends half-way reports which VMs are safe; a run that cannot apply
// retention reports that, and that the backup is good.
func TestPartly(t *testing.T) {
	dir := t.TempDir()
	w := jobtest.New(t, xapisim.Config{VMs: []xapisim.VMConfig{
		{Name: "a", Disks: []string{jobtest.Image(t, filepath.Join(dir, "a.img"), 48*jobtest.MiB, 1, 400)}},
		{Name: "b", Disks: []string{jobtest.Image(t, filepath.Join(dir, "b.img"), 6*jobtest.MiB, 2, 10)}},
	}})
	faulty := objecttest.NewFaulty(mem.New())
	w.OnStore(faulty)
	o := w.Options("a", "b")
	o.VMConcurrency = 1
	faulty.Inject(objecttest.Fault{Verb: objecttest.Put, Prefix: "snapshots/", N: 1, Stay: true, Err: object.ErrUnavailable})
	s, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
	if !errors.Is(err, job.ErrPartial) || !errors.Is(err, object.ErrUnavailable) || s.Status != "partial" {
		t.Fatalf("%v: %+v", err, s)
	}
	if len(s.Snapshots) != 1 || len(s.Failed) != 1 || s.Failed[0].VM == s.Snapshots[0].VMName {
		t.Fatalf("%+v", s)
	}
	faulty.Heal()
	w.Reopen()
	o.Retention = retention.Policy{Last: 1}
	faulty.Inject(objecttest.Fault{Verb: objecttest.Put, Prefix: "forgotten/", Stay: true, Err: object.ErrPermission})
	s, err = backup.Run(t.Context(), w.Repo, w.Pool, o)
	if !errors.Is(err, job.ErrPartial) || !errors.Is(err, object.ErrPermission) || len(s.Snapshots) != 2 || len(s.Failed) != 0 || len(s.Warnings) == 0 {
		t.Fatalf("%v: %+v", err, s)
	}
	faulty.Heal()
	w.Reopen()
	w.CheckRepository()
}
