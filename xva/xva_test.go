package xva

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"

	"github.com/klauspost/compress/zstd"
)

// archive writes disks as an archive.
func archive(t testing.TB, disks ...*disktest.Mem) []byte {
	t.Helper()
	var plain []PlainDisk
	for i, m := range disks {
		plain = append(plain, PlainDisk{UUID: fmt.Sprint("disk", i), Name: "a & <b>\r\x01", Size: m.Size()})
	}
	ova := Plain("vm", "", plain)
	var out bytes.Buffer
	w, err := NewWriter(&out, ova)
	if err != nil {
		t.Fatal(err)
	}
	order, err := ova.Disks()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range order {
		d, err := w.Disk(o.ID)
		if err != nil {
			t.Fatal(err)
		}
		src, buf := disks[o.VDI.Get("uuid").Text[4]-'0'].Source(), make([]byte, disk.BlockSize)
		for {
			e, err := src.Next(context.Background(), buf)
			if err == io.EOF {
				break
			}
			if err := d.WriteAt(context.Background(), buf[:e.Length], e.Offset); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// read reads all disks of an archive.
func read(b []byte) (map[string]*disktest.Mem, error) {
	r, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out, buf := map[string]*disktest.Mem{}, make([]byte, disk.BlockSize)
	for {
		d, err := r.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		m := disktest.NewMem(d.Size())
		out[d.Disk().VDI.Get("uuid").Text] = m
		last := int64(0)
		for {
			e, err := d.Next(context.Background(), buf)
			if err == io.EOF {
				break
			}
			if err != nil {
				return out, err
			}
			if e.Offset < last || e.Length <= 0 || e.Offset/disk.BlockSize != (e.End()-1)/disk.BlockSize || e.End() > d.Size() {
				return out, fmt.Errorf("extent %+v behind %d of %d", e, last, d.Size())
			}
			last = e.End()
			if err := m.WriteAt(context.Background(), buf[:e.Length], e.Offset); err != nil {
				return out, err
			}
		}
	}
}

func equal(t *testing.T, got, want *disktest.Mem) {
	t.Helper()
	if got == nil || got.Size() != want.Size() {
		t.Fatalf("disk %v", got)
	}
	a, b := make([]byte, want.Size()), make([]byte, want.Size())
	_, _ = got.ReadAt(a, 0)
	_, _ = want.ReadAt(b, 0)
	if !bytes.Equal(a, b) {
		t.Error("content differs")
	}
}

func scattered(t testing.TB, size int64, seed byte) *disktest.Mem {
	m := disktest.NewMem(size)
	random, data := rand.New(rand.NewPCG(uint64(seed), 1)), rand.NewChaCha8([32]byte{seed})
	for range 4 {
		p := make([]byte, 1+random.IntN(300<<10))
		_, _ = data.Read(p)
		off := random.Int64N(size)
		if err := m.WriteAt(context.Background(), p[:min(int64(len(p)), size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestRoundTrip(t *testing.T) {
	for _, sizes := range [][]int64{
		{16 << 20, 8 << 20}, {5<<20 + 512, 1 << 20, 3 << 20}, {512 << 10, 12 << 20}, {1 << 20}, nil,
	} {
		var disks []*disktest.Mem
		for i, size := range sizes {
			disks = append(disks, scattered(t, size, byte(i)))
		}
		plain := archive(t, disks...)
		var gz, zs bytes.Buffer
		g := gzip.NewWriter(&gz)
		_, _ = g.Write(plain)
		_ = g.Close()
		z, _ := zstd.NewWriter(&zs)
		_, _ = z.Write(plain)
		_ = z.Close()
		for _, b := range [][]byte{plain, gz.Bytes(), zs.Bytes()} {
			got, err := read(b)
			if err != nil || len(got) != len(disks) {
				t.Fatal(got, err)
			}
			for i, m := range disks {
				equal(t, got[fmt.Sprint("disk", i)], m)
			}
		}
	}
}

// tarOf returns an archive of a disk of size bytes (Ref:101) with these blocks.
func tarOf(t testing.TB, size int64, blocks ...any) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	put := func(name string, data []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o400}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(data)
	}
	put("ova.xml", Plain("vm", "", []PlainDisk{{UUID: "disk0", Size: size}}).XML())
	for i := 0; i < len(blocks); i += 2 {
		name, data := blocks[i].(string), blocks[i+1].([]byte)
		put("Ref:101/"+name, data)
		if i%4 == 0 {
			put("Ref:101/"+name+".checksum", []byte(sumSHA1(data)))
		} else {
			put("Ref:101/"+name+".xxhash", []byte(sumXX(data)))
		}
	}
	_ = w.Close()
	return out.Bytes()
}

// The number is a counter; an empty block has a number; a gap is as long as the
// archive's first block.
func TestCounters(t *testing.T) {
	mib := func(c byte) []byte { return bytes.Repeat([]byte{c}, 1<<20) }
	want := disktest.NewMem(8 << 20)
	for at, c := range map[int64]byte{0: 1, 5: 2, 6: 3, 7: 4} {
		_ = want.WriteAt(context.Background(), mib(c), at<<20)
	}
	got, err := read(tarOf(t, 8<<20, "00000000", mib(1), "00000003", []byte{}, "00000006", mib(2), "00000007", []byte{}, "00000008", mib(3), "00000009", mib(4)))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got["disk0"], want)
	small := disktest.NewMem(1000)
	_ = small.WriteAt(context.Background(), bytes.Repeat([]byte{1}, 100), 0)
	_ = small.WriteAt(context.Background(), bytes.Repeat([]byte{2}, 700), 300)
	if got, err = read(tarOf(t, 1000, "00000000", bytes.Repeat([]byte{1}, 100), "00000003", bytes.Repeat([]byte{2}, 700))); err != nil {
		t.Fatal(err)
	}
	equal(t, got["disk0"], small)
}

func TestBadArchives(t *testing.T) {
	mib := make([]byte, 1<<20)
	good := tarOf(t, 3<<20, "00000000", mib, "00000002", mib)
	bad := bytes.Clone(good)
	bad[bytes.Index(bad, []byte("Ref:101/00000002"))+600] ^= 1
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"empty":          {nil, ErrNotXVA},
		"no archive":     {bytes.Repeat([]byte("x"), 2000), ErrNotXVA},
		"zstd of junk":   {[]byte("\x28\xb5\x2f\xfdjunk"), ErrNotXVA},
		"gzip of junk":   {[]byte("\x1f\x8bjunk"), ErrNotXVA},
		"cut":            {good[:len(good)-700<<10], ErrTruncated},
		"without an end": {tarOf(t, 4<<20, "00000000", mib, "00000002", mib), ErrTruncated},
		"flipped":        {bad, ErrCorrupt},
		"backwards":      {tarOf(t, 3<<20, "00000001", mib, "00000000", mib), ErrCorrupt},
		"too long":       {tarOf(t, 3<<20, "00000000", mib, "00000009", mib), ErrCorrupt},
		"goes on":        {tarOf(t, 1<<20, "00000000", mib, "00000001", mib), ErrCorrupt},
		"no number":      {tarOf(t, 1<<20, "zero", mib), ErrCorrupt},
	} {
		if _, err := read(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestValues(t *testing.T) {
	for _, text := range []string{
		"<value>a &amp; b</value>", "<value><boolean>1</boolean></value>", "<value><double>1.5</double></value>", "<value></value>",
		"<value><dateTime.iso8601>20260821T10:11:12Z</dateTime.iso8601></value>", "<value><array><data></data></array></value>",
		"<value><struct><member><name>n</name><value><array><data><value>1</value><value> x </value></data></array></value></member></struct></value>",
	} {
		v, err := ParseXML(strings.NewReader(text))
		if err != nil || string(v.AppendXML(nil)) != text {
			t.Errorf("%s: %s, %v", text, v.AppendXML(nil), err)
		}
	}
	v, err := FromJSON([]byte(`{"a":1,"b":1.0,"c":true,"d":"20260821T10:11:12Z","e":["x"],"f":{}}`))
	want := "<value><struct><member><name>a</name><value>1</value></member><member><name>b</name><value><double>1.0</double></value></member>" +
		"<member><name>c</name><value><boolean>1</boolean></value></member><member><name>d</name><value><dateTime.iso8601>20260821T10:11:12Z</dateTime.iso8601></value></member>" +
		"<member><name>e</name><value><array><data><value>x</value></data></array></value></member><member><name>f</name><value><struct></struct></value></member></struct></value>"
	if got := string(v.AppendXML(nil)); err != nil || got != want {
		t.Errorf("%s, %v", got, err)
	}
	for _, text := range []string{"", "<x/>", "<value><boolean>yes</boolean></value>", "<value><struct><member><name>n</name></member></struct></value>", "<value><odd/></value>", strings.Repeat("<value><array><data>", 100)} {
		if _, err := ParseXML(strings.NewReader(text)); err == nil {
			t.Errorf("%s is no error", text)
		}
	}
}

// FuzzReader: for any input, reading ends, and it returns only extents within
// the disk.
func FuzzReader(f *testing.F) {
	f.Add(archive(f, scattered(f, 3000, 1)))
	f.Add(tarOf(f, 1000, "00000000", make([]byte, 100), "00000003", make([]byte, 700)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 8<<20 {
			return
		}
		if _, err := read(b); err != nil && strings.HasPrefix(err.Error(), "extent") {
			t.Fatal(err)
		}
	})
}

// FuzzValue: a parsed value is written in a form that parses to the same value.
func FuzzValue(f *testing.F) {
	f.Add([]byte("<value><struct><member><name>n</name><value>x &lt; y</value></member></struct></value>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ParseXML(bytes.NewReader(b))
		if err != nil {
			return
		}
		first := v.AppendXML(nil)
		again, err := ParseXML(bytes.NewReader(first))
		if err != nil || !bytes.Equal(again.AppendXML(nil), first) {
			t.Fatalf("%s: %v", first, err)
		}
	})
}
