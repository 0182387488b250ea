package prune_test

import (
	"math/rand/v2"
	"testing"

	"xenkeep/chunkstore/object/mem"
	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

// A disk of several nodes, two of them equal, keeps all data that it needs, and
// unneeded data is deleted.
func TestWalkOfManyNodes(t *testing.T) {
	store, c := mem.New(), repotest.NewClock()
	repotest.Init(t, store)
	m := disktest.NewMem(4<<30 + 4096)
	write := func(seed byte, at int64) {
		p := make([]byte, 300<<10)
		_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
		if err := m.WriteAt(t.Context(), p, at); err != nil {
			t.Fatal(err)
		}
	}
	write(1, 8<<10)
	write(2, 1<<30)
	write(3, 1<<30+disk.BlockSize)
	write(1, 2<<30+8<<10)
	write(4, 3<<30)
	first := mustSave(t, store, c, m, "a")
	write(5, 1<<30+disk.BlockSize)
	write(6, 3<<30)
	write(7, 1<<30)
	mustSave(t, store, c, m, "a")
	mustSave(t, store, c, disktest.Content(9, 10), "b")
	o := prune.Options{Now: c.Now, Wait: c.Wait, MaxRepack: 1 << 30}
	p, _ := mustPass(t, store, o)
	if p.Dead.Packs != 0 {
		t.Fatalf("nothing is dead: %+v", p)
	}
	repotest.Forget(t, store, first)
	o.Exclusive = true
	_, res := mustPass(t, store, o)
	if freed := res.Deleted.Bytes; freed < 300<<10 {
		t.Errorf("freed %d bytes", freed)
	}
	mustClean(t, store)
}
