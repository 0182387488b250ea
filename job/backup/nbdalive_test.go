package backup_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/jobtest"
	"xenkeep/xapi/xapisim"
)

// cancelling is a Progress that cancels a context when the first bytes were read.
type cancelling struct{ cancel context.CancelFunc }

func (c cancelling) Begin(string, int64) job.Meter { return c }

func (c cancelling) Add(int64) { c.cancel() }

func (c cancelling) Done() {}

// Row X8 of the fault list: an interrupted backup over NBD reads the replies to its
// open requests. Otherwise the host's NBD server would crash; the test checks that it
// still serves others, and that nothing remains on the pool.
func TestInterruptedBackupLeavesNBDAlive(t *testing.T) {
	file := jobtest.Image(t, filepath.Join(t.TempDir(), "disk.img"), 96*jobtest.MiB, 5, 900)
	w := jobtest.New(t, xapisim.Config{
		Hosts: 1, NBD: xapisim.NBDTLS, NBDFragile: true, VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{file}}},
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := w.Options("web")
	o.Transport, o.Progress = backup.TransportNBD, cancelling{cancel}
	if _, err := backup.Run(ctx, w.Repo, w.Pool, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("an interrupted backup: %v", err)
	}
	if !w.Sim.NBDAlive(0) {
		t.Fatal("the host's NBD server is dead")
	}
	o.Progress = nil
	if d := w.Backup(o).Snapshots[0].Disks[0]; d.Transport != "nbd" {
		t.Errorf("the next backup reads by %s (%s)", d.Transport, d.Reason)
	}
	w.CheckRepository()
}
