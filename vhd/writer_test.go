package vhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"testing"
	"time"

	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
)

var (
	sizes = []int64{0, 1, 511, 512, 513, 4095, 4096, 4097, BlockSize - 1, BlockSize, BlockSize + 1, BlockSize + 512,
		3*BlockSize - 512, 127 << 20, 1<<30 + 4096, 32 << 30, 1 << 40, MaxSize - 512, MaxSize}
	day = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
)

// TestSizes writes and reads sparse disks of all sizes: the first, some inner
// and the last block, with each profile.
func TestSizes(t *testing.T) {
	for _, size := range sizes {
		for _, profile := range []Profile{ForXenServer, ForFile, ForXAPI} {
			for _, parent := range []*Parent{nil, {ID: UUID{9}, Time: 5, Path: "/sr/base.vhd"}} {
				n := disk.Blocks(size)
				blocks := map[int64][]byte{}
				for _, b := range []int64{0, n / 3, n - 1} {
					if b >= 0 && b < n {
						blocks[b] = noise(uint64(b)+1, min(BlockSize, size-b*BlockSize))
					}
				}
				l := Layout{
					Profile: profile, Size: size, ID: UUID{1, 2, 3}, Time: Time(day), Parent: parent,
					Present: func(b int64) bool { return blocks[b] != nil },
				}
				p := write(t, l, blocks)
				if err := checkRules(p, Time(day), profile == ForFile); err != nil {
					t.Errorf("size %d, profile %d, parent %v: %v", size, profile, parent, err)
				}
				r, err := NewReader(bytes.NewReader(p), Options{Size: size})
				if err != nil {
					t.Fatalf("size %d, profile %d: %v", size, profile, err)
				}
				m := disktest.NewMem(r.Size())
				extents := drainTo(t, r, m)
				if len(extents) != len(blocks) || r.Size() != size {
					t.Fatalf("size %d, profile %d: %d blocks, size %d", size, profile, len(extents), r.Size())
				}
				for _, e := range extents {
					got := make([]byte, e.Length)
					if _, err := m.ReadAt(got, e.Offset); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, blocks[e.Offset/BlockSize]) {
						t.Errorf("size %d, profile %d: extent %+v differs", size, profile, e)
					}
				}
				f, err := OpenFile(bytes.NewReader(p), int64(len(p)), Options{Size: size})
				if err != nil {
					t.Fatalf("size %d, profile %d as a file: %v", size, profile, err)
				}
				if got := drainTo(t, f.Reader(), disktest.NewMem(size)); len(got) != len(blocks) {
					t.Errorf("size %d, profile %d as a file: %d blocks", size, profile, len(got))
				}
			}
		}
	}
}

func TestTooLarge(t *testing.T) {
	for _, size := range []int64{MaxSize + 1, 3 << 40} {
		if _, err := NewWriter(io.Discard, Layout{Size: size}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d: %v", size, err)
		}
	}
	for _, l := range []Layout{
		{Size: -1}, {Profile: 7}, {Size: 512, Parent: &Parent{}}, {Size: 512, Fixed: true, Parent: &Parent{Path: "x"}},
		{Size: 512, Profile: ForXAPI, Parent: &Parent{Path: string(make([]byte, 300))}},
	} {
		if l.Check() == nil {
			t.Errorf("%+v is taken", l)
		}
	}
}

