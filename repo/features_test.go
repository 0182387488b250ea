package repo

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
)

// AddFeatures lists a feature under the uses that need it, once, and keeps fields and
// features of other versions.
func TestAddFeatures(t *testing.T) {
	ctx, store := t.Context(), mem.New()
	r, err := Init(ctx, store, Options{Secret: right, Features: []Feature{}})
	if err != nil {
		t.Fatal(err)
	}
	if f := r.Config().Features; len(f.Read)+len(f.Write)+len(f.Prune) != 0 {
		t.Fatalf("a repository without features uses %v", f)
	}
	// A newer version and another machine have changed the config meanwhile.
	other, err := Open(ctx, store, Options{Secret: right})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.changeConfig(ctx, func(fields map[string]json.RawMessage) error {
		fields["later"] = json.RawMessage(`"x"`)
		fields["features"] = json.RawMessage(`{"read":[],"write":["theirs"],"prune":["theirs"]}`)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.AddFeatures(ctx, []Feature{{Name: "ours", Prune: true}}); err != nil {
			t.Fatal(err)
		}
	}
	if r, err = Open(ctx, store, Options{Secret: right}); err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(r.rawJSON, &fields); err != nil || fields["later"] != "x" {
		t.Errorf("a field of a newer version is %v: %v", fields["later"], err)
	}
	cfg := r.Config()
	if f := cfg.Features; len(f.Read) != 0 || !slices.Equal(f.Write, []string{"theirs"}) || !slices.Equal(f.Prune, []string{"theirs", "ours"}) {
		t.Errorf("features are %v", f)
	}
	if !cfg.Uses("ours") || cfg.Uses("others") {
		t.Errorf("Uses disagrees with %v", cfg.Features)
	}
	if err := cfg.CanPrune(); !errors.Is(err, ErrFeature) {
		t.Errorf("pruning with unknown features: %v", err)
	}
}

// A new repository uses all features of this version, and a write-only key adds none.
func TestInitUsesAllFeatures(t *testing.T) {
	ctx, store := t.Context(), mem.New()
	r, err := Init(ctx, store, Options{Secret: right})
	if err != nil {
		t.Fatal(err)
	}
	if f := r.MissingFeatures(); len(f) != 0 {
		t.Errorf("a new repository lacks %v", f)
	}
	if _, err := r.AddSlot(ctx, wrong, "thief", seal.WriteOnly, r.config.Created); err != nil {
		t.Fatal(err)
	}
	w, err := Open(ctx, store, Options{Secret: wrong})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.AddFeatures(ctx, []Feature{{Name: "x", Read: true}}); !errors.Is(err, seal.ErrNoDataKey) {
		t.Errorf("a write-only key adds a feature: %v", err)
	}
}
