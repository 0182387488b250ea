package backup_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/exchange"
	"xenkeep/job/jobtest"
	"xenkeep/job/transfer"
	"xenkeep/repo/retention"
	"xenkeep/xapi/xapisim"
)

// Row C6 of the fault list: if an image is empty, much smaller than before, or all
// zeros, its backup fails, and retention keeps the good snapshots. With AllowShrink it
// is saved.
func TestShrunkImage(t *testing.T) {
	for _, c := range []struct {
		what   string
		spoil  func(name string) error
		allow  job.Shrink
		reason string // "" if it is saved
	}{
		{"emptied", func(name string) error { return os.Truncate(name, 0) }, 0, "0 bytes"},
		{"cut to a half", func(name string) error { return os.Truncate(name, 10*jobtest.MiB) }, 0, "shrunk to 10 MiB"},
		{"cut a little", func(name string) error { return os.Truncate(name, 17*jobtest.MiB) }, 0, ""},
		{"cut a little, and nothing allowed", func(name string) error { return os.Truncate(name, 17*jobtest.MiB) }, job.ShrinkNone, "shrunk to 17 MiB"},
		{"cut to a half, as allowed", func(name string) error { return os.Truncate(name, 10*jobtest.MiB) }, 50, ""},
		{"emptied, as allowed", func(name string) error { return os.Truncate(name, 0) }, job.ShrinkAny, ""},
		{"zeroed", func(name string) error { return errors.Join(os.Truncate(name, 0), os.Truncate(name, 20*jobtest.MiB)) }, 0, "nothing but zeros"},
		{"zeroed, as allowed", func(name string) error { return errors.Join(os.Truncate(name, 0), os.Truncate(name, 20*jobtest.MiB)) }, job.ShrinkAny, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			r := jobtest.NewRepository(t)
			file := jobtest.Image(t, filepath.Join(t.TempDir(), "i.raw"), 20*jobtest.MiB, 1, 20)
			o := backup.ImageOptions{Common: job.Common{StateDir: t.TempDir()}, File: file, Retention: retention.Policy{Last: 2}}
			backup := func() error {
				_, err := backup.Image(t.Context(), r, o)
				return err
			}
			if err := backup(); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(file); err != nil {
				t.Fatal(err)
			}
			o.AllowShrink = c.allow
			for range 3 {
				err := backup()
				if c.reason == "" {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				if !errors.Is(err, job.ErrShrunk) || !strings.Contains(err.Error(), c.reason) || !strings.Contains(err.Error(), "i.raw") || !strings.Contains(job.HintOf(err), "--allow-shrink") {
					t.Fatalf("%v (hint: %s)", err, job.HintOf(err))
				}
			}
			all, bad, err := r.Snapshots(t.Context())
			if err != nil || len(bad) > 0 || len(all) != 1 || all[0].Disks[0].Size != 20*jobtest.MiB {
				t.Fatalf("%d snapshots: %v, %v", len(all), bad, err)
			}
		})
	}
}

// Row C6 of the fault list: a pipe is refused instead of waited for, and so is every
// other file that cannot hold a disk.
func TestNoDisk(t *testing.T) {
	r := jobtest.NewRepository(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for file, kind := range map[string]string{fifo: "a pipe", "/dev/null": "a character device"} {
		for what, try := range map[string]func(context.Context) error{
			"backup": func(ctx context.Context) error {
				_, err := backup.Image(ctx, r, backup.ImageOptions{Common: job.Common{StateDir: t.TempDir()}, File: file, AllowShrink: job.ShrinkAny})
				return err
			},
			"import": func(ctx context.Context) error {
				s, err := exchange.Import(ctx, r, []string{file}, exchange.ImportOptions{Common: job.Common{StateDir: t.TempDir()}})
				if err == nil || len(s.Failed) != 1 {
					return fmt.Errorf("%w: %+v", err, s)
				}
				return s.Failed[0].Err()
			},
		} {
			done := make(chan error, 1)
			go func() { done <- try(t.Context()) }()
			select {
			case err := <-done:
				if !errors.Is(err, transfer.ErrNoDisk) || !strings.Contains(err.Error(), file+": is "+kind) {
					t.Errorf("%s of %s: %v", what, file, err)
				}
			case <-time.After(time.Minute):
				t.Fatalf("%s of %s waits", what, file)
			}
		}
	}
}

// Row C6 of the fault list: if a disk of a VM contains only zeros, its backup fails,
// by each method of reading it, and the old snapshots stay.
func TestEmptiedDisk(t *testing.T) {
	for _, cfg := range []xapisim.Config{{}, {NBD: xapisim.NBDTLS}} {
		t.Run("nbd="+string(cfg.NBD), func(t *testing.T) {
			w := jobtest.New(t, cfg)
			o := w.Options("web")
			o.Retention = retention.Policy{Last: 1}
			w.Backup(o)
			empty := filepath.Join(w.Dir, "empty.img")
			if err := errors.Join(os.WriteFile(empty, nil, 0o600), os.Truncate(empty, 24*jobtest.MiB)); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Sim.GuestWrite(w.Sim.Ready().VMs[0].Disks[0].VDI, empty); err != nil {
				t.Fatal(err)
			}
			sum, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
			if !errors.Is(err, job.ErrShrunk) || len(sum.Failed) != 1 || !strings.Contains(sum.Failed[0].Error, "disk xvda: it holds nothing but zeros") || !strings.Contains(sum.Failed[0].Hint, "--allow-shrink") {
				t.Fatalf("%v: %+v", err, sum)
			}
			all, _, err := w.Repo.Snapshots(t.Context())
			if err != nil || len(all) != 1 {
				t.Fatalf("%d snapshots: %v", len(all), err)
			}
			o.AllowShrink = job.ShrinkAny
			w.Backup(o)
			w.CheckRepository()
		})
	}
}