// checkRules makes the checks of XenServer's vhd-util check (blktap
// vhd/lib/vhd-util-check.c) on a file that was not written after now; on a
// differencing file only if locators is set, because vhd-util check fails for
// every stream that XenServer itself creates. In addition, every byte must
// belong to a known part.
func checkRules(p []byte, now uint32, locators bool) error {
	be := binary.BigEndian
	foot := p[len(p)-512:]
	if !bytes.Equal(p[:512], foot) {
		return errors.New("primary and backup footers do not match")
	}
	f, err := DecodeFooter(foot)
	if err != nil {
		return err
	}
	switch {
	case f.Features != 2:
		return fmt.Errorf("features %x", f.Features)
	case f.Time > now:
		return fmt.Errorf("creation time in the future")
	case f.Geometry.Bytes() > int64(f.CurrentSize):
		return fmt.Errorf("geometry %v too large", f.Geometry)
	case f.SavedState != 0, f.Reserved != [427]byte{}:
		return errors.New("reserved bits")
	case f.OriginalSize != f.CurrentSize, f.CurrentSize%512 != 0:
		return fmt.Errorf("sizes %d and %d", f.OriginalSize, f.CurrentSize)
	}
	h, err := DecodeHeader(p[512:1536])
	if err != nil {
		return err
	}
	end := int64(h.TableOffset) + roundUp(4*int64(h.Entries))
	switch {
	case h.DataOffset != noOffset, h.TableOffset%512 != 0, h.Reserved != 0, h.Tail != [256]byte{}, h.BlockSize != BlockSize:
		return fmt.Errorf("header %+v", h)
	case int64(h.Entries) != disk.Blocks(int64(f.CurrentSize)):
		return fmt.Errorf("%d entries", h.Entries)
	case f.Type == TypeDynamic && (h.Name != [512]byte{} || h.Locators != [8]Locator{} || h.ParentID != UUID{} || h.ParentTime != 0):
		return errors.New("a parent without being differencing")
	case f.Type == TypeDifferencing && h.ParentTime > now:
		return errors.New("parent time in the future")
	}
	seen := map[[4]byte]bool{}
	for _, loc := range h.Locators {
		if loc == (Locator{}) || !locators {
			continue
		}
		if seen[loc.Code] || loc.Space%512 != 0 || loc.Length == 0 || loc.Length > loc.Space || loc.Reserved != 0 ||
			loc.Offset < 1536 || loc.Offset+uint64(loc.Space) > h.TableOffset {
			return fmt.Errorf("locator %+v", loc)
		}
		seen[loc.Code] = true
		data := p[loc.Offset:][:loc.Length]
		name := string(data)
		switch string(loc.Code[:]) {
		case "MacX":
			if !bytes.HasPrefix(data, []byte("file://")) {
				return fmt.Errorf("locator %q", data)
			}
		case "W2ku", "W2ru":
			name = ""
			for i := 0; i < len(data); i += 2 {
				c := rune(binary.LittleEndian.Uint16(data[i:]))
				if c == '\\' {
					c = '/'
				}
				name += string(c)
			}
		default:
			return fmt.Errorf("locator %+v", loc)
		}
		if path.Base(name) != h.ParentName() {
			return fmt.Errorf("locator %q does not match header name %q", name, h.ParentName())
		}
	}
	if locators && f.Type == TypeDifferencing && len(seen) != 3 {
		return errors.New("locators missing")
	}
	for i := range (len(p) - 512 - int(h.TableOffset)) / 4 {
		if int64(h.TableOffset)+int64(4*i) >= int64(h.TableOffset)+roundUp(4*int64(h.Entries)) {
			break
		}
		s := be.Uint32(p[int(h.TableOffset)+4*i:])
		if s == uint32(Absent) {
			continue
		}
		if int64(s)*512 != end || i >= int(h.Entries) {
			return fmt.Errorf("block %d at sector %d, want byte %d", i, s, end)
		}
		end += blockBytes
	}
	if end != int64(len(p))-512 {
		return fmt.Errorf("footer at %d, blocks end at %d", len(p)-512, end)
	}
	return nil
}

func TestGeometry(t *testing.T) {
	for _, c := range []struct {
		sectors int64
		want    Geometry
	}{
		{0, Geometry{0, 4, 17}},
		{67, Geometry{0, 4, 17}},
		{68, Geometry{1, 4, 17}},
		{20480, Geometry{0x12d, 4, 0x11}},     // 10 MiB, as in vhd-tool's streams
		{8388608, Geometry{0x2082, 16, 0x3f}}, // 4 GiB, likewise
		{40960, Geometry{0x25a, 4, 0x11}},     // 20 MiB, blktap
		{1 << 40, Geometry{65535, 16, 255}},   // beyond the limit of geometries
		{65535 * 16 * 255, Geometry{65535, 16, 255}},
	} {
		if got := GeometryOf(c.sectors * 512); got != c.want {
			t.Errorf("%d sectors: %+v, want %+v", c.sectors, got, c.want)
		}
	}
	for size := int64(0); size <= MaxSize; size += 1<<size%31 + size/7 + 511 {
		if g := GeometryOf(size); g.Bytes() > size {
			t.Fatalf("%d bytes: %+v is more", size, g)
		}
	}
}

func TestTime(t *testing.T) {
	for _, c := range []struct {
		t    time.Time
		want uint32
	}{
		{time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), 0},
		{time.Date(2000, 1, 2, 0, 0, 0, 0, time.UTC), 86400},
		{time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC), 0},
		{time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC), 1<<32 - 1},
	} {
		if got := Time(c.t); got != c.want {
			t.Errorf("%v: %d", c.t, got)
		}
	}
}

// TestTailBits: no bit is set after the disk's end, because XenServer writes
// every sector whose bit is set, wherever it is.
func TestTailBits(t *testing.T) {
	for _, left := range []int64{1, 512, 513, 4096, 4097, 8 * 512, 9 * 512, BlockSize - 512, BlockSize} {
		l := Layout{Size: BlockSize + left}
		bm := l.BlockHead(1)
		sectors := (left + 511) / 512
		for s := range int64(blockSectors) {
			if set := bm[s/8]&(0x80>>(s%8)) != 0; set != (s < sectors) {
				t.Fatalf("%d bytes in the last block: sector %d is %v", left, s, set)
			}
		}
		if !bytes.Equal(l.BlockHead(0), ones) {
			t.Errorf("the first block's bitmap is %x", l.BlockHead(0))
		}
		l.Profile = ForXAPI
		if !bytes.Equal(l.BlockHead(1), ones) {
			t.Errorf("as XenServer sends it: %x", l.BlockHead(1))
		}
	}
}

