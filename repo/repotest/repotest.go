// Package repotest makes repositories, backups and checks for tests, so that each
// test package does not have to write its own.
//
// All functions that take a testing.TB end the test if something fails. The
// others return the error, for tests that make storage fail.
package repotest

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/restore"
)

// Secret returns the secret of repositories that Init makes: a key file, because
// a password would cost each Open the time of Argon2id.
func Secret() slot.Secret { return Key(5) }

// Key returns the secret of a key file that consists of b alone, for a second
// key or a wrong one.
func Key(b byte) slot.Secret { return slot.Secret{KeyFile: bytes.Repeat([]byte{b}, 32)} }

// Init makes a repository in objects that Secret opens.
func Init(tb testing.TB, objects object.Store) *repo.Repository {
	tb.Helper()
	return InitWith(tb, objects, repo.Options{})
}

// InitWith is Init with options. Secret is the default of o.Secret.
func InitWith(tb testing.TB, objects object.Store, o repo.Options) *repo.Repository {
	tb.Helper()
	r, err := repo.Init(tb.Context(), objects, withSecret(o))
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// Open opens the repository in objects and loads its index.
func Open(tb testing.TB, objects object.Store) *repo.Repository {
	tb.Helper()
	return OpenWith(tb, objects, repo.Options{})
}

// OpenWith is Open with options. Secret is the default of o.Secret.
func OpenWith(tb testing.TB, objects object.Store, o repo.Options) *repo.Repository {
	tb.Helper()
	r, err := TryOpen(tb.Context(), objects, o)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// TryOpen is OpenWith that returns the error.
func TryOpen(ctx context.Context, objects object.Store, o repo.Options) (*repo.Repository, error) {
	r, err := repo.Open(ctx, objects, withSecret(o))
	if err == nil {
		err = r.LoadIndex(ctx)
	}
	return r, err
}

func withSecret(o repo.Options) repo.Options {
	if o.Secret.KeyFile == nil && o.Secret.Password == nil {
		o.Secret = Secret()
	}
	return o
}

// Save backs up src, the only disk of a VM, in a run of its own. vm is the VM's
// name and UUID. The snapshot's time comes from ro.Now.
func Save(ctx context.Context, r *repo.Repository, vm string, src disk.Source, o backup.DiskOptions, ro backup.Options) (*repo.Snapshot, error) {
	now := ro.Now
	if now == nil {
		now = time.Now
	}
	s := &repo.Snapshot{Origin: "image", VM: repo.Named{UUID: vm, Name: vm}, DataTime: now(), Complete: true}
	err := backup.WithRun(ctx, r, ro, func(ctx context.Context, run *backup.Run) error {
		return SaveIn(ctx, run, s, src, o)
	})
	return s, err
}

// SaveIn backs up src as the only disk of s, with a record, and publishes s,
// within a run that has begun.
func SaveIn(ctx context.Context, run *backup.Run, s *repo.Snapshot, src disk.Source, o backup.DiskOptions) error {
	d, err := run.BackupDisk(ctx, src, o)
	if err != nil {
		return err
	}
	rec, err := run.Record(ctx, "vm", fmt.Appendf(nil, `{"name":%q}`, s.VM.Name))
	if err != nil {
		return err
	}
	s.Records = []repo.Record{rec}
	s.Disks = []repo.Disk{{Device: "xvda", VDI: "vdi", Size: o.Size, Root: repo.HexID(d.Root), Method: "full", Counts: d.Counts}}
	run.Add(s)
	return run.Flush(ctx)
}

// MustSave backs up m in full as the only disk of a VM.
func MustSave(tb testing.TB, r *repo.Repository, vm string, m *disktest.Mem) *repo.Snapshot {
	tb.Helper()
	s, err := Save(tb.Context(), r, vm, m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// Put backs up m as MustSave does, and returns the root of its tree.
func Put(tb testing.TB, r *repo.Repository, m *disktest.Mem) chunk.ID {
	tb.Helper()
	return chunk.ID(MustSave(tb, r, "vm", m).Disks[0].Root)
}

// Restored restores the disk with the given root. With zeros, the disk that it is
// written to is full of other bytes before.
func Restored(tb testing.TB, r *repo.Repository, root chunk.ID, zeros bool) *disktest.Mem {
	tb.Helper()
	im, err := restore.Open(tb.Context(), r, root)
	if err != nil {
		tb.Fatal(err)
	}
	m := disktest.NewMem(im.Size())
	if zeros {
		if err := m.WriteAt(tb.Context(), bytes.Repeat([]byte{0xee}, int(m.Size())), 0); err != nil {
			tb.Fatal(err)
		}
	}
	if _, err := im.Run(tb.Context(), m, restore.Options{Zeros: zeros}); err != nil {
		tb.Fatal(err)
	}
	return m
}

// MustRestore fails the test unless the disk with the given root restores as want.
func MustRestore(tb testing.TB, r *repo.Repository, root repo.HexID, want *disktest.Mem) {
	tb.Helper()
	disktest.MustEqual(tb, Restored(tb, r, chunk.ID(root), false), want)
}

// Findings checks the repository, all data included, and returns what is wrong.
func Findings(tb testing.TB, r *repo.Repository) []check.Finding {
	tb.Helper()
	rep, err := check.Run(tb.Context(), r, check.Options{ReadData: true})
	if err != nil {
		tb.Fatal(err)
	}
	return rep.Findings
}

// MustBeClean fails the test if Findings returns any.
func MustBeClean(tb testing.TB, r *repo.Repository) {
	tb.Helper()
	for _, f := range Findings(tb, r) {
		tb.Errorf("check: %v", f)
	}
}

// Forget deletes a snapshot.
func Forget(tb testing.TB, objects object.Store, s *repo.Snapshot) {
	tb.Helper()
	if err := objects.Delete(tb.Context(), "snapshots/"+s.ID()); err != nil {
		tb.Fatal(err)
	}
}

// Names returns the names of all objects with a prefix.
func Names(tb testing.TB, objects object.Store, prefix string) (all []string) {
	tb.Helper()
	if err := objects.List(tb.Context(), prefix, func(i object.Info) error {
		all = append(all, i.Name)
		return nil
	}); err != nil {
		tb.Fatal(err)
	}
	return all
}
