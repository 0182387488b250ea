package sr

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"xenkeep/vhd"
)

func fault(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Fault
	}
	return 0
}

func TestSizes(t *testing.T) {
	const gib = 1 << 30
	raw := map[string]string{"type": "raw"}
	for _, x := range []struct {
		kind       string
		cfg        map[string]string
		size, want int64
		fault      int
	}{
		{"ext", nil, 0, 2 * mib, 0},
		{"ext", nil, 1, 2 * mib, 0},
		{"nfs", nil, 2*mib + 1, 4 * mib, 0},
		{"smb", nil, MaxVHDSize, MaxVHDSize, 0},
		{"ext", nil, MaxVHDSize + 1, 0, FaultVDISize},
		{"ext", nil, -1, 0, FaultVDISize},
		{"lvm", nil, 5 * mib, 6 * mib, 0},
		{"lvm", raw, 5 * mib, 8 * mib, 0},
		{"lvmoiscsi", raw, 1, 4 * mib, 0},
		{"lvmohba", raw, MaxVHDSize + 1, 0, FaultVDISize},
		{"ext", raw, 1234567, 1234567, 0},
		{"ext", raw, 3 << 40, 3 << 40, 0},
		{"iso", nil, gib, 0, FaultUnimplemented},
	} {
		s := newSR(t, Config{Type: x.kind})
		v, err := s.Create("v", x.size, x.cfg)
		if fault(err) != x.fault || (err != nil) != (x.fault != 0) {
			t.Errorf("%s %v %d: %v, want fault %d", x.kind, x.cfg, x.size, err, x.fault)
			continue
		}
		if err == nil && v.Size() != x.want {
			t.Errorf("%s %v %d: size %d, want %d", x.kind, x.cfg, x.size, v.Size(), x.want)
		}
	}
	if _, err := New(Config{Type: "zfs", Dir: t.TempDir()}); err == nil {
		t.Error("an unknown type was taken")
	}
}

func TestResize(t *testing.T) {
	s := newSR(t, Config{Type: "ext"})
	v := create(t, s, "v", 4*mib, nil)
	write(t, v, []byte("end"), 4*mib-3)
	if err := v.Resize(2 * mib); fault(err) != FaultVDISize {
		t.Errorf("shrink: %v", err)
	}
	if err := v.Resize(MaxVHDSize + 1); fault(err) != FaultVDISize {
		t.Errorf("grow too far: %v", err)
	}
	if err := v.Resize(5 * mib); err != nil || v.Size() != 6*mib {
		t.Fatalf("grow: %v, size %d", err, v.Size())
	}
	write(t, v, []byte("new"), 6*mib-3)
	b := content(t, v)
	if string(b[4*mib-3:4*mib]) != "end" || string(b[6*mib-3:]) != "new" {
		t.Error("content lost")
	}
}

func TestThickNeedsRoom(t *testing.T) {
	s := newSR(t, Config{Type: "lvm", PhysicalSize: 100 * mib})
	if _, err := s.Create("big", 200*mib, nil); fault(err) != FaultNoSpace {
		t.Errorf("create on a full repository: %v", err)
	}
	v := create(t, s, "v", 60*mib, nil)
	if u := v.PhysicalUtilisation(); u < 60*mib {
		t.Errorf("a thick volume takes %d", u)
	}
	if _, err := s.Create("w", 60*mib, nil); fault(err) != FaultNoSpace {
		t.Errorf("second volume: %v", err)
	}
	if err := v.SetAttached(true); err != nil {
		t.Fatal(err)
	}
	write(t, v, make([]byte, 50*mib), 0) // the base copy keeps its data
	if _, _, err := v.Snapshot("s", "b"); fault(err) != FaultNoSpace {
		t.Errorf("snapshot without room for a full leaf: %v", err)
	}
	if err := v.SetAttached(false); err != nil {
		t.Fatal(err)
	}
	snap, _, err := v.Snapshot("s", "b")
	if err != nil {
		t.Fatalf("snapshot of a detached volume needs little: %v", err)
	}
	if u := snap.PhysicalUtilisation(); u > 16*mib {
		t.Errorf("the snapshot takes %d", u)
	}
	if err := v.SetAttached(true); fault(err) != FaultNoSpace {
		t.Errorf("attach without room: %v", err)
	}
}

