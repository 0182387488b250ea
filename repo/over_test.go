package repo_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
	"xenkeep/repo/repotest"
)

// overWorld creates a repository with two snapshots of one run, written with a
// write-only key.
func overWorld(t *testing.T) (store object.Store, full, writer *repo.Repository, a, b *repo.Snapshot) {
	t.Helper()
	store = mem.New()
	first, second := repotest.Key(1), repotest.Key(2)
	full, err := repo.Init(t.Context(), store, repo.Options{Secret: first})
	if err == nil {
		_, err = full.AddSlot(t.Context(), second, "machine", seal.WriteOnly, time.Now())
	}
	if err != nil {
		t.Fatal(err)
	}
	if writer, err = repo.Open(t.Context(), store, repo.Options{Secret: second}); err != nil {
		t.Fatal(err)
	}
	put := func(vm string) *repo.Snapshot {
		s := &repo.Snapshot{Run: "0a", VM: repo.Named{UUID: vm}, Complete: true}
		if err := writer.PutSnapshot(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	return store, full, writer, put("a"), put("b")
}

// counts returns the VMs of the valid snapshots, and the number of withdrawn ones.
func counts(t *testing.T, r *repo.Repository) (vms string, withdrawn int) {
	t.Helper()
	all, bad, err := r.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range []string{"a", "b"} {
		for _, s := range all {
			if s.VM.UUID == vm {
				vms += vm
			}
		}
	}
	for _, p := range bad {
		if !errors.Is(p.Err, repo.ErrWithdrawn) || !strings.HasPrefix(p.Object, "snapshots/") {
			t.Errorf("%s: %v", p.Object, p.Err)
		}
	}
	return vms, len(bad)
}

// If a run was ended, those of its snapshots are valid that all its Over objects
// list; the snapshots of other runs are not affected.
func TestOver(t *testing.T) {
	_, full, writer, a, b := overWorld(t)
	for _, c := range []struct {
		end       repo.RunEnd
		vms       string
		withdrawn int
	}{
		{repo.RunEnd{Run: "0b"}, "ab", 0},
		{repo.RunEnd{Run: "0"}, "ab", 0},
		{repo.RunEnd{Run: "0a", Snapshots: []string{b.ID(), a.ID()}}, "ab", 0},
		{repo.RunEnd{Run: "0a", Snapshots: []string{a.ID()}}, "a", 1},
		{repo.RunEnd{Run: "0a", Snapshots: []string{b.ID()}}, "", 2},
	} {
		if err := full.PutRunEnd(t.Context(), &c.end); err != nil {
			t.Fatal(err)
		}
		for _, r := range []*repo.Repository{full, writer} {
			if vms, n := counts(t, r); vms != c.vms || n != c.withdrawn {
				t.Errorf("after %+v: %q count, %d do not", c.end, vms, n)
			}
		}
	}
}

// A write-only key cannot end a run: otherwise its thief could invalidate snapshots
// that were written with it before. An Over object that was changed, or stored
// under another's name, ends nothing either.
func TestOverForged(t *testing.T) {
	store, full, writer, _, _ := overWorld(t)
	if err := writer.PutRunEnd(t.Context(), &repo.RunEnd{Run: "0a"}); !errors.Is(err, seal.ErrNoDataKey) {
		t.Errorf("a key that may only write: %v", err)
	}
	data, name, err := writer.Keys().SealObject(seal.KindOver, nil, []byte(`{"run":"0a","snapshots":[]}`))
	if err == nil {
		err = store.Put(t.Context(), "over/0a-"+name, data)
	}
	if err == nil {
		err = full.PutRunEnd(t.Context(), &repo.RunEnd{Run: "0b"})
	}
	if err != nil {
		t.Fatal(err)
	}
	if vms, _ := counts(t, full); vms != "ab" {
		t.Errorf("signed by a key that may only write: %q count", vms)
	}
	var other string
	if err := store.List(t.Context(), "over/0b-", func(i object.Info) error { other = i.Name; return nil }); err != nil {
		t.Fatal(err)
	}
	data, err = store.Get(t.Context(), other, 0, -1)
	if err == nil {
		err = store.Put(t.Context(), "over/0a-"+strings.TrimPrefix(other, "over/0b-"), data)
	}
	if err == nil {
		err = store.Put(t.Context(), "over/0a-"+strings.Repeat("0", 64), data)
	}
	if err != nil {
		t.Fatal(err)
	}
	if vms, _ := counts(t, full); vms != "ab" {
		t.Errorf("an end of another run, renamed: %q count", vms)
	}
	if n := len(full.Problems()); n != 1 {
		t.Errorf("%d problems, of the damaged object: %v", n, full.Problems())
	}
	if n := len(full.Junk()); n != 1 {
		t.Errorf("%d are junk, the renamed object: %v", n, full.Junk())
	}
}

// Over objects cost one request if no run of a snapshot was ended. If they cannot
// be listed, that is an error, so that no withdrawn snapshot is returned as valid.
func TestOverRequests(t *testing.T) {
	inner, full, _, a, _ := overWorld(t)
	for _, run := range []string{"0b", "0c", "0d"} {
		if err := full.PutRunEnd(t.Context(), &repo.RunEnd{Run: run, Snapshots: []string{a.ID()}}); err != nil {
			t.Fatal(err)
		}
	}
	store := objecttest.NewFaulty(inner)
	r, err := repo.Open(t.Context(), store, repo.Options{Secret: repotest.Key(1)})
	if err != nil {
		t.Fatal(err)
	}
	lists, gets := store.Calls(objecttest.List), store.Calls(objecttest.Get)
	if vms, _ := counts(t, r); vms != "ab" {
		t.Errorf("%q count", vms)
	}
	if lists, gets = store.Calls(objecttest.List)-lists, store.Calls(objecttest.Get)-gets; lists != 3 || gets != 2 { // of snapshots, over objects and statements about forgotten ones
		t.Errorf("%d listings and %d reads for two snapshots", lists, gets)
	}
	store.Inject(objecttest.Fault{Verb: objecttest.List, Prefix: "over/", Stay: true, Err: object.ErrUnavailable})
	if _, _, err := r.Snapshots(context.Background()); !errors.Is(err, object.ErrUnavailable) {
		t.Errorf("ends cannot be listed: %v", err)
	}
}
