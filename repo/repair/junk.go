package repair

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
)

// JunkOptions configures Junk.
type JunkOptions struct {
	// Objects are damaged small objects, by their names in storage, that are deleted
	// although they may have been written by a key of the repository: only the user
	// can decide that nothing is lost with them.
	Objects []string
	DryRun  bool // delete nothing
	// Found, if set, is called for each object after it was processed.
	Found func(JunkFinding)
}

// JunkFinding is an object that is junk, or damaged.
type JunkFinding struct {
	Object string `json:"object"`
	State  string `json:"state"`  // "junk" or "damaged"
	Action string `json:"action"` // "delete", or "none"
	Bytes  int64  `json:"bytes"`
	Error  string `json:"error"`
}

// JunkResult counts the actions of Junk.
type JunkResult struct {
	Deleted int   `json:"deleted"` // or would be deleted, in a dry run
	Bytes   int64 `json:"bytes"`
	Locked  int   `json:"locked"`  // junk that the storage does not delete yet
	Damaged int   `json:"damaged"` // objects that may be the repository's own, and stay
	DryRun  bool  `json:"dry_run"`
}

// ErrSound is returned for an object that is to be deleted and is not damaged.
var ErrSound = errors.New("is not damaged")

// Junk deletes the objects that are as they were stored and that no key of the
// repository wrote: small objects, and packs that no index object names. It also
// deletes the damaged small objects that the user names.
func Junk(ctx context.Context, r *repo.Repository, o JunkOptions) (*JunkResult, error) {
	j := &junker{r: r, o: o, res: JunkResult{DryRun: o.DryRun}}
	for _, name := range o.Objects {
		err := r.Verify(ctx, name)
		if err == nil || errors.Is(err, seal.ErrNewer) || errors.Is(err, seal.ErrRevoked) {
			return nil, fmt.Errorf("%s %w", name, ErrSound)
		}
		if !errors.Is(err, seal.ErrCorrupt) && !errors.Is(err, seal.ErrJunk) {
			return nil, err
		}
	}
	if err := r.FindJunk(ctx, func(name string, size int64, err error) error { return j.object(ctx, name, size, err) }); err != nil {
		return &j.res, err
	}
	return &j.res, j.packs(ctx)
}

type junker struct {
	r   *repo.Repository
	o   JunkOptions
	res JunkResult
}

func (j *junker) object(ctx context.Context, name string, size int64, err error) error {
	f := JunkFinding{Object: name, State: "junk", Action: "delete", Bytes: size, Error: strings.TrimPrefix(err.Error(), name+": ")}
	if !errors.Is(err, seal.ErrJunk) {
		f.State = "damaged"
		if !slices.Contains(j.o.Objects, name) {
			f.Action = "none"
			j.res.Damaged++
		}
	}
	if f.Action == "delete" && !j.o.DryRun {
		err := j.r.Objects().Delete(ctx, name)
		if errors.Is(err, object.ErrLocked) {
			f.Action = "none"
			j.res.Locked++
		} else if err != nil {
			return err
		}
	}
	if f.Action == "delete" {
		j.res.Deleted++
		j.res.Bytes += size
	}
	if j.o.Found != nil {
		j.o.Found(f)
	}
	return nil
}

// packs looks for junk among the packs that no index object covers. A pack whose
// directory cannot be opened is read whole: only if it matches its name is it as it
// was stored.
func (j *junker) packs(ctx context.Context) error {
	if err := j.r.LoadIndex(ctx); err != nil {
		return err
	}
	orphans, err := j.r.Store().Orphans(ctx)
	if err != nil {
		return err
	}
	for id, size := range orphans {
		_, err := j.r.Store().ReadDirectory(ctx, id, size)
		if ctx.Err() != nil || object.Retriable(err) {
			return err
		}
		if err == nil || errors.Is(err, object.ErrNotFound) || errors.Is(err, seal.ErrNewer) || size > 2*pack.TargetSize {
			continue
		}
		data, gerr := j.r.Objects().Get(ctx, id.ObjectName(), 0, -1)
		if errors.Is(gerr, object.ErrNotFound) {
			continue
		}
		if gerr != nil {
			return gerr
		}
		if sha256.Sum256(data) != id {
			err = fmt.Errorf("content does not match its name: %w", seal.ErrCorrupt)
		} else {
			err = fmt.Errorf("%w: %v", seal.ErrJunk, err)
		}
		if err := j.object(ctx, id.ObjectName(), size, err); err != nil {
			return err
		}
	}
	return nil
}
