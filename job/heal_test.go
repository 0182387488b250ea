package job_test

import (
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/check"
	"xenkeep/repo/repair"
	"xenkeep/xapi/xapisim"
)

// flip changes a bit in the middle of the largest pack of a kind.
func (w *world) flip(kind pack.Kind) {
	w.t.Helper()
	var name string
	var data []byte
	if err := w.objects.List(w.t.Context(), "packs/", func(i object.Info) error {
		p, err := w.objects.Get(w.t.Context(), i.Name, 0, -1)
		if err == nil && pack.Kind(p[6]) == kind && len(p) > len(data) {
			name, data = i.Name, p
		}
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	err := w.objects.Delete(w.t.Context(), name)
	if err == nil {
		err = w.objects.Put(w.t.Context(), name, data)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// another opens the repository as another process does, without what the last
// one knew.
func (w *world) another() *repo.Repository {
	w.t.Helper()
	r, err := repo.Open(w.t.Context(), w.objects, repo.Options{Secret: secret})
	if err == nil {
		err = r.LoadIndex(w.t.Context())
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// hurt checks one snapshot, or all, with all its data, and gives what it finds.
func (w *world) hurt(some ...*repo.Snapshot) []check.Finding {
	w.t.Helper()
	rep, err := check.Run(w.t.Context(), w.another(), check.Options{ReadData: true, Snapshots: some})
	if err != nil {
		w.t.Fatal(err)
	}
	return rep.Findings
}

// A bit flips in a pack. Once the damage is published, a backup stores again
// what is damaged, though tracking tells that nothing there has changed: the
// newest snapshot is whole.
func TestTrackedHeals(t *testing.T) {
	for _, kind := range []pack.Kind{pack.Data, pack.Tree} {
		t.Run(kind.String(), func(t *testing.T) {
			w := newWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
			file := filepath.Join(w.dir, "web0.img")
			o := w.options("web")
			w.backup(o)
			w.flip(kind)
			if len(w.hurt()) == 0 {
				t.Fatal("check finds nothing")
			}
			// Unpublished, the damage goes on: tracking gives no reason to read.
			w.repo = w.another()
			s := w.backup(o)
			if d := s.Snapshots[0].Disks[0]; kind == pack.Data && d.Method == "cbt" && len(w.hurt(w.snapshot(s.Snapshots[0].ID))) == 0 {
				t.Error("the damage is gone before it was published: the test shows nothing")
			}
			res, err := repair.Snapshots(t.Context(), w.another(), repair.SnapshotsOptions{ReadData: true})
			if err != nil || res.List == "" || len(res.Lost) == 0 {
				t.Fatalf("repair: %+v, %v", res, err)
			}
			w.repo = w.another()
			s = w.backup(o)
			for i, d := range s.Snapshots[0].Disks {
				if kind == pack.Data && d.Method != "cbt" {
					t.Errorf("disk %d: %s (%s), want cbt", i, d.Method, d.Reason)
				}
			}
			if kind == pack.Data {
				var read int64
				for _, l := range res.Lost {
					read += l.To - l.From
				}
				got := s.Snapshots[0].Disks[0].Read + s.Snapshots[0].Disks[1].Read
				if got == 0 || got > read+4*disk.BlockSize {
					t.Errorf("%d bytes are read for %d that are lost", got, read)
				}
			}
			newest := w.snapshot(s.Snapshots[0].ID)
			for _, f := range w.hurt(newest) {
				t.Errorf("the newest snapshot: %v", f)
			}
			for _, f := range w.hurt() {
				if strings.HasPrefix(f.Object, "snapshots/"+newest.ID()) {
					t.Errorf("check of all: %v", f)
				}
			}
			if got, want := w.restoredTo(newest, "xvda"), fileSum(t, file); got != want {
				t.Error("the newest snapshot comes back otherwise")
			}
			// Another that changes nothing is whole too, and reads nothing again.
			s = w.backup(o)
			if d := s.Snapshots[0].Disks[0]; d.Method != "cbt" || d.Read > 2*disk.BlockSize {
				t.Errorf("the day after: %s (%s), %d bytes", d.Method, d.Reason, d.Read)
			}
			for _, f := range w.hurt(w.snapshot(s.Snapshots[0].ID)) {
				t.Errorf("the day after: %v", f)
			}
		})
	}
}
