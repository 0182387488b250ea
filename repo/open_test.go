package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
)

var (
	right = slot.Secret{KeyFile: bytes.Repeat([]byte{1}, 32)}
	wrong = slot.Secret{KeyFile: bytes.Repeat([]byte{2}, 32)}
)

func TestOpen(t *testing.T) {
	ctx := t.Context()
	if _, err := Open(ctx, mem.New(), Options{Secret: right}); !errors.Is(err, object.ErrNoRepository) {
		t.Errorf("an empty storage: %v", err)
	}
	store := mem.New()
	r, err := Init(ctx, store, Options{Secret: right})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, store, Options{Secret: wrong}); !errors.Is(err, slot.ErrWrongSecret) {
		t.Errorf("a wrong secret: %v", err)
	}
	page, err := r.KeyPage()
	if err != nil {
		t.Fatal(err)
	}
	id := r.Keys().Cert.Writer().String()
	if _, err := Open(ctx, store, Options{Secret: right, Slot: id}); err != nil {
		t.Errorf("by its slot: %v", err)
	}
	if _, err := Open(ctx, store, Options{Secret: right, Slot: "00"}); !errors.Is(err, ErrNoSlot) {
		t.Errorf("by a slot that is not there: %v", err)
	}
	cache := t.TempDir()
	for range 2 {
		if _, err := Open(ctx, store, Options{Secret: right, CacheDir: cache}); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(cache, r.ID(), "slot")); err != nil || string(b) != id {
		t.Errorf("the slot remembered is %q: %v", b, err)
	}
	// All slots and the config are lost: the page alone opens the repository.
	for _, name := range []string{"config", slotName("a", id), slotName("b", id)} {
		if err := store.Delete(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Open(ctx, store, Options{Page: page})
	if err != nil || p.ID() != r.ID() || len(p.Problems()) != 1 {
		t.Errorf("by the page: %v", err)
	}
}

// Either copy of a slot opens if the other is damaged.
func TestSlotCopies(t *testing.T) {
	ctx := t.Context()
	store := mem.New()
	r, err := Init(ctx, store, Options{Secret: right})
	if err != nil {
		t.Fatal(err)
	}
	id := r.Keys().Cert.Writer().String()
	whole, err := store.Get(ctx, slotName("a", id), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(whole); i += 13 {
		bad := bytes.Clone(whole)
		bad[i] ^= 4
		for _, dir := range []string{"a", "b"} {
			if err := store.Put(ctx, slotName(dir, id), bad); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(ctx, store, Options{Secret: right}); err != nil {
				t.Errorf("byte %d of copy %s: %v", i, dir, err)
			}
			if err := store.Put(ctx, slotName(dir, id), whole); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A feature, a format or a config that this version does not support is refused for
// the operations that it concerns.
func TestFeatures(t *testing.T) {
	ctx := t.Context()
	for name, c := range map[string]struct {
		change func(*Config)
		open   error
		write  error
	}{
		"read":    {func(c *Config) { c.Features.Read = []string{"new"} }, ErrFeature, nil},
		"write":   {func(c *Config) { c.Features.Write = []string{"new"} }, nil, ErrFeature},
		"prune":   {func(c *Config) { c.Features.Prune = []string{"new"} }, nil, nil},
		"format":  {func(c *Config) { c.Format = 2 }, ErrFeature, nil},
		"chunker": {func(c *Config) { c.BlockSize = 1 }, seal.ErrCorrupt, nil},
	} {
		store := mem.New()
		r, err := Init(ctx, store, Options{Secret: right})
		if err != nil {
			t.Fatal(err)
		}
		cfg := r.Config()
		c.change(&cfg)
		raw, err := json.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		keys := r.Keys()
		data, _, err := keys.SealObject(seal.KindConfig, raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Put(ctx, configName, data); err != nil {
			t.Fatal(err)
		}
		r, err = Open(ctx, store, Options{Secret: right})
		if !errors.Is(err, c.open) {
			t.Errorf("%s: open: %v", name, err)
		}
		if err == nil {
			cfg := r.Config()
			if err := cfg.CanWrite(); !errors.Is(err, c.write) {
				t.Errorf("%s: write: %v", name, err)
			}
		}
		data[5]++ // of a newer format: never replaced by the slot's copy
		signed := data[:len(data)-64]
		sum := sha256.Sum256(signed)
		data = append(signed, keys.Sign(append([]byte("xenkeep object 1"), sum[:]...))...)
		if err := store.Put(ctx, configName, data); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(ctx, store, Options{Secret: right}); !errors.Is(err, seal.ErrNewer) {
			t.Errorf("%s: a newer config: %v", name, err)
		}
	}
	// A config that was signed with a write-only key is invalid.
	store := mem.New()
	r, err := Init(ctx, store, Options{Secret: right})
	if err != nil {
		t.Fatal(err)
	}
	weak, err := r.Keys().ForNewWriter(seal.WriteOnly)
	if err != nil {
		t.Fatal(err)
	}
	data, _, err := weak.SealObject(seal.KindConfig, []byte(`{"format":1,"block_size":1}`), nil)
	if err == nil {
		err = store.Put(ctx, configName, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r, err = Open(ctx, store, Options{Secret: right}); err != nil || len(r.Problems()) != 1 {
		t.Errorf("a forged config: %v", err)
	}
}

func TestResolve(t *testing.T) {
	at := func(h int) time.Time { return time.Unix(int64(h)*3600, 0) }
	all := []*Snapshot{
		{id: "aaaa11", VM: Named{"u1", "web"}, DataTime: at(1), Complete: true},
		{id: "aaaa22", VM: Named{"u2", "db"}, DataTime: at(2), Complete: true},
		{id: "bbbb33", VM: Named{"u1", "web"}, DataTime: at(3)},
		{id: "cccc44", VM: Named{"u3", "db"}, DataTime: at(4), Complete: true},
	}
	for spec, want := range map[string]string{
		"latest": "cccc44", "latest:u1": "aaaa11", "latest:web": "aaaa11", "latest:u2": "aaaa22", "bbbb": "bbbb33", "AAAA1": "aaaa11",
	} {
		if s, err := Resolve(all, spec); err != nil || s.id != want {
			t.Errorf("%s is %v: %v", spec, s, err)
		}
	}
	for spec, want := range map[string]error{
		"latest:db": ErrAmbiguous, "aaaa": ErrAmbiguous, "latest:none": ErrNoSnapshot, "dddd": ErrNoSnapshot, "aaa": ErrNoSnapshot, "": ErrNoSnapshot,
	} {
		if _, err := Resolve(all, spec); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", spec, err, want)
		}
	}
}

// A snapshot is small, and reads the same from the cache folder as from storage.
func TestSnapshots(t *testing.T) {
	ctx := t.Context()
	store := mem.New()
	if _, err := Init(ctx, store, Options{Secret: right}); err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	r, err := Open(ctx, store, Options{Secret: right, CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	s := &Snapshot{Origin: "pool", VM: Named{"u", "name"}, DataTime: time.Unix(5, 0).UTC(), Complete: true}
	for range 16 {
		s.Disks = append(s.Disks, Disk{Device: "xvda", VDI: strings.Repeat("u", 36), VDISnapshot: strings.Repeat("v", 36), Root: HexID{1}, Method: "full", Reason: "first backup of this disk"})
	}
	if err := r.PutSnapshot(ctx, s); err != nil {
		t.Fatal(err)
	}
	if s.StoredSize() >= 4096 {
		t.Errorf("a snapshot of %d disks has %d bytes", len(s.Disks), s.StoredSize())
	}
	for range 2 {
		all, bad, err := r.Snapshots(ctx)
		if err != nil || len(bad) != 0 || len(all) != 1 || all[0].ID() != s.ID() || all[0].Writer() != r.Keys().Cert.Writer() {
			t.Fatalf("%v %v: %v", all, bad, err)
		}
	}
	file := filepath.Join(cache, r.ID(), "snapshots", s.ID())
	if err := os.WriteFile(file, []byte("rotten"), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, bad, err := r.Snapshots(ctx); err != nil || len(all) != 1 || len(bad) != 0 {
		t.Errorf("with a damaged cache: %v %v: %v", all, bad, err)
	}
	if err := r.DeleteSnapshot(ctx, s); err != nil {
		t.Fatal(err)
	}
	if all, _, err := r.Snapshots(ctx); err != nil || len(all) != 0 {
		t.Errorf("a forgotten snapshot is shown: %v %v", all, err)
	}
}
