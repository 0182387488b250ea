package job

import (
	"context"
	"errors"

	"xenkeep/repo"
	"xenkeep/xapi"
)

var errStub = errors.New("stub")

func Backup(ctx context.Context, r *repo.Repository, pool *xapi.Client, o BackupOptions) (*Summary, error) {
	return nil, errStub
}
func BackupImage(ctx context.Context, r *repo.Repository, o ImageOptions) (*Summary, error) {
	return nil, errStub
}
func RestoreFile(ctx context.Context, r *repo.Repository, s *repo.Snapshot, d *repo.Disk, file string, o RestoreOptions) (*Restored, error) {
	return nil, errStub
}
func RestoreDisks(ctx context.Context, r *repo.Repository, pool *xapi.Client, s *repo.Snapshot, disks []*repo.Disk, t Target, o RestoreOptions) (*Restored, error) {
	return nil, errStub
}
func RestoreVM(ctx context.Context, r *repo.Repository, pool *xapi.Client, s *repo.Snapshot, v VMRestore, o RestoreOptions) (*Restored, error) {
	return nil, errStub
}

// Finding of doctor: Level "ok", "warn", "fail".
type Finding struct {
	Level string `json:"level"`
	What  string `json:"what"`
	Text  string `json:"text"`
	Cure  string `json:"cure,omitempty"`
}

func DoctorPool(ctx context.Context, pool *xapi.Client) ([]Finding, error) { return nil, errStub }
func DoctorRepository(ctx context.Context, r *repo.Repository) ([]Finding, error) {
	return nil, errStub
}
func hostname() string { return "" }
