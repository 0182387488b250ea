package sr

import (
	"bytes"
	"fmt"
	"testing"
)

// granules returns the set bits of a bitmap.
func granules(bitmap []byte) string {
	var out []int
	for g := range 8 * len(bitmap) {
		if bitmap[g/8]&(0x80>>(g%8)) != 0 {
			out = append(out, g)
		}
	}
	return fmt.Sprint(out)
}

func TestChangedBlocks(t *testing.T) {
	s := newSR(t, Config{Type: "ext"})
	v := create(t, s, "v", 4*mib, nil)
	touch := func(gs ...int64) {
		t.Helper()
		for _, g := range gs {
			write(t, v, []byte("x"), g*granule)
		}
	}
	snap := func(id string) *Volume {
		t.Helper()
		sn, _, err := v.Snapshot(id, "base-"+id)
		if err != nil {
			t.Fatal(err)
		}
		return sn
	}
	check := func(from, to *Volume, want string) {
		t.Helper()
		b, err := s.ChangedBlocks(from, to)
		if err != nil {
			t.Fatalf("%s to %s: %v", from.UUID(), to.UUID(), err)
		}
		if int64(len(b)) != (to.cbt.size/granule+7)/8 {
			t.Errorf("%s to %s: bitmap of %d bytes", from.UUID(), to.UUID(), len(b))
		}
		if got := granules(b); got != want {
			t.Errorf("%s to %s: %s, want %s", from.UUID(), to.UUID(), got, want)
		}
	}
	refuse := func(from, to *Volume) {
		t.Helper()
		if _, err := s.ChangedBlocks(from, to); fault(err) != FaultCBTUnrelated {
			t.Errorf("%s to %s: %v", from.UUID(), to.UUID(), err)
		}
	}
	touch(1)
	early := snap("early")
	if err := v.EnableCBT(); err != nil || v.EnableCBT() != nil {
		t.Fatal(err)
	}
	touch(2)
	s1 := snap("s1")
	touch(3, 63)
	write(t, v, make([]byte, granule), 5*granule-1) // two granules, content unchanged
	s2 := snap("s2")
	touch(7)
	s3 := snap("s3")
	touch(9)
	if !s1.CBTEnabled() || early.CBTEnabled() {
		t.Error("logs at the wrong snapshots")
	}
	check(s1, s2, "[3 4 5 63]")
	check(s1, s3, "[3 4 5 7 63]")
	check(s1, v, "[3 4 5 7 9 63]")
	check(s3, v, "[9]")
	refuse(s2, s1)
	refuse(s1, s1)
	refuse(early, s1)

	// A list across a deleted element stays correct; its data may be deleted
	// before.
	if err := s1.DataDestroy(); err != nil || s1.Size() != 0 {
		t.Errorf("data destroy: %v, size %d", err, s1.Size())
	}
	if err := s2.Destroy(); err != nil {
		t.Fatal(err)
	}
	check(s1, s3, "[3 4 5 7 63]")
	if err := v.Resize(8 * mib); err != nil {
		t.Fatal(err)
	}
	touch(100)
	check(s1, v, "[3 4 5 7 9 63 100]")
	clone, _, err := v.Clone("clone", "base-clone")
	if err != nil || clone.CBTEnabled() || !v.CBTEnabled() {
		t.Errorf("clone: %v", err)
	}
	check(s3, v, "[9 100]")
	v.DisableCBT()
	refuse(s3, v)
	if err := v.EnableCBT(); err != nil {
		t.Fatal(err)
	}
	s4 := snap("s4")
	refuse(s3, s4)
	check(s1, s3, "[3 4 5 7 63]")
	if err := s1.Destroy(); err != nil {
		t.Fatal(err)
	}
	if b, err := s.ChangedBlocks(s4, v); err != nil || !bytes.Equal(b, make([]byte, 16)) {
		t.Errorf("nothing changed: %x, %v", b, err)
	}
}
