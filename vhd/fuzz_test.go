package vhd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"xenkeep/internal/disk"
)

// heads returns the first 2560 bytes of every sample.
func heads(f *testing.F) [][]byte {
	names, err := filepath.Glob(filepath.Join("testdata", "vhd-tool", "*.zst"))
	if err != nil {
		f.Fatal(err)
	}
	chain, err := filepath.Glob(filepath.Join("testdata", "vhd-tool", "chain", "*.zst"))
	if err != nil {
		f.Fatal(err)
	}
	var out [][]byte
	for _, name := range append(names, chain...) {
		rel, err := filepath.Rel(filepath.Join("testdata", "vhd-tool"), name)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, sample(f, rel[:len(rel)-len(".vhd.zst")])[:2560])
	}
	if len(out) < 15 {
		f.Fatalf("%d seeds", len(out))
	}
	return out
}

func FuzzFooter(f *testing.F) {
	for _, p := range heads(f) {
		f.Add(p[:512])
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		foot, err := DecodeFooter(p)
		if err != nil {
			if !errors.Is(err, ErrNotVHD) && !errors.Is(err, ErrCorrupt) {
				t.Errorf("error of no class: %v", err)
			}
			// Wrong checksums would stop the fuzzer: correct them.
			if len(p) != footerSize {
				return
			}
			p = bytes.Clone(p)
			copy(p, footerCookie)
			fix(p, footerChecksum)
			if foot, err = DecodeFooter(p); err != nil {
				return
			}
		}
		if !bytes.Equal(foot.Encode(), p) {
			t.Errorf("encoded, the footer differs")
		}
	})
}

func FuzzHeader(f *testing.F) {
	for _, p := range heads(f) {
		f.Add(p[512:1536])
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := DecodeHeader(p)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error of no class: %v", err)
			}
			if len(p) != headerSize {
				return
			}
			p = bytes.Clone(p)
			copy(p, headerCookie)
			fix(p, headerChecksum)
			if h, err = DecodeHeader(p); err != nil {
				return
			}
		}
		if !bytes.Equal(h.Encode(), p) {
			t.Errorf("encoded, the header differs")
		}
		_ = h.ParentName()
	})
}

// fix sets the correct checksum.
func fix(p []byte, field int) {
	sum := checksum(p, field)
	p[field], p[field+1], p[field+2], p[field+3] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
}

// FuzzReader reads arbitrary bytes as a stream and as a file. A stream that can
// be read to its end can also be read as a file, with the same content; neither
// allocates more memory than the input justifies.
func FuzzReader(f *testing.F) {
	for _, p := range heads(f) {
		f.Add(p, int64(0), false)
	}
	small := craft{size: 3*minBlockSize + 512, blockSize: minBlockSize, gap: 1,
		blocks:  map[int64][]byte{0: noise(1, minBlockSize), 2: noise(2, minBlockSize), 3: make([]byte, minBlockSize)},
		bitmaps: map[int64][]byte{2: {0xf0, 0x0f, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}}}
	f.Add(small.bytes(), int64(0), false)
	f.Add(small.bytes(), small.size-100, false)
	small.delta = true
	f.Add(small.bytes(), int64(0), true)
	small.order = []int64{3, 0, 2}
	f.Add(small.bytes(), int64(0), false)
	f.Add(append(small.bytes()[:3000], page(ioError)...), int64(0), false)
	f.Add(write(f, Layout{Fixed: true, Size: 5000}, map[int64][]byte{0: noise(7, 5000)}), int64(4999), false)
	f.Add(craft{size: 0, blockSize: BlockSize}.bytes(), int64(0), true)

	buf := make([]byte, disk.BlockSize)
	f.Fuzz(func(t *testing.T, p []byte, size int64, lift bool) {
		if lift && len(p) >= 2048 { // get past the checksums
			p = bytes.Clone(p)
			copy(p, footerCookie)
			fix(p[:512], footerChecksum)
			copy(p[512:], headerCookie)
			fix(p[512:1536], headerChecksum)
			copy(p[len(p)-512:], p[:512])
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fromStream, streamErr := walkStream(p, size, buf)
		fromFile, fileErr := walkFile(p, size, buf)
		runtime.ReadMemStats(&after)
		if got, most := after.TotalAlloc-before.TotalAlloc, uint64(1<<20+64*len(p)); got > most {
			t.Errorf("%d bytes of input, %d bytes allocated", len(p), got)
		}
		var e *EmbeddedError
		for _, err := range []error{streamErr, fileErr} {
			if err != nil && !errors.Is(err, ErrNotVHD) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrOrder) && !errors.As(err, &e) {
				t.Errorf("error of no class: %v", err)
			}
		}
		if streamErr == nil && (fileErr != nil || fromStream != fromFile) {
			t.Errorf("stream: %+v; file: %+v, %v", fromStream, fromFile, fileErr)
		}
	})
}

type walked struct {
	size    int64
	extents int
	bytes   int64
	sum     uint64
}

func walkStream(p []byte, size int64, buf []byte) (walked, error) {
	r, err := NewReader(bytes.NewReader(p), Options{Size: size})
	if err != nil {
		return walked{}, err
	}
	return walk(r, buf)
}

func walkFile(p []byte, size int64, buf []byte) (walked, error) {
	f, err := OpenFile(bytes.NewReader(p), int64(len(p)), Options{Size: size})
	if err != nil {
		return walked{}, err
	}
	for off := range int64(3) {
		if _, err := f.ReadAt(buf[:4096], off*f.Size()/3); err != nil && err != io.EOF {
			return walked{}, err
		}
	}
	return walk(f.Reader(), buf)
}

func walk(r *Reader, buf []byte) (walked, error) {
	w := walked{size: r.Size()}
	for {
		e, err := r.Next(context.Background(), buf)
		if err == io.EOF {
			return w, nil
		}
		if err != nil {
			return w, err
		}
		if e.Length <= 0 || e.End() > w.size {
			return w, errors.New("extent out of bounds")
		}
		w.extents++
		w.bytes += e.Length
		w.sum = w.sum*31 + uint64(e.Offset)
		for _, c := range buf[:e.Length] {
			w.sum = w.sum*31 + uint64(c)
		}
	}
}

func FuzzEmbedded(f *testing.F) {
	recorded, err := os.ReadFile(filepath.Join("testdata", "embedded-500.txt"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(recorded)
	f.Add([]byte(page(ioError)))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n" + page("VDI_IN_USE: [ a; b ]")))
	f.Add([]byte("HTTP/1.0 404 Not Found\r\n\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, whole := range []bool{false, true} {
			if e := findEmbedded(p, whole); e != nil && (e.Status < 400 || e.Status > 599 || e.Text == "" || e.Error() == "") {
				t.Errorf("%+v", e)
			}
		}
	})
}