func TestThinFillsUp(t *testing.T) {
	s := newSR(t, Config{Type: "ext", PhysicalSize: 16 * mib})
	v := create(t, s, "v", 100*mib, nil)
	buf := make([]byte, blockSize)
	var err error
	n := 0
	for ; n < 20 && err == nil; n++ {
		_, err = v.WriteAt(buf, int64(n)*blockSize)
	}
	if n != 8 { // seven blocks fit next to the metadata
		t.Errorf("write %d ended: %v", n, err)
	}
	if st := s.Stat(); st.VirtualAllocation != 100*mib || st.Free() > blockSize+512 {
		t.Errorf("%+v", st)
	}
}

func TestRawOnLVM(t *testing.T) {
	s := newSR(t, Config{Type: "lvm"})
	v := create(t, s, "v", 8*mib, map[string]string{"type": "raw"})
	a, b := content(t, v), make([]byte, 1000)
	for off := 0; off < 2*mib; off += pageSize {
		if bytes.Equal(a[off:off+pageSize], zeros[:pageSize]) {
			t.Fatalf("page at %d of a new raw volume is zero", off)
		}
	}
	if _, err := v.ReadAt(b, 12345); err != nil || !bytes.Equal(b, a[12345:13345]) {
		t.Error("garbage changes from read to read")
	}
	write(t, v, []byte("abc"), 5000)
	copy(a[5000:], "abc")
	if !bytes.Equal(content(t, v), a) {
		t.Error("a small write disturbed its page")
	}
	if _, _, err := v.Snapshot("s", "b"); fault(err) != FaultUnimplemented {
		t.Errorf("snapshot: %v", err)
	}
	if err := v.EnableCBT(); fault(err) != FaultCBTRaw {
		t.Errorf("cbt: %v", err)
	}
	if _, err := v.Export("vhd", v); !errors.Is(err, ErrNotVHD) {
		t.Errorf("difference: %v", err)
	}
	if got := export(t, v, "raw", nil); !bytes.Equal(got, a) {
		t.Error("raw export differs")
	}
}

func TestChainDepth(t *testing.T) {
	s := newSR(t, Config{Type: "ext"})
	v := create(t, s, "v", 4*mib, nil)
	for i := 1; i < maxChain; i++ {
		write(t, v, []byte{byte(i)}, int64(i))
		if _, _, err := v.Snapshot(fmt.Sprintf("s%d", i), fmt.Sprintf("b%d", i)); err != nil {
			t.Fatalf("snapshot %d: %v", i, err)
		}
	}
	write(t, v, []byte{99}, 99)
	if _, _, err := v.Snapshot("s", "b"); fault(err) != FaultChainTooLong {
		t.Errorf("snapshot of a chain of %d files: %v", maxChain, err)
	}
	// Without the snapshots, the chain is merged into one file.
	want := content(t, v)
	for i := 1; i < maxChain; i++ {
		if err := s.Volume(fmt.Sprintf("s%d", i)).Destroy(); err != nil {
			t.Fatal(err)
		}
	}
	gone, err := s.GC()
	if err != nil || len(gone) != maxChain-1 {
		t.Fatalf("GC removed %d base copies: %v", len(gone), err)
	}
	if v.Parent() != nil || !bytes.Equal(content(t, v), want) {
		t.Error("the coalesced disk differs")
	}
	if _, _, err := v.Snapshot("s", "b"); err != nil {
		t.Error(err)
	}
}

func TestSnapshotOfAnUnwrittenLeaf(t *testing.T) {
	s := newSR(t, Config{Type: "ext"})
	v := create(t, s, "v", 4*mib, nil)
	write(t, v, []byte("x"), 0)
	_, base, err := v.Snapshot("s1", "b1")
	if err != nil || base == nil || !base.Hidden() {
		t.Fatalf("first snapshot: base %v, %v", base, err)
	}
	s2, none, err := v.Snapshot("s2", "b2")
	if err != nil || none != nil {
		t.Fatalf("second snapshot without a write between: base %v, %v", none, err)
	}
	if s2.Parent() != base || v.Parent() != base {
		t.Error("the second snapshot is no sibling")
	}
	if _, err := base.WriteAt([]byte("y"), 0); err == nil {
		t.Error("a base copy took a write")
	}
	if err := base.Destroy(); err == nil {
		t.Error("a base copy with children was destroyed")
	}
}

