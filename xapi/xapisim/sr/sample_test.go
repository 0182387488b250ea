package sr

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"xenkeep/vhd"
)

// samples contains streams written by XenServer's own vhd-tool, and the chain
// of files from which they were made; its README describes how the chain was
// made.
const samples = "../../../vhd/testdata/vhd-tool"

func sample(t *testing.T, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(samples, name+".vhd.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newSR(t testing.TB, cfg Config) *SR {
	t.Helper()
	cfg.Dir = t.TempDir()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func create(t testing.TB, s *SR, uuid string, size int64, cfg map[string]string) *Volume {
	t.Helper()
	v, err := s.Create(uuid, size, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func write(t testing.TB, v *Volume, p []byte, off int64) {
	t.Helper()
	if _, err := v.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func content(t testing.TB, v *Volume) []byte {
	t.Helper()
	b := make([]byte, v.Size())
	if _, err := v.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func export(t testing.TB, v *Volume, format string, base *Volume) []byte {
	t.Helper()
	e, err := v.Export(format, base)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var b bytes.Buffer
	n, err := e.WriteTo(&b)
	if err != nil {
		t.Fatal(err)
	}
	if n != e.Length() || n != int64(b.Len()) {
		t.Fatalf("sent %d bytes, said %d, announced %d", b.Len(), n, e.Length())
	}
	return b.Bytes()
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// sampleChain rebuilds the samples' chain with guest writes and snapshots.
type sampleChain struct{ root, s1, s2, b1, g *Volume }

func buildSampleChain(t *testing.T, s *SR) sampleChain {
	const mib = 1 << 20
	root := sample(t, "full")[2048+512+512:][:4096] // the random bytes of block 0
	must := func(fork, base *Volume, err error) (*Volume, *Volume) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return fork, base
	}
	var c sampleChain
	live := create(t, s, "live", 10*mib, nil)
	write(t, live, root, 0)
	write(t, live, bytes.Repeat([]byte("R"), 512), 3*mib)
	c.b1, c.root = must(live.Clone("b1", "root"))
	write(t, c.b1, bytes.Repeat([]byte("B1"), 256), 4*mib)
	write(t, live, bytes.Repeat([]byte("S1"), 512), 6*mib)
	write(t, live, bytes.Repeat([]byte("S1"), 256), 1024)
	_, c.s1 = must(live.Snapshot("x1", "s1"))
	write(t, live, make([]byte, 4096), 8*mib)
	_, c.s2 = must(live.Snapshot("x2", "s2"))
	if err := live.Resize(20 * mib); err != nil {
		t.Fatal(err)
	}
	write(t, live, bytes.Repeat([]byte("GG"), 256), 18*mib)
	c.g = live
	return c
}

func TestExportsAreThoseOfVHDTool(t *testing.T) {
	c := buildSampleChain(t, newSR(t, Config{Type: "ext", UUID: "5e"}))
	for _, x := range []struct {
		v    *Volume
		want string
	}{
		{c.root, "68963b25950e3b2065660cd45ce15555386b2035eb5dfb5cbef14820f64fc114"},
		{c.s1, "c0acea4ae1e6119c7be20104347cf4ba37dd599f6d673f3226e290cf8dc3537b"},
		{c.s2, "c0acea4ae1e6119c7be20104347cf4ba37dd599f6d673f3226e290cf8dc3537b"},
		{c.b1, "1757d43e16d553b37bf84d10b9518a695d1b2f397a2848a27c22168ce59c7f1b"},
		{c.g, "1745ffa55e491f2cc5ae9ac584f4aaba7640a6432bf5bb3486ae1f80ca1f8068"},
	} {
		if got := sum(content(t, x.v)); got != x.want {
			t.Errorf("content of %s: %s, want %s", x.v.UUID(), got, x.want)
		}
	}
	for _, x := range []struct {
		name    string
		v, base *Volume
	}{
		{"full", c.root, nil},
		{"delta", c.s2, c.root},
		{"delta-branch", c.s1, c.b1},
		{"delta-zeroblock", c.s2, c.s1},
		{"delta-empty", c.s2, c.s2},
		{"delta-reverse", c.root, c.s2},
		{"delta-grown", c.g, c.s2},
	} {
		t.Run(x.name, func(t *testing.T) {
			compareStreams(t, export(t, x.v, "vhd", x.base), sample(t, x.name), x.base)
		})
	}
	t.Run("full-rawmode", func(t *testing.T) {
		s := newSR(t, Config{Type: "ext", ZeroScan: true})
		v := create(t, s, "raw", 10<<20, map[string]string{"type": "raw"})
		write(t, v, content(t, c.root), 0) // zeros that are written, and not sent
		compareStreams(t, export(t, v, "vhd", nil), sample(t, "full-rawmode"), nil)
	})
	t.Run("full-nbdhybrid", func(t *testing.T) {
		s := newSR(t, Config{Type: "nfs", NBDHybrid: true})
		c := buildSampleChain(t, s)
		compareStreams(t, export(t, c.root, "vhd", nil), sample(t, "full-nbdhybrid"), nil)
		// A difference is not built from extents.
		compareStreams(t, export(t, c.s2, "vhd", c.root), sample(t, "delta"), c.root)
	})
	t.Run("full-sparse", func(t *testing.T) {
		want := sample(t, "full-sparse")
		s := newSR(t, Config{Type: "ext"})
		v := create(t, s, "sparse", 4<<30, nil)
		for b := range int64(2048) {
			if entry := binary.BigEndian.Uint32(want[2048+4*b:]); entry != absent {
				write(t, v, want[int64(entry)*512+512:][:blockSize], b*blockSize)
			}
		}
		compareStreams(t, export(t, v, "vhd", nil), want, nil)
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(v, 0, v.Size())); err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != "77512f4ff877966f5d8a029dc16a2a03cce1744e250ce66807b7909a78483ef3" {
			t.Errorf("content %s", got)
		}
	})
}

// compareStreams expects two streams to be equal except for unique ids, times,
// the parent's name and the checksums that cover them. It checks those
// separately.
func compareStreams(t *testing.T, got, want []byte, base *Volume) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("length %d, want %d", len(got), len(want))
	}
	foot, err := vhd.DecodeFooter(got[:512])
	if err != nil {
		t.Fatal(err)
	}
	if foot.ID == (vhd.UUID{}) || foot.ID[6]>>4 != 4 {
		t.Errorf("unique id %v is no random one", foot.ID)
	}
	head, err := vhd.DecodeHeader(got[512:1536])
	if err != nil {
		t.Fatal(err)
	}
	if base != nil {
		if head.ParentID != base.top.footer {
			t.Errorf("parent id %v, want %v", head.ParentID, base.top.footer)
		}
		if want := vhd.Time(base.top.modified()); head.ParentTime != want {
			t.Errorf("parent time %d, want %d", head.ParentTime, want)
		}
		if head.ParentName() != base.Path() {
			t.Errorf("parent name %q, want %q", head.ParentName(), base.Path())
		}
		if l := head.Locators[0]; string(l.Code[:]) != "MacX" || l.Space != 1 || l.Length != uint32(len("file://"+base.Path())) || l.Offset != 1536 {
			t.Errorf("locator %+v", l)
		}
	}
	mask := func(b []byte) []byte {
		b = bytes.Clone(b)
		for _, at := range []int{0, len(b) - 512} {
			clear(b[at+64 : at+84]) // checksum, unique id
		}
		clear(b[512+36 : 512+60])        // checksum, parent's id and time
		clear(b[512+64 : 512+576])       // parent's name
		clear(b[512+576+8 : 512+576+12]) // length of its locator
		return b
	}
	if !bytes.Equal(got[:512], got[len(got)-512:]) {
		t.Error("trailing footer differs from the first")
	}
	g, w := mask(got), mask(want)
	for i := range g {
		if g[i] != w[i] {
			t.Fatalf("byte %d is %#02x, want %#02x", i, g[i], w[i])
		}
	}
}

// The files of the samples' chain were written by blktap's libvhd.
func TestAddImageReadsForeignVHD(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.vhd")
	b := sample(t, "chain/root")
	if err := os.WriteFile(path, b, 0o400); err != nil {
		t.Fatal(err)
	}
	s := newSR(t, Config{Type: "ext"})
	v, err := s.AddImage("root", path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := sum(content(t, v)); got != "68963b25950e3b2065660cd45ce15555386b2035eb5dfb5cbef14820f64fc114" {
		t.Errorf("content %s", got)
	}
	compareStreams(t, export(t, v, "vhd", nil), sample(t, "full"), nil)
	child := filepath.Join(t.TempDir(), "s1.vhd")
	if err := os.WriteFile(child, sample(t, "chain/s1"), 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddImage("child", child, nil); err == nil {
		t.Error("a differencing VHD was taken for the bottom of a chain")
	}
}
