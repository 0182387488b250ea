package attacktest

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

// stolenKey is the write-only key of the machine that the thief has.
func stolenKey() repo.Options { return repo.Options{Secret: repotest.Key(9)} }

// robbed is a repository with a stolen write-only key.
type robbed struct {
	clock  *repotest.Clock
	store  *mem.Store
	writer string           // ID of the stolen key
	thief  *repo.Repository // opened with the stolen key before it was revoked
	day1   *disktest.Mem
	good   *repo.Snapshot // backup of day1 that the machine made with its key before the theft
}

func rob(t *testing.T) *robbed {
	t.Helper()
	w := &robbed{clock: repotest.NewClock()}
	w.store = mem.NewAt(w.clock.Now)
	full := repotest.InitWith(t, w.store, repo.Options{Now: w.clock.Now})
	var err error
	if w.writer, err = full.AddSlot(t.Context(), stolenKey().Secret, "machine", seal.WriteOnly, w.clock.Now()); err != nil {
		t.Fatal(err)
	}
	w.thief = repotest.OpenWith(t, w.store, stolenKey())
	w.day1 = disktest.NewMem(3 << 20)
	disktest.Scribble(t, w.day1, 1, 10)
	w.good = w.save(t, w.thief, w.day1)
	w.clock.Add(24 * time.Hour)
	return w
}

