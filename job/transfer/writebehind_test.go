package transfer

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// A file that is written behind has the content that was written: dense, sparse, in
// odd pieces, and as a stream, with more data than are ever on their way to the disk.
func TestWriteBehindFile(t *testing.T) {
	const size = (behindSpans+4)*behindSpan + 4097
	want := make([]byte, size)
	for _, stream := range []bool{false, true} {
		f, err := os.Create(filepath.Join(t.TempDir(), "file"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		clear(want)
		b := &WriteBehindFile{File: f}
		r := rand.New(rand.NewPCG(1, 2))
		for at := 0; at < size; {
			n := min(1+r.IntN(3<<20), size-at)
			p := want[at : at+n]
			if stream || r.IntN(4) > 0 { // otherwise a hole
				for i := 0; i < n; i += 512 {
					p[i] = byte(r.Uint32())
				}
				if stream {
					_, err = b.Write(p)
				} else {
					err = b.WriteAt(t.Context(), p, int64(at))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			at += n
		}
		if len(b.under) != behindSpans && stream {
			t.Errorf("%d spans are under way", len(b.under))
		}
		got, err := os.ReadFile(f.Name())
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("stream %v: the file has other content (%v)", stream, err)
		}
		// An I/O error is returned, because fsync will not report it again.
		f.Close()
		if err := b.wrote(0, behindSpan); err == nil {
			t.Error("an error of the disk went unseen")
		}
	}
}

// The kernel orders small writes that are far apart: the program waits for none of
// them.
func TestWriteBehindFileSparse(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := &WriteBehindFile{File: f}
	for i := range int64(100) {
		if err := b.WriteAt(t.Context(), make([]byte, 4096), i*2*behindSpan); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.under) > 0 {
		t.Errorf("%d spans are under way for 400 KiB", len(b.under))
	}
}