// TestWriterGaps writes pieces; the missing parts of present blocks are zeros.
func TestWriterGaps(t *testing.T) {
	const size = 7*BlockSize + 1000
	l := Layout{Size: size, Present: func(b int64) bool { return b != 3 }}
	raw := make([]byte, size)
	var out bytes.Buffer
	w, err := NewWriter(&out, l)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range [][2]int64{{0, 5}, {5, 10}, {4096, 1}, {BlockSize - 1, 1}, {BlockSize, 512}, {4*BlockSize + 77, 3 * 4096}, {7*BlockSize + 999, 1}} {
		p := noise(uint64(i), e[1])
		copy(raw[e[0]:], p)
		if err := w.WriteAt(context.Background(), p, e[0]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if int64(out.Len()) != w.ContentLength() {
		t.Errorf("%d bytes, announced %d", out.Len(), w.ContentLength())
	}
	m, err := readAll(bytes.NewReader(out.Bytes()), Options{Size: size})
	if err != nil || !bytes.Equal(contents(t, m, size), raw) {
		t.Errorf("read again: %v", err)
	}
	if err := w.Close(); err == nil {
		t.Error("closed twice")
	}
}

func TestWriterRefuses(t *testing.T) {
	ctx := context.Background()
	l := Layout{Size: 4*BlockSize + 100, Present: func(b int64) bool { return b != 1 }}
	p := make([]byte, 600)
	for _, c := range []struct {
		name  string
		first int64
		off   int64
	}{
		{"negative", 0, -1},
		{"behind the end", 0, 4 * BlockSize},
		{"across an edge", 0, 3*BlockSize - 1},
		{"absent", 0, BlockSize},
		{"backwards", 4096, 0},
		{"again", 4096, 4096 + 599},
		{"a block back", 2 * BlockSize, 0},
	} {
		w, err := NewWriter(io.Discard, l)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteAt(ctx, p, c.first); err != nil {
			t.Fatal(err)
		}
		first := w.WriteAt(ctx, p, c.off)
		if first == nil {
			t.Errorf("%s is taken", c.name)
		}
		if err := w.WriteAt(ctx, p, 3*BlockSize); err != first {
			t.Errorf("%s: then %v", c.name, err)
		}
		if err := w.Close(); err != first {
			t.Errorf("%s: closed: %v", c.name, err)
		}
	}
	// A gap in a differencing disk would hide the parent's data.
	for _, from := range []int64{0, 512} {
		w, err := NewWriter(io.Discard, Layout{Size: 4 * BlockSize, Parent: &Parent{Path: "x"}})
		if err != nil {
			t.Fatal(err)
		}
		err = w.WriteAt(ctx, p, from)
		if err == nil {
			err = w.Close()
		}
		if err == nil {
			t.Error("a gap in a differencing disk is taken")
		}
	}
}

type shortWriter struct{ left int }

func (w *shortWriter) Write(p []byte) (int, error) {
	n := min(w.left, len(p))
	w.left -= n
	if n < len(p) {
		return n, io.ErrClosedPipe
	}
	return n, nil
}

// TestWriterFails: whichever byte is the last that can be written, the error is
// returned, and again by later calls.
func TestWriterFails(t *testing.T) {
	stream, raw := streamOf(t, noiseFill())
	for _, at := range edges(int64(len(stream)) - 1) {
		l := Layout{Profile: ForXAPI, Size: int64(len(raw)), Present: func(b int64) bool { return b == 0 || b == 2 || b == 3 }}
		w, err := NewWriter(&shortWriter{int(at)}, l)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range []int64{0, 2} {
			_ = w.WriteAt(context.Background(), raw[b*BlockSize:(b+1)*BlockSize], b*BlockSize)
		}
		if err := w.Close(); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("failing at %d: %v", at, err)
		}
	}
}

func TestNewUUID(t *testing.T) {
	u, err := NewUUID(bytes.NewReader(bytes.Repeat([]byte{0xff}, 16)))
	if want := "ffffffff-ffff-4fff-bfff-ffffffffffff"; err != nil || u.String() != want {
		t.Errorf("%v, %v", u, err)
	}
	if _, err := NewUUID(bytes.NewReader(make([]byte, 15))); err == nil {
		t.Error("15 bytes are taken")
	}
}
