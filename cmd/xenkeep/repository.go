package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/all"
	"xenkeep/chunkstore/object/retry"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
	"xenkeep/repo"
)

// repositoryFlags define the repository and the secret that opens it.
type repositoryFlags struct {
	location string
	secret   secretFlagsValues
	keySlot  string
	cacheDir string
	s3       s3Flags

	anyRepository bool // the repository need not be the one that was at its location before

	flags *pflag.FlagSet // until the config has filled in the rest
}

func (f *repositoryFlags) add(cmd *cobra.Command) {
	s := cmd.Flags()
	f.flags = s
	s.VarP(repositoryValue{f}, "repository", "r", "`location` of the repository: a folder, s3:https://host/bucket/prefix, or s3://bucket/prefix")
	s.StringVar(&f.cacheDir, "cache-dir", "", "`folder` for what is kept on this machine (the user's cache folder)")
	f.secret.add(cmd)
	s.StringVar(&f.keySlot, "key-slot", "", "open only the key `slot` with this ID, prefix of an ID, or label")
	f.s3.add(s)
}

// storage returns the settings of the storage.
func (f *repositoryFlags) storage(ctx context.Context, stderr io.Writer) all.Options {
	return all.Options{Retry: retryPolicy(ctx, stderr), S3: f.s3.config(), Endpoint: f.s3.endpoint}
}

func (f *repositoryFlags) check() error {
	if err := f.fill(); err != nil {
		return err
	}
	if f.location == "" {
		return usagef("which repository? give --repository, set XENKEEP_REPOSITORY, or give a config that names it with --config")
	}
	if err := object.CheckLocation(f.location); err != nil {
		return usagef("%w", err)
	}
	if all.IsS3(f.location) {
		if _, err := all.S3Config(f.location, f.storage(context.Background(), io.Discard)); err != nil {
			return usagef("%w", err)
		}
	}
	return nil
}

// cache returns the folder of the local cache.
func (f *repositoryFlags) cache() string {
	if f.cacheDir != "" {
		return f.cacheDir
	}
	dir, err := os.UserCacheDir()
	if err != nil { // no HOME, as in some services
		return filepath.Join(os.TempDir(), fmt.Sprintf("xenkeep-%d", os.Getuid()))
	}
	return filepath.Join(dir, "xenkeep")
}

func retryPolicy(ctx context.Context, stderr io.Writer) retry.Policy {
	log := diagnosticsOf(ctx).log
	return retry.Policy{Notify: func(err error, attempt int, wait time.Duration) {
		log.Debug("storage: trying again", "attempt", attempt, "wait", wait, "error", err)
		if attempt > 1 { // a first failure is no news
			printError(stderr, fmt.Sprintf("storage: try again in %v: %s", wait.Round(100*time.Millisecond), oneLine(err.Error())), "")
		}
	}}
}

// create makes a new repository.
func (f *repositoryFlags) create(ctx context.Context, stderr io.Writer, o repo.Options) (*repo.Repository, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	key, err := f.secret.read(ctx, stderr, true)
	if err != nil {
		return nil, err
	}
	objects, err := all.Create(ctx, f.location, f.storage(ctx, stderr))
	if err != nil {
		return nil, err
	}
	o.Secret, o.CacheDir = key.secret, f.cache()
	r, err := repo.Init(ctx, objects, o)
	if err != nil {
		return nil, errors.Join(err, objects.Close())
	}
	if err := r.AcceptLocation(f.cache()); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// openBare opens the repository without its index: enough for snapshots and
// keys.
func (f *repositoryFlags) openBare(ctx context.Context, stderr io.Writer) (*repo.Repository, error) {
	objects, err := f.objects(ctx, stderr)
	if err != nil {
		return nil, err
	}
	return f.unlock(ctx, objects, stderr)
}

// objects opens the storage alone, for which no password is needed.
func (f *repositoryFlags) objects(ctx context.Context, stderr io.Writer) (object.Store, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	return all.Open(ctx, f.location, f.storage(ctx, stderr))
}

func (f *repositoryFlags) unlock(ctx context.Context, objects object.Store, stderr io.Writer) (*repo.Repository, error) {
	began := time.Now()
	key, err := f.secret.read(ctx, stderr, false)
	if err != nil {
		return nil, errors.Join(err, objects.Close())
	}
	options := repo.Options{Secret: key.secret, Page: key.page, Slot: f.keySlot, CacheDir: f.cache()}
	r, err := repo.Open(ctx, objects, options)
	if key.literal != nil && errors.Is(err, slot.ErrWrongSecret) {
		// The repository was made when the mark counted as part of the password.
		options.Secret.Password = key.literal
		r, err = repo.Open(ctx, objects, options)
	}
	if err == nil && !f.anyRepository {
		if rerr := r.CheckLocation(f.cache()); rerr != nil {
			return nil, errors.Join(rerr, r.Close())
		}
	}
	switch {
	case err == nil:
		diagnosticsOf(ctx).log.Debug("repository: opened", "location", objects.Location(), "id", r.ID(), "with", f.secret.source(),
			"cache", r.CacheDir(), "after", time.Since(began).Round(time.Millisecond))
		return r, nil
	case key.page != nil && errors.Is(err, seal.ErrForeign):
		err = fmt.Errorf("%s: of another repository: %w", f.secret.keyFile, slot.ErrWrongSecret)
	}
	return nil, errors.Join(fmt.Errorf("repository %s: %w", objects.Location(), err), objects.Close())
}

// open opens the repository with its index.
func (f *repositoryFlags) open(ctx context.Context, stderr io.Writer) (*repo.Repository, error) {
	r, err := f.openBare(ctx, stderr)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := r.LoadIndex(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	diagnosticsOf(ctx).log.Debug("repository: loaded the index", "after", time.Since(began).Round(time.Millisecond))
	return r, nil
}

// tellMissed warns of snapshots that this machine has seen and that are gone.
func tellMissed(stderr io.Writer, r *repo.Repository) {
	for _, p := range r.Missed() {
		printError(stderr, "warning: "+oneLine(p.Err.Error()), "if nobody forgot it, the storage or a key is in the wrong hands: xenkeep key objects, xenkeep repair versions; this is reported once")
	}
}

// tellProblems reports damaged objects that were worked around, and snapshots that do
// not count.
func tellProblems(stderr io.Writer, problems []repo.Problem) {
	for _, p := range problems {
		what := "damage: "
		if errors.Is(p.Err, repo.ErrWithdrawn) {
			what = "withdrawn: "
		}
		printError(stderr, what+cmp.Or(oneLine(p.Err.Error()), p.Object), "")
	}
}