func (w *robbed) save(t *testing.T, r *repo.Repository, m *disktest.Mem) *repo.Snapshot {
	t.Helper()
	s, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{Now: w.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// evil is a backup by the thief.
func (w *robbed) evil(t *testing.T, seed uint64) *repo.Snapshot {
	t.Helper()
	m := disktest.NewMem(3 << 20)
	disktest.Scribble(t, m, seed, 10)
	w.clock.Add(time.Minute)
	return w.save(t, w.thief, m)
}

func (w *robbed) revoke(t *testing.T, o repo.Options, since *time.Time) (*repo.Revoked, error) {
	t.Helper()
	w.clock.Add(time.Minute)
	v, _, err := repotest.OpenWith(t, w.store, o).Revoke(t.Context(), w.writer, "stolen", since, w.clock.Now())
	return v, err
}

func ids(t *testing.T, r *repo.Repository) (all []string) {
	t.Helper()
	snapshots, _, err := r.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range snapshots {
		all = append(all, s.ID())
	}
	slices.Sort(all)
	return all
}

func put(t *testing.T, store object.Store, name string, data []byte) {
	t.Helper()
	if err := store.Put(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

// Anyone who can put one object, without any key, puts a note that begins with the
// writer's public certificate, whose role is changed to full: the key must be
// revocable all the same.
func TestJunkDoesNotBlockRevoke(t *testing.T) {
	attack := func(t *testing.T, o repo.Options) error {
		w := rob(t)
		data, err := w.store.Get(t.Context(), "snapshots/"+w.good.ID(), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		junk := append(bytes.Clone(data[:24+97]), make([]byte, 200)...)
		junk[6], junk[24] = byte(seal.KindNote), byte(seal.Full)
		put(t, w.store, "notes/"+seal.Name(junk), junk)
		_, err = w.revoke(t, o, nil)
		return err
	}
	if err := attack(t, repo.Options{}); err != nil {
		t.Errorf("junk blocks key revoke: %v", err)
	}
	if err := attack(t, repo.Options{Without: []repo.Defence{repo.VerifiedWriters}}); !errors.Is(err, repo.ErrFullWriter) {
		t.Errorf("control: without verified writers, the junk does not block: %v", err)
	}
}

// The head of a slot is not signed. A thief who may overwrite objects writes the
// role full into the slot of the stolen key; the certificates in what the key wrote
// prove otherwise.
func TestForgedSlotDoesNotBlockRevoke(t *testing.T) {
	w := rob(t)
	for _, side := range []string{"a", "b"} {
		name := "slots/" + side + "/" + w.writer
		data, err := w.store.Get(t.Context(), name, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		forged := bytes.Replace(data, []byte(`"role":"write-only"`), []byte(`"role":"full"      `), 1)
		if bytes.Equal(forged, data) {
			t.Fatal("the slot's head has another form")
		}
		put(t, w.store, name, forged)
	}
	if s, err := repotest.Open(t, w.store).FindSlot(t.Context(), w.writer); err != nil || s.Role != "full" {
		t.Fatalf("control: the forged slot is not believed anywhere: %v %v", s, err)
	}
	if _, err := w.revoke(t, repo.Options{}, nil); err != nil {
		t.Errorf("a forged slot blocks key revoke: %v", err)
	}
}

// acts returns the errors of backup and prune, and of the gate that forget has.
func acts(t *testing.T, w *robbed, r *repo.Repository) map[string]error {
	t.Helper()
	_, berr := repotest.Save(t.Context(), r, "other", w.day1.Source(), backup.DiskOptions{Size: w.day1.Size()}, backup.Options{Now: w.clock.Now})
	_, perr := prune.New(t.Context(), r, prune.Options{Now: w.clock.Now})
	return map[string]error{"backup": berr, "prune": perr, "forget": r.CanPrune()}
}

// A storage thief damages one byte of the revocation, and the stolen key writes
// again. Backup, forget and prune are refused and name the object, whether or not the
// machine has a cache that would know it; with a cache, the key stays shut out.
func TestDamagedRevocation(t *testing.T) {
	w := rob(t)
	v, err := w.revoke(t, repo.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	cache := repo.Options{CacheDir: t.TempDir()}
	repotest.OpenWith(t, w.store, cache)
	evil := w.evil(t, 7)
	sound, err := w.store.Get(t.Context(), v.Name(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sound {
		if i > 200 && i%37 != 0 { // every byte of the header, and some of the rest
			continue
		}
		bad := bytes.Clone(sound)
		bad[i] ^= 1
		put(t, w.store, v.Name(), bad)
		if err := repotest.Open(t, w.store).CanPrune(); !errors.Is(err, repo.ErrRevocation) || !strings.Contains(err.Error(), v.Name()) {
			t.Fatalf("byte %d is damaged: %v", i, err)
		}
	}
	for what, err := range acts(t, w, repotest.Open(t, w.store)) {
		if !errors.Is(err, repo.ErrRevocation) || !strings.Contains(err.Error(), v.Name()) {
			t.Errorf("%s with a damaged revocation: %v", what, err)
		}
	}
	r := repotest.OpenWith(t, w.store, cache)
	if slices.Contains(ids(t, r), evil.ID()) {
		t.Error("a machine that has seen the revocation accepts the thief's snapshot")
	}
	if ok, err := r.PutRevocationBack(t.Context(), v.Name()); !ok || err != nil {
		t.Fatalf("not put back: %v %v", ok, err)
	}
	for what, err := range acts(t, w, repotest.Open(t, w.store)) {
		if err != nil {
			t.Errorf("%s after it was put back: %v", what, err)
		}
	}
	// Control: without the rule, the damage opens the repository to the key.
	bad := bytes.Clone(sound)
	bad[len(bad)-1] ^= 1
	put(t, w.store, v.Name(), bad)
	weak := repotest.OpenWith(t, w.store, repo.Options{Without: []repo.Defence{repo.KnownRevocations}})
	if err := acts(t, w, weak)["backup"]; err != nil || !slices.Contains(ids(t, weak), evil.ID()) {
		t.Errorf("control: without the rule nothing happens: %v", err)
	}
}

// A storage thief deletes the revocation. A machine that has seen it still rejects
// the key, refuses backup, forget and prune, and puts it back; with a full key the
// loss can be accepted.
func TestDeletedRevocation(t *testing.T) {
	w := rob(t)
	v, err := w.revoke(t, repo.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	cache := repo.Options{CacheDir: t.TempDir()}
	repotest.OpenWith(t, w.store, cache)
	evil := w.evil(t, 7)
	if err := w.store.Delete(t.Context(), v.Name()); err != nil {
		t.Fatal(err)
	}
	r := repotest.OpenWith(t, w.store, cache)
	if slices.Contains(ids(t, r), evil.ID()) {
		t.Error("the thief's snapshot is accepted")
	}
	for what, err := range acts(t, w, r) {
		if !errors.Is(err, repo.ErrRevocationGone) || !strings.Contains(err.Error(), v.Name()) {
			t.Errorf("%s with a missing revocation: %v", what, err)
		}
	}
	if ok, err := r.PutRevocationBack(t.Context(), v.Name()); !ok || err != nil {
		t.Fatalf("not put back: %v %v", ok, err)
	}
	for what, err := range acts(t, w, repotest.OpenWith(t, w.store, cache)) {
		if err != nil {
			t.Errorf("%s after it was put back: %v", what, err)
		}
	}
	if err := w.store.Delete(t.Context(), v.Name()); err != nil {
		t.Fatal(err)
	}
	r = repotest.OpenWith(t, w.store, cache)
	if err := r.GiveUpRevocation(t.Context(), v.Name()); err != nil {
		t.Fatal(err)
	}
	for what, err := range acts(t, w, repotest.OpenWith(t, w.store, cache)) {
		if err != nil {
			t.Errorf("%s after the loss was accepted: %v", what, err)
		}
	}
	// Control: a machine that has never seen it cannot know.
	if r := repotest.Open(t, w.store); !slices.Contains(ids(t, r), evil.ID()) || r.CanPrune() != nil {
		t.Error("control: the deletion changes nothing")
	}
}

// Bytes that nobody of this repository has signed are no revocation, whatever name
// they have: they stop nothing.
func TestJunkRevocation(t *testing.T) {
	w := rob(t)
	v, err := w.revoke(t, repo.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	sound, err := w.store.Get(t.Context(), v.Name(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	cut := sound[:len(sound)-1]
	for _, junk := range [][]byte{[]byte("hello"), {}, cut} {
		put(t, w.store, "revoked/"+seal.Name(junk), junk)
	}
	// One that the thief signs with the stolen key, of the admin's key.
	forged, name, err := w.thief.Keys().SealObject(seal.KindRevoked, nil, []byte(`{"writer":"`+repotest.Open(t, w.store).Keys().Cert.Writer().String()+`","objects":[],"packs":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	put(t, w.store, "revoked/"+name, forged)
	for what, err := range acts(t, w, repotest.Open(t, w.store)) {
		if err != nil {
			t.Errorf("%s with junk under revoked/: %v", what, err)
		}
	}
}

// The theft is noticed late: what the storage received after the theft is rejected
// too, even if the thief dates it before. A second, stricter revocation counts beside
// the first.
func TestRevokeSince(t *testing.T) {
	for _, twice := range []bool{false, true} {
		w := rob(t)
		theft := w.clock.Now()
		evil := w.evil(t, 7)
		if err := w.thief.PutNote(t.Context(), &repo.Note{Snapshot: w.good.ID(), Kind: repo.NoteDamaged, Time: theft.Add(-time.Hour)}); err != nil {
			t.Fatal(err)
		}
		if twice {
			if _, err := w.revoke(t, repo.Options{}, nil); err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(ids(t, repotest.Open(t, w.store)), evil.ID()) {
				t.Fatal("control: a revocation without a time rejects what was written before")
			}
		}
		if _, err := w.revoke(t, repo.Options{}, &theft); err != nil {
			t.Fatal(err)
		}
		r := repotest.Open(t, w.store)
		if got := ids(t, r); !slices.Equal(got, []string{w.good.ID()}) {
			t.Errorf("snapshots %v, want only %s of before the theft", got, w.good.ID())
		}
		if notes, _, err := r.Notes(t.Context()); err != nil || len(notes) != 0 {
			t.Errorf("the thief's note counts: %v %v", notes, err)
		}
		repotest.MustRestore(t, r, w.good.Disks[0].Root, w.day1)
	}
}

// Everything that the key wrote is listed, of every kind, with junk that only
// copies its certificate told apart.
func TestObjectsOf(t *testing.T) {
	w := rob(t)
	for _, err := range []error{
		w.thief.PutClaim(t.Context(), &repo.Claim{Run: strings.Repeat("ab", 16), Started: w.clock.Now()}),
		w.thief.PutReference(t.Context(), strings.Repeat("ab", 16), nil),
		w.thief.PutCondemned(t.Context(), &repo.Condemned{Time: w.clock.Now(), Packs: []string{}}),
		w.thief.PutNote(t.Context(), &repo.Note{Kind: "protect", Snapshot: w.good.ID(), Time: w.clock.Now()}),
		w.thief.PutRetired(t.Context(), &repo.Retired{Run: strings.Repeat("ab", 16), Time: w.clock.Now()}),
		w.thief.PutDamage(t.Context(), &repo.Damage{Blocks: []repo.DamagedDisk{{Snapshot: w.good.ID()}}}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	data, err := w.store.Get(t.Context(), "snapshots/"+w.good.ID(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	junk := append(bytes.Clone(data[:24+97]), make([]byte, 200)...)
	put(t, w.store, "notes/"+seal.Name(junk), junk)
	if _, err := w.revoke(t, repo.Options{}, nil); err != nil {
		t.Fatal(err)
	}
	evil := w.evil(t, 7)
	states := make(map[string]string)
	folders := make(map[string]bool)
	if err := repotest.Open(t, w.store).ObjectsOf(t.Context(), w.writer, func(o repo.Written) error {
		states[o.Name] = o.State
		folder, _, _ := strings.Cut(o.Name, "/")
		folders[folder] = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"snapshots", "index", "notes", "claims", "references", "condemned", "retired", "damage", "packs"} {
		if !folders[folder] {
			t.Errorf("nothing in %s/ is listed", folder)
		}
	}
	for name, want := range map[string]string{"snapshots/" + w.good.ID(): "ok", "snapshots/" + evil.ID(): "rejected", "notes/" + seal.Name(junk): "junk"} {
		if states[name] != want {
			t.Errorf("%s is %q, want %q", name, states[name], want)
		}
	}
}
