package job_test

import (
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/chunkstore/pack"
	"xenkeep/internal/disk"
	"xenkeep/job/jobtest"
	"xenkeep/repo/repair"
	"xenkeep/xapi/xapisim"
)

// A bit flips in a pack. After the damage is published, a backup stores the damaged
// blocks again, although tracking reports no changes there: the newest snapshot is
// complete.
func TestTrackedHeals(t *testing.T) {
	for _, kind := range []pack.Kind{pack.Data, pack.Tree} {
		t.Run(kind.String(), func(t *testing.T) {
			w := jobtest.New(t, xapisim.Config{NBD: xapisim.NBDTLS})
			file := filepath.Join(w.Dir, "web0.img")
			o := w.Options("web")
			w.Backup(o)
			w.Flip(kind)
			if len(w.Damage()) == 0 {
				t.Fatal("check finds nothing")
			}
			// Before it is published, the damage remains: tracking gives no reason to
			// read.
			w.Repo = w.Reopened()
			s := w.Backup(o)
			if d := s.Snapshots[0].Disks[0]; kind == pack.Data && d.Method == "cbt" && len(w.Damage(w.Snapshot(s.Snapshots[0].ID))) == 0 {
				t.Error("the damage was repaired before it was published: the test proves nothing")
			}
			res, err := repair.Snapshots(t.Context(), w.Reopened(), repair.SnapshotsOptions{ReadData: true})
			if err != nil || res.List == "" || len(res.Lost) == 0 {
				t.Fatalf("repair: %+v, %v", res, err)
			}
			w.Repo = w.Reopened()
			s = w.Backup(o)
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
			newest := w.Snapshot(s.Snapshots[0].ID)
			for _, f := range w.Damage(newest) {
				t.Errorf("the newest snapshot: %v", f)
			}
			for _, f := range w.Damage() {
				if strings.HasPrefix(f.Object, "snapshots/"+newest.ID()) {
					t.Errorf("check of all: %v", f)
				}
			}
			if got, want := w.RestoredTo(newest, "xvda"), jobtest.FileSum(t, file); got != want {
				t.Error("the newest snapshot comes back otherwise")
			}
			// Another backup without changes is complete, too, and reads nothing
			// again.
			s = w.Backup(o)
			if d := s.Snapshots[0].Disks[0]; d.Method != "cbt" || d.Read > 2*disk.BlockSize {
				t.Errorf("the day after: %s (%s), %d bytes", d.Method, d.Reason, d.Read)
			}
			for _, f := range w.Damage(w.Snapshot(s.Snapshots[0].ID)) {
				t.Errorf("the day after: %v", f)
			}
		})
	}
}
