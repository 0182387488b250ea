package check_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

// Objects that a revoked writer wrote before its revocation stay valid; objects
// that it writes later, with all the keys it had, are ignored: no backup references
// them, check reports them, and they are deleted. They stop neither backups nor
// prunes.
func TestRevoked(t *testing.T) {
	store := mem.New()
	full := repotest.Init(t, store)
	stolen := slot.Secret{KeyFile: []byte(strings.Repeat("k", 32))}
	id, err := full.AddSlot(t.Context(), stolen, "machine", seal.WriteOnly, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	thief, err := repo.Open(t.Context(), store, repo.Options{Secret: stolen})
	if err == nil {
		err = thief.LoadIndex(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	before := disktest.NewMem(3 << 20)
	disktest.Scribble(t, before, 1, 10)
	o := backup.DiskOptions{Size: before.Size()}
	good, err := repotest.Save(t.Context(), thief, "vm", before.Source(), o, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := repotest.Open(t, store).Revoke(t.Context(), id, "", nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Open(t.Context(), store, repo.Options{Secret: stolen}); !errors.Is(err, slot.ErrWrongSecret) {
		t.Errorf("the slot still opens: %v", err)
	}
	kept := names(t, store)
	after := disktest.NewMem(3 << 20)
	disktest.Scribble(t, after, 2, 10)
	evil, err := repotest.Save(t.Context(), thief, "vm", after.Source(), o, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		thief.PutClaim(t.Context(), &repo.Claim{Run: strings.Repeat("ab", 16), Started: time.Now()}),
		thief.PutCondemned(t.Context(), &repo.Condemned{Time: time.Now(), Packs: []string{}}),
		thief.PutNote(t.Context(), &repo.Note{Kind: "protect", Snapshot: good.ID(), Time: time.Now()}),
		thief.PutDamage(t.Context(), &repo.Damage{Blocks: []repo.DamagedDisk{{Snapshot: good.ID()}}}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r := repotest.Open(t, store)
	all, bad, err := r.Snapshots(t.Context())
	if err != nil || len(all) != 1 || len(bad) != 1 || !errors.Is(bad[0].Err, seal.ErrRevoked) || !strings.HasSuffix(bad[0].Object, evil.ID()) {
		t.Fatalf("%v %v %v", all, bad, err)
	}
	for what, n := range map[string]func() (int, error){
		"claims":    func() (int, error) { l, _, err := r.Claims(t.Context()); return len(l), err },
		"condemned": func() (int, error) { l, err := r.Condemnations(t.Context()); return len(l), err },
		"notes":     func() (int, error) { l, _, err := r.Notes(t.Context()); return len(l), err },
		"damage":    func() (int, error) { l, _, err := r.ReadDamage(t.Context()); return len(l), err },
	} {
		if got, err := n(); got != 0 || err != nil {
			t.Errorf("%s: %d, %v", what, got, err)
		}
	}
	again, err := repotest.Save(t.Context(), r, "vm", after.Source(), o, backup.Options{AdoptOrphans: true})
	if err != nil || again.Disks[0].Counts.New == 0 {
		t.Fatalf("a backup leans on what the thief stored: %+v %v", again, err)
	}
	rep, err := check.Run(t.Context(), repotest.Open(t, store), check.Options{})
	if err != nil || !slices.ContainsFunc(rep.Findings, func(f check.Finding) bool { return strings.HasSuffix(f.Object, evil.ID()) }) {
		t.Errorf("check does not name it: %v %v", rep, err)
	}
	if err := store.Delete(t.Context(), "snapshots/"+evil.ID()); err != nil {
		t.Fatal(err)
	}
	p, err := prune.New(t.Context(), repotest.Open(t, store), prune.Options{Exclusive: true})
	if err == nil {
		_, err = p.Execute(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	mine := 0
	if err := repotest.Open(t, store).PacksOf(t.Context(), id, func(name string, _ int64) error {
		if mine++; !slices.Contains(kept, name) {
			t.Errorf("%s stays", name)
		}
		return nil
	}); err != nil || mine == 0 {
		t.Errorf("%d packs of before: %v", mine, err)
	}
	repotest.MustRestore(t, repotest.Open(t, store), good.Disks[0].Root, before)
	repotest.MustRestore(t, repotest.Open(t, store), again.Disks[0].Root, after)
}
