package repair

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/versions"
	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
)

// VersionsOptions configures Versions.
type VersionsOptions struct {
	// Deleted also restores objects that were deleted and are not locked. Without
	// locks, a prune deletes objects in the same way as an attacker.
	Deleted bool
	DryRun  bool
	// Found, if set, is called for each object after it was processed.
	Found func(VersionFinding)
}

// VersionFinding is an object whose latest version is not the sound one.
type VersionFinding struct {
	Object string `json:"object"`
	State  string `json:"state"`  // "overwritten", "deleted", or "lost" if no version is sound
	Action string `json:"action"` // "restore", or "none"
	Bytes  int64  `json:"bytes"`  // of the sound version
}

// VersionsResult counts the actions of Versions.
type VersionsResult struct {
	Objects  int   `json:"objects"`  // objects that have a version
	Restored int   `json:"restored"` // or would be restored, in a dry run
	Bytes    int64 `json:"bytes"`
	Left     int   `json:"left"` // deleted, and not restored
	Lost     int   `json:"lost"`
}

// Versions makes the sound version of each object that was overwritten or deleted
// the latest again, by putting its bytes once more: the oldest version whose
// SHA-256 is the object's name; for keys and the config the newest valid version.
// An object with only one version is not read: check --read-data verifies those.
func Versions(ctx context.Context, r *repo.Repository, o VersionsOptions) (*VersionsResult, error) {
	k, ok := object.VersionedOf(r.Objects())
	if !ok {
		return nil, fmt.Errorf("%s: older versions: %w", r.Objects().Location(), object.ErrUnsupported)
	}
	v := &versionRepair{r: r, k: k, o: o}
	var name string
	var all []object.Version
	var todo [][]object.Version
	flush := func() {
		if len(all) == 0 {
			return
		}
		v.res.Objects++
		if len(all) > 1 || all[0].Deleted {
			todo = append(todo, all)
		}
		all = nil
	}
	if err := k.ListVersions(ctx, "", func(i object.Version) error {
		if !object.LockedName(i.Name) {
			return nil
		}
		if i.Name != name {
			flush()
			name = i.Name
		}
		all = append(all, i)
		return nil
	}); err != nil {
		return nil, err
	}
	flush()
	for _, all := range todo {
		if err := v.object(ctx, all); err != nil {
			return &v.res, err
		}
	}
	return &v.res, nil
}

type versionRepair struct {
	r   *repo.Repository
	k   object.Versioned
	o   VersionsOptions
	res VersionsResult
}

// sound returns the version that should be read. all must be newest first.
func (v *versionRepair) sound(ctx context.Context, all []object.Version) (data []byte, id string, err error) {
	name := all[0].Name
	sum, named := versions.Sum(name)
	order := make([]object.Version, 0, len(all))
	for i := range all {
		at := i
		if named {
			at = len(all) - 1 - i
		}
		if !all[at].Deleted {
			order = append(order, all[at])
		}
	}
	for _, o := range order {
		p, err := v.read(ctx, &o)
		switch {
		case errors.Is(err, object.ErrNotFound), errors.Is(err, object.ErrTooLarge):
		case err != nil:
			return nil, "", err
		case named && sha256.Sum256(p) == sum, !named && v.r.SoundKey(name, p):
			return p, o.ID, nil
		}
	}
	return nil, "", nil
}

func (v *versionRepair) object(ctx context.Context, all []object.Version) error {
	latest := all[0]
	data, id, err := v.sound(ctx, all)
	if err != nil {
		return err
	}
	f := VersionFinding{Object: latest.Name, State: "overwritten", Action: "restore", Bytes: int64(len(data))}
	switch {
	case id == "" && !existed(all):
		return nil // all versions are deletions
	case id == "":
		f.State, f.Action = "lost", "none"
		v.res.Lost++
	case id == latest.ID:
		return nil
	case latest.Deleted:
		f.State = "deleted"
		until, err := v.k.LockedUntil(ctx, latest.Name, id)
		if err != nil {
			return err
		}
		if until.IsZero() && !v.o.Deleted && v.r.LockDays() == 0 {
			f.Action = "none"
			v.res.Left++
		}
	default:
		// If it was put twice, as after a lost response, the latest version is
		// sound.
		p, err := v.read(ctx, &latest)
		if err != nil && !errors.Is(err, object.ErrTooLarge) {
			return err
		}
		if sum, named := versions.Sum(latest.Name); named && sha256.Sum256(p) == sum {
			return nil
		}
	}
	if f.Action == "restore" {
		if err := v.restore(ctx, f.Object, data); err != nil {
			return err
		}
		v.res.Restored++
		v.res.Bytes += f.Bytes
	}
	if v.o.Found != nil {
		v.o.Found(f)
	}
	return nil
}

// read reads a version of an object, unless it is larger than such an object can
// be.
func (v *versionRepair) read(ctx context.Context, of *object.Version) ([]byte, error) {
	if of.Size <= object.MaxWhole(of.Name) || of.Size > object.MaxSize(of.Name) {
		return v.k.GetVersion(ctx, of.Name, of.ID, 0, -1)
	}
	return v.k.GetVersion(ctx, of.Name, of.ID, 0, of.Size)
}

func existed(all []object.Version) bool {
	for _, v := range all {
		if !v.Deleted {
			return true
		}
	}
	return false
}

func (v *versionRepair) restore(ctx context.Context, name string, data []byte) error {
	if v.o.DryRun {
		return nil
	}
	if err := v.k.Put(ctx, name, data); err != nil {
		return err
	}
	p, err := v.k.Get(ctx, name, 0, int64(len(data)))
	if err == nil && sha256.Sum256(p) != sha256.Sum256(data) {
		err = fmt.Errorf("%s: put back, but its content is still wrong: %w", name, seal.ErrCorrupt)
	}
	return err
}