func TestExportHangs(t *testing.T) {
	s := newSR(t, Config{Type: "ext", ZeroScan: true})
	v := create(t, s, "v", 5*mib, map[string]string{"type": "raw"})
	write(t, v, []byte("x"), 0)
	if got := export(t, v, "vhd", nil); len(got) != 2048+512+(512+blockSize)+512 {
		t.Errorf("with the last block absent: %d bytes", len(got))
	} else if foot, err := vhd.DecodeFooter(got[:512]); err != nil || foot.CurrentSize != 6*mib {
		t.Errorf("current size %d, %v", foot.CurrentSize, err)
	}
	write(t, v, []byte("y"), 5*mib-1)
	e, err := v.Export("vhd", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var b bytes.Buffer
	n, err := e.WriteTo(&b)
	if !errors.Is(err, ErrHangs) || n != 2048+512+2*512+blockSize+1*mib {
		t.Errorf("with the last block present: %d bytes, %v", n, err)
	}
	if b.Bytes()[n-1] != 'y' {
		t.Error("the data do not end at the device's end")
	}
	if got := export(t, v, "raw", nil); len(got) != 5*mib {
		t.Errorf("raw: %d bytes", len(got))
	}
}

type brokenWriter struct{ left int }

var errBroken = errors.New("client gone")

func (w *brokenWriter) Write(p []byte) (int, error) {
	if n := min(w.left, len(p)); n < len(p) {
		w.left = 0
		return n, errBroken
	}
	w.left -= len(p)
	return len(p), nil
}

func TestExportToABrokenWriter(t *testing.T) {
	s := newSR(t, Config{Type: "ext"})
	v := create(t, s, "v", 8*mib, nil)
	write(t, v, make([]byte, 8*mib), 0)
	for _, format := range []string{"vhd", "raw"} {
		e, err := v.Export(format, nil)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := e.WriteTo(&brokenWriter{left: 3 * mib}); err != errBroken || n != 3*mib {
			t.Errorf("%s: %d, %v", format, n, err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	if v.top.inUse() {
		t.Error("the layers are still pinned")
	}
}

func TestExportOutlivesItsVolume(t *testing.T) {
	s := newSR(t, Config{Type: "ext"})
	v := create(t, s, "v", 8*mib, nil)
	write(t, v, bytes.Repeat([]byte("data"), mib), 2*mib)
	snap, _, err := v.Snapshot("s", "b")
	if err != nil {
		t.Fatal(err)
	}
	want := content(t, snap)
	e, err := snap.Export("raw", nil)
	if err != nil {
		t.Fatal(err)
	}
	write(t, v, bytes.Repeat([]byte("else"), mib), 2*mib)
	if err := snap.Destroy(); err != nil {
		t.Fatal(err)
	}
	if gone, err := s.GC(); err != nil || len(gone) != 0 {
		t.Fatalf("GC under an export: %v, %v", gone, err)
	}
	var b bytes.Buffer
	if _, err := e.WriteTo(&b); err != nil || !bytes.Equal(b.Bytes(), want) {
		t.Errorf("export of a destroyed snapshot: %v, equal %v", err, bytes.Equal(b.Bytes(), want))
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if gone, err := s.GC(); err != nil || len(gone) != 1 {
		t.Errorf("GC after the export: %v, %v", gone, err)
	}
	if files, _ := os.ReadDir(s.cfg.Dir); len(files) != 1 {
		t.Errorf("%d files are left, want the live disk's", len(files))
	}
}

func TestAddImage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 9*mib+512)
	for _, off := range []int{0, 4 * mib, 9*mib + 100} {
		for i := range data[off:min(off+5000, len(data))] {
			data[off+i] = byte(rnd.Uint32())
		}
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range []int{0, 4 * mib, 9 * mib} {
		if _, err := f.WriteAt(data[off:min(off+8192, len(data))], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, data) {
		t.Fatal("the test's file is not what it should be")
	}
	s := newSR(t, Config{Type: "ext"})
	v, err := s.AddImage("v", path, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 10*mib)
	copy(want, data)
	if v.Size() != 10*mib || !bytes.Equal(content(t, v), want) {
		t.Fatalf("size %d, or content differs", v.Size())
	}
	e, err := v.Export("vhd", nil)
	if err != nil || e.Blocks() != 3 {
		t.Errorf("%d blocks are allocated, %v", e.Blocks(), err)
	}
	e.Close()
	write(t, v, []byte("guest"), 4*mib+10)
	copy(want[4*mib+10:], "guest")
	snap, base, err := v.Snapshot("s", "b")
	if err != nil {
		t.Fatal(err)
	}
	write(t, v, []byte("again"), 1*mib)
	if !bytes.Equal(content(t, snap), want) {
		t.Error("the snapshot differs")
	}
	e, err = v.Export("vhd", snap)
	if err != nil || e.Blocks() != 1 {
		t.Errorf("the difference has %d blocks, %v", e.Blocks(), err)
	}
	e.Close()
	copy(want[1*mib:], "again")
	if err := snap.Destroy(); err != nil {
		t.Fatal(err)
	}
	if gone, err := s.GC(); err != nil || len(gone) != 1 || gone[0] != base.UUID() {
		t.Errorf("GC: %v, %v", gone, err)
	}
	if !bytes.Equal(content(t, v), want) {
		t.Error("content after coalescing into the image's layer")
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(after, data) {
		t.Error("the image was written")
	}
	odd, err := s.AddImage("odd", path, map[string]string{"type": "raw"})
	if err != nil || odd.Size() != 9*mib+512 || !bytes.Equal(content(t, odd), data) {
		t.Errorf("as a raw file: size %d, %v", odd.Size(), err)
	}
	iso, err := newSR(t, Config{Type: "iso"}).AddImage("iso", path, nil)
	if err != nil || iso.Size() != 9*mib+512 || !iso.Raw() {
		t.Errorf("as an ISO: %v", err)
	}
}

func TestAddImageOfManyTiB(t *testing.T) {
	path := filepath.Join(t.TempDir(), "huge.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(2000 << 30); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("far"), 1999<<30); err != nil {
		t.Fatal(err)
	}
	s := newSR(t, Config{Type: "ext"})
	v, err := s.AddImage("v", path, nil)
	if err != nil {
		t.Fatal(err)
	}
	write(t, v, []byte("out"), 1000<<30)
	got := export(t, v, "vhd", nil)
	if n := 1024000; len(got) != 2048+4*n+2*(512+blockSize)+512 {
		t.Errorf("stream of %d bytes", len(got))
	}
	if n, err := v.WriteImage(path); err != nil || n != pageSize {
		t.Errorf("back to the image: %d bytes, %v", n, err)
	}
}

func TestWriteImage(t *testing.T) {
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(3, 4))
	day1 := make([]byte, 8*mib)
	for i := range day1[:3*mib] {
		day1[i] = byte(rnd.Uint32())
	}
	day2 := bytes.Clone(day1)
	day2[5] ^= 1                          // page 0
	clear(day2[mib : mib+3*pageSize])     // three pages become zero
	copy(day2[7*mib+2*pageSize-1:], "ab") // pages 1 and 2 of the last MiB
	p1, p2 := filepath.Join(dir, "1"), filepath.Join(dir, "2")
	for p, b := range map[string][]byte{p1: day1, p2: day2} {
		if err := os.WriteFile(p, b, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	s := newSR(t, Config{Type: "ext"})
	v, err := s.AddImage("v", p1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.EnableCBT(); err != nil {
		t.Fatal(err)
	}
	snap, _, err := v.Snapshot("s", "b")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := v.WriteImage(p1); n != 0 || err != nil {
		t.Errorf("writing the same: %d bytes, %v", n, err)
	}
	if n, err := v.WriteImage(p2); n != 6*pageSize || err != nil {
		t.Errorf("%d bytes written, want 6 pages; %v", n, err)
	}
	if !bytes.Equal(content(t, v), day2) || !bytes.Equal(content(t, snap), day1) {
		t.Error("content differs")
	}
	bitmap, err := s.ChangedBlocks(snap, v)
	if want := []byte{0x80, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0}; err != nil || !bytes.Equal(bitmap, want) {
		t.Errorf("changed granules %x, %v", bitmap, err)
	}
	e, err := v.Export("vhd", snap)
	if err != nil || e.Blocks() != 2 {
		t.Errorf("%d blocks differ, %v", e.Blocks(), err)
	}
	e.Close()
	if err := os.WriteFile(filepath.Join(dir, "3"), day1[:mib], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteImage(filepath.Join(dir, "3")); err == nil {
		t.Error("an image of another size was written")
	}
}

func TestCopyFrom(t *testing.T) {
	src := create(t, newSR(t, Config{Type: "ext"}), "src", 8*mib, nil)
	write(t, src, []byte("data"), 3*mib)
	write(t, src, make([]byte, 4096), 7*mib)
	thin := create(t, newSR(t, Config{Type: "nfs"}), "thin", 8*mib, nil)
	raw := create(t, newSR(t, Config{Type: "lvm"}), "raw", 8*mib, map[string]string{"type": "raw"})
	for _, v := range []*Volume{thin, raw} {
		if err := v.CopyFrom(src); err != nil || !bytes.Equal(content(t, v), content(t, src)) {
			t.Errorf("%s: %v", v.UUID(), err)
		}
	}
	if n := thin.top.allocated(); n != 1 {
		t.Errorf("%d blocks allocated", n)
	}
	if err := create(t, thin.sr, "small", 4*mib, nil).CopyFrom(src); err == nil {
		t.Error("copied into a smaller volume")
	}
}
