package mem_test

import (
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
)

func TestContract(t *testing.T) {
	objecttest.Run(t, func(*testing.T) object.Store { return mem.New() })
}

func TestCloneIsIndependent(t *testing.T) {
	s := mem.New()
	if err := s.Put(t.Context(), "config", []byte("old")); err != nil {
		t.Fatal(err)
	}
	c := s.Clone()
	if err := s.Delete(t.Context(), "config"); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Get(t.Context(), "config", 0, -1); err != nil || string(got) != "old" {
		t.Errorf("clone: %q, %v", got, err)
	}
}

func TestKeeper(t *testing.T) {
	objecttest.Run(t, func(*testing.T) object.Store { return mem.NewKeeper(time.Now) })
	objecttest.RunKeeper(t, func(*testing.T) object.Versioned { return mem.NewKeeper(time.Now) })
}
