package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
)

// Feature is a named addition to format 1. A repository uses it if the config names
// it; a version that does not support it is refused the uses that are set here.
// Init gives a new repository all features, AddFeatures adds them to an old one, and
// a repository without a feature is read, written and pruned as before.
type Feature struct {
	Name string
	// A version must support the feature to read, to write (back up) or to prune
	// (forget and delete) a repository that uses it.
	Read, Write, Prune bool
	Purpose            string // one line for people: the effect of the feature
}

// FeatureWriterTrust means that only versions prune that believe no statements of a
// write-only key about the data of others.
const FeatureWriterTrust = "writer-trust"

// FeatureFirstWriter means that packs of copied blobs name the writers that stored
// them first.
const FeatureFirstWriter = "first-writer"

// Supported returns the features that this version supports, oldest first.
func Supported() []Feature {
	return []Feature{
		{Name: FeatureWriterTrust, Prune: true,
			Purpose: "a stolen write-only key cannot make a prune delete data, or a backup rely on data that is not there"},
		{Name: FeatureFirstWriter, Read: true, Write: true, Prune: true,
			Purpose: "copied data keeps the ID of the key that stored it first, so that key packs finds it after a prune"},
		{Name: FeatureGrace, Prune: true, Purpose: "forgotten snapshots stay for a grace period, in which they can be recovered"},
	}
}

// Uses returns the uses that need the feature: "read", "write" and "prune".
func (f *Feature) Uses() []string {
	uses := []string{}
	for _, u := range []struct {
		set  bool
		name string
	}{{f.Read, "read"}, {f.Write, "write"}, {f.Prune, "prune"}} {
		if u.set {
			uses = append(uses, u.name)
		}
	}
	return uses
}

// features returns the names to be listed in a config that uses all of list.
func features(list []Feature) Features {
	f := Features{Read: []string{}, Write: []string{}, Prune: []string{}}
	for i := range list {
		f.add(&list[i])
	}
	return f
}

// add lists a feature, and keeps the names that are there.
func (f *Features) add(n *Feature) {
	for _, u := range []struct {
		needed bool
		names  *[]string
	}{{n.Read, &f.Read}, {n.Write, &f.Write}, {n.Prune, &f.Prune}} {
		if u.needed && !slices.Contains(*u.names, n.Name) {
			*u.names = append(*u.names, n.Name)
		}
	}
}

// has reports whether a repository with these lists uses a feature.
func (f *Features) has(n *Feature) bool {
	return (!n.Read || slices.Contains(f.Read, n.Name)) && (!n.Write || slices.Contains(f.Write, n.Name)) &&
		(!n.Prune || slices.Contains(f.Prune, n.Name))
}

// unsupported returns ErrFeature if this version does not support one of names.
func unsupported(names []string) error {
	for _, name := range names {
		if !slices.ContainsFunc(Supported(), func(f Feature) bool { return f.Name == name }) {
			return fmt.Errorf("feature %q: %w", name, ErrFeature)
		}
	}
	return nil
}

// Uses reports whether the repository uses the feature with this name.
func (c *Config) Uses(name string) bool {
	return slices.Contains(c.Features.Read, name) || slices.Contains(c.Features.Write, name) || slices.Contains(c.Features.Prune, name)
}

// MissingFeatures returns the features that this version supports and the
// repository does not use.
func (r *Repository) MissingFeatures() []Feature {
	return slices.DeleteFunc(Supported(), func(f Feature) bool { return r.config.Features.has(&f) })
}

// AddFeatures adds features to the config. Versions that do not support them are
// refused the uses that need them from then on; one that has the repository open
// already continues. It needs a full key.
func (r *Repository) AddFeatures(ctx context.Context, add []Feature) error {
	if err := r.NeedsFull("add a feature"); err != nil {
		return err
	}
	return r.changeConfig(ctx, func(fields map[string]json.RawMessage) error {
		f := features(nil)
		if raw, ok := fields["features"]; ok {
			if err := json.Unmarshal(raw, &f); err != nil {
				return fmt.Errorf("config: %v: %w", err, seal.ErrCorrupt)
			}
		}
		for i := range add {
			f.add(&add[i])
		}
		raw, err := json.Marshal(f)
		fields["features"] = raw
		return err
	})
}

// changeConfig writes the config again with changed fields. It reads the stored
// config first, so that a change which another machine has made since this
// repository was opened stays, and so do fields of a newer version.
func (r *Repository) changeConfig(ctx context.Context, change func(fields map[string]json.RawMessage) error) error {
	raw, err := readConfig(ctx, r.objects, r.keys)
	switch {
	case errors.Is(err, object.ErrNotFound), errors.Is(err, seal.ErrCorrupt):
		raw = r.rawJSON // the copy that was used to open the repository
	case err != nil:
		return err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return fmt.Errorf("config: %v: %w", err, seal.ErrCorrupt)
	}
	if err := change(fields); err != nil {
		return err
	}
	if raw, err = json.Marshal(fields); err != nil {
		return err
	}
	var c Config
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("config: %v: %w", err, seal.ErrCorrupt)
	}
	data, _, err := r.keys.SealObject(seal.KindConfig, raw, nil)
	if err != nil {
		return err
	}
	if err := r.objects.Put(ctx, configName, data); err != nil {
		return err
	}
	r.rawJSON, r.config = raw, c
	return nil
}
